"""Every command, reply, event and query of the order saga. Pure; the language all services share.

Owns: names and fields. A change that an older reader would misread gets a new
`version`, never a new meaning (tests/golden pins the wire form). Must not know:
who handles what, how, or where it is stored.

Money is in integer minor units of its currency; quantities are whole pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field, StringConstraints

from common.messages.envelope import Answer, Command, Done, Message, Query, Refusal, Undo

Sku = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
SkuPrefix = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._-]*$")]
# No control characters: Postgres has no NUL, and the others only ever hide something.
Name = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
Quantity = Annotated[int, Field(ge=1, le=1_000_000)]
Minor = Annotated[int, Field(ge=0, le=10**15)]
MAX_LINES = 100


class Line(Message):
    """One SKU and how many of it."""

    sku: Sku
    quantity: Quantity


Lines = Annotated[tuple[Line, ...], Field(min_length=1, max_length=MAX_LINES)]


# --- order ---------------------------------------------------------------------------------


class PlaceOrder(Command):
    """What a customer asks for: SKUs and quantities, never prices. Step `create_order`."""

    customer: Name
    idempotency_key: Name
    currency: Currency
    lines: Lines


class OrderAccepted(Done):
    """The order stands PENDING; its saga will decide. Also the stored answer to every repeat."""

    order_id: UUID
    customer: str
    currency: str
    lines: tuple[Line, ...]
    total: int


class OrderInvalid(Refusal):
    """The order was not written; the same key may be used again with a corrected one."""

    reason: Literal["invalid_order"] = "invalid_order"
    field: str
    remedy: str


class KeyReused(Refusal):
    """This idempotency key already belongs to an order with another content."""

    reason: Literal["idempotency_key_reused"] = "idempotency_key_reused"
    order_id: UUID


class CancelOrder(Command):
    """A customer wants it no more. Step `customer_cancels` of the order's own saga id."""

    order_id: UUID


class CancelNoted(Done):
    """It was asked for all of it to be undone. Whether that came in time, the order will say."""


class OrderIsOver(Refusal):
    """Nothing is left to cancel: the goods have left, or it was rejected before."""

    reason: Literal["order_is_over"] = "order_is_over"
    status: str


class OrderUnknown(Refusal):
    reason: Literal["order_unknown"] = "order_unknown"


class ConfirmOrder(Command):
    pass


class OrderConfirmed(Done):
    pass


class RejectOrder(Undo):
    reason: str


class OrderRejected(Done):
    pass


class OpenReturn(Command):
    """A customer gives a confirmed order back. Step `open_return`, done at the door."""

    order_id: UUID
    idempotency_key: Name


class ReturnAccepted(Done):
    """The order is locked for this return; its saga will decide. Also the answer to a repeat."""

    return_id: UUID
    order_id: UUID


class NotReturnable(Refusal):
    """Nothing was written; the same key may be used again when the order stands otherwise."""

    reason: Literal["not_returnable"] = "not_returnable"
    field: str
    remedy: str


class CloseReturn(Undo):
    """Undoes OpenReturn; which order is read from the return, not from the message."""

    reason: str


class ReturnClosed(Done):
    nothing_to_undo: bool = False


class FinishReturn(Command):
    order_id: UUID


class ReturnFinished(Done):
    pass


class CancelAsked(Done):
    """The order service's, of an order that was silent for too long or is not wanted any more: to
    the pivot's owner, who alone can say whether it is too late. In the choreographed style only."""

    reason: str


class ListProduct(Command):
    """Puts a SKU on the price list, or changes its price for orders to come."""

    sku: Sku
    price: Minor
    currency: Currency


class ProductListed(Done):
    sku: str


class OrderData(BaseModel):
    """What the order saga begins with."""

    order_id: UUID
    customer: Name
    currency: Currency
    lines: Lines
    total: Minor


# --- inventory -----------------------------------------------------------------------------


class ReserveStock(Command):
    """All lines or none."""

    lines: Lines


class StockReserved(Done):
    pass


class OutOfStock(Refusal):
    reason: Literal["out_of_stock"] = "out_of_stock"
    sku: str
    wanted: int
    available: int


class NotStocked(Refusal):
    reason: Literal["not_stocked"] = "not_stocked"
    sku: str


class ReleaseStock(Undo):
    """Undoes ReserveStock; what to release is read from the reservation, not from the message."""


class StockReleased(Done):
    nothing_to_undo: bool = False


class DispatchStock(Command):
    """The pivot: goods leave the building."""


class StockDispatched(Done):
    pass


class ReservationNotHeld(Refusal):
    reason: Literal["reservation_not_held"] = "reservation_not_held"


class Restock(Command):
    """Dispatched goods have come back, whole."""

    order_id: UUID


class Restocked(Done):
    pass


class ReceiveStock(Command):
    """A delivery of new goods; the only way stock comes into being."""

    sku: Sku
    quantity: Quantity


class StockReceived(Done):
    sku: str


# --- payment -------------------------------------------------------------------------------


class ChargePayment(Command):
    customer: Name
    total: Minor
    currency: Currency


class PaymentCharged(Done):
    charge_id: UUID


