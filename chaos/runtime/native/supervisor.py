"""The process behind a native stack: `python -m chaos.runtime.native.supervisor NAME LOCK`.

It starts everything in order, keeps it running, answers on the control socket, and ends it all.
It inherits from `up` the stack's lock and, as standard input, a tether: if that ends before it
said "keep", the stack ends with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any

import psycopg

from chaos.runtime import Plan, StackError
from chaos.runtime.base import EXITS_AT_START, log_tail
from chaos.runtime.bootstrap import DATABASE, role_statements, schema_statements
from chaos.runtime.endpoints import SUPERUSER, Ports, Secrets, endpoints_of, postgres_dsn
from chaos.runtime.native.install import Programs, found
from chaos.runtime.native.managed import Managed, Spec, say, spawn
from chaos.runtime.native.servers import epmd_spec, initdb_command, postgres_spec, rabbitmq_spec
from chaos.runtime.native.services import proxy_spec, service_specs
from chaos.runtime.processes import record, signal_tree
from chaos.runtime.stack import KEEP, Stack

START_ATTEMPTS = 3
READY_WITHIN_SECONDS = 60.0
POLL_SECONDS = 0.03
RABBITMQCTL_SECONDS = 15.0


class PortTakenError(StackError):
    """A port was free when we looked and taken when a process wanted to listen on it."""


class Supervisor:
    """One stack, from its start to its end."""

    def __init__(self, stack: Stack, plan: Plan) -> None:
        self._stack = stack
        self._plan = plan
        self._stage = "starting"
        self._up = False
        self._error: str | None = None
        self._keep_logs = False
        self._stopping = asyncio.Event()
        self._processes: dict[str, Managed] = {}
        self._daemons: list[asyncio.Task[None]] = []

    async def run(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        server = await asyncio.start_unix_server(self._serve, sock=control)
        tasks = [asyncio.create_task(self._start()), asyncio.create_task(self._watch_tether())]
        await self._stopping.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stop_everything()
        server.close()
        self._stack.remove(keep_logs=self._keep_logs)

    # Starting

    async def _start(self) -> None:
        try:
            for _ in range(START_ATTEMPTS):
                try:
                    await self._start_on_free_ports()
                except PortTakenError as error:
                    say("start.repeated", reason=str(error))
                    await self._stop_everything()
                else:
                    self._up = True
                    say("stack.up")
                    return
            self._error = f"{START_ATTEMPTS} times in a row a port was taken before we could"
        except StackError as error:
            self._error = str(error)
        except Exception as error:  # noqa: BLE001 - `up` reports it
            self._error = f"{error!r}; see supervisor.log"
            say("start.failed", traceback=traceback.format_exc())

    async def _start_on_free_ports(self) -> None:
        programs, keys, ports = found(), Secrets.fresh(self._plan), Ports.free(self._plan)
        endpoints = endpoints_of(ports, keys, self._stack.logs)
        self._stage = "starting Postgres and RabbitMQ"
        await _all_of(
            self._start_in_turn(
                epmd_spec(self._stack, programs, ports),
                rabbitmq_spec(self._stack, programs, ports, keys, endpoints),
            ),
            self._start_postgres(programs, ports, keys),
        )
        if proxy := proxy_spec(self._stack, ports):
            await self._start_in_turn(proxy)
        services = service_specs(self._plan, endpoints, ports.lines)
        if services:
            self._stage = f"starting {', '.join(spec.name for spec in services)}"
        await _all_of(*(self._start_in_turn(spec) for spec in services))
        self._stack.write_endpoints(endpoints)

    async def _start_postgres(self, programs: Programs, ports: Ports, keys: Secrets) -> None:
        dsn = postgres_dsn(ports, SUPERUSER, keys.superuser, "postgres")
        spec = postgres_spec(self._stack, programs, ports, keys, dsn, self._plan.postgres)
        initdb = await self._run_beside(spec, *initdb_command(self._stack, programs))
        if initdb["status"] != 0:
            raise StackError(f"initdb failed: {initdb['errors'].strip()}")
        await self._start_in_turn(spec)
        await asyncio.to_thread(_bootstrap, dsn, self._plan, keys)

    async def _start_in_turn(self, *specs: Spec) -> None:
        for spec in specs:
            process = Managed(spec, self._stack)
            self._processes[spec.name] = process
            self._daemons.append(asyncio.create_task(process.run()))
            await process.start()
            await self._wait_until_ready(process)

    async def _wait_until_ready(self, process: Managed) -> None:
        name = process.spec.name
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        problem = None
        while not await asyncio.to_thread(process.spec.answers):
            if process.lost_ports:
                raise PortTakenError(f"{name}: {process.lost_ports}")
            if process.restarts >= EXITS_AT_START:
                problem = f"{name} ended {EXITS_AT_START} times at its start ({process.last_exit})"
            elif time.monotonic() > deadline:
                problem = f"{name} is not ready after {READY_WITHIN_SECONDS:.0f} s"
            if problem:
                log = self._stack.log(name).read_text(errors="replace")
                raise StackError(f"{problem}; {log_tail(log.splitlines())}")
            await asyncio.sleep(POLL_SECONDS)
        say("process.ready", process=name)

    # Ending

    async def _watch_tether(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        if await reader.readline() != KEEP:
            say("stack.tether_broken")
            self._stopping.set()

    async def _stop_everything(self) -> None:
        """Stop the services first, so that they can finish; the servers' data is thrown away."""
        servers = ("rabbitmq", "epmd", "postgres")
        services = [p for name, p in self._processes.items() if name not in servers]
        await asyncio.gather(*(process.stop() for process in services))
        for name in servers:
            if process := self._processes.get(name):
                await process.stop(signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
        for daemon in self._daemons:
            daemon.cancel()
        await asyncio.gather(*self._daemons, return_exceptions=True)
        self._daemons.clear()
        self._processes.clear()

    # Answering

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = json.loads(await reader.readline())
            answer, error = await self._answer(**request), None
        except StackError as problem:
            answer, error = None, str(problem)
        writer.write(json.dumps({"answer": answer, "error": error}).encode() + b"\n")
        await writer.drain()
        writer.close()

    async def _answer(self, do: str, **arguments: Any) -> Any:
        match do:
            case "stage":
                return {"stage": self._stage, "up": self._up, "error": self._error}
            case "status":
                statuses = (process.status() for process in self._processes.values())
                return [asdict(status) for status in await asyncio.gather(*statuses)]
            case "down":
                self._keep_logs = bool(arguments["keep_logs"])
                self._stopping.set()
            case "rabbitmqctl":
                return await self._rabbitmqctl(arguments["arguments"])
            case "start" | "stop" | "kill" | "pause" | "resume":
                process = self._process(arguments["process"])
                say(f"asked.{do}", process=process.spec.name)
                await getattr(process, do)()

    def _process(self, name: str) -> Managed:
        if name not in self._processes:
            raise StackError(f"no process {name!r}: choose from {', '.join(self._processes)}")
        return self._processes[name]

    async def _rabbitmqctl(self, arguments: Sequence[str]) -> dict[str, Any]:
        spec = self._process("rabbitmq").spec
        try:
            async with asyncio.timeout(RABBITMQCTL_SECONDS):
                return await self._run_beside(
                    spec, str(found().rabbitmq / "rabbitmqctl"), *arguments
                )
        except TimeoutError:
            return {"status": -1, "output": "", "errors": "no answer in time"}

    async def _run_beside(self, spec: Spec, *command: str) -> dict[str, Any]:
        """Run a program of a server's, as its user and in its environment, to its end or ours."""
        process = await spawn(
            spec, self._stack, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                signal_tree(process.pid, signal.SIGKILL)
                await process.wait()
        return {
            "status": process.returncode,
            "output": output.decode(),
            "errors": errors.decode(),
        }


async def _all_of(*starts: Coroutine[Any, Any, None]) -> None:
    """Run all; the first to fail cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


def _bootstrap(dsn: str, plan: Plan, keys: Secrets) -> None:
    with psycopg.connect(dsn, autocommit=True) as server:
        server.execute(f"create database {DATABASE}".encode())
    with psycopg.connect(dsn, dbname=DATABASE) as database:
        for statement in (*role_statements(keys.roles), *schema_statements(plan.roles)):
            database.execute(statement.encode())


def main() -> None:
    """Listen, then go to the background, so that `up` can send requests as soon as this returns."""
    stack = Stack(sys.argv[1])
    os.set_inheritable(int(sys.argv[2]), False)  # the lock is held by this process alone
    os.umask(0o077)
    plan = stack.read_plan()
    control = socket.socket(socket.AF_UNIX)
    control.bind(str(stack.control))
    control.listen()
    if os.fork():
        os._exit(0)
    record(stack.started, "supervisor", os.getpid())
    asyncio.run(Supervisor(stack, plan).run(control))


if __name__ == "__main__":
    main()
