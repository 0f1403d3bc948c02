"""The base of both HTTP APIs.

Owns: who is let in, how a caller is told what is wrong (always an error, and where it can be
said the field and the remedy), the limits, /live and /ready, and serving an app inside a
Process. Must not know: any endpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, SecretStr
from starlette.exceptions import HTTPException

from common.http.access import Actor, Allowance, BadTokens, Keyring, Role
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.errors import Infrastructure, NoAnswer, SagaproofError
from common.process.process import Process

MALFORMED = ("malformed_json", "missing_key")  # 400: not even a request
HEALTH = ("/live", "/ready")
OPEN = {*HEALTH, "/docs", "/docs/oauth2-redirect", "/openapi.json"}  # without a token
READS = ("GET", "HEAD", "OPTIONS")


class Problem(BaseModel):
    """An error, the field it is about, and the remedy."""

    error: str
    field: str | None = None
    remedy: str


class Refused(Exception):
    """The answer to a request that is refused."""

    def __init__(
        self, status: int, problem: Problem, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(problem.error)
        self.status = status
        self.problem = problem
        self.headers = headers


Explain = Callable[[Sequence[Any]], Problem]
Remedies = Mapping[type[SagaproofError], str]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors an endpoint may answer, for its OpenAPI entry."""
    return {status: {"model": Problem} for status in statuses}


@dataclass(frozen=True)
class Entrance:
    """The tokens that open an API, and its limits."""

    keyring: Keyring
    body_limit_bytes: int
    requests_per_second: float

    @classmethod
    def of(cls, settings: Settings, name: str, roles: Collection[Role]) -> Entrance:
        """Make it from the setting of that name. Raises BadTokens, also if it is empty.

        There is no default, which would be public.
        """
        secret: SecretStr | None = getattr(settings, name)
        variable = f"SAGAPROOF_{name.upper()}"
        try:
            keyring = Keyring.parse(secret.get_secret_value() if secret else "", roles)
        except BadTokens as error:
            raise BadTokens(
                f"{variable}: {error}. It says who may ask this API, as docs/operations.md tells;"
                f" {variable}_FILE may name a file that does"
            ) from None
        return cls(keyring, settings.body_limit_bytes, settings.requests_per_second)


_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="The operator's token, or the door's key. Who runs this hands them out.",
)


def _caller(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Actor:
    actor: Actor = request.state.actor  # Admission has let them in
    return actor


Caller = Annotated[Actor, Depends(_caller)]  # for an endpoint that must know who asks


class _Endpoint(APIRoute):
    """An endpoint; one with a body may also answer 400 and 413, without declaring so."""

    def __init__(self, *args: Any, **more: Any) -> None:
        if not {*(more.get("methods") or READS)} <= {*READS}:
            more["responses"] = problems(400, 413) | (more.get("responses") or {})
        super().__init__(*args, **more)


def new_app(
    title: str,
    about: str,
    health: Health,
    entrance: Entrance,
    *,
    explain: Explain,
    remedies: Remedies,
) -> FastAPI:
    """Make an app with the endpoints /live, /ready, /openapi.json and /docs, which are open.

    Every other endpoint is only for the holders in `entrance`. `explain` describes what is wrong
    with a request; `remedies` what to do on Infrastructure and NoAnswer.
    """
    app = FastAPI(
        title=title, version="1", description=about, redoc_url=None,
        dependencies=[Depends(_caller)], responses=problems(401, 429),
    )  # fmt: skip
    app.router.route_class = _Endpoint
    app.add_middleware(BodyLimit, limit=entrance.body_limit_bytes)
    app.add_middleware(Admission, entrance=entrance)  # the last is asked first
    _answer_problems(app, explain, remedies)

    async def live(_: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(_: Request) -> Response:
        return JSONResponse(health.report(), 200 if health.ready else 503)

    for path, told in zip(HEALTH, (live, ready), strict=True):
        app.add_route(path, told, include_in_schema=False)
    return app


def _answer_problems(app: FastAPI, explain: Explain, remedies: Remedies) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return _refusal(error)

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
        problem = Problem(error=str(error.detail).lower(), remedy=remedy)
        return _refusal(Refused(error.status_code, problem, error.headers))


def invalid_field(errors: Sequence[Any], error: str) -> Problem:
    """Describe the first thing wrong with a request, under this error code."""
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


def _refusal(refused: Refused) -> JSONResponse:
    response = _response(refused.status, refused.problem)
    response.headers.update(refused.headers or {})
    return response


class Admission:
    """Lets in whose token is known, with what their role may do, as often as they may.

    Before anything is read of what they ask: so also for an endpoint that says nothing of it.
    """

    def __init__(self, app: Any, entrance: Entrance) -> None:
        self._app = app
        self._keyring = entrance.keyring
        self._allowance = Allowance(entrance.requests_per_second)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                scope.setdefault("state", {})["actor"] = self._admit(scope)
            except Refused as refused:
                await _refusal(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Any) -> Actor:
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unknown("no_token", "send the header Authorization: Bearer, and your token")
        actor = self._keyring.actor(token.strip())
        if actor is None:
            raise _unknown("unknown_token", "nobody here has this token: is it another API's?")
        wait = self._allowance.wait(actor.name, time.monotonic())
        if wait:
            problem = Problem(
                error="too_many_requests",
                remedy=f"wait {wait:.3f} s: {actor.name} has used up its allowance"
                " (SAGAPROOF_REQUESTS_PER_SECOND); many orders go into one /orders/bulk",
            )
            raise Refused(429, problem, {"Retry-After": str(math.ceil(wait))})
        if scope["method"] not in READS and not actor.role.may_change:
            remedy = f"the token of {actor.name} is a {actor.role}'s, who may look:"
            remedy += f" ask with an {Role.OPERATOR}'s"
            raise Refused(403, Problem(error="forbidden", remedy=remedy))
        return actor


def _unknown(error: str, remedy: str) -> Refused:
    return Refused(401, Problem(error=error, remedy=remedy), {"WWW-Authenticate": "Bearer"})


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
    """Serve until the process shuts down; the health check is `http`."""
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
