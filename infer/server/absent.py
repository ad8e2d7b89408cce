"""What only a model that speaks has: an encoder's server says so by name, instead of a bare 404."""

from __future__ import annotations

from fastapi import APIRouter

from .guard.errors import ApiError
from .served import ServedEncoder


def absent_routes(served: ServedEncoder) -> APIRouter:
    """Every path that no other area of an encoder's or a classifier's server has."""
    routes = APIRouter()

    @routes.api_route("/{path:path}", methods=["GET", "POST"], include_in_schema=False)
    async def absent(path: str) -> None:
        """404, and what there is."""
        what, does, asked = served.purpose
        there = f"{asked}, /tokenize and /detokenize; GET /v1/models, /health, /ready, /metrics and /docs"
        raise ApiError(404, f"/{path} is not here: {served.name} is {what}, which {does} ({there})", code="not_found")

    return routes
