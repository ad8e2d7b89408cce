"""The page at /: a chat with the model in the browser, in one response that loads nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from ...data.html_template import content_hash, embedded, html_template
from ..explain.page import LOOK_INSIDE, LOOK_INSIDE_STYLE
from .served import Served

WEB = Path(__file__).with_name("web")
PARTS = ("korean", "ui", "markdown", "store", "api", "setting_field", "settings", "drawer", "snippets", "answering", "messages", "chat", "main")


def page_routes(served: Served) -> APIRouter:
    """The path of the page, which asks the others for all that it shows."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """The page, under a policy by which nothing but its own script runs and nothing but this server is asked."""
        text, headers = chat_page()
        return HTMLResponse(text, headers=headers)

    return routes


@cache
def chat_page() -> tuple[str, dict[str, str]]:
    """Return the page's text, the same for every model, with the headers that it is sent with."""
    script = embedded(*LOOK_INSIDE, *(WEB / f"{name}.js" for name in PARTS))
    style = embedded(LOOK_INSIDE_STYLE, WEB / "page.css")
    policy = {
        "default-src": "'none'", "script-src": content_hash(script), "style-src": content_hash(style), "connect-src": "'self'", "img-src": "data:",
        "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'", "trusted-types": "'none'",  # no text becomes markup, whatever the script does
    }  # fmt: skip
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
    }  # fmt: skip
    return html_template(WEB / "page.html.jinja").render(script=script, style=style), headers
