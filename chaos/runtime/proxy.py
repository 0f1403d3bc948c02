"""A small TCP proxy between processes and servers, to break the network between them.

`python -m chaos.runtime.proxy JSON` serves the lines it is given, one per process and server, and
takes requests on a control port. Tests use `ProxyLine` in their own process.
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
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, not with FIN


class Mode(StrEnum):
    """The state of a line."""

    PASS = "pass"  # noqa: S105 - no password
    CUT = "cut"  # open connections are reset, and so are new ones
    HALF_OPEN = "half_open"  # connections stay open and carry nothing
    DEAF = "deaf"  # what the process sends arrives; what the server sends is lost
    LATE = "late"  # what the server sends is held back until the mode changes
    SLOW = "slow"  # each chunk is delayed


class LineSpec(NamedTuple):
    """The address a line listens on, and the one it leads to."""

    name: str
    host: str
    port: int
    to_host: str
    to_port: int


@dataclass(eq=False)
class _Connection:
    """One connection and its continuation. Torn: bytes are missing, so it must end in a reset."""

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
class ProxyLine:
    """The way of one process to one server."""

    spec: LineSpec
    mode: Mode = Mode.PASS
    delay_seconds: float = 0.0
    connections: set[_Connection] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, self.spec.host, self.spec.port)

    def turn(self, mode: Mode, delay_seconds: float = 0.0) -> None:
        self.mode, self.delay_seconds = mode, delay_seconds
        for connection in list(self.connections):
            if mode is Mode.CUT or (connection.torn and mode in (Mode.PASS, Mode.SLOW)):
                connection.reset()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection([writer])
        self.connections.add(connection)
        try:
            if self.mode is not Mode.CUT:
                await self._connect(connection, reader, writer)
        except OSError:
            pass  # one side is gone: so is the other
        finally:
            self.connections.discard(connection)
            if connection.torn or self.mode is Mode.CUT:
                connection.reset()
            else:
                connection.close()

    async def _connect(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server, onward = await asyncio.open_connection(self.spec.to_host, self.spec.to_port)
        connection.ends.append(onward)
        if self.mode is Mode.CUT:  # meanwhile
            raise ConnectionResetError
        pumps = [
            asyncio.create_task(self._pump(connection, reader, onward, from_server=False)),
            asyncio.create_task(self._pump(connection, server, writer, from_server=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        from_server: bool,
    ) -> None:
        while data := await reader.read(CHUNK):
            if self.mode is Mode.SLOW:
                await asyncio.sleep(self.delay_seconds)
            while self.mode is Mode.LATE and from_server:
                await self._changed.wait()
            if self._loses(from_server):
                connection.torn = True
                continue
            writer.write(data)
            await writer.drain()
        while self._loses(from_server):  # the end of the connection is lost too
            await self._changed.wait()

    def _loses(self, from_server: bool) -> bool:
        return self.mode is Mode.HALF_OPEN or (self.mode is Mode.DEAF and from_server)


class Proxy:
    """All lines, and the control port."""

    def __init__(self, specs: Sequence[LineSpec]) -> None:
        self._lines = {spec.name: ProxyLine(spec) for spec in specs}

    async def run(self, host: str, port: int) -> None:
        async with contextlib.AsyncExitStack() as listening:
            for line in self._lines.values():
                await listening.enter_async_context(await line.listen())
            control = await asyncio.start_server(self._control, host, port)
            await listening.enter_async_context(control)
            await control.serve_forever()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one line of JSON: {"turn": {"payment>postgres": "slow"}, "delay_seconds": 0.2}."""
        try:
            request = json.loads(await reader.readline() or b"{}")
            for name, mode in request.get("turn", {}).items():
                self._lines[name].turn(Mode(mode), float(request.get("delay_seconds", 0)))
            answer: dict[str, Any] = {
                "lines": {
                    name: {"mode": line.mode, "connections": len(line.connections)}
                    for name, line in self._lines.items()
                }
            }
        except (KeyError, ValueError) as error:
            answer = {"error": f"{error!r}"}
        writer.write(json.dumps(answer).encode() + b"\n")
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()


def line_name(process: str, server: str) -> str:
    return f"{process}>{server}"


def ask(address: tuple[str, int], **request: Any) -> dict[str, dict[str, Any]]:
    """Send a request to the control port; return each line's mode and number of connections.

    Raises OSError if no proxy answers, ValueError if the request names what does not exist.
    """
    with socket.create_connection(address, ASK_SECONDS) as control:
        control.sendall(json.dumps(request).encode() + b"\n")
        line = control.makefile().readline()
    if not line:
        raise OSError("the proxy hung up")
    answer = json.loads(line)
    if "error" in answer:
        raise ValueError(f"the proxy: {answer['error']}")
    lines: dict[str, dict[str, Any]] = answer["lines"]
    return lines


def command_line(control: tuple[str, int], lines: Sequence[LineSpec]) -> tuple[str, str]:
    """Return the arguments of `python -m`."""
    return "chaos.runtime.proxy", json.dumps({"control": control, "lines": lines})


def answers(address: tuple[str, int]) -> bool:
    try:
        ask(address)
    except (OSError, ValueError):
        return False
    return True


def main(given: Mapping[str, Any]) -> None:
    proxy = Proxy([LineSpec(*line) for line in given["lines"]])
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(proxy.run(*given["control"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
