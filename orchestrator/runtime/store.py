"""The SQL of deciding: instances and the saga log. What only reads is in reader.py.

Owns: how an instance lies in its row, and its deadlines, which only this database's clock
judges (section 6, rule 6). Must not know: what any input means.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from common.kit.patience import Policy
from common.messages.envelope import Direction, Envelope
from common.storage.db import Tx
from orchestrator.engine.decide import Entry, Send
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.instance import Instance, Progress, State, Status
from orchestrator.runtime import archive

Times = dict[str, float]


@dataclass(slots=True)
class Held:
    """An instance whose row we hold, with the times of its steps: seconds of the epoch.

    times[step] has `issued` and `undo_issued`, when each direction was first sent (the same in
    every resend, rule 18), and `deadline`, when the answer awaited from that step is overdue. Of
    a gate that waits: since when, and when it expires.
    """

    instance: Instance
    times: dict[str, Times] = field(default_factory=dict)
    fresh: bool = False
    undeployed: bool = False
    """Marked so, since for long nobody came by who knows its version, or who could judge it."""
    unjudgeable: str | None = None
    """Why it could not be judged by who knows its version."""
    watched: str | None = None
    """Why its customer is on the watch list; only looked up when a gate comes next."""

    def issued(self, step: str, direction: Direction) -> float:
        return self.times[step]["issued" if direction is FORWARD else "undo_issued"]

    def take(
        self,
        instance: Instance,
        sends: Sequence[Send],
        definition: Definition,
        policy: Policy,
        now: float,
    ) -> None:
        """The next state of the instance; what it sends, or waits for, gets a deadline."""
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


_LOAD = """
select saga_id, definition, version, state, data, steps, reason, compensate_asked,
       pivot_passed,
       stuck_since is not null and not undeployed, undeployed, unjudgeable
  from saga_instance where saga_id = any(%b::uuid[]) order by saga_id for update"""

# Likewise, and who is on the watch list: no round trip of its own, and only before a gate.
_LOAD_WATCHED = """
select saga_id, definition, version, state, data, steps, reason, compensate_asked,
       pivot_passed,
       stuck_since is not null and not undeployed, undeployed, unjudgeable,
       (select w.reason from watched_customer w where w.customer = i.data ->> 'customer') as watched
  from saga_instance i where saga_id = any(%b::uuid[]) order by saga_id for update"""


async def lock(
    tx: Tx, saga_ids: Sequence[UUID], *, watch: bool = False, new: Sequence[UUID] = ()
) -> tuple[dict[UUID, Held], set[UUID], float]:
    """The instances, each row locked in the order of ids until the transaction ends (rule 7), those
    that are archived, and what time it is since. `watch`: with what the watch list says of their
    customers; `new`: those that as a rule have no instance yet, which saves a round trip."""
    instances = tx.ask(_LOAD_WATCHED if watch else _LOAD, [sorted(saga_ids)])
    clock = tx.ask("select extract(epoch from clock_timestamp())::float8")
    archived = archive.ask(tx, new) if new else None  # whoever moved them has committed by now
    await tx.sync()
    held = {row[0]: held_of(row) for row in instances.rows}
    gone = {saga_id for (saga_id,) in archived.rows} if archived else set()
    missing = set(saga_ids) - held.keys() - set(new)
    if missing:
        asked = archive.ask(tx, list(missing))
        await tx.sync()
        gone |= {saga_id for (saga_id,) in asked.rows}
    return held, gone, clock.rows[0][0]


def held_of(row: tuple[Any, ...]) -> Held:
    """A row of the columns of _LOAD, or of _LOAD_WATCHED."""
    (
        saga_id,
        definition,
        version,
        state,
        data,
        steps,
        reason,
        compensate_asked,
        pivot_passed,
        stuck,
        undeployed,
        unjudgeable,
        *watched,
    ) = row
    instance = Instance(
        saga_id=saga_id,
        definition=definition,
        version=version,
        data=data,
        state=State(state),
        steps={
            name: Progress(Status(s["status"]), s["attempt"], s["undo_attempt"])
            for name, s in steps.items()
        },
        reason=reason,
        compensate_asked=compensate_asked,
        pivot_passed=pivot_passed,
        stuck=stuck,
    )
    times = {name: _times(s) for name, s in steps.items()}
    return Held(
        instance,
        times,
        undeployed=undeployed,
        unjudgeable=unjudgeable if undeployed else None,  # an older release unmarks only the one
        watched=watched[0] if watched else None,
    )


def _times(step: Mapping[str, Any]) -> Times:
    return {key: step[key] for key in ("issued", "undo_issued", "deadline") if key in step}


def _steps(held: Held) -> str:
    legs = {step for step, _ in held.instance.timed_legs()}
    return json.dumps(
        {
            name: {
                "status": p.status.value,
                "attempt": p.attempt,
                "undo_attempt": p.undo_attempt,
                **{
                    k: t
                    for k, t in held.times.get(name, {}).items()
                    if k != "deadline" or name in legs
                },
            }
            for name, p in held.instance.steps.items()
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


async def save(tx: Tx, instances: Sequence[Held]) -> None:
    """New and changed instances, one statement each."""
    fresh = [held for held in instances if held.fresh]
    known = [held for held in instances if not held.fresh]
    if fresh:
        first = [
            [held.instance.definition for held in fresh],
            [held.instance.version for held in fresh],
            [json.dumps(held.instance.data) for held in fresh],
        ]
        await tx.execute(_INSERT, _columns(fresh) + first)
    if known:
        await tx.execute(_UPDATE, [*_columns(known), [held.instance.saga_id for held in known]])


def _columns(instances: Sequence[Held]) -> list[list[Any]]:
    all_ = [held.instance for held in instances]
    return [
        [i.saga_id for i in all_],
        [i.state.value for i in all_],
        [i.state.ended for i in all_],
        [_steps(held) for held in instances],
        [i.reason for i in all_],
        [i.compensate_asked for i in all_],
        [i.pivot_passed for i in all_],
        [i.stuck for i in all_],
        [held.next_deadline() for held in instances],
    ]


async def write_log(tx: Tx, entries: Sequence[tuple[UUID, Entry]], process: str) -> None:
    if entries:
        await tx.execute(
            "insert into saga_log"
            "       (saga_id, entry, step, direction, attempt, detail, answered_by, process)"
            " select saga_id, entry, step, direction, attempt, detail, answered_by, %s"
            "   from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::int[], %b::text[],"
            "               %b::text[])"
            "   with ordinality"
            "     as k (saga_id, entry, step, direction, attempt, detail, answered_by, n)"
            " order by n",
            (
                process,
                [saga_id for saga_id, _ in entries],
                [e.entry for _, e in entries],
                [e.step for _, e in entries],
                [e.direction and e.direction.value for _, e in entries],
                [e.attempt for _, e in entries],
                [e.detail for _, e in entries],
                [e.answered_by for _, e in entries],
            ),
        )


async def overdue(tx: Tx, limit: int, known: Sequence[str], undeployed_after: float) -> list[UUID]:
    """Instances with a deadline behind them; to be judged again once their row is held.

    Those of a definition that is not among the known ones (`order v2`) only once that is so long
    ago that nobody else seems to know it either.
    """
    rows = await tx.fetch(
        "select saga_id from saga_instance"
        " where next_deadline <= now()"
        "   and (definition || ' v' || version = any(%b::text[])"
        "        or next_deadline <= now() - make_interval(secs => %s))"
        " order by next_deadline limit %s",
        (list(known), undeployed_after, limit),
    )
    return [row[0] for row in rows]


async def mark_unjudged(tx: Tx, whys: Mapping[UUID, str | None], again_after: float) -> None:
    """Stuck, and to be looked at again later; whoever can judge them unmarks them. None: nobody
    came by who knows their version."""
    if whys:
        await tx.sync()  # a row is written once by what leaves together, and may have been by now
        saga_ids = list(whys)
        await tx.execute(
            "update saga_instance i"
            "   set undeployed = true, unjudgeable = k.why,"
            "       stuck_since = coalesce(i.stuck_since, now()),"
            "       next_deadline = now() + make_interval(secs => %s)"
            "  from unnest(%b::uuid[], %b::text[]) as k (saga_id, why)"
            " where i.saga_id = k.saga_id and i.saga_id = any(%b::uuid[])",
            (again_after, saga_ids, list(whys.values()), saga_ids),
        )


async def hold(tx: Tx, replies: Sequence[tuple[str, Envelope]]) -> None:
    """Replies for a process that knows their saga's definition (`order v2`)."""
    if replies:
        await tx.execute(
            "insert into held_reply (saga_id, step, direction, definition, envelope)"
            " select * from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[])"
            " on conflict do nothing",
            (
                [envelope.saga_id for _, envelope in replies],
                [envelope.step for _, envelope in replies],
                [envelope.direction.value for _, envelope in replies],
                [definition for definition, _ in replies],
                [envelope.encode() for _, envelope in replies],
            ),
        )


async def with_held_replies(tx: Tx, known: Sequence[str], limit: int) -> list[UUID]:
    """Instances of these definitions for which replies are held."""
    rows = await tx.fetch(
        "select distinct saga_id from held_reply where definition = any(%b::text[]) limit %s",
        (list(known), limit),
    )
    return [row[0] for row in rows]


async def take_held(tx: Tx, saga_ids: Sequence[UUID]) -> list[Envelope]:
    """Theirs, which are held no longer. Whoever takes them holds the rows of their instances."""
    rows = await tx.fetch(
        "delete from held_reply where saga_id = any(%b::uuid[]) returning envelope",
        (list(saga_ids),),
    )
    return [Envelope.model_validate_json(row[0]) for row in rows]


async def count_running(tx: Tx) -> int:
    """Instances under way, of all processes; the stuck and the parked ones wait for a person.

    By the states there are, so that however many are parked none of them is looked at.
    """
    rows = await tx.fetch(
        "select count(*) from saga_instance where ended_at is null and stuck_since is null"
        " and state = any('{RUNNING,COMPENSATING}')"
    )
    return int(rows[0][0])
