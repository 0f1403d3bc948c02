"""The parts of the native runtime that need no server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chaos.commands import cli
from chaos.runtime import (
    SERVERS_ONLY,
    Endpoints,
    Plan,
    Service,
    StackError,
    bootstrap,
)
from chaos.runtime.endpoints import Ports, Secrets, endpoints_of
from chaos.runtime.native import install
from chaos.runtime.native.managed import next_pause
from chaos.runtime.native.runtime import NativeRuntime, all_names
from chaos.runtime.native.services import proxy_spec, service_specs
from chaos.runtime.ports import free_ports, is_free
from chaos.runtime.processes import (
    MARK,
    Started,
    gone_within,
    identity,
    record,
    recorded,
    signal_tree,
    sweep,
)
from chaos.runtime.stack import CHECKOUT, Stack, default_name, read_plan_file

PARENT_AND_CHILD = "sleep 60 & echo $!; wait"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAGAPROOF_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """Start a process that has a child."""
    with subprocess.Popen(
        ["/bin/sh", "-c", PARENT_AND_CHILD], stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        signal_tree(process.pid, signal.SIGKILL)


def child_of(parent: subprocess.Popen[str]) -> Started:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    return Started("child", pid, identity(pid) or "")


# What a stack is to be


def test_one_process_of_each_service_by_default() -> None:
    assert list(Plan().processes) == [
        "orchestrator", "order", "door", "operator", "payment", "inventory",
    ]  # fmt: skip
    assert list(Plan(style="choreographed").processes) == ["order", "door", "payment", "inventory"]
    asked = Plan(replicas={"payment": 3, "door": 0}).processes
    assert [name for name in asked if asked[name] == "payment"] == [
        "payment", "payment-2", "payment-3",
    ]  # fmt: skip
    assert "door" not in asked
    assert SERVERS_ONLY.processes == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": {"paiment": 1}},
        {"replicas": {"payment": -1}},
        {"entry": {"x": "y"}},
        {"services": {"payment": Service("mine", "mine")}},
        {"services": {"rabbitmq": Service("mine", "mine")}},
        {"services": {"car-2": Service("mine", "mine")}},
        {"services": {"car": Service("mine", "my role")}},
    ],
)
def test_a_plan_for_what_does_not_exist_is_refused(wrong: dict[str, dict[str, object]]) -> None:
    with pytest.raises(StackError):
        Plan(**wrong)  # type: ignore[arg-type]


def test_added_services_have_processes_and_roles_like_ours() -> None:
    plan = Plan(services={"car": Service("trip car", "hire")}, replicas={"car": 2, "door": 0})
    assert list(plan.processes)[-2:] == ["car", "car-2"]
    assert plan.roles == (*bootstrap.SERVICES, "hire")
    endpoints = endpoints_of(Ports.free(plan), Secrets.fresh(plan), Path())
    specs = {s.name: s for s in service_specs(plan, endpoints)}
    assert specs["car-2"].command[-2:] == ("trip", "car")
    assert "//hire:" in specs["car-2"].environment["SAGAPROOF_POSTGRES_DSN"]
    statements = list(bootstrap.schema_statements(plan.roles))
    assert "create schema hire authorization hire" in statements


def test_a_plan_file_is_read_or_its_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    with pytest.raises(StackError, match=r"No such file .*plan\.json"):
        read_plan_file(file)
    file.write_text('{"services": {"car": {"entry": "trip car", "role": "hire"}}}')
    assert read_plan_file(file) == Plan(services={"car": Service("trip car", "hire")})
    file.write_text('{"services": {"car": {"entry": "trip car"}}}')
    with pytest.raises(StackError, match=r"plan\.json: services\.car\.role: Field required"):
        read_plan_file(file)
    file.write_text('{"service": {}}')
    with pytest.raises(StackError, match=r"plan\.json: service: Unexpected"):
        read_plan_file(file)


def test_a_stack_without_a_door_says_so() -> None:
    with pytest.raises(StackError, match="no door"):
        _ = Endpoints("", "", {}, "", "", {}, {}, Path(), "", "").door_url


def test_services_are_set_by_the_plan_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAPROOF_HEALTH_PORT", "1")
    monkeypatch.setenv("SAGAPROOF_STEP_ATTEMPTS", "1")
    plan = Plan(settings={"step_attempts": "7"})
    endpoints = Endpoints(
        "", "", dict.fromkeys(bootstrap.SERVICES, "dsn"), "amqp://", "",
        dict.fromkeys(plan.processes, "http://127.0.0.1:2"),
        dict.fromkeys(plan.processes, "http://127.0.0.1:3/metrics"), Path(), "the-key", "the-token",
    )  # fmt: skip
    given = {spec.name: spec.environment for spec in service_specs(plan, endpoints)}
    assert {settings["SAGAPROOF_STEP_ATTEMPTS"] for settings in given.values()} == {"7"}
    assert {settings["SAGAPROOF_HEALTH_PORT"] for settings in given.values()} == {"3"}
    assert given["door"]["SAGAPROOF_DOOR_PORT"] == "2"
    url = "http://127.0.0.1:2"
    assert endpoints.environment == {
        "SAGAPROOF_DOOR_URL": url,
        "SAGAPROOF_DOOR_KEY": "the-key",
        "SAGAPROOF_OPERATOR_URL": url,
        "SAGAPROOF_OPERATOR_TOKEN": "the-token",
        "SAGAPROOF_AMQP_URL": "amqp://",
    }
    opened = {
        (name, variable.removeprefix("SAGAPROOF_"), value)
        for name, settings in given.items()
        for variable, value in settings.items()
        if "the-" in value
    }
    assert opened == {
        ("door", "DOOR_KEYS", "chaos:the-key"),
        ("operator", "OPERATOR_TOKENS", "chaos:operator:the-token"),
    }


def test_a_proxied_process_is_given_its_own_lines() -> None:
    plan = Plan(proxied=True)
    ports = Ports.free(plan)
    stack = Stack("s")
    endpoints = endpoints_of(ports, Secrets.fresh(plan), stack.logs)
    proxy = proxy_spec(stack, ports)
    assert proxy is not None
    assert endpoints.proxy == ("127.0.0.1", ports.proxy)
    specs = {spec.name: spec.environment for spec in service_specs(plan, endpoints, ports.lines)}
    line = ports.lines["payment>postgres"]
    assert f":{line}/" in specs["payment"]["SAGAPROOF_POSTGRES_DSN"]
    assert f":{line}/" not in specs["inventory"]["SAGAPROOF_POSTGRES_DSN"]
    assert set(ports.lines.values()) < set(proxy.ports)
    assert proxy_spec(stack, Ports.free(Plan())) is None


# Backoff


def test_backoff_doubles_to_its_cap_and_begins_anew() -> None:
    def pauses(*ran: float) -> list[float]:
        found: list[float] = []
        for seconds in ran:
            found.append(next_pause(found[-1] if found else None, seconds))
        return found

    assert pauses(*[0.1] * 8) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert pauses(0, 0, 9.9, 10.0, 0) == [0.2, 0.4, 0.8, 0.2, 0.4]


# Ports


def test_free_ports_are_never_those_of_outgoing_connections() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert not [port for port in ports if low <= port <= high]


def test_a_port_with_a_listener_is_not_free() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
    assert is_free(port)


# Names and the lock


def test_the_default_name_is_the_checkouts_own() -> None:
    assert default_name() == default_name()
    assert default_name().startswith(CHECKOUT.name[:30])
    Stack(default_name())


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a" * 41])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(StackError, match="no name"):
        Stack(name)


def test_a_directory_too_deep_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGAPROOF_STATE_DIR", "/tmp/" + "x" * 90)
    with pytest.raises(StackError, match="SAGAPROOF_STATE_DIR"):
        Stack("s")


def test_a_stack_has_one_holder(state: Path) -> None:
    stack = Stack("s")
    assert stack.take() is None  # there is none yet
    stack.create()
    lock = stack.take()
    assert lock is not None
    assert stack.take() is None
    os.close(lock)
    again = stack.take_within(1)
    assert again is not None
    os.close(again)


def test_the_lock_of_a_removed_stack_is_worth_nothing(state: Path) -> None:
    """A process that waited for the holder must not take a lock the holder has removed."""
    stack = Stack("s")
    stack.create()
    lock = stack.take()
    assert lock is not None
    stack.remove(keep_logs=False)
    stack.create()  # by the next `up`
    new = stack.take()
    assert new is not None
    os.close(lock)
    assert stack.take() is None
    os.close(new)


def test_removing_can_keep_the_logs(state: Path) -> None:
    stack = Stack("s")
    stack.create()
    stack.logs.mkdir()
    stack.log("payment").write_text("hello\n")
    stack.postgres.mkdir()
    stack.remove(keep_logs=True)
    assert list(stack.directory.iterdir()) == [stack.logs]
    assert list(NativeRuntime("s").logs("payment")) == ["hello"]
    with pytest.raises(StackError, match="there are: payment"):
        list(NativeRuntime("s").logs("order"))
    assert all_names() == ["s"]
    NativeRuntime("s").down()
    assert all_names() == []


# Processes


def test_an_identity_ends_with_its_process(parent: subprocess.Popen[str]) -> None:
    known = identity(parent.pid)
    assert known is not None
    assert identity(parent.pid) == known != identity(os.getpid())
    signal_tree(parent.pid, signal.SIGKILL)
    parent.wait()
    assert identity(parent.pid) is None


def test_a_tree_is_killed_to_its_leaves(parent: subprocess.Popen[str]) -> None:
    child = child_of(parent)
    signal_tree(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    assert gone_within([child], 5)


def test_a_tree_is_paused_and_resumed(parent: subprocess.Popen[str]) -> None:
    child = child_of(parent)
    for number, wanted in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
        signal_tree(parent.pid, number)
        for pid in (parent.pid, child.pid):
            deadline = time.monotonic() + 5
            while Path(f"/proc/{pid}/stat").read_text().split()[2] != wanted:
                assert time.monotonic() < deadline


def test_the_sweep_ends_what_is_on_record(tmp_path: Path, parent: subprocess.Popen[str]) -> None:
    child = child_of(parent)
    record(tmp_path / "started", "payment", parent.pid)
    with (tmp_path / "started").open("a") as lines:
        lines.write("order 12")  # the supervisor died while it wrote this
    sweep(tmp_path, tmp_path / "started")
    assert parent.wait() == -signal.SIGKILL
    assert gone_within([child], 5)


def test_the_sweep_ends_what_there_was_no_time_to_record(tmp_path: Path) -> None:
    unrecorded = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(tmp_path)})
    sweep(tmp_path, tmp_path / "started")
    assert unrecorded.wait() == -signal.SIGKILL


def test_the_sweep_lets_postgres_give_back_its_shared_memory(tmp_path: Path) -> None:
    """Marked as well as recorded; the record says what it is."""
    with subprocess.Popen(
        ["/bin/sh", "-c", "trap 'exit 7' QUIT; sleep 60 & echo ready; wait"],
        env={**os.environ, MARK: str(tmp_path)},
        stdout=subprocess.PIPE,
    ) as postgres:
        assert postgres.stdout is not None
        postgres.stdout.readline()
        record(tmp_path / "started", "postgres", postgres.pid)
        sweep(tmp_path, tmp_path / "started")
        assert postgres.wait() == 7


def test_the_sweep_spares_another_process_with_a_reused_pid(
    tmp_path: Path, parent: subprocess.Popen[str]
) -> None:
    (tmp_path / "started").write_text(f"payment {parent.pid} another-boot:123\n")
    assert recorded(tmp_path / "started") == []
    sweep(tmp_path, tmp_path / "started")
    assert parent.poll() is None


# Programs


def test_missing_programs_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_rabbitmq", lambda: None)
    monkeypatch.setattr(install, "_may_install", lambda: False)
    with pytest.raises(
        StackError, match=r"missing: RabbitMQ\. Install .* apt-get install rabbitmq-server"
    ):
        install.programs(lambda _: None)


@pytest.mark.parametrize(
    ("release", "possible"),
    [
        ('ID=debian\nVERSION_ID="12"', True),
        ('ID=debian\nVERSION_ID="11"', False),
        ('ID=ubuntu\nVERSION_ID="24.04"', True),
        ('ID=ubuntu\nVERSION_ID="22.04"', False),
        ("ID=debian", False),
        ("ID=fedora\nVERSION_ID=43", False),
    ],
)
def test_it_installs_only_where_the_packages_are_new_enough(release: str, possible: bool) -> None:
    assert install.is_new_enough(release) is possible


def test_services_that_a_policy_lets_start_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy-rc.d that is there already is its owner's, and stays as it is."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)
    monkeypatch.setattr(install, "POLICY", policy)
    with (
        pytest.raises(StackError, match="lets packages start"),
        install.no_service_starts(["rabbitmq-server"]),
    ):
        pytest.fail("must not get here")
    assert policy.exists()


def test_a_policy_of_our_own_is_taken_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(install, "POLICY", policy)
    with install.no_service_starts(["postgresql"]):
        assert subprocess.run([policy, "postgresql", "start"]).returncode == 101
    assert not policy.exists()


# The command


@pytest.mark.parametrize(
    "words",
    [
        ("up", "--replicas", "payment"),
        ("up", "--replicas", "payment=two"),
        ("up", "--replicas", "paiment=2"),
        ("up", "--set", "STEP_TIMEOUT_SECONDS"),
        ("up", "--servers-only", "--replicas", "payment=2"),
        ("up", "--runtime", "abacus"),
        ("status",),
        ("kill", "payment"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    state: Path,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RUNTIME", "native")
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    with pytest.raises(SystemExit) as ended:
        cli.app([*words, "--name", "nobody"])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.out) == (1, "")
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1


def test_every_command_explains_itself() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"]).output
    for command in ("up", "down", "status", "logs", "kill", "pause", "resume", "start", "stop"):
        assert command in shown
