"""The inventory service's process: `python -m inventory_svc`."""

from __future__ import annotations

from pathlib import Path

from common.messages.contracts import EffectsQuery, TouchedQuery
from common.messages.shop.inventory import StockQuery
from common.process.process import run_participant
from inventory_svc.choreography import REACTIONS
from inventory_svc.handlers import HANDLERS
from inventory_svc.store import InventoryStore

if __name__ == "__main__":
    store = InventoryStore()
    run_participant(
        "inventory",
        Path(__file__).parent,
        store,
        HANDLERS,
        responders={
            StockQuery: store.stock_page,
            TouchedQuery: store.touched,
            EffectsQuery: store.effects,
        },
        reactions=REACTIONS,
    )
