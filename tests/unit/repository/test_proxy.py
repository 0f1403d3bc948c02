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


def _echo(listener: socket.socket, heard: list[bytes]) -> None:
    def serve(there: socket.socket) -> None:
        with there:
            try:
                while data := there.recv(1000):
                    heard.append(data)
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
def heard() -> list[bytes]:
    return []


@pytest.fixture
def way(heard: list[bytes]) -> Iterator[Way]:
    control, port, echo_port = free_ports(3)
    listener = socket.create_server((HOST, echo_port))
    threading.Thread(target=_echo, args=(listener, heard), daemon=True).start()
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
    """The reset may arrive before connect() has returned, which then raises."""
    try:
        with way.call() as late:
            return is_reset(late)
    except ConnectionResetError:
        return True


def test_it_passes_both_ways_and_counts(way: Way) -> None:
    with way.call() as there:
        assert echoes(there)
        assert ask(way.control)[NAME] == {"mode": "pass", "connections": 1}
    until(lambda: ask(way.control)[NAME]["connections"] == 0, "it hangs up too", 5)


def test_cut_resets_what_is_open_and_whoever_comes(way: Way) -> None:
    with way.call() as there:
        assert echoes(there)
        way.turn(Mode.CUT)
        assert is_reset(there)
    assert refuses_a_call(way)
    way.turn(Mode.PASS)
    with way.call() as again:
        assert echoes(again)


def test_half_open_keeps_the_connection_and_swallows_everything(
    way: Way, heard: list[bytes]
) -> None:
    with way.call() as there:
        assert echoes(there)
        way.turn(Mode.HALF_OPEN)
        there.sendall(b"lost")
        assert way.is_silent(there)
        assert heard == [b"tea"]
        way.turn(Mode.PASS)
        assert is_reset(there), "bytes are missing: it must not go on as if nothing had been"


def test_deaf_lets_the_process_speak_and_not_hear(way: Way, heard: list[bytes]) -> None:
    with way.call() as there:
        way.turn(Mode.DEAF)
        there.sendall(b"publish")
        assert way.is_silent(there)
        assert heard == [b"publish"]


def test_slow_is_late_and_whole(way: Way) -> None:
    with way.call() as there:
        way.turn(Mode.SLOW, delay_seconds=0.1)
        began = time.monotonic()
        assert echoes(there)
        assert time.monotonic() - began >= 0.2  # there and back


def test_what_it_does_not_know_it_says(way: Way) -> None:
    with pytest.raises(ValueError, match="nobody"):
        ask(way.control, turn={"nobody>postgres": "cut"})
