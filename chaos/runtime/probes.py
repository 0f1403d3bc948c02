"""Probes for servers and services, one each, for both runtimes."""

from __future__ import annotations

import http.client
import logging
from urllib.parse import urlsplit

import pika
import pika.exceptions
import psycopg

PROBE_SECONDS = 2

logging.getLogger("pika").setLevel(logging.CRITICAL)  # a failure here only means "not yet"


def postgres_answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=PROBE_SECONDS).close()
    except psycopg.OperationalError:
        return False
    return True


def rabbitmq_answers(url: str) -> bool:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = PROBE_SECONDS
    parameters.blocked_connection_timeout = PROBE_SECONDS
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, OSError):
        return False
    return True


def service_is_ready(url: str) -> bool:
    """GET /ready; with http.client, because it is called often and httpx is slow to start."""
    address = urlsplit(url)
    assert address.hostname  # noqa: S101 - a URL of ours
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=PROBE_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
