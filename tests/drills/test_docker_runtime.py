"""The Docker runtime and the development stack, on a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping

import httpx
import pika
import pika.exceptions
import psycopg
import pytest

from chaos.runtime import SERVERS, SERVERS_ONLY, SERVICES, Plan, ProcessStatus, StackError
from chaos.runtime.docker.compose import DOOR_KEY, TETHER_LABEL
from chaos.runtime.docker.engine import PROJECT_LABEL
from chaos.runtime.docker.runtime import DockerRuntime, DockerStack
from chaos.runtime.ports import free_ports
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, default_name
from chaos.waiting import until
from tests.servers import chosen

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(chosen() != "docker", reason="no Docker engine, or RUNTIME=native"),
    pytest.mark.timeout(300),  # the first to come builds the image
]

DUMMY = "tests.support.dummy_service"
IMAGE = f"sagaproof:{default_name().lower()}"


def docker(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        cwd=CHECKOUT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def of(runtime: DockerRuntime, process: str) -> ProcessStatus:
    return next(status for status in runtime.status() if status.name == process)


def until_ready(runtime: DockerRuntime, process: str) -> None:
    until(lambda: of(runtime, process).ready, f"{process} ready")


def left_of(project: str) -> str:
    """Containers, networks and volumes, by name."""
    of_it = ("--filter", f"label={PROJECT_LABEL}={project}", "--format", "{{.Names}}")
    named = (*of_it[:3], "{{.Name}}")
    return docker("ps", "-a", *of_it) + docker("network", "ls", *named) + docker(
        "volume", "ls", *named
    )  # fmt: skip


def name_for(purpose: str) -> str:
    return f"test-{os.getpid()}-{purpose}"


@pytest.fixture(scope="module")
def stack() -> Iterator[DockerRuntime]:
    """One stack that the tests share; each leaves it ready. Its payment is a stand-in."""
    runtime = DockerRuntime(name_for("shared"))
    plan = Plan(
        replicas={"payment": 2, "inventory": 0},
        settings={"step_timeout_seconds": "0.5"},
        entry={"payment": DUMMY},
    )
    runtime.up(plan, tethered=True)
    yield runtime
    runtime.down(keep_logs=True)
    assert any("database system is ready" in line for line in runtime.logs("postgres"))
    with pytest.raises(StackError, match="is not up"):
        runtime.status()
    runtime.down()
    assert left_of(DockerStack(runtime.name).project) == ""
    assert not DockerStack(runtime.name).directory.exists()


@pytest.fixture
def other() -> Iterator[DockerRuntime]:
    """A stack of the test's own, not up."""
    runtime = DockerRuntime(name_for("other"))
    yield runtime
    runtime.down()


def test_everything_is_ready_and_was_given_what_it_needs(stack: DockerRuntime) -> None:
    statuses = stack.status()
    assert [status.name for status in statuses] == [
        "postgres", "rabbitmq", "door", "operator", "orchestrator", "order", "payment", "payment-2",
    ]  # fmt: skip
    assert all(status.ready and status.state == "running" for status in statuses)
    given = json.loads(next(stack.logs("payment-2")))
    assert given["SAGAPROOF_PROCESS"] == "payment-2"
    assert given["SAGAPROOF_STEP_TIMEOUT_SECONDS"] == "0.5"
    assert httpx.get(f"{stack.endpoints().door_url}/ready").json()["ready"] is True


def test_the_image_is_for_nobody_in_particular_and_holds_no_secret(stack: DockerRuntime) -> None:
    python = ("run", "--rm", "--entrypoint", "python", IMAGE, "-c")
    assert docker(*python, "import os; print(os.getuid())") == "10001"
    bare = subprocess.run(
        ["docker", "run", "--rm", IMAGE, "payment_svc"], capture_output=True, text=True
    )
    assert bare.returncode != 0
    assert "SAGAPROOF_POSTGRES_DSN: Field required" in bare.stderr
    assert "SAGAPROOF_AMQP_URL: Field required" in bare.stderr


