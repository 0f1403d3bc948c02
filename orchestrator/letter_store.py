"""The SQL of dead letters.

Owns: the table dead_letter. Must not know: what a letter leads to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from common.db import Tx
from orchestrator.letters import Letter

# In the order of ids, as everybody locks these rows. A redelivery changes nothing.
_KEEP = """
insert into dead_letter as d
       (letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
        size, readable, headers, set_aside, count)
select letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
       size, readable, headers::jsonb, set_aside, count
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::uuid[], %b::text[], %b::text[],
              %b::bool[], %b::uuid[], %b::text[], %b::bytea[], %b::int[], %b::bool[], %b::text[],
              %b::text[], %b::int[])
    as k (letter_id, queue, reason, detail, saga_id, step, direction, reply, message_id, type, body,
          size, readable, headers, set_aside, count)
 order by letter_id
on conflict (letter_id) do update
   set count = d.count + excluded.count, last_seen = now(), set_aside = excluded.set_aside,
       detail = excluded.detail, body = excluded.body, size = excluded.size,
       readable = excluded.readable, headers = excluded.headers,
       state = 'open', settled_at = null, settled_by = null, settled_why = null
 where d.set_aside <> excluded.set_aside"""


async def last_times(tx: Tx, letter_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Of those that are known, when each was last set aside."""
    rows = await tx.fetch(
        "select letter_id, set_aside from dead_letter where letter_id = any(%b::uuid[])",
        [list(letter_ids)],
    )
    return dict(rows)


async def keep(tx: Tx, letters: Sequence[tuple[Letter, int]]) -> None:
    """Each with how often it came. One that is known counts up, and is open again."""
    if not letters:
        return
    rows = [letter for letter, _ in letters]
    about = [letter.about for letter in rows]
    await tx.execute(
        _KEEP,
        [
            [r.letter_id for r in rows],
            [r.queue for r in rows],
            [r.reason for r in rows],
            [r.detail for r in rows],
            [a.saga_id for a in about],
            [a.step for a in about],
            [a.direction and a.direction.value for a in about],
            [a.reply for a in about],
            [a.message_id for a in about],
            [a.type for a in about],
            [r.body for r in rows],
            [r.size for r in rows],
            [r.readable for r in rows],
            [json.dumps(r.headers) for r in rows],
            [r.set_aside for r in rows],
            [count for _, count in letters],
        ],
    )
