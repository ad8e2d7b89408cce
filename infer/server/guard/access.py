"""Who may ask: keys, the names that the server goes by, and JSON alone, so that no web page elsewhere can ask for whoever reads it."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from ....data.errors import UserError
from .errors import ApiError, answer_by_error

OPEN = {"/", "/health", "/ready"}  # paths that need no key: the page asks its reader for one, and probes have none


@dataclass(frozen=True)
class Access:
    """Who may ask: with `keys`, whoever has one of them; with `hosts`, who calls the server by one of these names, or by one of this machine alone.

    A page of another site that a browser has been told lies at this machine (DNS rebinding) calls it by the site's name. Without `keys` everybody may ask;
    where `hosts` is None, by any name.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] | None = None

    def __post_init__(self):
        if any(not (key and key.isascii() and key.isprintable() and " " not in key) for key in self.keys):  # which are not told
            raise UserError("an api_key must be printable ASCII without blanks, and not empty: give another")

    def refusal(self, scope: Scope) -> ApiError | None:
        """Why a request may not be answered; None where it may."""
        headers = Headers(scope=scope)
        if self.hosts is not None and (wrong := next((host for host in headers.getlist("host") if not self.goes_by(host)), None)) is not None:
            told = f"this server is not called {wrong[:100]!r}: use localhost or 127.0.0.1, or have its operator name it (--allowed_hosts)"
            return ApiError(403, told, code="host_not_allowed")
        if self.keys and scope["path"] not in OPEN and not self.has_key(headers.get("authorization", "")):
            return ApiError(401, "the API key is missing or wrong: send the header Authorization: Bearer KEY", code="invalid_api_key")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and not (kind == "application/json" or kind.startswith("application/") and kind.endswith("+json")):
            got = f"got {kind[:100]!r}" if kind else "and there is none"
            return ApiError(415, f"the Content-Type must be application/json, {got}: send the header Content-Type: application/json")
        return None

    def has_key(self, authorization: str) -> bool:
        """Whether a header has one of the keys; how long that takes tells nothing of them."""
        scheme, _, given = authorization.partition(" ")
        found = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in self.keys]
        return any(found) and scheme.lower() == "bearer"

    def goes_by(self, host: str) -> bool:
        """Whether a Host header has a name of the server's, with any port."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in (*map(str.lower, self.hosts or ()), "localhost") or is_loopback(name)


def is_loopback(address: str) -> bool:
    """Whether an address is one of this machine alone; a name is none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_taken(scope: Scope) -> bool:
    """Whether there is a path for a request by its method."""
    return any(route.matches(scope)[0] is Match.FULL for route in scope["app"].routes)


class Gate:
    """Answers those who may not ask, before anything of what they send is read."""

    def __init__(self, app: ASGIApp, access: Access):
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._access.refusal(scope) if scope["type"] == "http" else None
        if refused is None or refused.status == 415 and not is_taken(scope):  # the routes say 404 or 405, and read nothing either
            return await self._app(scope, receive, send)
        response = await answer_by_error(Request(scope), refused)
        await response(scope, receive, send)
