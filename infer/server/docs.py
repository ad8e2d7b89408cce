"""/openapi.json and /docs: what every path takes and gives, for programs and for people, drawn from what the paths themselves declare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse

from ...data.html_template import html_template
from ..engine.settings_schema import settings_schema
from ..requests.schema_words import kinds, nullable, span, whole
from .guard.limits import told
from .protocol import AskingBody, Body
from .served import Served

Schema = dict[str, Any]
TEMPLATE = Path(__file__).with_name("docs.html.jinja")
ABOUT = "OpenAI's protocol, and what Seodang has besides. A field that is null counts as not given."
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"], "properties": {"message": {"type": "string"}}}},
    "required": ["error"],
}  # fmt: skip


def takes(kind: type[Body], served: Served, **example: Any) -> Schema:
    """Return what a path's `openapi_extra` says of the body that it takes, with an example of one."""
    content = {"schema": body_schema(kind, served), "example": {"model": served.name, **example}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def body_schema(kind: type[Body], served: Served) -> Schema:
    """Return the JSON Schema of a body: its own fields, and where it asks for an answer those of the settings, without those that its path refuses."""
    own = kind.model_json_schema()
    fields = {name: each for name, each in whole(own["properties"], own.get("$defs", {})).items() if name not in kind.refused}
    known = {"enum": served.models} if served.adapter_folder is None else {}  # else others may come
    fields["model"] = {"type": "string", **known, "description": "What this server calls its model, or an adapter beside it."}
    asks = issubclass(kind, AskingBody)
    if asks:
        known = settings_schema(served.defaults, served.diffusion, served.encoder_decoder)
        fields |= {name: each for name, each in known.items() if name not in fields and name not in kind.refused}
    required = own.get("required", [])
    bounded = {name: told(name, each) for name, each in fields.items()}
    optional = {name: each if name in required else nullable(each) for name, each in bounded.items()}
    return {"type": "object", "properties": optional, "required": required, "additionalProperties": served.lenient}


def doc_routes(served: Served) -> APIRouter:
    """The paths that describe all others."""
    routes = APIRouter()

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> JSONResponse:
        """All paths as OpenAPI describes them."""
        return JSONResponse(document(request.app))

    @routes.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        """The same as a page, which loads nothing from elsewhere."""
        paths, base = list(operations(document(request.app))), str(request.base_url).rstrip("/")
        return HTMLResponse(html_template(TEMPLATE, kinds=kinds, span=span).render(name=served.name, about=ABOUT, paths=paths, base=base))

    return routes


def document(app: FastAPI) -> Schema:
    """Return the app's OpenAPI document, with what its handlers do not declare: how errors look, and which answers may be streams."""
    found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
    found.pop("components", None)
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error.", "content": {"application/json": {"schema": ERROR}}}
            if "stream" in fields_of(operation):
                operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return found


def operations(document: Schema) -> Iterator[tuple[str, str, str, Mapping[str, Schema], list[str], str | None]]:
    """Yield each path with its method, what it does, its fields, the names of those that it needs, and an example of a body."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            example = json.dumps(body["example"], ensure_ascii=False).replace("'", "'\\''") if body else None
            yield path, method.upper(), operation.get("description", ""), fields_of(operation), body.get("schema", {}).get("required", []), example


def fields_of(operation: Schema) -> Mapping[str, Schema]:
    """The fields of the body that an operation takes, by name."""
    return operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("properties", {})
