"""The table of scenarios: a flow of orders, what is broken in it, and how each must end.

Owns: the table, and the scenarios that are one fault in the middle of a mixed flow. Must not know:
how a fault is done, nor how an end is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.faults import nemesis
from chaos.faults.nemesis import Kill, Nemesis
from chaos.faults.tampering import Poison, PoisonFlood
from chaos.runtime import Style
from chaos.scenarios.forgetting import FORGETTING
from chaos.scenarios.messages import MESSAGES, REFUSALS
from chaos.scenarios.people import PEOPLE_DECIDE
from chaos.scenarios.returns import RETURNS
from chaos.scenarios.rolling import ROLLING
from chaos.scenarios.scene import (
    CHOREOGRAPHED,
    EITHER,
    GIVEN_UP,
    ORCHESTRATED,
    Scenario,
    Scene,
    scenario,
)
from chaos.scenarios.timeouts import TIMEOUTS
from common.messages.topology import events_of

ZOMBIE_SECONDS = 10.0  # past every attempt of a step, and two heartbeats of 4 s
AWAY_SECONDS = 3.0  # past the Postgres time limits of fault runs
NATURAL = "as its input says: confirmed, out_of_stock, card_declined"
OR_GIVEN_UP = f"{NATURAL}; or a step timed out, and all is undone"
SERVICES = ("orchestrator", "order", "payment", "inventory", "door")
CONSUMED = (
    "order.commands",
    "inventory.commands",
    "payment.commands",
    "orchestrator.commands",
    "orchestrator.replies",
)


def _mixed(name: str, says: str, *faults: Nemesis, seconds: float = 0.0) -> Scenario:
    """Strike with the settings a user gets: no order may end otherwise for it."""

    def play(scene: Scene) -> None:
        scene.flow(faults, seconds=seconds)

    return scenario(name, says, play, faults=faults, expects=NATURAL, styles=_styles(faults))


def _impatient(
    name: str, says: str, *faults: Nemesis, seconds: float, profile: str = "impatient"
) -> Scenario:
    """Strike where steps are given up within seconds: an order may be undone, never by half."""

    def play(scene: Scene) -> None:
        scene.flow(faults, seconds=seconds, otherwise=GIVEN_UP)

    return scenario(
        name, says, play,
        faults=faults, profile=profile, expects=OR_GIVEN_UP, styles=_styles(faults),
    )  # fmt: skip


def _styles(faults: Sequence[Nemesis]) -> frozenset[Style]:
    """Return the styles in which there is what the faults hit."""
    if any("orchestrator" in fault.where for fault in faults):
        return ORCHESTRATED
    return CHOREOGRAPHED if any(f.where.endswith(".events") for f in faults) else EITHER


def _flows() -> Iterator[Scenario]:
    yield _mixed("clean", "Orders flow; some are refused by stock and card.")
    yield from REFUSALS
    for process in SERVICES:
        yield _mixed(
            f"kill-{process}", f"{process} dies in mid-flow and is restarted.", Kill(process)
        )
    for process in ("orchestrator", "payment"):
        yield _mixed(
            f"kill-{process}-repeatedly",
            f"{process} dies three times, each time when it is barely back.",
            nemesis.KillRepeatedly(process),
        )
    for process in ("orchestrator", "inventory"):
        yield _mixed(
            f"kill-{process}-in-recovery",
            f"{process} dies, and dies again while it recovers.",
            nemesis.KillInRecovery(process),
        )
    yield _mixed("kill-everybody", "All services die at once.", *map(Kill, SERVICES))
    yield _mixed("postgres-restart", "Postgres is killed, and recovers.", Kill("postgres"))
    yield _mixed("broker-restart", "RabbitMQ is killed, and recovers.", Kill("rabbitmq"))
    yield _mixed(
        "backends-killed",
        "The database drops payment and the orchestrator in mid-transaction.",
        nemesis.KillBackends("payment_svc"), nemesis.KillBackends("orchestrator"),
    )  # fmt: skip
    yield _mixed(
        "pool-exhausted",
        "Payment gets no connection to its database for some seconds.",
        nemesis.ExhaustPool("payment_svc"), seconds=AWAY_SECONDS,
    )  # fmt: skip
    yield _mixed(
        "connections-closed",
        "The broker closes every connection of the services.",
        nemesis.CloseConnections("all"),
    )
    yield from MESSAGES
    yield _mixed(
        "poison",
        "Deliveries that no consumer can handle come on every queue, amid the flow.",
        *map(Poison, CONSUMED),
    )
    yield _mixed(
        "poison-flood", "Payment's queue is flooded with junk.", PoisonFlood("payment.commands")
    )
    yield _mixed(
        "poison-events",
        "Deliveries that are no events come on every queue of events, amid the flow.",
        *(Poison(events_of(name)) for name in ("order", "inventory", "payment")),
    )


def _lines() -> Iterator[Scenario]:
    def line(name: str, says: str, *faults: Nemesis, seconds: float = AWAY_SECONDS) -> Scenario:
        return _impatient(name, says, *faults, seconds=seconds, profile="lines")

    for process, server in (("payment", "postgres"), ("orchestrator", "rabbitmq")):
        yield line(
            f"cut-{process}-{server}",
            f"No way from {process} to {server} for some seconds.",
            nemesis.CutLine(process, server),
        )
    for process, server in (("inventory", "rabbitmq"), ("orchestrator", "postgres")):
        yield line(
            f"half-open-{process}-{server}",
            f"Connections of {process} to {server} are dead, and neither end is told.",
            nemesis.HalfOpen(process, server), seconds=ZOMBIE_SECONDS,
        )  # fmt: skip
    yield line(
        "slow-network",
        "Everything payment sends and receives is late.",
        nemesis.Slow("payment", "postgres"), nemesis.Slow("payment", "rabbitmq"),
    )  # fmt: skip
    for process in ("orchestrator", "payment"):
        yield line(
            f"unconfirmed-{process}",
            f"{process} publishes, its confirm is lost, then its connection.",
            nemesis.Unconfirmed(process, "rabbitmq"),
        )
    yield _impatient(
        "off-the-network",
        "Payment's container is taken off its network, and put back.",
        nemesis.Disconnect("payment"), seconds=ZOMBIE_SECONDS,
    )  # fmt: skip


_ZOMBIES = (
    _impatient(
        f"zombie-{process}",
        f"{process} is frozen for longer than every timeout, then goes on with what it had.",
        nemesis.Freeze(process), seconds=ZOMBIE_SECONDS,
    )
    for process in ("orchestrator", "payment", "inventory")
)  # fmt: skip

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *_flows(),
        *_ZOMBIES,
        *TIMEOUTS,
        *RETURNS,
        *PEOPLE_DECIDE,
        *FORGETTING,
        *ROLLING,
        *_lines(),
    )
}


def suited_to(kind: str, style: Style = "orchestrated") -> list[Scenario]:
    """Return what can be played there, in the table's order."""
    return [s for s in SCENARIOS.values() if kind in s.runtimes and style in s.styles]
