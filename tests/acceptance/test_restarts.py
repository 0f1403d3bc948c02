"""Processes and servers that die in mid-flow and come back: nothing is lost or undone."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from chaos.load.shop import PLENTY, shop
from chaos.load.workload import Ask
from chaos.runtime import SERVERS
from chaos.stack.database import CONFIRMED, Session
from chaos.stack.system import System
from chaos.waiting import until
from tests.support.stages import IN_THE_FLOW, on

STOP_SECONDS = 10.0
UNDER_WAY = 20  # sagas: it is mid-flow


def orders(system: System, name: str, count: int) -> list[Ask]:
    """Stock a shop and return orders that can all be confirmed."""
    here = system.stock_up(shop(name, stock={"tea": 10_000}, accounts={"ann": PLENTY}))
    return [here.order("ann", tea=1) for _ in range(count)]


def until_mid_flow(system: System) -> None:
    until(lambda: len(system.db.alive()) >= UNDER_WAY, f"{UNDER_WAY} sagas are under way")


def busiest(system: System) -> str:
    """Return the orchestrator that started most of the sagas under way."""
    ((process,),) = system.db.rows(
        """
        select process from orchestrator.saga_log join orchestrator.saga_instance using (saga_id)
        where entry = 'started' and ended_at is null
        group by process order by count(*) desc limit 1"""
    )
    return str(process)


@on("plain", "replicas")
def test_an_orchestrator_killed_in_mid_flow_resumes(system: System) -> None:
    """Kill the only orchestrator, or one of two, which the other may replace."""
    replicas = system.processes.replicas("orchestrator")
    for process in replicas[2:]:
        system.processes.stop(process)
    asks = orders(system, f"resume-{len(replicas)}", 300)
    for process in system.processes.replicas("payment"):
        system.runtime.pause(process)  # keeps sagas under way
    with system.door.placing(asks) as placed:
        until_mid_flow(system)
        victim = busiest(system)  # one of two may have begun nothing
        system.processes.kill(victim)
        ((killed_at,),) = system.db.rows("select clock_timestamp()")
        for process in system.processes.replicas("payment"):
            system.runtime.resume(process)
        system.processes.start(victim)
    ends = system.db.ends(placed.result())
    assert set(ends.values()) == {CONFIRMED}

    resumed = system.db.rows(
        """
        select b.saga_id, e.process
        from orchestrator.saga_log b join orchestrator.saga_log e using (saga_id)
        where b.entry = 'started' and b.process = %s and b.at < %s
          and e.entry = 'completed' and e.at > %s""",
        victim,
        killed_at,
        killed_at,
    )
    assert {saga_id for saga_id, _ in resumed} & set(ends), "it had no saga under way"
    assert {process for _, process in resumed} <= set(replicas[:2])
    for process in replicas[2:]:
        system.processes.start(process)
    system.verdict()


@on("plain")
def test_shutdown_is_in_time_and_loses_nothing(system: System) -> None:
    ended: list[UUID] = []
    for process in IN_THE_FLOW:
        with system.door.placing(orders(system, f"stop-{process}", 150)) as placed:
            until_mid_flow(system)
            began = time.monotonic()
            stopped = system.processes.stop(process)
            assert time.monotonic() - began < STOP_SECONDS, process
            assert stopped.last_exit == "status 0", process
            system.processes.start(process)
        ends = system.db.ends(placed.result())
        assert set(ends.values()) == {CONFIRMED}, process
        ended += ends

    # The batch in hand was acked: nothing was handled again unless it was resent.
    repeated = {
        UUID(line["saga_id"])
        for service in ("order", "inventory", "payment")
        for line in system.processes.logged(service, "command.duplicate")
        if line["type"] != "SagaStarted"  # to a start that was asked for again
    }
    asked_again = system.db.rows(
        "select saga_id from orchestrator.saga_log where entry = 'timed_out' and saga_id = any(%s)",
        ended,
    )
    assert (repeated & set(ended)) - {saga_id for (saga_id,) in asked_again} == set()
    system.verdict()


@on("plain")
def test_shutdown_commits_the_batch_in_hand(system: System) -> None:
    asks = orders(system, "finishes", 50)
    with ThreadPoolExecutor(1) as pool:
        with system.db.session("payment_svc") as session:
            session.execute("select from account where customer = 'finishes.ann' for update")
            placed = system.door.place(asks)
            until(lambda: _waits_for_a_lock(session), "payment is in the middle of a transaction")
            stopping = pool.submit(system.processes.stop, "payment")
            until(lambda: not system.processes.is_ready("payment"), "payment was told to stop")
        assert stopping.result().last_exit == "status 0"
    assert system.db.rows("select from payment_svc.transfer where saga_id = any(%s)", placed)
    system.processes.start("payment")
    assert set(system.db.ends(placed).values()) == {CONFIRMED}
    system.verdict()


@on("replicas")
def test_the_batch_of_a_killed_process_is_handled_by_the_next(system: System) -> None:
    """Kill every payment process inside its transaction: a batch is acked only after commit."""
    asks = orders(system, "in-hand", 50)
    with system.db.session("payment_svc") as session:
        session.execute("select from account where customer = 'in-hand.ann' for update")
        placed = system.door.place(asks)
        until(lambda: _waits_for_a_lock(session), "payment is in the middle of a transaction")
        for process in system.processes.replicas("payment"):
            system.processes.kill(process)
    for process in system.processes.replicas("payment"):
        system.processes.start(process)
    assert set(system.db.ends(placed).values()) == {CONFIRMED}
    system.verdict()


def _waits_for_a_lock(session: Session) -> bool:
    """Return whether another session of the same role waits for a lock."""
    found = session.execute(
        "select from pg_stat_activity where usename = current_user and wait_event_type = 'Lock'"
    )
    return found.fetchone() is not None


@on("replicas")
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_killed_in_mid_flow_fails_no_order(system: System, server: str) -> None:
    with system.door.placing(orders(system, f"server-{server}", 200)) as placed:
        until_mid_flow(system)
        system.processes.kill(server)
        system.processes.start(server)
    assert set(system.db.ends(placed.result()).values()) == {CONFIRMED}
    system.verdict()
