"""The app: OpenAI's protocol over a live engine, one file an area."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from .absent import absent_routes
from .adapters import adapter_routes
from .chat import chat_routes
from .classification import classification_routes
from .completions import completion_routes
from .docs import doc_routes
from .embeddings import embedding_routes
from .guard.access import Access, Gate
from .guard.admission import REQUEST_SECONDS, Admission
from .guard.errors import add_errors
from .guard.memory import giving_back
from .log import add_log_and_metrics
from .operations import operation_routes
from .page import page_routes
from .responses import response_routes
from .served import Served, ServedClassifier, ServedEncoder
from .tokens import token_routes

ROUTES = (
    operation_routes, chat_routes, completion_routes, response_routes, embedding_routes, token_routes, adapter_routes, doc_routes, page_routes,
)  # fmt: skip

OF_ENCODERS = (operation_routes, embedding_routes, token_routes, doc_routes, absent_routes)  # the last is for whatever the others have not
OF_CLASSIFIERS = (operation_routes, classification_routes, token_routes, doc_routes, absent_routes)


def build_app(served: Served, access: Access = Access(), request_seconds: float = REQUEST_SECONDS) -> FastAPI:
    """Return the app that serves a model to those who have access; its engine is closed when the app ends.

    Raises UserError where the checkpoint's own settings do not hold.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with giving_back():
            yield
        await served.trials.close()
        await run_in_threadpool(served.engine.close)

    _ = served.defaults  # what is wrong with these is said before anything is served
    app = FastAPI(title="Seodang", version=version("seodang"), lifespan=lifespan, openapi_url=None)
    add_errors(app)
    app.add_middleware(Admission, requests=served.engine.max_rows + served.engine.max_waiting, seconds=request_seconds)
    app.add_middleware(Gate, access=access)
    add_log_and_metrics(app, served.engine)  # the outermost: what the others refuse is told of too
    for routes in OF_CLASSIFIERS if isinstance(served, ServedClassifier) else OF_ENCODERS if isinstance(served, ServedEncoder) else ROUTES:
        app.include_router(routes(served))
    return app
