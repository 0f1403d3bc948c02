"""The bad-deploy detector, by a clock of the test's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

from common.messages.envelope import Direction, Key
from common.transport.bad_deploy import WINDOW_SECONDS, BadDeployDetector

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


def test_the_same_error_on_several_messages_is_a_bad_deploy() -> None:
    detector = BadDeployDetector(3)
    detector.record_success([key(100)], 0)
    for number in (1, 2, 2, 1):
        detector.record_failure(key(number), one(), 0)
    assert detector.verdict(0) is None
    detector.record_failure(key(3), one("no such column"), 1)
    verdict = detector.verdict(1)
    assert verdict is not None
    assert verdict.startswith("RuntimeError at fail:")
    assert verdict.endswith(": no such column")


def test_an_error_that_names_its_message_is_the_same_error() -> None:
    detector = BadDeployDetector(3)
    for number in (1, 2, 3):
        detector.record_failure(key(number), one(f"order {number}"), 0)
    assert detector.verdict(0)


def test_before_any_success_one_message_is_enough() -> None:
    detector = BadDeployDetector(3)
    for times in (1, 2, 3):
        assert detector.verdict(times * LATER) is None
        detector.record_failure(key(1), one(), times * LATER)
    detector.record_success([key(100)], 3 * LATER, handlers_ran=False)
    assert detector.verdict(3 * LATER)
    detector.record_success([key(101)], 3 * LATER)
    detector.record_failure(key(1), one(), 3 * LATER)
    assert detector.verdict(3 * LATER) is None


def test_different_errors_do_not_add_up() -> None:
    detector = BadDeployDetector(2)
    detector.record_failure(key(1), one(), 0)
    detector.record_failure(key(2), other(), 0)
    assert detector.verdict(0) is None


def test_a_success_removes_the_message_s_failures() -> None:
    detector = BadDeployDetector(2)
    for number in (1, 2):
        detector.record_failure(key(number), one(), 0)
    assert detector.verdict(0)
    detector.record_success([key(2)], 1)
    assert detector.verdict(1) is None


def test_within_the_window_failures_count_despite_successes() -> None:
    detector = BadDeployDetector(2)
    for number in (1, 2):
        detector.record_failure(key(number), one(), 0)
        detector.record_success([key(100 + number)], 1)
    assert detector.verdict(WINDOW_SECONDS - 1)
    assert detector.verdict(WINDOW_SECONDS) is None


def test_beyond_the_window_failures_count_until_a_success() -> None:
    """A bad deploy in a quiet night: a message an hour, and each of them fails."""
    detector = BadDeployDetector(3)
    detector.record_success([key(100)], 0)
    for number in (1, 2, 3):
        detector.record_failure(key(number), one(), number * LATER)
    assert detector.verdict(9 * LATER)
    detector.record_success([key(101)], 9 * LATER)
    assert detector.verdict(9 * LATER) is None
