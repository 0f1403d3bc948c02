"""The client of the two HTTP APIs: their URLs and keys, and a refusal told from no answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Annotated, Any

import httpx
import typer

from orchestrator.cli.output import Exit, Output

Door = Annotated[
    str | None,
    typer.Option(
        "--door", envvar="SAGAPROOF_DOOR_URL", metavar="URL", help="URL of the customers' door."
    ),
]
Operator = Annotated[
    str | None,
    typer.Option(
        "--operator",
        envvar="SAGAPROOF_OPERATOR_URL",
        metavar="URL",
        help="URL of the operator's API.",
    ),
]

ANSWER_SECONDS = 30.0
ASK_AGAIN_SECONDS = 60.0  # how long a safe request is repeated without an answer
UNKNOWN, TOO_MANY, SERVER_ERROR = 401, 429, 500

OPENS = {
    "door": ("SAGAPROOF_DOOR_KEY", "--door-key"),
    "operator": ("SAGAPROOF_OPERATOR_TOKEN", "--token"),
}


# The key of each API, as given to `saga` itself, before the command.
_secrets: ContextVar[Mapping[str, str | None]] = ContextVar("secrets", default={})  # noqa: B039


def remember(
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SAGAPROOF_OPERATOR_TOKEN", metavar="TOKEN", show_envvar=True,
            help="Token for the operator's API. Others can read command lines: set the variable.",
        ),
    ] = None,
    door_key: Annotated[
        str | None,
        typer.Option(
            envvar="SAGAPROOF_DOOR_KEY", metavar="KEY", show_envvar=True,
            help="Key for the customers' door.",
        ),
    ] = None,
) -> None:  # fmt: skip
    _secrets.set({"door": door_key, "operator": token})


class Unanswered(Exception):
    """There was no answer, or a server error; the request may or may not have been done."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class No(Exception):
    """A refusal: the API answered, and not with success."""

    def __init__(self, status: int, error: str, remedy: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {error}" if field else error)
        self.status = status
        self.error = error
        self.field = field
        self.remedy = remedy


def connect(url: str) -> httpx.Client:
    """Connect without the proxies of the environment: they must not see the operator's token."""
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False)


class Api:
    """One of the two APIs; `name` is door or operator."""

    def __init__(self, name: str, url: str | None, output: Output) -> None:
        if not url:
            output.fail(
                Exit.NO_ANSWER,
                f"the {name}'s URL is not known: SAGAPROOF_{name.upper()}_URL is not set",
                f'set it, or give --{name} URL. For a stack of `chaos up`: eval "$(.venv/bin/chaos'
                ' env)"; for `docker compose up` the head of compose.yaml names the ports',
            )
        self.name = name
        self.url = url
        self.output = output
        self._client = connect(url)
        if secret := _secrets.get().get(name):
            self._client.headers["Authorization"] = f"Bearer {secret}"

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """Return the document of the answer. Raises Unanswered or No."""
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._unanswered(
                f"no answer from the {self.name} at {self.url}: {error}"
            ) from error
        except httpx.InvalidURL as error:
            raise self._unanswered(f"{self.url} is no URL: {error}") from error
        try:
            document = response.json()
        except ValueError as error:
            what = f"{self.url} answered {response.status_code}, and no JSON"
            raise self._unanswered(what) from error
        if response.is_success:
            return document
        error_, remedy = document.get("error", "unknown"), document.get("remedy", "see its log")
        if response.status_code == UNKNOWN:
            raise self._unauthorized(error_)
        if response.status_code >= SERVER_ERROR or response.status_code == TOO_MANY:
            raise Unanswered(f"the {self.name} could not answer: {error_}", remedy)
        raise No(response.status_code, error_, remedy, document.get("field"))

    def get(self, path: str, **parameters: object) -> Any:
        """GET a document, or end the command with an error; leave out parameters that are None."""
        given = {k: v for k, v in parameters.items() if v is not None and v is not False}
        return self._answer("GET", path, params=given)

    def post(self, path: str, **body: object) -> Any:
        """POST a body, or end the command with an error; leave out fields that are None."""
        return self._answer("POST", path, json={k: v for k, v in body.items() if v is not None})

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        try:
            return self.ask(method, path, **request)
        except No as no:
            self.output.fail(Exit.NO, str(no), no.remedy)
        except Unanswered as error:
            self.output.fail(Exit.NO_ANSWER, str(error), error.remedy)

    def _unauthorized(self, error: str) -> No:
        variable, option = OPENS[self.name]
        given = "no token was given" if error == "no_token" else f"{variable} is not valid"
        remedy = (
            f"set {variable}, or give it: saga {option} ... COMMAND. For a stack of `chaos up`:"
        )
        remedy += ' eval "$(.venv/bin/chaos env)"; for another one ask its administrator'
        return No(UNKNOWN, f"the {self.name} at {self.url} refuses access: {given}", remedy)

    def _unanswered(self, what: str) -> Unanswered:
        return Unanswered(what, f"is the {self.name}'s API up, and is it at {self.url}?")


def again(ask: Callable[[], Any], seconds: float) -> Any:
    """Repeat a request that is safe to repeat until it is answered. Raises No, Unanswered."""
    deadline = time.monotonic() + seconds
    for pause in _pauses():
        try:
            return ask()
        except Unanswered:
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
    raise AssertionError("pauses never end")


def _pauses() -> Iterator[float]:
    pause = 0.1
    while True:
        yield pause
        pause = min(2 * pause, 2.0)
