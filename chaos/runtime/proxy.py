"""A small TCP proxy between a process and its servers, that can spoil the way between them.

Owns: the lines (one per process and server), what each does with the bytes, and the port on which
it is told: `python -m chaos.runtime.proxy JSON`. Must not know: what the bytes mean. Standard
library only: it also runs where nothing else is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

CHUNK = 65_536
ASK_SECONDS = 5.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: leave with RST, not with FIN


class Mode(StrEnum):
    PASS = "pass"  # noqa: S105 - no password
    CUT = "cut"  # what is open is reset, and so is whoever comes
    HALF_OPEN = "half_open"  # connections stand and carry nothing
    DEAF = "deaf"  # what the process says arrives; what the server says does not
    SLOW = "slow"  # each chunk is late


class LineSpec(NamedTuple):
    """Where a line listens, and where it leads."""

    name: str
    host: str
    port: int
    to_host: str
    to_port: int


@dataclass(eq=False)
class _Call:
    """One connection and its continuation. Torn: bytes are missing, so it can only be reset."""

    ends: list[asyncio.StreamWriter]
    torn: bool = False

    def close(self) -> None:
        for end in self.ends:
            end.close()

    def reset(self) -> None:
        for end in self.ends:
            sock = end.get_extra_info("socket")
            with contextlib.suppress(OSError):  # it is gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.transport.abort()


@dataclass
class Line:
    spec: LineSpec
    mode: Mode = Mode.PASS
    delay_seconds: float = 0.0
    calls: set[_Call] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def turn(self, mode: Mode, delay_seconds: float) -> None:
        self.mode, self.delay_seconds = mode, delay_seconds
        for call in list(self.calls):
            if mode is Mode.CUT or (call.torn and mode in (Mode.PASS, Mode.SLOW)):
                call.reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = _Call([writer])
        self.calls.add(call)
        try:
            if self.mode is not Mode.CUT:
                await self._continue(call, reader, writer)
        except OSError:
            pass  # one side is gone: so is the other
        finally:
            self.calls.discard(call)
            if call.torn or self.mode is Mode.CUT:
                call.reset()
            else:
                call.close()

    async def _continue(
        self, call: _Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        there, onward = await asyncio.open_connection(self.spec.to_host, self.spec.to_port)
        call.ends.append(onward)
        pumps = [
            asyncio.create_task(self._pump(call, reader, onward, from_server=False)),
            asyncio.create_task(self._pump(call, there, writer, from_server=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        call: _Call,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        from_server: bool,
    ) -> None:
        while data := await reader.read(CHUNK):
            if self.mode is Mode.SLOW:
                await asyncio.sleep(self.delay_seconds)
            if self._swallows(from_server):
                call.torn = True
                continue
            writer.write(data)
            await writer.drain()
        while self._swallows(from_server):  # nobody hears either that it was closed
            await self._changed.wait()

    def _swallows(self, from_server: bool) -> bool:
        return self.mode is Mode.HALF_OPEN or (self.mode is Mode.DEAF and from_server)


class Proxy:
    """All lines, and the port on which it is told what to do with them."""

    def __init__(self, specs: Sequence[LineSpec]) -> None:
        self.lines = {spec.name: Line(spec) for spec in specs}

    async def run(self, host: str, port: int) -> None:
        async with contextlib.AsyncExitStack() as listening:
            for line in self.lines.values():
                spec = line.spec
                server = await asyncio.start_server(line.answer, spec.host, spec.port)
                await listening.enter_async_context(server)
            control = await asyncio.start_server(self._obey, host, port)
            await listening.enter_async_context(control)
            await control.serve_forever()

    async def _obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One line of JSON: {"turn": {"payment>postgres": "slow"}, "delay_seconds": 0.2}."""
        try:
            asked = json.loads(await reader.readline() or b"{}")
            for name, mode in asked.get("turn", {}).items():
                self.lines[name].turn(Mode(mode), float(asked.get("delay_seconds", 0)))
            answer: dict[str, Any] = {"lines": self._account()}
        except (KeyError, ValueError) as error:
            answer = {"error": f"{error!r}"}
        writer.write(json.dumps(answer).encode() + b"\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    def _account(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"mode": line.mode, "connections": len(line.calls)}
            for name, line in self.lines.items()
        }


def line_name(process: str, server: str) -> str:
    return f"{process}>{server}"


def ask(address: tuple[str, int], **what: Any) -> dict[str, dict[str, Any]]:
    """Each line's mode and open connections, after what was asked is done. OSError: nobody there;
    ValueError: it was asked for what is not there."""
    with socket.create_connection(address, ASK_SECONDS) as control:
        control.sendall(json.dumps(what).encode() + b"\n")
        told = control.makefile().readline()
    if not told:
        raise OSError("the proxy hung up")
    answer = json.loads(told)
    if "error" in answer:
        raise ValueError(f"the proxy: {answer['error']}")
    lines: dict[str, dict[str, Any]] = answer["lines"]
    return lines


def command_line(control: tuple[str, int], lines: Sequence[LineSpec]) -> tuple[str, str]:
    """What `python -m` is to be told."""
    return "chaos.runtime.proxy", json.dumps({"control": control, "lines": lines})


def answers(address: tuple[str, int]) -> bool:
    try:
        ask(address)
    except (OSError, ValueError):
        return False
    return True


def main(told: Mapping[str, Any]) -> None:
    proxy = Proxy([LineSpec(*line) for line in told["lines"]])
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(proxy.run(*told["control"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
