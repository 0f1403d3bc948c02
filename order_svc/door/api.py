"""The customer API: place, cancel and return orders, and read them.

It is the same in both styles of coordination. An invalid request is answered with the field and the
remedy, and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import FastAPI, Header, Query, Response
from pydantic import ValidationError

from common.http.app import (
    Entrance,
    Problem,
    Refused,
    invalid_field,
    new_app,
    problems,
)
from common.kit.health import Health
from common.messages.contracts import SagaView
from common.messages.envelope import Reply
from common.messages.errors import Infrastructure, NoAnswer
from common.messages.shop.order import (
    CancelOrder,
    KeyReused,
    NotReturnable,
    OpenReturn,
    OrderAccepted,
    OrderInvalid,
    OrderUnknown,
    PlaceOrder,
    ReturnAccepted,
)
from common.messages.shop.values import Name
from order_svc.door.batcher import Batcher
from order_svc.door.queries import CustomerQueries
from order_svc.door.schemas import (
    BulkRequest,
    BulkResponse,
    BulkResult,
    Cancellation,
    Cancelled,
    KeyedOrder,
    OrderPage,
    OrderRequest,
    OrderView,
    Placed,
    Returning,
    ReturnView,
)

IDEMPOTENCY_KEY = "Idempotency-Key"
CANCEL_WAIT_SECONDS = 2.0  # how long a request to cancel waits for a certain outcome
CANCEL_POLL_SECONDS = 0.05

CANCEL_TOLD: dict[Cancelled, str] = {
    "cancelled": "the order is rejected, and what was done for it is undone",
    "cancelling": "the order will be rejected: what was done for it is being undone",
    "undecided": "requested; the goods may have left already, which is being checked",
    "asked": "requested; no answer yet, and the request is not lost: look again, or repeat it",
}


def make_app(
    door: Batcher, queries: CustomerQueries, health: Health, entrance: Entrance
) -> FastAPI:
    """Build the app; it also serves its description as /openapi.json and /docs."""
    app = new_app(
        "Sagaproof: orders",
        __doc__ or "",
        health,
        entrance,
        explain=_explain,
        remedies=REMEDIES,
    )
    _placing(app, door)
    _cancelling(app, door, queries)
    _reading(app, queries)
    _returning(app, door, queries)
    return app


def _placing(app: FastAPI, door: Batcher) -> None:
    @app.post("/orders", status_code=202, responses=problems(409, 422, 503))
    async def place(
        order: OrderRequest,
        idempotency_key: Annotated[Name, Header()],
    ) -> Placed:
        """Place an order. The same key and body again give the same order and the same answer."""
        (reply,) = await door.ask([order.command(idempotency_key)])
        return _placed(reply)

    @app.post("/orders/bulk", responses=problems(422, 503))
    async def bulk(request: BulkRequest) -> BulkResponse:
        """Place many orders. Each has its own result, in the order of the request."""
        results: list[BulkResult | None] = []
        commands: list[PlaceOrder] = []
        for item in request.orders:
            try:
                order = KeyedOrder.model_validate(item)
            except ValidationError as error:
                key = item.get("idempotency_key")
                results.append(_failed(str(key) if key else None, 422, _explain(error.errors())))
            else:
                commands.append(order.command(order.idempotency_key))
                results.append(None)
        replies = iter(zip(commands, await door.ask(commands), strict=True))
        return BulkResponse(
            results=[r if r is not None else _result(*next(replies)) for r in results]
        )


def _placed(reply: Reply) -> Placed:
    match reply:
        case OrderAccepted():
            return Placed.model_validate(reply, from_attributes=True)
        case KeyReused():
            remedy = (
                f"this key belongs to order {reply.order_id} with another content: use a new key"
            )
            raise Refused(409, Problem(error=reply.reason, field=IDEMPOTENCY_KEY, remedy=remedy))
        case OrderInvalid():
            raise Refused(422, Problem(error=reply.reason, field=reply.field, remedy=reply.remedy))
        case _:
            # The order was undone before this command arrived.
            raise Refused(
                409, Problem(error="fenced", remedy="this order was already undone: use a new key")
            )


def _result(command: PlaceOrder, reply: Reply) -> BulkResult:
    try:
        return BulkResult(
            idempotency_key=command.idempotency_key, http_status=202, order=_placed(reply)
        )
    except Refused as refused:
        return _failed(command.idempotency_key, refused.status, refused.problem)


def _failed(key: str | None, status: int, problem: Problem) -> BulkResult:
    return BulkResult(idempotency_key=key, http_status=status, problem=problem)


def _cancelling(app: FastAPI, door: Batcher, queries: CustomerQueries) -> None:
    @app.post(
        "/orders/{order_id}/cancel",
        status_code=202,
        responses={200: {"model": Cancellation}, **problems(404, 409, 422, 503)},
    )
    async def cancel(order_id: UUID, response: Response) -> Cancellation:
        """Cancel an order.

        200: it is cancelled. 202: requested, and `outcome` says what is known so far. 409: the
        goods have left, so the order can only go forward.
        """
        (reply,) = await door.ask([CancelOrder(order_id=order_id)])
        if isinstance(reply, OrderUnknown):
            raise _not_found(order_id)
        known = await _outcome(queries, order_id)
        response.status_code = 200 if known.outcome == "cancelled" else 202
        return known


async def _outcome(queries: CustomerQueries, order_id: UUID) -> Cancellation:
    """Wait for a certain outcome, or return what is known after CANCEL_WAIT_SECONDS.

    A certain outcome stays so: "cancelling" means that the saga is compensating, which it never
    leaves but for COMPENSATED.
    """
    outcome: Cancelled = "asked"
    with contextlib.suppress(TimeoutError, NoAnswer, Infrastructure):
        async with asyncio.timeout(CANCEL_WAIT_SECONDS):
            while True:
                outcome = await _known(queries, order_id)
                if outcome in ("cancelled", "cancelling"):
                    break
                await asyncio.sleep(CANCEL_POLL_SECONDS)
    look = f"/orders/{order_id}"
    return Cancellation(order_id=order_id, outcome=outcome, told=CANCEL_TOLD[outcome], look=look)


async def _known(queries: CustomerQueries, order_id: UUID) -> Cancelled:
    """Return what the order and its saga say now. Raises Refused if the goods have left.

    The order is read first: it changes last, so a REJECTED one needs no look at the saga.
    """
    order = await queries.order(order_id)
    if order is not None and order.status == "REJECTED":
        return "cancelled"
    saga = None
    if order is None or order.status == "PENDING":
        saga = await queries.saga(order_id)
    if saga is None or saga.pivot_passed:
        remedy = (
            "the goods have left, so it can only go forward: send them back by"
            f" POST /orders/{order_id}/returns, once it is CONFIRMED"
        )
        raise Refused(409, Problem(error="too_late", field="order_id", remedy=remedy))
    if saga.state in ("COMPENSATING", "COMPENSATED"):
        return "cancelling"
    return "undecided" if saga.compensate_asked else "asked"


def _reading(app: FastAPI, queries: CustomerQueries) -> None:
    @app.get("/orders", responses=problems(422, 503))
    async def orders(
        customer: Annotated[Name, Query()],
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        after: UUID | None = None,
    ) -> OrderPage:
        """List a customer's orders, newest first."""
        found = await queries.orders(customer, limit, after)
        return OrderPage(orders=found, next=found[-1].order_id if len(found) == limit else None)

    @app.get("/orders/{order_id}", responses=problems(404, 422, 503))
    async def order(order_id: UUID) -> OrderView:
        found = await queries.order(order_id)
        if found is None:
            raise _not_found(order_id)
        return found

    @app.get("/orders/{order_id}/saga", responses=problems(404, 422, 503))
    async def saga(order_id: UUID) -> SagaView:
        """Show the order's saga; 503 if the orchestrator does not answer in time."""
        if await queries.order(order_id) is None:
            raise _not_found(order_id)
        return await _saga(queries, order_id, "order_id")


