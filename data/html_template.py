"""Pages from Jinja templates that lie beside the modules that fill them; what comes from outside is escaped."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


@cache
def html_template(path: Path, **filters: Callable[[Any], Any]) -> Template:
    """The template of a file, which escapes all values but Markup and those that it calls `safe`; a name that it does not find is an error."""
    environment = Environment(
        loader=FileSystemLoader(path.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters.update(filters)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(path.name)
