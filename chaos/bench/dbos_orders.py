"""An order as a DBOS workflow: `python -m chaos.bench.dbos_orders` is one process of it.

Owns: the workflow as its users would write it, each step one small transaction, and a closed loop
of it in so many threads. Must not know: what it is compared with. Says `ready` when warm, begins at
a line on standard input, and prints what it measured as one JSON object.

In its favour: workflows are called in the thread that wants them (no queue in between),
transactions are READ COMMITTED (its default conflicts under load), the order's row is written
in the first step (ours takes a transaction of its own), nothing is logged, and every thread
has its connections.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from itertools import islice
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, SQLAlchemyDatasource

from chaos.bench.workload import CURRENCY, orders

WARM_UP_ORDERS = 3  # by each thread
READ_COMMITTED: Any = "READ COMMITTED"


class DbosShop:
    """The four steps and the workflow over them, on tables of their own."""

    def __init__(self, dsn: str, connections: int) -> None:
        self._source = SQLAlchemyDatasource.create(
            dsn, engine_kwargs={"pool_size": connections, "max_overflow": 0}
        )
        step = self._source.transaction(isolation_level=READ_COMMITTED)
        reserve, charge, dispatch, confirm = map(
            step, (self._reserve, self._charge, self._dispatch, self._confirm)
        )

        def place_order(
            order_id: str, customer: str, total: int, lines: list[tuple[str, int]]
        ) -> str:
            reserve(order_id, customer, total, lines)
            charge(order_id, customer, total)
            dispatch(order_id, lines)
            confirm(order_id)
            return "CONFIRMED"

        self.place_order = DBOS.workflow()(place_order)

    def _do(self, sql: str, **values: Any) -> None:
        done: Any = self._source.sql_session().execute(sa.text(sql), values)
        if done.rowcount < 1:
            raise RuntimeError(f"refused: {sql}")

    def _reserve(
        self, order_id: str, customer: str, total: int, lines: list[tuple[str, int]]
    ) -> None:
        self._do(
            "insert into customer_order (order_id, customer, total, lines, status)"
            " values (:id, :customer, :total, cast(:lines as jsonb), 'PENDING')",
            id=order_id, customer=customer, total=total, lines=json.dumps(lines),
        )  # fmt: skip
        for sku, quantity in lines:
            self._do(
                "update stock set on_hand = on_hand - :n, held = held + :n"
                " where sku = :sku and on_hand >= :n",
                sku=sku, n=quantity,
            )  # fmt: skip
        self._do(
            "insert into reservation (order_id, status, lines)"
            " values (:id, 'HELD', cast(:lines as jsonb))",
            id=order_id, lines=json.dumps(lines),
        )  # fmt: skip

    def _charge(self, order_id: str, customer: str, total: int) -> None:
        self._do(
            "update account set balance = balance - :total where customer = :customer"
            " and currency = :currency and card = 'good' and balance >= :total",
            customer=customer, currency=CURRENCY, total=total,
        )  # fmt: skip
        self._do(
            "insert into transfer (order_id, kind, debit, credit, amount, currency)"
            " values (:id, 'CHARGE', :customer, 'shop:revenue', :total, :currency)",
            id=order_id, customer=customer, total=total, currency=CURRENCY,
        )  # fmt: skip

    def _dispatch(self, order_id: str, lines: list[tuple[str, int]]) -> None:
        self._do(
            "update reservation set status = 'DISPATCHED' where order_id = :id and status = 'HELD'",
            id=order_id,
        )
        for sku, quantity in lines:
            self._do(
                "update stock set held = held - :n, dispatched = dispatched + :n where sku = :sku",
                sku=sku, n=quantity,
            )  # fmt: skip

    def _confirm(self, order_id: str) -> None:
        self._do(
            "update customer_order set status = 'CONFIRMED'"
            " where order_id = :id and status = 'PENDING'",
            id=order_id,
        )


class OrderingThreads:
    """Each thread places one order after another and notes when it ended and how long it took."""

    def __init__(self, shop: DbosShop, threads: int, seed: int, prefix: str) -> None:
        self._shop = shop
        self._seed = seed
        self._names = [f"{prefix}-{n}" for n in range(threads)]
        self._until = 0.0
        self._began = 0.0
        self._latencies: list[float] = []
        self._problems: list[BaseException] = []

    def run(self, seconds: float) -> dict[str, Any]:
        warm, go = threading.Barrier(len(self._names) + 1), threading.Event()
        threads = [
            threading.Thread(target=self._place, args=(name, warm, go)) for name in self._names
        ]
        for thread in threads:
            thread.start()
        warm.wait()
        print("ready", flush=True)
        sys.stdin.readline()
        self._began = time.monotonic()
        self._until = self._began + seconds
        go.set()
        for thread in threads:
            thread.join()
        if self._problems:
            raise self._problems[0]
        return {
            "sagas": len(self._latencies),
            "seconds": time.monotonic() - self._began,
            "latencies": self._latencies,
        }

    def _place(self, name: str, warm: threading.Barrier, go: threading.Event) -> None:
        try:
            asked = orders(self._seed, name)
            for order in islice(asked, WARM_UP_ORDERS):
                self._shop.place_order(order.key, order.customer, order.total, list(order.lines))
            warm.wait()
            go.wait()
            for order in asked:
                began = time.monotonic()
                if began > self._until:
                    return
                self._shop.place_order(order.key, order.customer, order.total, list(order.lines))
                self._latencies.append(time.monotonic() - began)
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self._problems.append(error)
            warm.abort()


def main() -> None:
    dsn, threads, seconds, seed, prefix = sys.argv[1:]
    connections = int(threads) + 2
    DBOS(
        config={
            "name": "bench",
            "system_database_url": dsn,
            "sys_db_pool_size": connections,
            "log_level": "CRITICAL",
            "max_executor_threads": connections,
        }
    )
    shop = DbosShop(dsn, connections)
    DBOS.launch()
    try:
        print(
            json.dumps(OrderingThreads(shop, int(threads), int(seed), prefix).run(float(seconds)))
        )
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    main()
