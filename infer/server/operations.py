"""What operators and clients ask about the server itself: whether it lives, whether it takes requests, what it serves."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ..requests.stats import Runtime
from .protocol import check_model
from .served import Served

NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; the answer says why."}}


def operation_routes(served: Served) -> APIRouter:
    """Health, readiness, version and models."""
    routes = APIRouter()

    @routes.get("/health", responses=NOT_NOW)
    async def health() -> JSONResponse:
        """200 while the engine answers, else 503 and why not."""
        found = asdict(served.engine.health())
        ok = found.pop("ok")
        return JSONResponse({"status": "ok" if ok else "error", **found}, 200 if ok else 503)

    @routes.get("/ready", responses=NOT_NOW)
    async def ready() -> JSONResponse:
        """200 while a request would be taken, else 503 and why not."""
        found, most = served.engine.health(), served.engine.max_waiting
        reason = found.reason or (f"{found.waiting} requests wait, as many as may" if found.waiting >= most else None)
        return JSONResponse({"status": "ready" if reason is None else "not ready", "reason": reason}, 200 if reason is None else 503)

    @routes.get("/version")
    async def version_of_seodang() -> dict[str, str]:
        """The version of Seodang."""
        return {"version": version("seodang")}

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served, and its adapters, with the settings that hold where a request gives none, and what computes (`runtime`)."""
        return {"object": "list", "data": [described(served, name) for name in served.models]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of this name."""
        check_model(name, served)
        return described(served, name)

    return routes


def described(served: Served, name: str) -> dict[str, Any]:
    """A model as OpenAI lists one, with its positions, the settings that hold where a request gives none, and what computes it; an adapter's parent is the model."""
    return {
        "id": name, "object": "model", "created": served.created, "owned_by": "seodang", "max_model_len": served.engine.positions,
        "parent": None if name == served.name else served.name, "defaults": served.told_defaults, "runtime": told(served.engine.runtime), **served.about,
    }  # fmt: skip


def told(runtime: Runtime) -> dict[str, Any]:
    """What computes, as clients are told it: without what a compiler said, which may name the operator's folders."""
    reason = runtime.not_native
    return asdict(runtime) | ({"not_native": "it could not be built: the server's own output says why"} if reason and re.search(r"[/\\]", reason) else {})
