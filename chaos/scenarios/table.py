"""The named table of scenarios: a flow of orders, what is broken in it, and how each must end.

Owns: the table, and the scenarios that are one fault in the middle of a mixed flow; those with a
plot are in plots.py. Must not know: how a fault is done, nor how an end is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chaos.faults.nemesis import (
    BOTH,
    CloseConnections,
    CutLine,
    Disconnect,
    ExhaustPool,
    Freeze,
    HalfOpen,
    Kill,
    KillBackends,
    KillInRecovery,
    KillRepeatedly,
    Nemesis,
    Slow,
    Unconfirmed,
)
from chaos.faults.tampering import Poison, PoisonFlood
from chaos.runtime import STYLES, Style
from chaos.scenarios import people, plots, returns
from chaos.scenarios.forgetting import FORGETTING
from chaos.scenarios.rolling import ROLLING
from chaos.scenarios.scene import GIVEN_UP, Scenario, Scene
from chaos.stack.database import End
from common.messages.topology import events_of

ZOMBIE_SECONDS = 10.0  # past every attempt of a step, and two heartbeats of 4 s
AWAY_SECONDS = 3.0  # past the Postgres time limits of fault runs
NATURAL = "as its input says: confirmed, out_of_stock, card_declined"
OR_GIVEN_UP = f"{NATURAL}; or a step timed out, and all is undone"
CONSUMED = (
    "order.commands",
    "inventory.commands",
    "payment.commands",
    "orchestrator.commands",
    "orchestrator.replies",
)

Make = Callable[[], Sequence[Nemesis]]


def _mixed(name: str, says: str, make: Make, seconds: float = 0.0) -> Scenario:
    """With what a user gets for settings: whatever is broken, no order ends otherwise for it."""
    return _flow(name, says, make, seconds, (), "patient", NATURAL)


def _impatient(
    name: str, says: str, make: Make, seconds: float, profile: str = "impatient"
) -> Scenario:
    """Steps are given up within seconds: an order may be undone for it, never by half."""
    return _flow(name, says, make, seconds, GIVEN_UP, profile, OR_GIVEN_UP)


def _flow(
    name: str,
    says: str,
    make: Make,
    seconds: float,
    otherwise: Sequence[End],
    profile: str,
    expects: str,
) -> Scenario:
    faults = make()

    def play(scene: Scene) -> None:
        scene.flow(make(), seconds=seconds, otherwise=otherwise)

    runtimes = frozenset.intersection(BOTH, *(fault.runtimes for fault in faults))
    told = "; ".join(fault.sentence for fault in faults) or "none"
    if any("orchestrator" in fault.where for fault in faults):  # there must be one
        styles = frozenset(STYLES[:1])
    elif any(fault.where.endswith(".events") for fault in faults):
        styles = frozenset(STYLES[1:])
    else:
        styles = frozenset(STYLES)
    return Scenario(name, says, told, expects, play, profile, runtimes, styles=styles)


_CLEAN = (_mixed("clean", "Orders flow; some are refused by stock and card.", tuple),)

_KILLS = tuple(
    _mixed(
        f"kill-{process}",
        f"{process} dies in mid-flow and is restarted.",
        lambda process=process: [Kill(process)],  # type: ignore[misc]
    )
    for process in ("orchestrator", "order", "payment", "inventory", "door")
)

_MORE_KILLS = (
    *(
        _mixed(
            f"kill-{process}-repeatedly",
            f"{process} dies three times, each time when it is barely back.",
            lambda process=process: [KillRepeatedly(process)],  # type: ignore[misc]
        )
        for process in ("orchestrator", "payment")
    ),
    *(
        _mixed(
            f"kill-{process}-in-recovery",
            f"{process} dies, and dies again while it recovers.",
            lambda process=process: [KillInRecovery(process)],  # type: ignore[misc]
        )
        for process in ("orchestrator", "inventory")
    ),
    _mixed(
        "kill-everybody",
        "All services die at once.",
        lambda: [Kill(p) for p in ("orchestrator", "order", "payment", "inventory", "door")],
    ),
)

_SERVERS = (
    _mixed("postgres-restart", "Postgres ends at once and recovers.", lambda: [Kill("postgres")]),
    _mixed("broker-restart", "RabbitMQ ends at once and recovers.", lambda: [Kill("rabbitmq")]),
    _mixed(
        "backends-killed",
        "The database drops payment and the orchestrator in mid-transaction.",
        lambda: [KillBackends("payment_svc"), KillBackends("orchestrator")],
    ),
    _mixed(
        "pool-exhausted",
        "Payment gets no connection to its database for some seconds.",
        lambda: [ExhaustPool("payment_svc")],
        AWAY_SECONDS,
    ),
    _mixed(
        "connections-closed",
        "The broker closes every connection of the services.",
        lambda: [CloseConnections("all")],
    ),
)

_ZOMBIES = tuple(
    _impatient(
        f"zombie-{process}",
        f"{process} stands still for longer than every timeout, then goes on with what it had.",
        lambda process=process: [Freeze(process)],  # type: ignore[misc]
        ZOMBIE_SECONDS,
    )
    for process in ("orchestrator", "payment", "inventory")
)

_LINES = (
    *(
        _impatient(
            f"cut-{process}-{server}",
            f"No way from {process} to {server} for some seconds.",
            lambda process=process, server=server: [CutLine(process, server)],  # type: ignore[misc]
            AWAY_SECONDS,
            "lines",
        )
        for process, server in (("payment", "postgres"), ("orchestrator", "rabbitmq"))
    ),
    *(
        _impatient(
            f"half-open-{process}-{server}",
            f"Connections of {process} to {server} are dead and do not know it.",
            lambda process=process, server=server: [HalfOpen(process, server)],  # type: ignore[misc]
            ZOMBIE_SECONDS,
            "lines",
        )
        for process, server in (("inventory", "rabbitmq"), ("orchestrator", "postgres"))
    ),
    _impatient(
        "slow-network",
        "Everything payment says and hears is late.",
        lambda: [Slow("payment", "postgres"), Slow("payment", "rabbitmq")],
        AWAY_SECONDS,
        "lines",
    ),
    *(
        _impatient(
            f"unconfirmed-{process}",
            f"{process} publishes, its confirm is lost, then its connection.",
            lambda process=process: [Unconfirmed(process, "rabbitmq")],  # type: ignore[misc]
            AWAY_SECONDS,
            "lines",
        )
        for process in ("orchestrator", "payment")
    ),
    _impatient(
        "off-the-network",
        "Payment's container is taken off its network, and put back.",
        lambda: [Disconnect("payment")],
        ZOMBIE_SECONDS,
    ),
)

_POISON = (
    _mixed(
        "poison",
        "What nobody can handle comes on every queue, amid the flow.",
        lambda: [Poison(queue) for queue in CONSUMED],
    ),
    _mixed(
        "poison-flood",
        "Payment's queue is flooded with junk.",
        lambda: [PoisonFlood("payment.commands")],
    ),
    _mixed(
        "poison-events",
        "What is no event comes on every queue of events, amid the flow.",
        lambda: [Poison(events_of(name)) for name in ("order", "inventory", "payment")],
    ),
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *_CLEAN,
        *plots.REFUSALS,
        *_KILLS,
        *_MORE_KILLS,
        *_SERVERS,
        *plots.MESSAGES,
        *_POISON,
        *_ZOMBIES,
        *plots.SILENCE,
        *returns.RETURNS,
        *people.PEOPLE_DECIDE,
        *FORGETTING,
        *ROLLING,
        *_LINES,
    )
}


def suited_to(kind: str, style: Style = "orchestrated") -> list[Scenario]:
    """In the table's order."""
    return [s for s in SCENARIOS.values() if kind in s.runtimes and style in s.styles]
