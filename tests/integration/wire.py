"""A TCP way to a server that can be cut, or delay all answers."""

from __future__ import annotations

from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from chaos.runtime.ports import HOST
from chaos.runtime.proxy import LineSpec, Mode, ProxyLine
from common.kit.settings import Settings
from tests.integration.waiting import eventually


class Proxy:
    """A line of chaos's proxy, in this process, to the server of a URL."""

    def __init__(self, url: SecretStr) -> None:
        self._url = urlsplit(url.get_secret_value())
        server = self._url.hostname or "", self._url.port or 0
        self._line = ProxyLine(LineSpec("test", HOST, 0, *server))

    @property
    def url(self) -> SecretStr:
        """The server's URL, by this way."""
        user = self._url.netloc.rpartition("@")[0]
        netloc = f"{user}@{HOST}:{self._port}"
        return SecretStr(urlunsplit(self._url._replace(netloc=netloc)))

    @property
    def connections(self) -> int:
        return len(self._line.connections)

    async def __aenter__(self) -> Self:
        self._server = await self._line.listen()
        self._port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self.cut()
        self._server.close()
        await self._server.wait_closed()
        await eventually(lambda: not self.connections, "every connection has ended")

    def cut(self) -> None:
        """Reset every connection, and each new one, until mended."""
        self._line.turn(Mode.CUT)

    def mend(self) -> None:
        self._line.turn(Mode.PASS)

    def silence(self) -> None:
        """Hold back what the server sends until mended."""
        self._line.turn(Mode.LATE)


def by(settings: Settings, *, postgres: Proxy | None = None, amqp: Proxy | None = None) -> Settings:
    """Return the settings with a proxy on the way to a server."""
    changes = {
        **({"postgres_dsn": postgres.url} if postgres else {}),
        **({"amqp_url": amqp.url} if amqp else {}),
    }
    return settings.model_copy(update=changes)
