"""Roles and schemas of a new database, as SQL. Pure.

Owns: one role per schema, kept out of all others, and a judge who may only read (design.md,
5.12). Used by both runtimes and by the tests. Must not know: how it is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

DATABASE = "sagaproof"
SERVICES = ("orchestrator", "order_svc", "payment_svc", "inventory_svc")  # role = schema; ours
JUDGE = "judge"
ROLES = (*SERVICES, JUDGE)


def role_statements(passwords: Mapping[str, str]) -> Iterator[str]:
    """Once per server: every role may log in, and finds its own schema first."""
    for role, password in passwords.items():
        yield f"create role {role} login password '{_quoted(password)}'"
    for role in passwords:
        if role != JUDGE:
            yield f"alter role {role} set search_path = {role}"


def schema_statements(roles: Iterable[str] = SERVICES) -> Iterator[str]:
    """Once per database, for the roles of its services."""
    yield "revoke all on schema public from public"
    for role in roles:
        yield f"create schema {role} authorization {role}"
        yield f"grant usage on schema {role} to {JUDGE}"
        grant = f"grant select on tables to {JUDGE}"
        yield f"alter default privileges for role {role} in schema {role} {grant}"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
