"""The SQL of deciding: instances, the saga log and held replies.

Owns how an instance is stored, and its deadlines, which only this database's clock decides
(rule 6). SQL that only reads is in census.py.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from common.kit.settings import Policy
from common.messages.envelope import Direction, Envelope
from common.storage.db import Tx, columns
from orchestrator.engine.decide import Send
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.instance import Instance, Progress, State, Status
from orchestrator.engine.saga_log import Entry
from orchestrator.runtime import archive

Times = dict[str, float]


@dataclass(slots=True)
class InstanceRow:
    """An instance as stored, with the times of its steps in seconds of the epoch.

    times[step] has `issued` and `undo_issued`, when each direction was first sent (the same in
    every resend, rule 18), and `deadline`, when the awaited answer is overdue. For a gate that
    waits they are when it began to wait and when it expires.
    """

    instance: Instance
    times: dict[str, Times] = field(default_factory=dict)
    is_new: bool = False
    undeployed: bool = False
    """Marked as stuck, since no process has decided an overdue deadline of it (versions.py)."""
    unjudgeable: str | None = None
    """Why the process that has its version deployed could not decide."""
    watched: str | None = None
    """Why its customer is on the watch list; only read when a gate may come next."""

    def issued(self, step: str, direction: Direction) -> float:
        return self.times[step]["issued" if direction is FORWARD else "undo_issued"]

    def apply(
        self,
        instance: Instance,
        sends: Sequence[Send],
        definition: Definition,
        policy: Policy,
        now: float,
    ) -> None:
        """Set the next state of the instance, and a deadline for what it sends or waits for."""
        self.instance = instance
        gate = instance.waiting_at()
        if gate is not None and gate not in self.times:
            expiry = (definition.by_name[gate].policy or policy).approval_expiry_seconds
            self.times[gate] = {"issued": now, "deadline": now + expiry}
        for send in sends:
            step = definition.by_name[send.step]
            times = self.times.setdefault(send.step, {})
            times.setdefault("issued" if send.direction is FORWARD else "undo_issued", now)
            patience = (step.policy or policy).patience(
                send.attempt,
                capped=step.is_capped(send.direction),
                jitter=random.random(),  # noqa: S311 - spreads resends, no secret
            )
            times["deadline"] = now + patience

    def next_deadline(self) -> float | None:
        return min(
            (self.times[step]["deadline"] for step, _ in self.instance.timed_legs()), default=None
        )


COLUMNS = """
select saga_id, definition, version, state, data, steps, reason, compensate_asked, pivot_passed,
       stuck_since is not null and not undeployed as stuck, undeployed, unjudgeable"""
_WATCHED = """,
       (select w.reason from watched_customer w
         where w.customer = i.data ->> 'customer') as watched"""
_FOR_UPDATE = """
  from saga_instance i where saga_id = any(%b::uuid[]) order by saga_id for update"""
_LOCK, _LOCK_WATCHED = COLUMNS + _FOR_UPDATE, COLUMNS + _WATCHED + _FOR_UPDATE


async def lock(
    tx: Tx, saga_ids: Sequence[UUID], *, watch: bool = False, new: Sequence[UUID] = ()
) -> tuple[dict[UUID, InstanceRow], set[UUID], float]:
    """Lock the instances in the order of their ids, until the transaction ends (rule 7).

    Returns them, those of `saga_ids` that are archived, and the time since when they are locked.
    `watch` reads the watch list too. `new` are sagas that normally have no instance yet: they are
    looked up in the archive in the same round trip.
    """
    instances = tx.queue_query(_LOCK_WATCHED if watch else _LOCK, [sorted(saga_ids)])
    clock = tx.queue_query("select extract(epoch from clock_timestamp())::float8")
    archived = archive.ask(tx, new) if new else None  # after the locks: an archiver has committed
    await tx.sync()
    rows = {row.saga_id: instance_row(row) for row in instances.rows}
    gone = {row.saga_id for row in archived.rows} if archived else set()
    missing = set(saga_ids) - rows.keys() - set(new)
    if missing:
        asked = archive.ask(tx, list(missing))
        await tx.sync()
        gone |= {row.saga_id for row in asked.rows}
    return rows, gone, clock.rows[0][0]


def instance_row(row: Any) -> InstanceRow:
    """Read a row that has COLUMNS, and perhaps `watched`."""
    instance = Instance(
        saga_id=row.saga_id,
        definition=row.definition,
        version=row.version,
        data=row.data,
        state=State(row.state),
        steps={
            name: Progress(Status(s["status"]), s["attempt"], s["undo_attempt"])
            for name, s in row.steps.items()
        },
        reason=row.reason,
        compensate_asked=row.compensate_asked,
        pivot_passed=row.pivot_passed,
        stuck=row.stuck,
    )
    return InstanceRow(
        instance,
        {
            name: {k: s[k] for k in ("issued", "undo_issued", "deadline") if k in s}
            for name, s in row.steps.items()
        },
        undeployed=row.undeployed,
        # the previous release clears `undeployed` alone
        unjudgeable=row.unjudgeable if row.undeployed else None,
        watched=getattr(row, "watched", None),
    )


def _steps(row: InstanceRow) -> str:
    timed = {step for step, _ in row.instance.timed_legs()}
    return json.dumps(
        {
            name: {
                "status": p.status.value,
                "attempt": p.attempt,
                "undo_attempt": p.undo_attempt,
                **{
                    k: t
                    for k, t in row.times.get(name, {}).items()
                    if k != "deadline" or name in timed
                },
            }
            for name, p in row.instance.steps.items()
        }
    )


_INSERT = """
insert into saga_instance (saga_id, definition, version, data, state, steps, reason,
                           compensate_asked, pivot_passed, stuck_since, next_deadline, ended_at)
