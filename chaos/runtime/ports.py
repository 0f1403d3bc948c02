"""Free ports on 127.0.0.1, outside the range of outgoing connections.

Binding port 0 would give one of that range. While a killed server is down, a client that keeps
dialling its port there sooner or later dials from that very port, connects to itself, and the
server cannot come back.
"""

from __future__ import annotations

import random
import socket
from itertools import islice
from pathlib import Path

HOST = "127.0.0.1"
LOWEST = 10_000
HIGHEST = 65_535


def free_ports(count: int) -> list[int]:
    """Return different ports without a listener at this moment."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    outside = [*range(LOWEST, low), *range(high + 1, HIGHEST + 1)]
    candidates = outside or [*range(LOWEST, HIGHEST + 1)]
    random.shuffle(candidates)
    ports = [*islice(filter(is_free, candidates), count)]
    if len(ports) < count:
        raise OSError(f"only {len(ports)} of the {count} ports needed are free on {HOST}")
    return ports


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
