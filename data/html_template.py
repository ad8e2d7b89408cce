"""Pages from Jinja templates that lie beside the modules that fill them; what comes from outside is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_html(template: Path, **values: Any) -> str:
    """The page that a template makes of some values, all escaped but those that it calls `safe`; a name that it does not find is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(template.name).render(**values)
