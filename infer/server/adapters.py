"""/v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: for an operator who has named the folder that adapters come from."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from ...data.errors import UserError
from .docs import takes
from .guard.errors import ApiError
from .protocol import Body, body_of
from .served import Served

MOST = 64  # adapters, loaded by a request: each takes memory as long as it is there


class UnloadBody(Body):
    """An adapter by its name."""

    model_config = ConfigDict(extra="forbid", strict=True)

    lora_name: str = Field(min_length=1, max_length=128, description="What clients call it, as a model.")


class LoadBody(UnloadBody):
    """An adapter by its name, and where it lies."""

    lora_path: str = Field(min_length=1, max_length=1024, description="Its folder, within the one that the operator has named.")


def adapter_routes(served: Served) -> APIRouter:
    """The paths that load and unload adapters; none, where no folder is named for them."""
    routes, engine, one_by_one = APIRouter(), served.engine, asyncio.Lock()
    if served.adapter_folder is None:
        return routes
    root = served.adapter_folder.resolve()

    @routes.post("/v1/load_lora_adapter", openapi_extra=takes(LoadBody, served, lora_name="name", lora_path="folder"))
    async def load(request: Request) -> dict[str, str]:
        """Let requests be answered with an adapter: its name is a model's from now on."""
        body = await body_of(request, served, LoadBody)
        folder = within(root, body.lora_path)
        async with one_by_one:  # else many at once would find room for one
            if body.lora_name in served.models:
                raise ApiError(400, f"there is a model {body.lora_name!r} already: give another name, or unload that adapter", "lora_name")
            if len(engine.adapters) >= MOST:
                raise ApiError(400, f"{len(engine.adapters)} adapters are loaded, as many as may be: unload one", "lora_name")
            try:
                await asyncio.to_thread(engine.load_adapter, body.lora_name, folder)
            except UserError as error:  # nothing of it tells where the operator's folder lies
                raise ApiError(400, str(error).replace(str(folder), body.lora_path), "lora_path") from None
        return {"status": f"the adapter {body.lora_name!r} is loaded"}

    @routes.post("/v1/unload_lora_adapter", openapi_extra=takes(UnloadBody, served, lora_name="name"))
    async def unload(request: Request) -> dict[str, str]:
        """Take no more requests for an adapter; those in hand go on."""
        body = await body_of(request, served, UnloadBody)
        if body.lora_name not in engine.adapters:
            raise ApiError(404, f"there is no adapter {body.lora_name!r}: GET /v1/models names those there are", "lora_name", "model_not_found")
        await asyncio.to_thread(engine.unload_adapter, body.lora_name)
        return {"status": f"the adapter {body.lora_name!r} is unloaded"}

    return routes


def within(root: Path, path: str) -> Path:
    """Return a folder below the root; raises ApiError for one that lies elsewhere, whether it is there or not, links followed."""
    try:
        folder = (root / path).resolve()
    except (OSError, ValueError):  # a path that no system has
        folder = None
    if folder is None or root not in folder.parents:
        raise ApiError(400, f"lora_path {path!r} does not lie in the folder that adapters are loaded from: give a path below that", "lora_path")
    return folder
