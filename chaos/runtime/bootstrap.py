"""Roles and schemas of a new database, as SQL: one role per schema, and a judge who only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

DATABASE = "sagaproof"
SERVICES = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")  # role = schema; ours
JUDGE = "judge"
ROLES = (*SERVICES, JUDGE)


def role_statements(passwords: Mapping[str, str]) -> Iterator[str]:
    """Yield what runs once per server: each role may log in and finds its own schema first."""
    for role, password in passwords.items():
        yield "create role {} login password '{}'".format(role, password.replace("'", "''"))
    for role in passwords:
        if role != JUDGE:
            yield f"alter role {role} set search_path = {role}"


def schema_statements(roles: Iterable[str] = SERVICES) -> Iterator[str]:
    """Yield what runs once per database, for the roles of its services."""
    yield "revoke all on schema public from public"
    for role in roles:
        yield f"create schema {role} authorization {role}"
        yield f"grant usage on schema {role} to {JUDGE}"
        grant = f"grant select on tables to {JUDGE}"
        yield f"alter default privileges for role {role} in schema {role} {grant}"
