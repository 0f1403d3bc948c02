"""Tokens: whose they are, what a list of them must look like, how often each may ask."""

from __future__ import annotations

import pytest

from common.http.access import (
    CUSTOMERS,
    OPERATORS,
    Actor,
    Allowance,
    BadTokens,
    Keyring,
    Role,
)

ANN, BOB = "token-of-ann-0123", "token-of-bob-0123"


def test_each_token_is_somebodys_and_any_other_nobodys() -> None:
    keyring = Keyring.parse(f"ann:operator:{ANN}\n bob@shop:viewer:{BOB}", OPERATORS)
    assert keyring.actor(ANN) == Actor("ann", Role.OPERATOR)
    assert keyring.actor(BOB) == Actor("bob@shop", Role.VIEWER)
    for wrong in ("", ANN[:-1], ANN + "x", ANN.upper(), "tökén"):
        assert keyring.actor(wrong) is None


def test_a_name_may_hold_two_tokens_while_one_is_replaced() -> None:
    keyring = Keyring.parse(f"ann:operator:{ANN} ann:operator:{BOB}", OPERATORS)
    assert keyring.actor(ANN) == keyring.actor(BOB) == Actor("ann", Role.OPERATOR)


def test_where_there_is_one_role_it_need_not_be_said() -> None:
    assert Keyring.parse(f"shop:{ANN}", CUSTOMERS).actor(ANN) == Actor("shop", Role.CUSTOMER)
    both = Keyring.parse(f"shop:customer:{ANN}", CUSTOMERS)
    assert both.actor(ANN) == Actor("shop", Role.CUSTOMER)


def test_no_token_is_kept_but_its_hash() -> None:
    keyring = Keyring.parse(f"ann:operator:{ANN}", OPERATORS)
    assert ANN not in repr(vars(keyring))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not set, or empty"),
        (" \n", "not set, or empty"),
        (f"ann:{ANN}", "entry 1: write NAME:ROLE:TOKEN"),
        (f"a:viewer:{BOB} ann:operator:", "entry 2: write NAME:ROLE:TOKEN"),
        (f"ann:customer:{ANN}", "no role 'customer': choose from viewer, operator"),
        (f":operator:{ANN}", "a name is"),
        ("ann:operator:0123456789abcde", "the token of ann is not 16 or more"),
        (f"ann:operator:{ANN}!", "draw one: python -c"),
        (f"ann:operator:{ANN} bob:viewer:{ANN}", "entry 2: its token is there already"),
    ],
)
def test_a_list_that_is_wrong_is_told_where_and_quotes_no_token(text: str, what: str) -> None:
    with pytest.raises(BadTokens, match=what) as raised:
        Keyring.parse(text, OPERATORS)
    assert ANN not in str(raised.value)
    assert BOB not in str(raised.value)


def test_an_allowance_is_used_up_and_comes_back() -> None:
    allowance = Allowance(per_second=10)
    assert [allowance.wait("ann", 100.0) for _ in range(20)] == [0.0] * 20
    assert allowance.wait("ann", 100.0) == pytest.approx(0.1)
    assert allowance.wait("bob", 100.0) == 0.0, "another's"
    assert allowance.wait("ann", 100.05) == pytest.approx(0.05)
    assert allowance.wait("ann", 100.125) == 0.0
    assert allowance.wait("ann", 100.125) > 0.0
    assert [allowance.wait("ann", 900.0) for _ in range(20)] == [0.0] * 20
    assert allowance.wait("ann", 900.0) > 0.0, "no more is saved up"


def test_a_slow_allowance_still_lets_one_through() -> None:
    allowance = Allowance(per_second=0.1)
    assert allowance.wait("ann", 0.0) == 0.0
    assert allowance.wait("ann", 0.0) == pytest.approx(10.0)
