"""Figures and ratios of what was measured. Pure.

Owns: the shape of build/bench.json. Must not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

THROUGHPUT_TARGET = 12.0  # at least so many times DBOS's sagas per second
P50_TARGET = 1.3  # at most so many times DBOS's latency with one in flight


@dataclass(frozen=True)
class Measured:
    """A measurement: sagas ended in so many seconds, and how long each took, in seconds."""

    sagas: int
    seconds: float
    latencies: Sequence[float]
    cost: Mapping[str, Any]

    @property
    def per_second(self) -> float:
        return self.sagas / self.seconds

    def figures(self) -> dict[str, Any]:
        return {
            "sagas": self.sagas,
            "seconds": round(self.seconds, 2),
            "sagas_per_second": round(self.per_second, 1),
            "p50_ms": round(percentile(self.latencies, 50) * 1000, 2),
            "p99_ms": round(percentile(self.latencies, 99) * 1000, 2),
            "per_saga": dict(self.cost),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of all do not exceed."""
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # rounded up
    return ordered[max(0, int(rank) - 1)]


@dataclass(frozen=True)
class Ratios:
    throughput_vs_dbos: float
    p50_vs_dbos: float

    @property
    def missed(self) -> list[str]:
        found = []
        if self.throughput_vs_dbos < THROUGHPUT_TARGET:
            found.append(
                f"throughput is {self.throughput_vs_dbos} times DBOS's, not {THROUGHPUT_TARGET:g}"
            )
        if self.p50_vs_dbos > P50_TARGET:
            found.append(f"p50 is {self.p50_vs_dbos} times DBOS's, more than {P50_TARGET:g}")
        return found


@dataclass(frozen=True)
class Pair:
    """One order at a time: ours, and theirs right after it, under the same conditions."""

    ours: Measured
    theirs: Measured

    @property
    def ratio(self) -> float:
        return percentile(self.ours.latencies, 50) / percentile(self.theirs.latencies, 50)


def ratios(
    ours: Sequence[Mapping[int, Measured]],
    theirs: Mapping[tuple[int, int], Measured],
    alone: Sequence[Pair],
) -> Ratios:
    """Compare `ours`, by round and sagas in flight, with `theirs`, by processes and threads.

    Throughput: our mean over the rounds at the load that suits us best, and the best of all theirs.
    Latency: the median of the pairs.
    """
    loads = {load for one in ours for load in one}
    carried = max(mean(one[load].per_second for one in ours) for load in loads)
    return Ratios(
        throughput_vs_dbos=round(carried / max(m.per_second for m in theirs.values()), 2),
        p50_vs_dbos=round(median(pair.ratio for pair in alone), 2),
    )


def document(
    ours: Sequence[Mapping[int, Measured]],
    theirs: Mapping[tuple[int, int], Measured],
    alone: Sequence[Pair],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Shape build/bench.json; without `theirs` there are no ratios."""
    found = ratios(ours, theirs, alone) if theirs else None
    return {
        **about,
        "ratios": asdict(found) if found else None,
        "missed": found.missed if found else [],
        "ours": [
            {"round": number, "in_flight": load, **measured.figures()}
            for number, one in enumerate(ours, 1)
            for load, measured in sorted(one.items())
        ],
        "dbos": [
            {"processes": processes, "threads": threads, **measured.figures()}
            for (processes, threads), measured in sorted(theirs.items())
        ],
        "alone": [
            {
                "ours_p50_ms": pair.ours.figures()["p50_ms"],
                "dbos_p50_ms": pair.theirs.figures()["p50_ms"],
                "ratio": round(pair.ratio, 2),
            }
            for pair in alone
        ],
    }
