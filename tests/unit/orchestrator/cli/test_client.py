"""URLs and keys, errors, and help."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import typer

from common.http.access import Role
from orchestrator.cli import app, client
from tests.support.apis import TOKENS
from tests.unit.orchestrator.cli.running import ONE, ORDER, Saga

NO_SERVER = "http://127.0.0.1:9"  # the discard port: nothing listens


def test_without_urls_the_error_says_what_to_type(saga: Saga) -> None:
    for words, name in ((("list",), "OPERATOR"), (ORDER, "DOOR")):
        ran = saga(*words, **{f"SAGAPROOF_{name}_URL": None})
        assert ran.code == 3
        assert f"SAGAPROOF_{name}_URL is not set" in ran.err
        assert 'eval "$(.venv/bin/chaos env)"' in ran.err


def test_no_answer_and_a_refusal_have_different_exit_codes(saga: Saga) -> None:
    ran = saga("doctor", "--operator", NO_SERVER)
    assert ran.code == 3
    assert f"no answer from the operator at {NO_SERVER}" in ran.err
    assert saga("show", str(ONE)).code == 1


def test_a_wrong_key_is_named_with_what_to_type(saga: Saga) -> None:
    for words, name, option in (
        (("list",), "OPERATOR_TOKEN", "--token"),
        (ORDER, "DOOR_KEY", "--door-key"),
    ):
        variable = f"SAGAPROOF_{name}"
        for secret, what in (
            (None, "no token was given"),
            ("a-wrong-one", f"{variable} is not valid"),
        ):
            ran = saga(*words, **{variable: secret})
            assert ran.code == 1
            assert what in ran.err
            assert f"set {variable}, or give it: saga {option}" in ran.err
            assert 'eval "$(.venv/bin/chaos env)"' in ran.err
        assert saga(option, "a-wrong-one", *words).code == 1
    ran = saga("--token", TOKENS[Role.VIEWER], "list", SAGAPROOF_OPERATOR_TOKEN=None)
    assert ran.code == 0


def test_with_json_errors_are_json_too(saga: Saga) -> None:
    ran = saga("show", str(ONE), "--json")
    assert ran.code == 1
    assert ran.out == ""
    assert json.loads(ran.err)["remedy"].startswith(f"no saga {ONE}")


def test_an_answer_that_is_no_json_is_reported(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    page = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    connect = lambda url: httpx.Client(base_url=url, transport=page)  # noqa: E731
    monkeypatch.setattr(client, "connect", connect)
    ran = saga("list")
    assert ran.code == 3
    assert "no JSON" in ran.err


def every_command(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    yield group, path
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, (*path, name))


COMMANDS = {" ".join(path): command for command, path in every_command(typer.main.get_command(app))}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_not_cut_off_and_has_an_example(saga: Saga, command: str) -> None:
    ran = saga(*command.split(), "--help", COLUMNS="80", TERMINAL_WIDTH="80")
    assert ran.code == 0
    if hasattr(COMMANDS[command], "commands"):
        assert "..." not in ran.out.partition("Commands:")[2]
    elif command not in ("doctor", "watch list"):
        assert f"  saga {command}" in ran.out
