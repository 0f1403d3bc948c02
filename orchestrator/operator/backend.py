"""The objects that the endpoints call, and how they are made for a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.process.process import Process
from common.transport.query import Asker
from orchestrator.dead_letters.redrive import Redriver
from orchestrator.engine.definition import Definition
from orchestrator.operator.audit import ENDS
from orchestrator.operator.auditor import Auditor
from orchestrator.operator.doctor import Doctor
from orchestrator.operator.queries import Queries
from orchestrator.operator.services import Services
from orchestrator.operator.watch_list import WatchList
from orchestrator.runtime.loading import participants_of
from orchestrator.runtime.service import Service


@dataclass(frozen=True)
class Backend:
    """The parts that read (`queries`, `services`, `auditor`, `doctor`) or change (the rest)."""

    definitions: Mapping[tuple[str, int], Definition]
    queries: Queries
    services: Services
    auditor: Auditor
    doctor: Doctor
    service: Service
    watch_list: WatchList
    redriver: Redriver

    @classmethod
    def of(
        cls, process: Process, asker: Asker, definitions: Sequence[Definition], service: Service
    ) -> Backend:
        """Make them for a process. `service` decides about what operators ask for."""
        db, settings = process.db, process.settings
        queries, services = Queries(db), Services(process, asker)
        audited = participants_of(d for d in definitions if d.name in ENDS)
        return cls(
            definitions={(d.name, d.version): d for d in definitions},
            queries=queries,
            services=services,
            auditor=Auditor(queries, services.ask, audited),
            doctor=Doctor(process.broker, queries, definitions, settings.query_timeout_seconds),
            service=service,
            watch_list=WatchList(db, settings.process),
            redriver=Redriver(db, service),
        )
