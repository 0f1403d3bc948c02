"""The proxy on a line to an echo server, in a process of its own as a stack runs it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from chaos.runtime.ports import HOST, free_ports
from chaos.runtime.proxy import LineSpec, Mode, answers, ask, command_line
from chaos.waiting import until

NAME = "payment>postgres"
SILENCE_SECONDS = 0.2


@dataclass
class Way:
    control: tuple[str, int]
    port: int

    def turn(self, mode: Mode, delay_seconds: float = 0.0) -> None:
        ask(self.control, turn={NAME: mode}, delay_seconds=delay_seconds)

    def call(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=5)

    def is_silent(self, there: socket.socket) -> bool:
        there.settimeout(SILENCE_SECONDS)
        try:
            there.recv(10)
        except TimeoutError:
            return True
        finally:
            there.settimeout(5)
        return False


def _echo(listener: socket.socket, received: list[bytes]) -> None:
    def serve(there: socket.socket) -> None:
        with there:
            try:
                while data := there.recv(1000):
                    received.append(data)
                    there.sendall(data)
            except OSError:
                return

    while True:
        try:
            there, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(there,), daemon=True).start()


@pytest.fixture
def received() -> list[bytes]:
    return []


@pytest.fixture
def way(received: list[bytes]) -> Iterator[Way]:
    control, port, echo_port = free_ports(3)
    listener = socket.create_server((HOST, echo_port))
    threading.Thread(target=_echo, args=(listener, received), daemon=True).start()
    spec = LineSpec(NAME, HOST, port, HOST, echo_port)
    command = [sys.executable, "-m", *command_line((HOST, control), [spec])]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: answers((HOST, control)), "the proxy answers", 10)
            yield Way((HOST, control), port)
        finally:
            process.kill()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def echoes(there: socket.socket) -> bool:
    there.sendall(b"tea")
    return there.recv(10) == b"tea"


def is_reset(there: socket.socket) -> bool:
    try:
        return there.recv(10) == b""
    except ConnectionResetError:
        return True


def refuses_a_call(way: Way) -> bool:
    """Expect a reset, which may arrive before connect() has returned."""
    try:
        with way.call() as late:
            return is_reset(late)
    except ConnectionResetError:
        return True


def test_it_passes_both_ways_and_counts(way: Way) -> None:
    with way.call() as there:
        assert echoes(there)
        assert ask(way.control)[NAME] == {"mode": "pass", "connections": 1}
    until(lambda: ask(way.control)[NAME]["connections"] == 0, "the proxy closes it too", 5)


def test_cut_resets_open_and_new_connections(way: Way) -> None:
    with way.call() as there:
        assert echoes(there)
        way.turn(Mode.CUT)
        assert is_reset(there)
    assert refuses_a_call(way)
    way.turn(Mode.PASS)
    with way.call() as again:
        assert echoes(again)


def test_half_open_keeps_connections_and_loses_everything(way: Way, received: list[bytes]) -> None:
    with way.call() as there:
        assert echoes(there)
        way.turn(Mode.HALF_OPEN)
        there.sendall(b"lost")
        assert way.is_silent(there)
        assert received == [b"tea"]
        way.turn(Mode.PASS)
        assert is_reset(there), "bytes are missing: it must not go on"


def test_deaf_loses_only_what_the_server_sends(way: Way, received: list[bytes]) -> None:
    with way.call() as there:
        way.turn(Mode.DEAF)
        there.sendall(b"publish")
        assert way.is_silent(there)
        assert received == [b"publish"]


def test_late_holds_back_what_the_server_sends(way: Way, received: list[bytes]) -> None:
    with way.call() as there:
        way.turn(Mode.LATE)
        there.sendall(b"tea")
        assert way.is_silent(there)
        assert received == [b"tea"]
        way.turn(Mode.PASS)
        assert there.recv(10) == b"tea"


def test_slow_is_late_and_whole(way: Way) -> None:
    with way.call() as there:
        way.turn(Mode.SLOW, delay_seconds=0.1)
        began = time.monotonic()
        assert echoes(there)
        assert time.monotonic() - began >= 0.2  # there and back


def test_an_unknown_line_is_an_error(way: Way) -> None:
    with pytest.raises(ValueError, match="no_such"):
        ask(way.control, turn={"no_such>postgres": "cut"})