class CardDeclined(Refusal):
    reason: Literal["card_declined"] = "card_declined"


class InsufficientFunds(Refusal):
    reason: Literal["insufficient_funds"] = "insufficient_funds"


class UnknownAccount(Refusal):
    reason: Literal["unknown_account"] = "unknown_account"


class RefundPayment(Undo):
    """Undoes ChargePayment; what to refund is read from the charge, not from the message."""


class PaymentRefunded(Done):
    nothing_to_undo: bool = False


class RefundOrder(Command):
    """The pivot of a return: the whole charge of an order, once."""

    order_id: UUID


class OrderRefunded(Done):
    pass


class NothingToRefund(Refusal):
    reason: Literal["nothing_to_refund"] = "nothing_to_refund"


class OpenAccount(Command):
    customer: Name
    currency: Currency
    card: Literal["good", "declined"] = "good"


class AccountOpened(Done):
    customer: str


class Deposit(Command):
    customer: Name
    currency: Currency
    amount: Annotated[int, Field(ge=1, le=10**15)]


class Deposited(Done):
    customer: str


# --- asked over the broker, to be read only ------------------------------------------------

MAX_PAGE = 1000
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class StockQuery(Query):
    """A page of the stock by SKU: those that begin with `prefix`, from behind `after` on."""

    prefix: SkuPrefix = ""
    after: Sku | None = None
    limit: Limit = 100


class StockRow(Message):
    """Where the pieces of one SKU are; on_hand + held + dispatched = received."""

    sku: str
    on_hand: int
    held: int
    dispatched: int
    received: int


class StockPage(Answer):
    rows: tuple[StockRow, ...]
    more: bool


class AccountsQuery(Query):
    """A page of accounts by customer and currency, from behind `after` on."""

    customer: Name | None = None
    after: tuple[Name, Currency] | None = None
    limit: Limit = 100


class AccountRow(Message):
    customer: str
    currency: str
    card: str
    balance: Minor


class AccountsPage(Answer):
    rows: tuple[AccountRow, ...]
    more: bool


FIRST_ID = UUID(int=0)  # no saga's


class TouchedQuery(Query):
    """The next sagas in the order of ids, from behind `after` on, of which this service holds an
    effect that was made before `until` and not settled before `since`. `limit` are looked at."""

    after: UUID = FIRST_ID
    since: datetime | None = None
    until: datetime | None = None
    limit: Limit = MAX_PAGE


class TouchedPage(Answer):
    """Nobody up to `looked_to` is missing; None: nobody is missing at all."""

    saga_ids: tuple[UUID, ...]
    looked_to: UUID | None

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]], limit: int) -> TouchedPage:
        """From those that were looked at, and whether they lie in the window."""
        touched = tuple(saga_id for saga_id, inside in rows if inside)
        return cls(saga_ids=touched, looked_to=rows[-1][0] if len(rows) == limit else None)


class EffectsQuery(Query):
    """What have these sagas left with this service?"""

    saga_ids: Annotated[tuple[UUID, ...], Field(max_length=MAX_PAGE)]


class Effect(Message):
    """What a step has left behind, and in which state it stands: CHARGED, HELD, REJECTED ..."""

    saga_id: UUID
    step: str
    standing: str
    at: datetime


class Effects(Answer):
    rows: tuple[Effect, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Effects:
        names = tuple(Effect.model_fields)
        return cls(rows=tuple(Effect(**dict(zip(names, row, strict=True))) for row in rows))


class ProcessQuery(Query):
    """To every process: who are you, and how are you?"""


class Check(Message):
    """One thing a process needs to be ready, and what is wrong with it."""

    name: str
    problem: str | None = None


class ProcessView(Answer):
    """`applied` is None if the process's database did not answer it."""

    process: str
    service: str
    release: str
    ready: bool
    checks: tuple[Check, ...]
    shipped: tuple[str, ...]
    applied: tuple[str, ...] | None = None


# --- orchestrator --------------------------------------------------------------------------


START = "start"
"""The step of StartSaga: whoever begins a saga claims the inbox row of that name."""


class StartSaga(Command):
    """Asks for a saga to run; an `attempt` above 1 wants SagaStarted back."""

    definition: str
    data: dict[str, object]


class CancelSaga(Command):
    """The customer asks for all of it to be undone. It says what StartSaga says, because it may
    come first: then the saga begins with it, so that there is one to be undone."""

    definition: str
    data: dict[str, object]
    actor: str
    reason: str


class SagaStarted(Command):
    """To the order service: the saga is known, no need to ask again."""


class SagaQuery(Query):
    """Where does this saga stand?"""

    saga_id: UUID


class StepView(Message):
    step: str
    kind: str
    status: str
    attempts: int
    undo_attempts: int
    compensated: bool


class SagaView(Answer):
    """A saga as its participants' customers may see it. `found` is False for an unknown id."""

    saga_id: UUID
    found: bool
    definition: str | None = None
    state: str | None = None
    reason: str | None = None
    pivot_passed: bool = False
    compensate_asked: bool = False
    stuck: bool = False
    steps: tuple[StepView, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
