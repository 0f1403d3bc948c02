"""Asks the two HTTP APIs.

Owns: where they are and what opens them, and telling a "no" from nobody being there. Must not know:
what is printed.
"""

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
    typer.Option("--door", envvar="SAGAPROOF_DOOR_URL", metavar="URL", help="The customers' door."),
]
Operator = Annotated[
    str | None,
    typer.Option(
        "--operator", envvar="SAGAPROOF_OPERATOR_URL", metavar="URL", help="The operator's API."
    ),
]

ANSWER_SECONDS = 30.0
ASK_AGAIN_SECONDS = 60.0  # how long whoever does not answer is asked again, where that is safe
UNKNOWN, TOO_MANY, SERVER_ERROR = 401, 429, 500

OPENS = {
    "door": ("SAGAPROOF_DOOR_KEY", "--door-key"),
    "operator": ("SAGAPROOF_OPERATOR_TOKEN", "--token"),
}


# What opens each API, as given to `saga` itself, before the command.
_secrets: ContextVar[Mapping[str, str | None]] = ContextVar("secrets", default={})  # noqa: B039


def remember(
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SAGAPROOF_OPERATOR_TOKEN", metavar="TOKEN", show_envvar=True,
            help="Opens the operator's API. In the environment others do not see it.",
        ),
    ] = None,
    door_key: Annotated[
        str | None,
        typer.Option(envvar="SAGAPROOF_DOOR_KEY", metavar="KEY", help="Opens the customers' door."),
    ] = None,
) -> None:  # fmt: skip
    _secrets.set({"door": door_key, "operator": token})


class Unanswered(Exception):
    """Nobody is there, or nobody could answer; what was asked may or may not have been done."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class No(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, error: str, remedy: str, field: str | None = None) -> None:
        super().__init__(f"{field}: {error}" if field else error)
        self.status = status
        self.error = error
        self.field = field
        self.remedy = remedy


def connect(url: str) -> httpx.Client:
    """No proxies: an operator's API is not asked through one unawares."""
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False)


class Api:
    """One of the two; `name` is door or operator."""

    def __init__(self, name: str, url: str | None, output: Output) -> None:
        if not url:
            output.fail(
                Exit.NO_ANSWER,
                f"where is the {name}'s API? SAGAPROOF_{name.upper()}_URL is not set",
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
        """The answer's document. Raises Unanswered or No."""
        try:
            response = self._client.request(method, path, **request)
        except httpx.TransportError as error:
            raise self._nobody(f"no answer from the {self.name} at {self.url}: {error}") from error
        except httpx.InvalidURL as error:
            raise self._nobody(f"{self.url} is no URL: {error}") from error
        try:
            document = response.json()
        except ValueError as error:
            what = f"{self.url} answered {response.status_code}, and no JSON"
            raise self._nobody(what) from error
        if response.is_success:
            return document
        error_, remedy = document.get("error", "unknown"), document.get("remedy", "see its log")
        if response.status_code == UNKNOWN:
            raise self._not_opened(error_)
        if response.status_code >= SERVER_ERROR or response.status_code == TOO_MANY:
            raise Unanswered(f"the {self.name} could not answer: {error_}", remedy)
        raise No(response.status_code, error_, remedy, document.get("field"))

    def get(self, path: str, **parameters: object) -> Any:
        """The answer's document; ends the command if there is none."""
        given = {k: v for k, v in parameters.items() if v is not None and v is not False}
        return self._answer("GET", path, params=given)

    def post(self, path: str, **body: object) -> Any:
        """Likewise; fields that are None are left out."""
        return self._answer("POST", path, json={k: v for k, v in body.items() if v is not None})

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        try:
            return self.ask(method, path, **request)
        except No as no:
            self.output.fail(Exit.NO, str(no), no.remedy)
        except Unanswered as nobody:
            self.output.fail(Exit.NO_ANSWER, str(nobody), nobody.remedy)

    def _not_opened(self, error: str) -> No:
        variable, option = OPENS[self.name]
        given = "no token was given" if error == "no_token" else f"it does not know this {variable}"
        remedy = (
            f"set {variable}, or give it: saga {option} ... COMMAND. For a stack of `chaos up`:"
        )
        remedy += ' eval "$(.venv/bin/chaos env)"; whoever runs another one hands them out'
        return No(UNKNOWN, f"the {self.name} at {self.url} does not open: {given}", remedy)

    def _nobody(self, what: str) -> Unanswered:
        return Unanswered(what, f"is the {self.name}'s API up, and is it at {self.url}?")


def again(ask: Callable[[], Any], seconds: float) -> Any:
    """Ask until there is an answer; for what is safe to ask twice. Raises No, Unanswered."""
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
