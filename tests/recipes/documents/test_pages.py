"""What the documents name is there: links, anchors, options, public names, strategies, pictures; no code stands where no test looks."""

import ast
import importlib
import importlib.util
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from markdown_blocks import DOCS, PAGES, ROOT, RUN, blocks, prose

from seodang.infer import SamplingParams
from seodang.infer.strategies.registry import STRATEGIES
from seodang.recipes.options.known import known

LINKED = [*PAGES, "README.md", *(name for name in ("README.ko.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md") if (ROOT / name).is_file())]
COMMANDS = re.compile(r"^(?: {4}|\t)(?:\$ )?(?:seodang|python|accelerate|make|curl|pip) ", re.MULTILINE)


def script(path: str):
    """A module of the repository that is no part of the package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_code_stands_in_fences_that_say_what_it_is(page):
    for block in blocks(page):
        assert block.language in (*RUN, "text", "json", "yaml"), f"{block.where}: ```{block.language} says nothing to the test that runs blocks"
        assert not block.title.startswith("not run") or re.fullmatch(r"not run: .{8,}", block.title), f"{block.where}: the title gives no reason"
        if block.title.startswith("run by "):
            assert (ROOT / block.title.removeprefix("run by ")).exists(), block.where
    found = COMMANDS.search(prose(page)) if page != "docs/recipes.md" else None  # whose transcripts are of init's questions
    assert not found, f"{page}: {found and found[0]!r} stands in no fence: put it in one of bash, with title=\"not run: REASON\" where it cannot run"


PROGRAMS = ("seodang", "python", "accelerate", "make", "curl", ".")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_run_or_not_has_options_that_there_are(page):
    for block in (block for block in blocks(page) if block.language == "bash"):
        for words in block.commands:
            assert words[0] in PROGRAMS, f"{block.where}: {words[0]} is no command that is known here: what commands print stands in a fence of text"
            program = words[words.index("seodang") :] if "seodang" in words and words[0] in ("seodang", "accelerate") else []
            if len(program) < 2 or program[1] == "lm-eval":  # whose options are the harness's
                continue
            assert program[1] in known(), f"{block.where}: there is no command {program[1]}"
            names = {*known()[program[1]]["names"].split()}
            for word in (word.split("=")[0] for word in program[2:] if re.match(r"--[a-z]", word)):
                name = word.removeprefix("--").replace("-", "_")
                assert name in names or "." in name, f"{block.where}: seodang {program[1]} has no option {word}"


OTHERS = {  # options of programs that are not ours
    "max_model_len", "cache_type_k", "cache_type_v", "flash_attn", "machine_rank", "num_processes", "multi_gpu", "main_process_ip", "config_file",
    "cases", "kv8", "generator_rows", "enable_lora", "lora_modules", "max_num_seqs", "gpu_memory_utilization", "kv_cache_memory", "generation_config",
    "enable_prefix_caching", "quantization", "near_best",
}  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_every_option_named_in_words_is_one_of_some_command(page):
    names = {"version", *(name for verb, told in known().items() if verb != "versions" for name in told["names"].split()), *OTHERS}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        for option in re.findall(r"(?:^| )--([a-z][\w-]*)", code):
            assert option.replace("-", "_") in names, f"{page}: there is no --{option} (in `{code}`)"


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).strip().lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", LINKED)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith(("https://", "http://", "mailto:")), f"{page}: {target}"
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{page} links to {target}: {path.name} has no such heading"


def test_documents_named_in_words_are_there():
    for page in LINKED:
        for name in re.findall(r"`(docs/[\w/.-]+\.md)`", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{page} names {name}"


class Yaml(yaml.SafeLoader):
    """mkdocs.yml, whose tags name functions."""


Yaml.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def test_every_page_is_in_the_course():
    def pages(part) -> list[str]:
        return [part] if isinstance(part, str) else [each for value in (part.values() if isinstance(part, dict) else part) for each in pages(value)]

    told = [name for name in pages(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Yaml)["nav"]) if not name.startswith("measured/")]  # noqa: S506 (a safe one)
    assert sorted(f"docs/{name}" for name in told) == sorted(PAGES)
    measured = {f"benchmarks/{name}" for name in re.findall(r"measured/(RESULTS\S*\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))}
    assert measured == {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("RESULTS*.md")}


@pytest.mark.parametrize("room", ["data", "infer", "train"])
def test_the_reference_has_every_public_name_at_its_place(room):
    homes = importlib.import_module(f"seodang.{room}")._HOMES
    told = re.findall(r"^::: (\S+)$", (DOCS / "api" / f"{room}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(f"seodang.{room}.{home}.{name}" for name, home in homes.items())


def test_names_for_those_who_come_from_elsewhere_exist():
    settings, seen = {field.name for field in fields(SamplingParams)}, 0
    for line in (DOCS / "coming-from.md").read_text(encoding="utf-8").splitlines():
        here = line.rstrip(" |").rsplit(" | ", 1)[-1] if line.startswith("| ") else ""
        for name in re.findall(r"`([^`]+)`", here):
            if found := re.fullmatch(r"seodang\.(\w+)\.(\w+)", name):
                assert found[2] in importlib.import_module(f"seodang.{found[1]}").__all__, name
            elif found := re.fullmatch(r"SamplingParams\((\w+)\)", name):
                assert found[1] in settings, name
            elif found := re.fullmatch(r"seodang ([\w-]+)", name):
                assert found[1] in known(), name
            elif found := re.fullmatch(r"([\w-]+) --(\w+)", name):
                assert found[2] in known()[found[1]]["names"].split(), name
            else:
                continue
            seen += 1
    assert seen > 80


@pytest.mark.parametrize("page", ["strategies.md", "ko/strategies.md"])
def test_every_strategy_is_told_of(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    assert not [name for name in STRATEGIES if f"`{name}`" not in text]


def test_the_pictures_are_what_the_code_draws():
    drawn = script("docs/pictures/draw.py").pictures()
    assert drawn.keys() == {path.name for path in (DOCS / "pictures").glob("*.svg")}
    for name, picture in drawn.items():
        assert (DOCS / "pictures" / name).read_text(encoding="utf-8") == picture, f"{name}: run python docs/pictures/draw.py"


def test_a_page_that_asks_something_of_elsewhere_is_found(tmp_path):
    elsewhere = script(".ci/check_site.py").requests_elsewhere
    page = tmp_path / "page.html"
    told = '<a href="https://example.com">told</a><link rel="canonical" href="https://example.com">'
    page.write_text(f'{told}<img src="own.png"><script src="/own.js"></script>', encoding="utf-8")
    assert elsewhere(tmp_path) == []
    for asks in (
        '<script src="https://example.com/x.js"></script>', '<link rel="stylesheet" href="//example.com/x.css">',
        '<img srcset="https://example.com/x.png">', "<style>@import 'https://example.com/x.css';</style>", '<pre class="mermaid">',
        '<p style="background: url(https://example.com/x.png)">', '<link href="https://example.com/x" rel="preconnect">',
    ):  # fmt: skip
        page.write_text(asks, encoding="utf-8")
        assert len(elsewhere(tmp_path)) == 1, asks


def test_the_ten_line_loop_is_told_alike_in_the_docstring_and_the_documents():
    docstring = ast.get_docstring(ast.parse((ROOT / "infer" / "__init__.py").read_text(encoding="utf-8")))
    loop = re.search(r"(?ms)^    model, tokenizer = load.*?\n    print\(tokenizer.decode\(ids\)\)", docstring)[0]
    assert re.sub(r"(?m)^    ", "", loop) in blocks("docs/how-generate-works.md")[0].text


@pytest.mark.full
def test_the_site_is_built_and_asks_nothing_of_elsewhere():
    if not (ROOT / ".venv-docs" / "ready").is_file():
        pytest.skip("needs .venv-docs, which `make docs` makes")
    done = subprocess.run([ROOT / ".ci" / "docs"], capture_output=True, text=True)
    assert done.returncode == 0 and ", 0 requests to elsewhere" in done.stdout, done.stdout + done.stderr
