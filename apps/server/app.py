"""The application: its paths, and a document that says truly what they take and give."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Annotated, Any

from fastapi import Body, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ...agents import Pool
from ...agents.pool.metrics import PoolMetrics
from ..session import PanelSettings
from .completions import Completions
from .document import complete_document
from .doorway import CHAT_PATH, Doorway
from .errors import ApiError
from .gate import Gate
from .metrics import ServerMetrics
from .panel import Panel
from .refusals import explain_refusal
from .replies import ChatCompletion, ErrorBody, Health, ModelCard, ModelList, PanelCompletion
from .requests import AnyChatRequest
from .settings import ServerSettings, check_calls, check_recursion

__all__ = ["Api", "create_app"]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What the client can correct"},
    "5XX": {"model": ErrorBody, "description": "What it cannot"},
}


class Api(FastAPI):
    """A FastAPI application with the server's own parts within reach."""

    gate: Gate
    completions: Completions
    settings: ServerSettings

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of this server: with its models and its limits."""
        if self.openapi_schema is None:
            document = super().openapi()
            complete_document(document, self.completions.models, self.settings)
        return super().openapi()


def create_app(pool: Pool, panel: PanelSettings, settings: ServerSettings) -> Api:
    """The server over a pool, as an ASGI application.

    Args:
        pool: Open, online (finite patience), and closed by whoever opened it.
        panel: How questions to the panel are answered.
        settings: Limits; `host` and `port` say where it listens, which whoever runs it has to do.

    Raises:
        InputError: the panel does not fit the pool, would make too many calls, or asks itself.
    """
    resources = panel.resources(pool)
    check_calls(resources, settings.max_calls)
    check_recursion(pool.catalog.values(), settings.host, settings.port)
    gate = Gate(settings.running, settings.waiting)
    metrics = ServerMetrics(PoolMetrics(), gate)

    @asynccontextmanager
    async def watch_pool(_: FastAPI) -> AsyncGenerator[None]:
        end = pool.watch(metrics.pool.show)
        try:
            yield
        finally:
            end()

    app = Api(
        title="expertmix",
        description="OpenAI-compatible chat over a panel of local experts.",
        version=metadata.version("expertmix"),
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=watch_pool,
        responses=ERRORS,
    )
    app.gate, app.settings = gate, settings
    app.completions = Completions(
        pool=pool,
        panel=Panel(resources, settings, metrics.note_batch),
        settings=settings,
        fingerprint=_fingerprint(pool, panel),
    )
    app.add_middleware(Doorway, settings=settings, gate=gate, note=metrics.note)
    app.add_exception_handler(ApiError, _tell_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(HTTPException, _tell_http)
    _add_paths(app, metrics, int(time.time()))
    return app


def _add_paths(app: Api, metrics: ServerMetrics, created: int) -> None:
    completions = app.completions
    cards = {name: ModelCard(id=name, created=created) for name in completions.models}

    @app.post(
        CHAT_PATH,
        response_model=PanelCompletion | ChatCompletion,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def complete_chat(http: Request, body: Annotated[AnyChatRequest, Body()]) -> Response:
        """Answer a conversation, by a panel or by one expert."""
        return await completions.answer(http, body)

    @app.get("/v1/models")
    async def list_models() -> ModelList:
        """The models that can be asked for."""
        return ModelList(data=list(cards.values()))

    @app.get("/v1/models/{model:path}")
    async def show_model(model: str) -> ModelCard:
        """One of them."""
        if model not in cards:
            names = ", ".join(cards)
            raise ApiError(
                404,
                f"there is no such model; there are {names}",
                param="model",
                code="model_not_found",
            )
        return cards[model]

    @app.get("/health", responses={503: {"model": Health, "description": "The server is ending"}})
    async def show_health() -> Response:
        """Whether questions are taken."""
        told = Health(
            status="draining" if app.gate.is_draining else "ok",
            version=app.version,
            experts=list(completions.pool.catalog),
        )
        return JSONResponse(told.model_dump(), 503 if app.gate.is_draining else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def show_metrics() -> Response:
        """What was done so far, in Prometheus's text format."""
        return PlainTextResponse(metrics.pool.render())


async def _tell_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def _tell_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return explain_refusal(error.errors(), error.body).to_response()


async def _tell_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        400: "the body is not JSON",
        404: f"there is no such path; there are {CHAT_PATH}, /v1/models, /health and /metrics",
        405: "this path does not know that method",
    }
    told = sentences.get(error.status_code, "the request cannot be answered")
    return ApiError(error.status_code, told, headers=error.headers).to_response()


def _fingerprint(pool: Pool, panel: PanelSettings) -> str:
    """Changes with the version, the pool file and the settings."""
    words = [metadata.version("expertmix"), pool.catalog.file.model_dump_json(), repr(panel)]
    return f"fp_{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]}"
