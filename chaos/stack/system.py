"""The running system as an experiment sees it: door, queues, tables, logs, faults, verdict.

Owns: one stack, and the record of all that was asked of it. Must not know: the services' code.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

import httpx
import psycopg

from chaos.judge.evidence import Case, Snapshot
from chaos.judge.fallen import whole_snapshot
from chaos.judge.history import (
    Answered,
    Asked,
    Fault,
    History,
    Refused,
    ReturnAnswered,
    ReturnAsked,
)
from chaos.judge.quiescence import Standing, look_twice, wait_for_quiescence
from chaos.judge.snapshot import EVER, SAGAS
from chaos.judge.verdict import Finding, Tally, Verdict, judge, overall, tally
from chaos.load.catalogue import load_catalogue, place_by_command
from chaos.load.mailbox import Mailbox
from chaos.load.placer import place_orders
from chaos.load.shop import Shop, both
from chaos.load.workload import Ask, Catalogue, facts_of
from chaos.runtime import Endpoints, Plan, ProcessStatus, Runtime
from common.messages.topology import ORCHESTRATOR_REPLIES, commands_of, events_of

T = TypeVar("T")
Session: TypeAlias = psycopg.Connection[tuple[Any, ...]]

# design.md, section 8, the column for fault runs: silence is noticed within seconds.
FAULT_SETTINGS = {
    "step_timeout_seconds": "0.5",
    "step_attempts": "3",
    "backoff_cap_seconds": "2",
    "resend_cap_seconds": "2",
    "stuck_after_seconds": "10",
    "running_limit": "100",
    "start_resend_seconds": "1",
    "reconcile_every_seconds": "0.1",
    "lock_timeout_seconds": "1",
    "idle_in_transaction_seconds": "1",
    "tcp_user_timeout_seconds": "2",
    "heartbeat_seconds": "4",
    "retry_cap_seconds": "1",
}

WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.03
RETURNS_AT_ONCE = 8  # requests
TOO_MANY_REQUESTS = 429
BECAUSE = {"reason": "the experiment wants it"}
SHOWN = 12  # last lines of a log, of those that matter


class ExperimentError(Exception):
    """What the experiment asked for, waited for or must find was not there."""


class End(NamedTuple):
    """What became of an order."""

    status: str
    reason: str | None = None


CONFIRMED = End("CONFIRMED")
RETURNED = End("RETURNED")


def rejected(reason: str) -> End:
    return End("REJECTED", reason)


@dataclass(frozen=True)
class Judgement:
    """The verdict over everything a stack has seen."""

    standing: Standing
    findings: tuple[Finding, ...]
    tally: Tally

    @property
    def verdict(self) -> Verdict:
        return overall(finding.verdict for finding in self.findings)

    def lines(self) -> list[str]:
        """What is wrong, for a person."""
        return [f"verdict: {self.verdict}", *self.standing.lines(), *_offences(self.findings)]


def until(condition: Callable[[], T | None], what: str, within: float = WITHIN_SECONDS) -> T:
    """What the condition says once it is true."""
    deadline = time.monotonic() + within
    while not (said := condition()):
        if time.monotonic() > deadline:
            raise ExperimentError(f"not within {within} s: {what}")
        time.sleep(POLL_SECONDS)
    return said


class System:
    def __init__(self, plan: Plan, runtime: Runtime, endpoints: Endpoints) -> None:
        self.runtime = runtime
        self.mail = Mailbox(endpoints.amqp_url)
        self.endpoints = endpoints
        self._plan = plan
        self.style = plan.style
        self.sagas = SAGAS[plan.style]
        self.ever = EVER[plan.style]
        self._catalogue = Catalogue()
        self._history = History(endpoints.log_dir / "history.jsonl")
        self._runs = itertools.count(1)
        self._standing = Standing(problem="nobody has looked yet")
        self._explained: set[tuple[str, str]] = set()  # dead letters that were meant, so far

    def close(self) -> None:
        self._history.close()

    # --- asking: everything is recorded, so that the judge knows of it ---

    def stock_up(self, shop: Shop) -> Shop:
        """Its products, goods and accounts come in, and count from now on."""
        self.load(shop.catalogue)
        return shop

    def load(self, catalogue: Catalogue) -> None:
        load_catalogue(self.endpoints.amqp_url, catalogue, deadline_seconds=WITHIN_SECONDS)
        self.expect(catalogue)

    def expect(self, catalogue: Catalogue) -> None:
        """This comes in by the experiment's own hand, and counts from now on."""
        self._catalogue = both(self._catalogue, catalogue)

    def post(self, ask: Ask) -> httpx.Response:
        """POST /orders, once."""
        run = next(self._runs)
        self._history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
        key = {"Idempotency-Key": ask.key}
        response = self._http("POST", "/orders", key, json=ask.body)
        if response.is_server_error:
            raise ExperimentError(response.text)
        told = Answered if response.is_success else Refused
        status, body = response.status_code, response.json()
        self._history.record(told(run=run, line=ask.number, status=status, body=body))
        return response

    def place_file(self, asks: Sequence[Ask]) -> list[Answered | Refused]:
        """In bulk, asking again until there is an answer; what was answered, in their order."""
        run = next(self._runs)
        asyncio.run(
            place_orders(
                self.endpoints,
                asks,
                self._history,
                run=run,
                deadline_seconds=WITHIN_SECONDS,
                heard=lambda _: None,
            )
        )
        answers: dict[int, Answered | Refused] = {
            event.line: event
            for event in self._history.events
            if isinstance(event, Answered | Refused) and event.run == run
        }
        silent = [ask.key for ask in asks if ask.number not in answers]
        if silent:
            raise ExperimentError(f"no answer to {len(silent)} orders, among them {silent[0]}")
        return [answers[ask.number] for ask in asks]

    def place(self, asks: Sequence[Ask]) -> list[UUID]:
        """Likewise, and all are accepted: their ids."""
        answers = self.place_file(asks)
        refused = [answer.body for answer in answers if isinstance(answer, Refused)]
        if refused:
            raise ExperimentError(f"{len(refused)} orders refused, among them {refused[0]}")
        return [UUID(answer.body["order_id"]) for answer in answers]

    def place_by_command(self, asks: Sequence[Ask]) -> list[UUID]:
        """PlaceOrder on `order.commands`, sent again until it is answered; all are accepted."""
        run = next(self._runs)
        for ask in asks:
            self._history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
        answers = place_by_command(self.endpoints.amqp_url, asks, deadline_seconds=WITHIN_SECONDS)
        for ask, body in zip(asks, answers, strict=True):
            self._history.record(Answered(run=run, line=ask.number, status=202, body=body))
        return [UUID(body["order_id"]) for body in answers]

    def give_back(self, orders: Sequence[UUID], *keys: str) -> list[UUID | None]:
        """Each order once by each key, all at once, asked again until there is an answer: the
        return's id, or None for a no."""
        wanted = [(order, key) for order in orders for key in keys]
        with ThreadPoolExecutor(RETURNS_AT_ONCE) as pool:
            return list(pool.map(self._give_back, *zip(*wanted, strict=True)))

    def _give_back(self, order: UUID, key: str) -> UUID | None:
        self._history.record(ReturnAsked(order_id=str(order), key=key))

        def answered() -> httpx.Response | None:
            try:
                headers = {"Idempotency-Key": key}
                response = self._http("POST", f"/orders/{order}/returns", headers)
            except httpx.TransportError:
                return None
            again = response.is_server_error or response.status_code == TOO_MANY_REQUESTS
            return None if again else response

        response = until(answered, f"the door says whether order {order} may go back")
        return_id = response.json().get("return_id")
        self._history.record(
            ReturnAnswered(
                order_id=str(order), key=key, status=response.status_code, return_id=return_id
            )
        )
        return UUID(return_id) if return_id else None

    @contextmanager
    def placing(self, asks: Sequence[Ask]) -> Iterator[Future[list[UUID]]]:
        """Likewise, while the block goes on."""
        with ThreadPoolExecutor(1) as pool:
            placed = pool.submit(self.place, asks)
            yield placed
            placed.result()

    def cancel(self, order_id: UUID) -> httpx.Response:
        """POST /orders/{id}/cancel, once, as the order's customer."""
        return self._http("POST", f"/orders/{order_id}/cancel")

    def decide(self, verb: str, saga_id: UUID) -> httpx.Response:
        """approve or reject, once, as an operator."""
        return self.ask_operator(f"/sagas/{saga_id}/{verb}", BECAUSE)

    def ask_operator(self, path: str, body: Mapping[str, str]) -> httpx.Response:
        """Something that is done, once, as an operator."""
        return httpx.post(
            f"{self.endpoints.http_urls['operator']}{path}",
            json=dict(body),
            headers={"Authorization": f"Bearer {self.endpoints.operator_token}"},
            timeout=WITHIN_SECONDS,
            trust_env=False,
        )

    # --- looking ---

    def get(self, path: str) -> Any:
        return self._http("GET", path).raise_for_status().json()

    def ends(self, order_ids: Iterable[UUID], within: float = WITHIN_SECONDS) -> dict[UUID, End]:
        """What became of each order, once its saga has ended, and that of its return."""
        wanted = list(order_ids)

        def ended() -> dict[UUID, End] | None:
            rows = self.rows(
                f"""
                select order_id, status, o.reason
                from order_svc.customer_order o join {self.ever} as i
                  on i.saga_id = o.order_id and i.ended_at is not null
                where order_id = any(%s) and status <> 'RETURN_PENDING'
                """,  # noqa: S608 - one of two names of ours
                wanted,
            )
            return {row[0]: End(*row[1:]) for row in rows} if len(rows) == len(wanted) else None

        return until(ended, f"the sagas of {len(wanted)} orders end", within)

    def steps(self, saga_ids: Iterable[UUID]) -> list[dict[str, str]]:
        """The steps of each saga, with their status; none yet of one that has not begun."""
        rows = self.rows(
            f"""
            select coalesce(steps, '{{}}')
            from unnest(%s::uuid[]) as wanted (saga_id)
            left join {self.ever} as i using (saga_id)""",  # noqa: S608 - one of two names of ours
            list(saga_ids),
        )
        return [{step: entry["status"] for step, entry in steps.items()} for (steps,) in rows]

    def alive(self) -> list[UUID]:
        """The sagas under way."""
        rows = self.rows(f"select saga_id from {self.sagas} where ended_at is null")  # noqa: S608 - one of two names of ours
        return [saga_id for (saga_id,) in rows]

    def rows(
        self, query: LiteralString, *parameters: object, **named: object
    ) -> list[tuple[Any, ...]]:
        """As the judge, who may only read."""
        with psycopg.connect(self.endpoints.judge_dsn, autocommit=True) as connection:
            return connection.execute(query, named or parameters).fetchall()

    @contextmanager
    def session(self, role: str) -> Iterator[Session]:
        """A transaction of one of the services' roles, rolled back at the end."""
        with psycopg.connect(self.endpoints.service_dsns[role]) as connection:
            yield connection
            connection.rollback()

    def snapshot(self) -> Snapshot:
        return whole_snapshot(
            self.endpoints.judge_dsn,
            self.endpoints.amqp_url,
            self.runtime.rabbitmqctl,
            self.style,
        )

    def logged(self, service: str, event: str) -> list[dict[str, Any]]:
        """Lines of all replicas of a service, over all their restarts."""
        return [
            json.loads(line)
            for process in self.replicas(service)
            for line in self.runtime.logs(process)
            if f'"event": "{event}"' in line
        ]

    def dead_letters(self) -> Counter[tuple[str, str]]:
        """How many came to which queue for which reason, and were taken in."""
        counted: Counter[tuple[str, str]] = Counter()
        for letter in self.snapshot().dead_letters:
            counted[letter.queue, letter.reason] += letter.count
        return counted

    def inputs(self, process: str) -> list[str]:
        """The queues that its part in a saga comes by."""
        if self.style == "choreographed":
            return [events_of(process)]
        replies = [ORCHESTRATOR_REPLIES] if process == "orchestrator" else []
        return [commands_of(process), *replies]

    def replicas(self, service: str) -> list[str]:
        return [
            name for name, its_service in self._plan.processes.items() if its_service == service
        ]

    @property
    def processes(self) -> list[str]:
        """The services' processes, by name."""
        return list(self._plan.processes)

    # --- breaking ---

    def record(self, what: str, target: str, *, healed: bool) -> Fault:
        """A fault, at the moment it begins or is over."""
        fault = Fault(what=what, target=target, healed=healed)
        self._history.record(fault)
        return fault

    def kill(self, process: str) -> None:
        """SIGKILL. Whatever runs it will start it again."""
        self.runtime.kill(process)
        self.record("SIGKILL", process, healed=False)

    def stop(self, process: str) -> ProcessStatus:
        """SIGTERM, and gone on return."""
        self.runtime.stop(process)
        self.record("SIGTERM", process, healed=False)
        return self._status(process)

    def start(self, process: str) -> None:
        """At once, whatever keeps it away, and ready on return."""
        self.runtime.start(process)
        until(lambda: self.is_ready(process), f"{process} is ready")
        self.record("down", process, healed=True)

    def hurry(self, process: str) -> None:
        """Whatever died is started again at once, not after a pause."""
        self.runtime.start(process)

    def deaths(self, process: str) -> int:
        return self._status(process).restarts

    def _status(self, process: str) -> ProcessStatus:
        return next(status for status in self.runtime.status() if status.name == process)

    def is_running(self, process: str) -> bool:
        return self._status(process).state == "running"

    def is_ready(self, process: str) -> bool:
        """Asked of itself; a server of the runtime, which asks all and takes longer."""
        url = self.endpoints.http_urls.get(process)
        if url is None:
            return self._status(process).ready
        try:
            return httpx.get(f"{url}/ready", trust_env=False).is_success
        except httpx.TransportError:
            return False

    # --- judging ---

    def verdict(self, explained: Iterable[tuple[str, str]] = ()) -> None:
        """The whole system comes to rest and every invariant holds; of all tests so far."""
        self.rest()
        judgement = self.judgement(explained)
        if judgement.verdict is not Verdict.PASS:
            raise ExperimentError("\n".join(judgement.lines()))

    def rest(self, within: float = WITHIN_SECONDS) -> None:
        """Until nothing moves any more, or the time is up; the judgement says which."""
        self._standing = wait_for_quiescence(
            self.endpoints.judge_dsn,
            self.runtime.rabbitmqctl,
            deadline_seconds=within,
            style=self.style,
        )

    def judgement(self, explained: Iterable[tuple[str, str]] = ()) -> Judgement:
        """Of everything so far, after `rest`; `explained` are the dead letters meant since."""
        self._explained |= set(explained)
        case = self._case(quiescent=not self._standing.anything)
        findings = judge(case)
        return Judgement(self._standing, tuple(findings), tally(case, findings))

    def interim_verdict(self) -> None:
        """What must hold at every moment holds now."""
        findings = judge(self._case(quiescent=False))
        failed = [finding for finding in findings if finding.verdict is Verdict.FAIL]
        if failed:
            raise ExperimentError("\n".join(_offences(failed)))

    def _case(self, *, quiescent: bool) -> Case:
        return Case(
            snapshot=self.snapshot(),
            facts=facts_of(self._catalogue, self._history.events, self._explained),
            quiescent=quiescent,
        )

    def account(self) -> str:
        """What somebody wants to see who finds a test red."""
        lines = [
            f"{s.name}: {s.state}, {'ready' if s.ready else 'not ready'}, {s.restarts} restarts"
            for s in self.runtime.status()
        ]
        lines += look_twice(self.endpoints.judge_dsn, self.runtime.rabbitmqctl, self.style).lines()
        for process in self._plan.processes:
            matters = [line for line in self.runtime.logs(process) if '"level": "info"' not in line]
            lines += [f"--- {process}", *matters[-SHOWN:]]
        return "\n".join(lines)

    def _http(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        url = self.endpoints.door_url + path
        headers = {**self.endpoints.door_headers, **(headers or {})}
        return httpx.request(
            method, url, headers=headers, timeout=WITHIN_SECONDS, trust_env=False, **more
        )


def _offences(findings: Iterable[Finding]) -> list[str]:
    return [
        line
        for finding in findings
        if finding.verdict is not Verdict.PASS
        for line in (f"{finding.invariant}: {finding.verdict}", *finding.examples)
    ]
