"""The parts only Docker has: the image, objects that a crash left, and compose.yaml by itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping

import httpx
import psycopg
import pytest

from chaos.runtime import SERVERS, SERVICES
from chaos.runtime.docker.compose import DOOR_KEY, TETHER_LABEL
from chaos.runtime.docker.engine import PROJECT_LABEL
from chaos.runtime.docker.runtime import DockerRuntime
from chaos.runtime.ports import free_ports
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, default_name
from chaos.waiting import until
from tests.servers import chosen
from tests.support.runtimes import docker, docker_objects, name_for

pytestmark = [
    pytest.mark.skipif(chosen() != "docker", reason="no Docker engine, or RUNTIME=native"),
    pytest.mark.timeout(300),  # the first one builds the image
]

IMAGE = f"sagaproof:{default_name().lower()}"


def test_the_image_runs_as_no_one_and_holds_no_secret() -> None:
    docker("compose", "build", SAGAPROOF_IMAGE=IMAGE)
    python = ("run", "--rm", "--entrypoint", "python", IMAGE, "-c")
    assert docker(*python, "import os; print(os.getuid())") == "10001"
    bare = subprocess.run(
        ["docker", "run", "--rm", IMAGE, "payment_svc"], capture_output=True, text=True
    )
    assert bare.returncode != 0
    assert "SAGAPROOF_POSTGRES_DSN: Field required" in bare.stderr
    assert "SAGAPROOF_AMQP_URL: Field required" in bare.stderr


def test_objects_of_a_dead_owner_are_swept_those_in_use_stay() -> None:
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
        DockerRuntime(name_for("other")).down()
        there = {network for network in owners if docker_objects(network)}
        assert there == {name_for("used"), name_for("elsewhere")}
    finally:
        for network in filter(docker_objects, owners):
            docker("network", "rm", network)


@pytest.fixture
def compose() -> Iterator[Mapping[str, str]]:
    """Name a development stack of the test's own; take it down at the end."""
    names = ("DOOR", "OPERATOR", "POSTGRES", "AMQP", "MANAGEMENT")
    ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
    environment = {f"SAGAPROOF_HOST_PORT_{name}": port for name, port in ports.items()}
    environment |= {"COMPOSE_PROJECT_NAME": name_for("compose"), "SAGAPROOF_IMAGE": IMAGE}
    yield environment
    docker("compose", "down", "--volumes", **environment)


def test_a_compose_stack_scales_and_keeps_its_data(
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
