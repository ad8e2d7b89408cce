"""The package is whole, light to import, and its rooms import one way; the repository stays readable."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seodang.data.versions import KNOWN_TO_WORK

ROOT = Path(__file__).parents[1]
ROOMS = ["data", "infer", "train", "recipes"]  # each imports itself and those before it
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]  # in the order in which they may import
BUILDING = ("build.py", "build_everyday.py", "everyday.yaml", "names_english.txt", "names_korean.txt", "translations.tsv")
NOT_SHIPPED = {*(f"data/samples/{name}" for name in BUILDING), "recipes/deploy/Dockerfile", "recipes/deploy/seodang.service"}


def files(folder, pattern="*"):
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file() and not path.name.endswith(".pyc"))
    return sorted(path for path in found if "__pycache__" not in path.parts)


def modules():
    """Every module of the package: the root's own and those of the rooms."""
    return [*sorted(ROOT.glob("*.py")), *(path for room in ROOMS for path in files(room, "*.py") if "samples" not in path.parts)]


def written():
    """Every text file that people wrote in this repository, sample data aside."""
    own = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".coverage"]
    inner = [path for folder in (*ROOMS, "tests", "benchmarks", ".ci", "docs") if (ROOT / folder).is_dir() for path in files(folder)]
    kinds = {".py", ".sh", ".md", ".toml", ".yaml", ".yml", ".ini", ".html", ".jinja", ".css", ".js", ".txt", ""}
    return [path for path in own + inner if path.suffix in kinds and not {".pytest_cache", ".hypothesis"} & set(path.parts)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names inside a wheel built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, copy)
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    [path] = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_the_wheel_holds_every_module(wheel):
    assert len(modules()) > 10
    missing = [path for path in modules() if f"seodang/{path.relative_to(ROOT)}" not in wheel]
    assert not missing, f"not in the wheel: {missing}; add the folder to `packages` in pyproject.toml"


def test_the_wheel_holds_every_file_that_a_module_reads(wheel):
    wanted = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in files(room)} - NOT_SHIPPED
    missing = sorted(name for name in wanted if f"seodang/{name}" not in wheel)
    assert not missing, f"not in the wheel: {missing}; declare them under [tool.setuptools.package-data] in pyproject.toml"


def test_the_wheel_holds_nothing_else(wheel):
    strange = [name for name in wheel if not name.startswith(("seodang/", f"seodang-{PROJECT['project']['version']}.dist-info/"))]
    assert not strange
    assert not [name for name in wheel if name.startswith(("seodang/tests", "seodang/benchmarks"))]
    assert not [name for name in NOT_SHIPPED if f"seodang/{name}" in wheel]


def package_of(path):
    """The package that a module belongs to, by its name in pyproject.toml."""
    return ".".join(["seodang", *path.relative_to(ROOT).parent.parts])


def test_no_folder_has_more_files_than_a_reader_takes_in_at_a_glance():
    full = {package: sum(package_of(path) == package and path.name != "__init__.py" for path in modules()) for package in PACKAGES}
    assert not {package: count for package, count in full.items() if count > 26}


