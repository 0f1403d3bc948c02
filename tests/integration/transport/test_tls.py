"""TLS to both servers, with an authority made for the purpose: known, and unknown."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import trustme
from pydantic import SecretStr

from chaos.runtime.native.install import missing
from chaos.runtime.native.servers import account_of
from chaos.runtime.ports import free_ports
from common.kit.settings import Settings
from common.messages.errors import BrokerGone, Infrastructure
from common.process.process import COMMON_MIGRATIONS
from common.storage.db import Database, migrate
from common.transport.broker import Broker
from tests.integration.conftest import MakeSettings, prepare
from tests.servers import Servers, native

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Authorities:
    known: Path
    unknown: Path
    amqp_port: int


@pytest.fixture(scope="module")
def servers(servers: Servers) -> Iterator[Servers]:
    """Yield this run's servers, or native ones instead of containers, which have no TLS here."""
    if servers.rabbitmqctl is not None:
        yield servers
        return
    if absent := missing():
        pytest.skip(f"TLS is turned on in native servers, and {absent} is not installed")
    with native() as own:
        prepare(own)
        yield own


@pytest.fixture(scope="module")
def tls(servers: Servers) -> Iterator[Authorities]:
    """Both servers of this run speak TLS too, from now until the module ends."""
    assert servers.rabbitmqctl is not None
    directory = Path(tempfile.mkdtemp(prefix="sp-tls-", dir="/var/tmp"))
    directory.chmod(0o711)
    authority, (port,) = trustme.CA(), free_ports(1)
    authorities = Authorities(directory / "known.pem", directory / "unknown.pem", port)
    for ca, path in ((authority, authorities.known), (trustme.CA(), authorities.unknown)):
        ca.cert_pem.write_to_path(path)
        path.chmod(0o644)
    certificate = authority.issue_cert(HOST)
    with psycopg.connect(servers.dsn("postgres"), autocommit=True) as admin:
        key, chain = _give(certificate, directory, "postgres")
        for name, value in (("ssl_cert_file", chain), ("ssl_key_file", key), ("ssl", "on")):
            admin.execute(f"alter system set {name} = '{value}'".encode())
        admin.execute("select pg_reload_conf()")
        key, chain = _give(certificate, directory, "rabbitmq")
        files = {"cacertfile": authorities.known, "certfile": chain, "keyfile": key}
        options = ", ".join(f'{{{name}, "{path}"}}' for name, path in files.items())
        servers.rabbitmqctl(
            "eval",
            "{ok, _} = application:ensure_all_started(ssl),"
            f' ok = rabbit_networking:start_ssl_listener({{"{HOST}", {port}}}, [{options}], 2).',
        )
        yield authorities
        for name in ("ssl", "ssl_cert_file", "ssl_key_file"):
            admin.execute(f"alter system reset {name}".encode())
        admin.execute("select pg_reload_conf()")
    shutil.rmtree(directory)


def _give(certificate: trustme.LeafCert, directory: Path, server: str) -> tuple[Path, Path]:
    """Key and certificates, for this server's eyes alone."""
    key, chain = directory / f"{server}.key", directory / f"{server}.pem"
    certificate.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.chmod(0o600)
    if account := account_of(server):
        os.chown(key, account.uid, account.gid)
        os.chown(chain, account.uid, account.gid)
    return key, chain


def secured(settings: Settings, servers: Servers, tls: Authorities, authority: Path) -> Settings:
    """As docs/operations.md says to set it."""
    vhost = quote(settings.amqp_url.get_secret_value().rpartition("/")[2])
    who = f"{servers.amqp_user}:{servers.amqp_password}"
    return settings.model_copy(
        update={
            "postgres_dsn": SecretStr(
                f"{settings.postgres_dsn.get_secret_value()}"
                f"?sslmode=verify-full&sslrootcert={authority}"
            ),
            "amqp_url": SecretStr(f"amqps://{who}@{HOST}:{tls.amqp_port}/{vhost}"),
            "amqp_ca_file": authority,
        }
    )


async def test_both_servers_are_spoken_to_by_tls(
    settings: MakeSettings, servers: Servers, tls: Authorities
) -> None:
    made = secured(settings("payment_svc"), servers, tls, tls.known)
    assert migrate(made, COMMON_MIGRATIONS) == []
    async with Database(made) as db, db.transaction(None) as tx:
        rows = await tx.fetch("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
    assert rows == [(True,)]
    broker = Broker(made)
    channel = await broker.channel()
    assert channel._raw.connection.params.ssl_options is not None
    await broker.close()


async def test_a_server_of_an_unknown_authority_is_not_spoken_to(
    settings: MakeSettings, servers: Servers, tls: Authorities
) -> None:
    made = secured(settings("payment_svc", connect_timeout_seconds=3), servers, tls, tls.unknown)
    with pytest.raises(Infrastructure, match="certificate verify failed"):
        migrate(made, COMMON_MIGRATIONS)
    with pytest.raises(BrokerGone, match="certificate verify failed"):
        await Broker(made).channel()
