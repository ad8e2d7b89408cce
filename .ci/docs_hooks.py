"""What mkdocs is told beside mkdocs.yml: pages that lie elsewhere in the repository, and how examples stand in docstrings."""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {path.name: path for path in (*sorted((ROOT / "benchmarks").glob("RESULTS*.md")), ROOT / "infer" / "explain" / "STRATEGIES.md")}


def on_files(files: Files, config) -> Files:
    """The figures and the table of strategies are pages of the site, in measured/."""
    for name, path in ELSEWHERE.items():
        files.append(File.generated(config, f"measured/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Links to those files, which in the repository lie elsewhere, lead to their pages."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri.startswith("measured/"):
        return markdown.replace("](../docs/", "](../").replace("](../../docs/", "](../")
    return re.sub(r"\]\((?:\.\./)+(?:benchmarks|infer/explain)/([\w-]+\.md)", rf"]({up}measured/\1", markdown)


class Examples(griffe.Extension):
    """A docstring's `>>>` lines as code: in Markdown they would be quotations."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^>>> .*(?:\n(?!\s*$).*)*", r"```python\n\g<0>\n```", obj.docstring.value)