def imports(path):
    """The modules and packages of ours that a module imports, wherever in the file, as dotted names."""
    package = package_of(path).split(".")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            names = [[*module, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for name in names:
            while name[0] == "seodang" and len(name) > 1 and not is_module(name):
                name = name[:-1]  # what is imported is in there
            if name[0] == "seodang":
                yield ".".join(name)


def is_module(name):
    place = ROOT.joinpath(*name[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def home(name):
    """The package that a dotted name lies in, or is."""
    return name if (ROOT.joinpath(*name.split(".")[1:]) / "__init__.py").is_file() else name.rpartition(".")[0]


def test_every_package_imports_itself_and_those_before_it():
    order = {package: place for place, package in enumerate(PACKAGES)}
    assert {package_of(path) for path in modules()} == set(order)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if order[home(name)] > order[package_of(path)]
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    named = {".".join([package_of(path), path.stem]).removesuffix(".__init__"): path for path in modules()}
    waiting = {name: set(imports(path)) & set(named) - {name} for name, path in named.items()}
    while free := [name for name, wanted in waiting.items() if not wanted & set(waiting)]:
        for name in free:
            del waiting[name]
    assert not waiting  # each of these imports another of them, directly or on the way


def test_the_import_check_sees_every_way_to_import(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    for name in ("__init__.py", "train/__init__.py", "train/stages/__init__.py", "train/stages/sft.py", "data/__init__.py", "data/labels.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    path = tmp_path / "data" / "sneaky.py"
    sneaky = {
        "from ..train.stages.sft import sft": "seodang.train.stages.sft",
        "from .. import train": "seodang.train",
        "from ..train.stages import sft": "seodang.train.stages.sft",
        "from ..train import sft_trainer": "seodang.train",
        "import seodang.train.stages.sft": "seodang.train.stages.sft",
        "from seodang.train.stages.sft import sft": "seodang.train.stages.sft",
        "def f():\n    from seodang import train": "seodang.train",
        "if TYPE_CHECKING:\n    from ..train.stages.sft import sft": "seodang.train.stages.sft",
    }
    for line, name in sneaky.items():
        path.write_text(line, encoding="utf-8")
        assert set(imports(path)) == {name}, line
    path.write_text("from .labels import x\nimport torch\nfrom train import y", encoding="utf-8")
    assert set(imports(path)) == {"seodang.data.labels"} and home("seodang.data.labels") == "seodang.data"


@pytest.mark.parametrize("room", ["data", "infer", "train"])
def test_every_public_name_is_there_and_documented(room):
    module = importlib.import_module(f"seodang.{room}")
    for name in module.__all__:
        value = getattr(module, name)
        assert not inspect.isclass(value) and not inspect.isfunction(value) or value.__doc__, name


HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "matplotlib", "numpy")


@pytest.mark.parametrize("program", ["import seodang", "from seodang.__main__ import main; main(['--help'])"])
def test_importing_seodang_or_asking_for_help_loads_nothing_heavy(program):
    check = f"{program}\nimport sys; sys.exit(' '.join(name for name in {HEAVY} if name in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr


def test_no_file_is_longer_than_400_lines():
    lengths = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in written()}
    assert not {name: lines for name, lines in lengths.items() if lines > 400}


def test_no_function_is_longer_than_80_lines():
    long = []
    for path in (path for path in written() if path.suffix == ".py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_no_file_names_a_place_on_one_persons_machine():
    folder = re.compile(r"(?<![\w.}])/(?:home|Users|work|root|mnt|opt)/\w+")
    own = Path(__file__).name
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written()
        if path.name != own
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if folder.search(line)
    ]
    assert not found


def test_set_up_installs_the_versions_that_the_package_asks_for():
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))}
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [Requirement(line) for line in (*PROJECT["project"]["dependencies"], *extras["default-model"], *extras["demo"], *extras["test"][1:])]
    for each in asked:
        assert each.specifier.contains(exact[canonicalize_name(each.name)]), each
        if known := KNOWN_TO_WORK.get(each.name):
            assert exact[each.name].startswith(tuple(f"{version}." for version in known))
            assert each.specifier.contains(f"{known[0]}.0") and f">={known[0]}," in f"{each.specifier},"
    assert KNOWN_TO_WORK.keys() <= exact.keys()


@pytest.mark.parametrize("script", [".ci/audit", ".ci/docs", ".ci/package", ".ci/run", ".ci/setup", ".ci/setup-browser"])
def test_scripts_can_be_run_and_parse(script):
    assert (ROOT / script).stat().st_mode & 0o111
    subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_text_files_are_opened_in_a_named_encoding():
    def unnamed(call: ast.Call) -> bool:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        mode = next((each.value for each in call.args if isinstance(each, ast.Constant) and re.fullmatch("[rwaxbt+]+", str(each.value))), "r")
        text = name in ("read_text", "write_text") or name == "open" and "b" not in mode and not isinstance(call.func, ast.Attribute)
        return text and "encoding" not in {keyword.arg for keyword in call.keywords}

    calls = [
        (path.relative_to(ROOT), node)
        for room in ROOMS
        for path in files(room, "*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert len(calls) > 1000
    found = [f"{path}:{node.lineno}" for path, node in calls if unnamed(node)]
    assert not found, f"the machine's locale decides what these read or write: give encoding=\"utf-8\": {found}"
