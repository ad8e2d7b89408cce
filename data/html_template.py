"""Pages from Jinja templates that lie beside the modules that fill them; what comes from outside is escaped."""

from base64 import b64encode
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup


@cache
def html_template(path: Path, **filters: Callable[[Any], Any]) -> Template:
    """The template of a file, which escapes all values but Markup and those that it calls `safe`; a name that it does not find is an error."""
    environment = Environment(
        loader=FileSystemLoader(path.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(filters)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(path.name)


def embedded(*paths: Path) -> Markup:
    """The texts of scripts or stylesheets one after the other, as they stand within their element."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    assert "</script" not in text and "</style" not in text and "<!--" not in text, paths
    return Markup(text)


def content_hash(text: str) -> str:
    """A source of a Content-Security-Policy that lets this text of a script or stylesheet have effect, and no other."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