select saga_id, definition, version, data::jsonb, state, steps::jsonb, reason, compensate_asked,
       pivot_passed, case when stuck then now() end, to_timestamp(deadline),
       case when ended then now() end
  from unnest(%b::uuid[], %b::text[], %b::bool[], %b::text[], %b::text[], %b::bool[], %b::bool[],
              %b::bool[], %b::float8[], %b::text[], %b::int[], %b::text[])
    as k (saga_id, state, ended, steps, reason, compensate_asked, pivot_passed, stuck, deadline,
          definition, version, data)"""

_UPDATE = """
update saga_instance i
   set state = k.state, steps = k.steps::jsonb, reason = k.reason,
       compensate_asked = k.compensate_asked, pivot_passed = k.pivot_passed,
       next_deadline = to_timestamp(k.deadline), updated_at = now(), undeployed = false,
       unjudgeable = null,
       stuck_since = case when k.stuck then coalesce(i.stuck_since, now()) end,
       ended_at = case when k.ended then coalesce(i.ended_at, now()) end
  from unnest(%b::uuid[], %b::text[], %b::bool[], %b::text[], %b::text[], %b::bool[], %b::bool[],
              %b::bool[], %b::float8[])
    as k (saga_id, state, ended, steps, reason, compensate_asked, pivot_passed, stuck, deadline)
 where i.saga_id = k.saga_id and i.saga_id = any(%b::uuid[])"""


def save(tx: Tx, rows: Sequence[InstanceRow]) -> None:
    """Write new and changed instances, one statement each."""
    if new := [row for row in rows if row.is_new]:
        first = [(i.definition, i.version, json.dumps(i.data)) for i in (r.instance for r in new)]
        tx.queue_write(_INSERT, _columns(new) + columns(first))
    if known := [row for row in rows if not row.is_new]:
        changed = _columns(known)
        why = "what is inserted had no row yet"
        tx.queue_write(_UPDATE, [*changed, changed[0]], other_rows=why)


def _columns(rows: Sequence[InstanceRow]) -> list[list[Any]]:
    return columns(
        (i.saga_id, i.state.value, i.state.ended, _steps(row), i.reason,
         i.compensate_asked, i.pivot_passed, i.stuck, row.next_deadline())
        for row, i in ((row, row.instance) for row in rows)
    )  # fmt: skip


def write_log(tx: Tx, entries: Sequence[tuple[UUID, Entry]], process: str) -> None:
    if not entries:
        return
    lines = [
        (saga_id, str(e.kind), e.step, e.direction and e.direction.value,
         e.attempt, e.detail, e.answered_by)
        for saga_id, e in entries
    ]  # fmt: skip
    tx.queue_write(
        "insert into saga_log"
        "       (saga_id, entry, step, direction, attempt, detail, answered_by, process)"
        " select saga_id, entry, step, direction, attempt, detail, answered_by, %s"
        "   from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::int[], %b::text[],"
        "               %b::text[]) with ordinality"
        "     as k (saga_id, entry, step, direction, attempt, detail, answered_by, n)"
        " order by n",
        [process, *columns(lines)],
    )


async def overdue(tx: Tx, limit: int, known: Sequence[str], undeployed_after: float) -> list[UUID]:
    """Find instances with a deadline that has passed, to be checked again under their lock.

    Instances of a definition that is not among the `known` (`order v2`) are found later, when every
    process that has it deployed has had the time to decide.
    """
    rows = await tx.fetch(
        "select saga_id from saga_instance"
        " where next_deadline <= now()"
        "   and (definition || ' v' || version = any(%b::text[])"
        "        or next_deadline <= now() - make_interval(secs => %s))"
        " order by next_deadline limit %s",
        (list(known), undeployed_after, limit),
    )
    return [row.saga_id for row in rows]


async def mark_undeployed(tx: Tx, whys: Mapping[UUID, str | None], again_after: float) -> None:
    """Mark these, with the reason if they are unjudgeable, or None (versions.py).

    They are tried again later, and unmarked by the process that can decide.
    """
    if whys:
        await tx.sync()  # `save` may have written the same rows: not both in one flush
        saga_ids = list(whys)
        tx.queue_write(
            "update saga_instance i"
            "   set undeployed = true, unjudgeable = k.why,"
            "       stuck_since = coalesce(i.stuck_since, now()),"
            "       next_deadline = now() + make_interval(secs => %s)"
            "  from unnest(%b::uuid[], %b::text[]) as k (saga_id, why)"
            " where i.saga_id = k.saga_id and i.saga_id = any(%b::uuid[])",
            (again_after, saga_ids, list(whys.values()), saga_ids),
        )


def hold_replies(tx: Tx, replies: Sequence[tuple[str, Envelope]]) -> None:
    """Hold replies for a process that has their saga's definition (`order v2`) deployed."""
    if replies:
        tx.queue_write(
            "insert into held_reply (saga_id, step, direction, definition, envelope)"
            " select * from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])"
            " on conflict do nothing",
            columns(
                (e.saga_id, e.step, e.direction.value, definition, e.encode())
                for definition, e in replies
            ),
        )


async def sagas_with_held_replies(tx: Tx, known: Sequence[str], limit: int) -> list[UUID]:
    rows = await tx.fetch(
        "select distinct saga_id from held_reply where definition = any(%b::text[]) limit %s",
        (list(known), limit),
    )
    return [row.saga_id for row in rows]


async def take_held_replies(tx: Tx, saga_ids: Sequence[UUID]) -> list[Envelope]:
    """Remove and return the held replies of these sagas, whose instances must be locked."""
    rows = await tx.fetch(
        "delete from held_reply where saga_id = any(%b::uuid[]) returning envelope",
        (list(saga_ids),),
    )
    return [Envelope.model_validate_json(row.envelope) for row in rows]


async def count_running(tx: Tx) -> int:
    """Count the instances under way in all processes, without the stuck and the parked ones.

    The states are named, so that an index skips the parked ones, however many there are.
    """
    rows = await tx.fetch(
        "select count(*) from saga_instance where ended_at is null and stuck_since is null"
        " and state = any('{RUNNING,COMPENSATING}')"
    )
    return int(rows[0][0])