def _returning(app: FastAPI, door: Batcher, queries: CustomerQueries) -> None:
    @app.post(
        "/orders/{order_id}/returns", status_code=202, responses=problems(400, 404, 409, 422, 503)
    )
    async def give_back(order_id: UUID, idempotency_key: Annotated[Name, Header()]) -> Returning:
        """Return a confirmed order. To try again after a return was undone, use a new key."""
        if await queries.order(order_id) is None:
            raise _not_found(order_id)
        command = OpenReturn(order_id=order_id, idempotency_key=idempotency_key)
        (reply,) = await door.ask([command])
        match reply:
            case ReturnAccepted():
                return Returning.model_validate(reply, from_attributes=True)
            case NotReturnable():
                problem = Problem(error=reply.reason, field=reply.field, remedy=reply.remedy)
                raise Refused(409, problem)
            case _:
                raise Refused(409, Problem(error="fenced", remedy="use a new key"))

    @app.get("/returns/{return_id}", responses=problems(404, 422, 503))
    async def one(return_id: UUID) -> ReturnView:
        return await _return(queries, return_id)

    @app.get("/returns/{return_id}/saga", responses=problems(404, 422, 503))
    async def its_saga(return_id: UUID) -> SagaView:
        """Show the return's saga, as with an order's."""
        await _return(queries, return_id)
        return await _saga(queries, return_id, "return_id")


async def _return(queries: CustomerQueries, return_id: UUID) -> ReturnView:
    found = await queries.return_(return_id)
    if found is None:
        remedy = f"no return {return_id}: check the id that POST /orders/ID/returns answered with"
        raise Refused(404, Problem(error="not_found", field="return_id", remedy=remedy))
    return found


async def _saga(queries: CustomerQueries, saga_id: UUID, field: str) -> SagaView:
    view = await queries.saga(saga_id)
    if not view.found:
        remedy = "its saga has not begun yet: ask again in a moment"
        raise Refused(404, Problem(error="saga_not_started", field=field, remedy=remedy))
    return view


def _not_found(order_id: UUID) -> Refused:
    remedy = f"no order {order_id}: check the id that POST /orders answered with"
    return Refused(404, Problem(error="not_found", field="order_id", remedy=remedy))


# --- invalid requests ----------------------------------------------------------------------

REMEDIES = {
    Infrastructure: "it may or may not have been done: send the same again, with the same key",
    NoAnswer: "the orchestrator did not answer in time; the order goes on meanwhile: try again",
}


def _explain(errors: Sequence[Any]) -> Problem:
    problem = invalid_field(errors, "invalid_order")
    if problem.field == IDEMPOTENCY_KEY.lower():
        remedy = f"send the header {IDEMPOTENCY_KEY}: 1 to 128 characters, new for each order"
        return Problem(error="missing_key", field=IDEMPOTENCY_KEY, remedy=remedy)
    return problem
