"""What our HTTP APIs have in common.

Owns: how a caller is told what is wrong (always an error, and where it can be said the
field and the remedy), the limit on bodies, /live and /ready, and serving an app inside a
Process. Must not know: any endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from common.errors import Infrastructure, NoAnswer, SagaproofError
from common.health import Health
from common.process import Process

MALFORMED = ("malformed_json", "missing_key")  # 400: not even a request


class Problem(BaseModel):
    """What is wrong, where, and what to do about it."""

    error: str
    field: str | None = None
    remedy: str


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.error)
        self.status = status
        self.problem = problem


Explain = Callable[[Sequence[Any]], Problem]
Remedies = Mapping[type[SagaproofError], str]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What an endpoint may answer besides success, for its OpenAPI entry."""
    return {status: {"model": Problem} for status in statuses}


def new_app(
    title: str,
    about: str,
    health: Health,
    body_limit_bytes: int,
    *,
    explain: Explain,
    remedies: Remedies,
) -> FastAPI:
    """An app without endpoints but /live, /ready, /openapi.json and /docs.

    `explain` says what is wrong with a request; `remedies` what to do when we could not be
    asked, for Infrastructure and NoAnswer.
    """
    app = FastAPI(title=title, version="1", description=about)
    app.add_middleware(BodyLimit, limit=body_limit_bytes)
    _answer_problems(app, explain, remedies)

    @app.get("/live", include_in_schema=False)
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/ready", include_in_schema=False)
    async def ready() -> JSONResponse:
        return JSONResponse(health.report(), 200 if health.ready else 503)

    return app


def _answer_problems(app: FastAPI, explain: Explain, remedies: Remedies) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _response(error.status, error.problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problem = explain(error.errors())
        return _response(400 if problem.error in MALFORMED else 422, problem)

    @app.exception_handler(Infrastructure)
    async def unavailable(_: Request, __: Exception) -> Response:
        return _response(503, Problem(error="unavailable", remedy=remedies[Infrastructure]))

    @app.exception_handler(NoAnswer)
    async def no_answer(_: Request, __: Exception) -> Response:
        return _response(503, Problem(error="no_answer", remedy=remedies[NoAnswer]))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        remedy = "see /docs for what there is"
        return _response(error.status_code, Problem(error=str(error.detail).lower(), remedy=remedy))


def invalid_field(errors: Sequence[Any], error: str) -> Problem:
    """The first thing wrong with a request, under this error code."""
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("body", "header", "query", "path")]
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    if first["type"] == "json_invalid":
        return Problem(error="malformed_json", field="body", remedy="send one valid JSON document")
    if first["type"] == "missing":
        return Problem(error=error, field=field or "body", remedy=f"add {field or 'a JSON body'}")
    if first["type"] == "extra_forbidden":
        return Problem(error=error, field=field, remedy=f"leave {field} out")
    remedy = re.sub(r"^\w+ should", "it should", first["msg"]).split(" after validation")[0]
    return Problem(error=error, field=field or "body", remedy=remedy)


def _response(status: int, problem: Problem) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers)


class BodyLimit:
    """Refuses an oversized body before it is read, or while it arrives if its length was a lie."""

    def __init__(self, app: Any, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            await self._too_large()(scope, receive, send)
            return
        read = 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._limit:
                raise Refused(413, self._problem())
            return message

        await self._app(scope, counted, send)

    def _problem(self) -> Problem:
        remedy = f"send at most {self._limit} bytes; split a bulk into several"
        return Problem(error="too_large", field="body", remedy=remedy)

    def _too_large(self) -> JSONResponse:
        return _response(413, self._problem())


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the process handles its signals


async def serve(app: FastAPI, process: Process, host: str, port: int) -> None:
    """Until the process is told to stop; its check is `http`."""
    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="off",
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = _Server(config)
    process.health.set("http", None)
    serving = asyncio.create_task(server.serve())
    await asyncio.wait(
        [serving, asyncio.create_task(process.stop.wait())], return_when=asyncio.FIRST_COMPLETED
    )
    server.should_exit = True
    await serving
