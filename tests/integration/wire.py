"""A TCP way to a server that can be cut, or go silent.

Owns: that. Must not know: what is said on it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from common.kit.settings import Settings


class Proxy:
    """Listens on a port of its own and passes everything on to the server of a URL."""

    def __init__(self, url: SecretStr) -> None:
        self._url = urlsplit(url.get_secret_value())
        self._writers: set[asyncio.StreamWriter] = set()
        self._answers = asyncio.Event()
        self._answers.set()
        self._cut = False

    @property
    def url(self) -> SecretStr:
        """The same, by this way."""
        who = self._url.netloc.rpartition("@")[0]
        netloc = f"{who}@127.0.0.1:{self._port}"
        return SecretStr(urlunsplit(self._url._replace(netloc=netloc)))

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.cut()
        self._answers.set()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Every connection ends, and none is let through."""
        self._cut = True
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        self._cut = False
        self._answers.set()

    def silence(self) -> None:
        """The server hears us still, and we hear nothing."""
        self._answers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        server = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writers |= {writer, server[1]}
        if self._cut:  # meanwhile
            self.cut()
        try:
            there = asyncio.create_task(self._pump(reader, server[1], asked=True))
            back = asyncio.create_task(self._pump(server[0], writer, asked=False))
            await asyncio.gather(there, back)
        finally:
            self._writers -= {writer, server[1]}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asked: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if not asked:
                    await self._answers.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return  # cut, by us or by one of them: the other half ends with it
        finally:
            writer.close()


def by(settings: Settings, *, postgres: Proxy | None = None, amqp: Proxy | None = None) -> Settings:
    """The same process, its way to a server through a proxy."""
    changes = {
        **({"postgres_dsn": postgres.url} if postgres else {}),
        **({"amqp_url": amqp.url} if amqp else {}),
    }
    return settings.model_copy(update=changes)
