"""Whose fault an error is, by a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

from common.messages.envelope import Direction, Key
from common.transport.bad_deploy import WINDOW_SECONDS, Suspicion

LATER = 10 * WINDOW_SECONDS


def key(number: int) -> Key:
    return Key(UUID(int=number), "charge_payment", Direction.FORWARD)


def one(text: str = "") -> Exception:
    return raised_by(partial(fail, RuntimeError(text)))


def other() -> Exception:
    return raised_by(partial(fail, KeyError()))


def fail(error: Exception) -> None:
    raise error


def raised_by(act: Callable[[], None]) -> Exception:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - it is what was asked for
        return error
    raise AssertionError


def test_the_same_error_on_several_messages_speaks_against_the_code() -> None:
    suspicion = Suspicion(3)
    suspicion.went_well([key(100)], 0)
    for number in (1, 2, 2, 1):
        suspicion.struck(key(number), one(), 0)
    assert suspicion.bad_deploy(0) is None
    suspicion.struck(key(3), one("no such column"), 1)
    verdict = suspicion.bad_deploy(1)
    assert verdict is not None
    assert verdict.startswith("RuntimeError at fail:")
    assert verdict.endswith(": no such column")


def test_an_error_that_names_its_message_is_the_same_error() -> None:
    suspicion = Suspicion(3)
    for number in (1, 2, 3):
        suspicion.struck(key(number), one(f"order {number}"), 0)
    assert suspicion.bad_deploy(0)


def test_before_anything_went_well_one_message_is_enough() -> None:
    suspicion = Suspicion(3)
    for times in (1, 2, 3):
        assert suspicion.bad_deploy(times * LATER) is None
        suspicion.struck(key(1), one(), times * LATER)
    suspicion.went_well([key(100)], 3 * LATER, acted=False)
    assert suspicion.bad_deploy(3 * LATER)
    suspicion.went_well([key(101)], 3 * LATER)
    suspicion.struck(key(1), one(), 3 * LATER)
    assert suspicion.bad_deploy(3 * LATER) is None


def test_different_errors_do_not_add_up() -> None:
    suspicion = Suspicion(2)
    suspicion.struck(key(1), one(), 0)
    suspicion.struck(key(2), other(), 0)
    assert suspicion.bad_deploy(0) is None


def test_who_is_handled_in_the_end_was_not_struck() -> None:
    suspicion = Suspicion(2)
    for number in (1, 2):
        suspicion.struck(key(number), one(), 0)
    assert suspicion.bad_deploy(0)
    suspicion.went_well([key(2)], 1)
    assert suspicion.bad_deploy(1) is None


def test_within_the_window_it_counts_whatever_else_goes_well() -> None:
    suspicion = Suspicion(2)
    for number in (1, 2):
        suspicion.struck(key(number), one(), 0)
        suspicion.went_well([key(100 + number)], 1)
    assert suspicion.bad_deploy(WINDOW_SECONDS - 1)
    assert suspicion.bad_deploy(WINDOW_SECONDS) is None


def test_beyond_the_window_it_counts_while_nothing_goes_well() -> None:
    """A bad deploy in a quiet night: a message an hour, and each of them fails."""
    suspicion = Suspicion(3)
    suspicion.went_well([key(100)], 0)
    for number in (1, 2, 3):
        suspicion.struck(key(number), one(), number * LATER)
    assert suspicion.bad_deploy(9 * LATER)
    suspicion.went_well([key(101)], 9 * LATER)
    assert suspicion.bad_deploy(9 * LATER) is None
