"""The requests and responses of the customer API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from common.http.app import Problem
from common.messages.shop.order import PlaceOrder
from common.messages.shop.values import MAX_LINES, Currency, Line, Name, Quantity, Sku

MAX_BULK = 1000

Cancelled = Literal["cancelled", "cancelling", "undecided", "asked"]
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class OrderLine(BaseModel):
    model_config = STRICT
    sku: Annotated[Sku, Field(examples=["sku-001"])]
    quantity: Annotated[Quantity, Field(examples=[2])]


class OrderRequest(BaseModel):
    """An order to place: SKUs and quantities, never prices."""

    model_config = STRICT
    customer: Annotated[Name, Field(examples=["c-001"])]
    currency: Annotated[Currency, Field(examples=["EUR"])]
    lines: Annotated[list[OrderLine], Field(min_length=1, max_length=MAX_LINES)]

    def command(self, key: str) -> PlaceOrder:
        lines = tuple(Line(sku=line.sku, quantity=line.quantity) for line in self.lines)
        return PlaceOrder(
            customer=self.customer, idempotency_key=key, currency=self.currency, lines=lines
        )


class KeyedOrder(OrderRequest):
    idempotency_key: Name


class BulkRequest(BaseModel):
    """Up to 1,000 orders, each with its own key and its own result."""

    model_config = STRICT
    orders: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_BULK)]


class Placed(BaseModel):
    """The order is accepted and PENDING; its saga decides. A repeat gets the same answer."""

    order_id: UUID
    customer: str
    currency: str
    lines: list[Line]
    total: int = Field(description="in minor units of the currency")


class BulkResult(BaseModel):
    idempotency_key: str | None
    http_status: int
    order: Placed | None = None
    problem: Problem | None = None


class BulkResponse(BaseModel):
    results: list[BulkResult]


class OrderViewLine(BaseModel):
    sku: str
    quantity: int
    price: int


class OrderView(BaseModel):
    order_id: UUID
    customer: str
    currency: str
    lines: list[OrderViewLine]
    total: int
    status: str
    reason: str | None
    placed_at: datetime
    settled_at: datetime | None


class ReturnView(BaseModel):
    """A return of an order: OPEN, then FINISHED, or CLOSED with the reason."""

    return_id: UUID
    order_id: UUID
    status: str
    reason: str | None
    opened_at: datetime
    settled_at: datetime | None


class Returning(BaseModel):
    """The order is locked for this return; its saga decides. A repeat gets the same answer."""

    return_id: UUID
    order_id: UUID


class Cancellation(BaseModel):
    """The outcome of a request to cancel, as far as it is known. Repeating the request is safe."""

    order_id: UUID
    outcome: Cancelled = Field(
        description="cancelled: the order is rejected. cancelling: certain, and being undone."
        " undecided: the goods may have left already. asked: no answer yet"
    )
    told: str
    look: str = Field(description="where to see the final outcome")


class OrderPage(BaseModel):
    orders: list[OrderView]
    next: UUID | None = Field(description="pass as `after` for the next page; null: no more")