def test_postgres_is_durable_and_its_roles_are_kept_apart(stack: DockerRuntime) -> None:
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints.service_dsns["payment_svc"], autocommit=True) as payment:
        for setting in ("fsync", "synchronous_commit"):
            assert payment.execute(f"show {setting}".encode()).fetchone() == ("on",)
        payment.execute("create table ours (n int)")
    with (
        psycopg.connect(endpoints.service_dsns["order_svc"], autocommit=True) as order,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        order.execute("select n from payment_svc.ours")
    with psycopg.connect(endpoints.judge_dsn, autocommit=True) as judge:
        assert judge.execute("select n from payment_svc.ours").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            judge.execute("insert into payment_svc.ours values (1)")


def test_a_killed_service_comes_back(stack: DockerRuntime) -> None:
    before = of(stack, "orchestrator")
    stack.kill("orchestrator")
    until_ready(stack, "orchestrator")
    after = of(stack, "orchestrator")
    assert after.pid != before.pid
    assert after.restarts == before.restarts + 1


def test_a_stopped_service_finishes_and_stays_down_until_started(stack: DockerRuntime) -> None:
    stack.stop("payment")
    assert (of(stack, "payment").state, of(stack, "payment").last_exit) == ("stopped", "status 0")
    assert list(stack.logs("payment"))[-1] == "left when told"
    with pytest.raises(StackError, match="payment has no process at the moment: it is stopped"):
        stack.kill("payment")
    stack.start("payment")
    until_ready(stack, "payment")


def test_a_paused_service_does_nothing_until_resumed(stack: DockerRuntime) -> None:
    stack.pause("order")
    paused = of(stack, "order")
    assert (paused.state, paused.ready) == ("paused", False)
    stack.resume("order")
    until_ready(stack, "order")
    assert of(stack, "order").pid == paused.pid


def test_a_paused_service_can_be_killed_and_comes_back(stack: DockerRuntime) -> None:
    before = of(stack, "payment-2")
    stack.pause("payment-2")
    stack.kill("payment-2")
    until_ready(stack, "payment-2")
    assert of(stack, "payment-2").pid != before.pid
    assert "left when told" not in stack.logs("payment-2")


def test_killed_servers_come_back_with_what_they_held(stack: DockerRuntime) -> None:
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as admin:
        admin.execute("create table kept as select 42 as n")
    with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("kept", durable=True, arguments={"x-queue-type": "quorum"})
        channel.basic_publish("", "kept", b"42", pika.BasicProperties(delivery_mode=2))
    # A new queue's place is written down half a second after its declaration: killed before, the
    # broker has the queue, but not where its log is (seen on 3.10 and 4.0).
    stack.rabbitmqctl("eval", "dets:sync(ra_directory_reverse).")

    for server in ("postgres", "rabbitmq"):
        stack.kill(server)
    for process in ("postgres", "rabbitmq", "orchestrator", "order", "door"):
        until_ready(stack, process)

    with psycopg.connect(endpoints.superuser_dsn) as admin:
        assert admin.execute("select n from kept").fetchone() == (42,)

    def is_held() -> bool:
        """A quorum queue first elects its leader; asked meanwhile, it errs."""
        try:
            with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
                return bool(connection.channel().basic_get("kept", auto_ack=True)[2] == b"42")
        except pika.exceptions.AMQPError:
            return False

    until(is_held, "the message is there")
    assert "kept" in stack.rabbitmqctl("--quiet", "list_queues", "name").split()
    with pytest.raises(OSError, match="rabbitmqctl"):
        stack.rabbitmqctl("no_such_command")


def test_what_is_up_is_not_brought_up_again(stack: DockerRuntime) -> None:
    with pytest.raises(StackError, match="is up already"):
        DockerRuntime(stack.name).up(SERVERS_ONLY)
    assert all(status.ready for status in stack.status())


def test_an_up_that_fails_says_why_and_leaves_nothing(other: DockerRuntime) -> None:
    plan = Plan(
        replicas={**SERVERS_ONLY.replicas, "payment": 1},
        entry={"payment": "tests.acceptance.no_such_module"},
    )
    with pytest.raises(StackError, match=r"No module named .*no_such_module"):
        other.up(plan)
    assert left_of(DockerStack(other.name).project) == ""
    assert not DockerStack(other.name).directory.exists()


def test_a_tethered_stack_ends_with_who_brought_it_up(other: DockerRuntime) -> None:
    program = (
        "import os, signal\n"
        "from chaos.runtime import SERVERS_ONLY, choose\n"
        f"choose('docker', {other.name!r}).up(SERVERS_ONLY, tethered=True)\n"
        f"os.kill(os.getpid(), {signal.SIGKILL:d})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT)
    assert done.returncode == -signal.SIGKILL
    stack = DockerStack(other.name)
    until(lambda: not left_of(stack.project) and not stack.directory.exists(), "it is gone")


def test_what_a_crash_left_is_swept_and_what_is_in_use_is_not(other: DockerRuntime) -> None:
    namespace = os.readlink("/proc/self/ns/pid")
    ours = f"{namespace} {os.getpid()} {identity(os.getpid())}"
    owners = {
        name_for("left"): f"{namespace} {os.getpid()} not-this-one",
        name_for("used"): ours,
        name_for("elsewhere"): "pid:[1] 1 not-this-one",
    }
    try:
        for network, owner in owners.items():
            project = f"{PROJECT_LABEL}={network}"
            labels = ("--label", project, "--label", f"{TETHER_LABEL}={owner}")
            docker("network", "create", *labels, network)
        other.down()
        there = {network for network in owners if left_of(network)}
        assert there == {name_for("used"), name_for("elsewhere")}
    finally:
        for network in filter(left_of, owners):
            docker("network", "rm", network)


@pytest.fixture
def compose() -> Iterator[Mapping[str, str]]:
    """The environment of a development stack of the test's own."""
    names = ("DOOR", "OPERATOR", "POSTGRES", "AMQP", "MANAGEMENT")
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    environment = {f"SAGAPROOF_HOST_PORT_{name}": port for name, port in ports.items()}
    environment |= {"COMPOSE_PROJECT_NAME": name_for("compose"), "SAGAPROOF_IMAGE": IMAGE}
    yield environment
    docker("compose", "down", "--volumes", **environment)


def test_compose_alone_gives_a_stack_that_scales_and_keeps_its_data(
    compose: Mapping[str, str],
) -> None:
    scale = ("--scale", "order=2", "--scale", "payment=3", "--scale", "orchestrator=2")
    docker("compose", "up", "--build", "--detach", "--wait", *scale, **compose)
    running = docker("compose", "ps", "--format", "{{.Service}} {{.Health}}", **compose)
    scaled = [*SERVERS, *SERVICES, "order", "payment", "payment", "orchestrator"]
    assert sorted(running.splitlines()) == sorted(f"{service} healthy" for service in scaled)

    assert "rows of catalogue.json answered" in docker(
        "compose", "run", "--rm", "catalogue", **compose
    )
    line = json.loads((CHECKOUT / "examples" / "orders.jsonl").read_text().splitlines()[0])
    order = {name: line[name] for name in ("customer", "currency", "lines")}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{compose['SAGAPROOF_HOST_PORT_DOOR']}",
        headers={"Authorization": f"Bearer {DOOR_KEY}"},
    ) as door:
        placed = door.post("/orders", json=order, headers={"Idempotency-Key": "first"})
        path = f"/orders/{placed.json()['order_id']}"
        until(lambda: door.get(path).json()["status"] == "CONFIRMED", "the order is confirmed")

    docker("compose", "down", **compose)
    docker("compose", "up", "--detach", "--wait", *SERVERS, **compose)
    postgres = f"127.0.0.1:{compose['SAGAPROOF_HOST_PORT_POSTGRES']}/sagaproof"
    with psycopg.connect(f"postgresql://judge:throw-away@{postgres}") as judge:
        ends = judge.execute("select status from order_svc.customer_order").fetchall()
    assert ends == [("CONFIRMED",)]
    queues = docker(
        "compose", "exec", "-T", "rabbitmq", "rabbitmqctl", "-q", "list_queues", "name", **compose
    )
    assert "orchestrator.commands" in queues.split()
