"""What a server has: the models that it names, and whether it is one of Seodang's, which takes all of our settings."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...data.errors import UserError
from .answers import Refused, one_line
from .connection import GivenUp, Server, Trouble

ANY = "default"  # the name of a model that nobody named
UNLISTED = tuple(f"HTTP {status}:" for status in (404, 405, 500, 501))  # of a server that has no list of its models, or fails to make it


@dataclass(frozen=True)
class Found:
    """A server's model by its name; of a Seodang server, the settings that hold where a request says nothing."""

    name: str
    seodang: bool = False
    defaults: Mapping[str, Any] | None = None


def model_at(server: Server, name: str) -> Found:
    """Return the model of this name, or, where none was named, the one that the server has alone.

    Raises UserError, with the names that there are, for one that it does not have, and for a server that cannot be reached or is none of this protocol.
    A server that does not list its models, or lists none at all, is believed to have the one that is named.
    """
    try:
        told = asyncio.run(listed(server))
    except (Trouble, GivenUp, Refused) as error:
        if name != ANY and str(error).startswith(UNLISTED) and "/" in server.base_url.partition("://")[2]:
            return Found(name)
        raise UserError(f"{server.base_url}/models: {error}: is this the address of a server that runs, with its /v1?") from None
    models = told.get("data") if isinstance(told, Mapping) else None
    if not isinstance(models, list) or not all(isinstance(each, Mapping) and isinstance(each.get("id"), str) for each in models):
        raise UserError(f"{server.base_url}/models does not list models as OpenAI's protocol has it: is this the address of such a server, with its /v1?")
    if not models:
        if name == ANY:
            raise UserError(f"{server.base_url} lists no models: give as MODEL what it calls the one that it has")
        return Found(name)
    by_name = {each["id"]: each for each in models}
    alone = [each for each, model in by_name.items() if not model.get("parent")]  # adapters have one
    if name not in by_name and name == ANY and len(alone) == 1:
        [name] = alone
    if name not in by_name:
        wanted = "name one of its models" if name == ANY else f"it has no model {name!r}"
        raise UserError(f"{server.base_url}: {wanted}: it has {shown(by_name)}")
    found = by_name[name]
    defaults = found.get("defaults")
    return Found(name, found.get("owned_by") == "seodang", defaults if isinstance(defaults, Mapping) else None)


async def listed(server: Server) -> Any:
    """What the server says of its models; one that is not there is not waited for."""
    async with server.connected() as connection:
        try:
            return await connection.once("GET", "/models")
        except Trouble as trouble:
            if not str(trouble).startswith("HTTP ") or str(trouble).startswith(UNLISTED):
                raise
        return await connection.get("/models")


def shown(names: Mapping[str, Any], most: int = 20) -> str:
    """Some names, in words."""
    return one_line(", ".join([*names][:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
