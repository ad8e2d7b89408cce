"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` with the status that says whose mistake it was."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ....data.errors import UserError
from ...engine.live import QueueFull
from ...engine.loop import EngineClosed

KINDS = {429: "requests"}  # what OpenAI calls the type of an error, where its status alone does not say


class ApiError(Exception):
    """A request that is answered by an error; `param` names the field that is wrong, `code` the kind of mistake."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """The same error with its status: 400 for a mistake of the client's, 429 where too many ask, 503 where the engine takes no request, 500 for a defect."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, HTTPException):  # no such path, another method
            return cls(error.status_code, str(error.detail))
        if isinstance(error, ClientDisconnect):
            return cls(400, "the client has gone before all of its request was there")  # which nobody reads
        if isinstance(error, QueueFull):
            return cls(429, str(error), code="queue_full")
        if isinstance(error, EngineClosed):
            return cls(503, str(error), code="engine_closed")
        if isinstance(error, UserError) and not str(error).startswith("internal error"):
            return cls(400, str(error))
        return cls(500, "internal error: the server's log says more")  # a defect in a shared pass may quote another's prompt

    @property
    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


async def answer_by_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a request by its error."""
    told = ApiError.of(error)
    headers = dict(getattr(error, "headers", None) or {})
    if told.status == 429:
        headers["Retry-After"] = "1"
    if told.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if told.code == "request_timeout":
        headers["x-should-retry"] = "false"  # OpenAI's clients ask again after a 408 else
    elif told.status == 408:  # the rest of it is no new request
        headers["Connection"] = "close"
    return JSONResponse(told.body, told.status, headers)


def add_errors(app: FastAPI) -> None:
    """Have every error of the app's handlers answered in this form; a defect is logged as well."""
    for kind in (ApiError, UserError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer_by_error)
