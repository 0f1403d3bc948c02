"""The payment service's process: `python -m payment_svc`."""

from __future__ import annotations

from pathlib import Path

from common.messages.contracts import EffectsQuery, TouchedQuery
from common.messages.shop.payment import AccountsQuery
from common.process.process import run_participant
from payment_svc.choreography import REACTIONS
from payment_svc.handlers import HANDLERS
from payment_svc.store import PaymentStore

if __name__ == "__main__":
    store = PaymentStore()
    run_participant(
        "payment",
        Path(__file__).parent,
        store,
        HANDLERS,
        responders={
            AccountsQuery: store.accounts_page,
            TouchedQuery: store.touched,
            EffectsQuery: store.effects,
        },
        reactions=REACTIONS,
    )
