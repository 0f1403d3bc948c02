"""One frozen settings class, built only in composition roots and passed down.

Each setting has its unit in its name. Secrets have no default. Read from the environment, prefix
SAGAPROOF_; a secret may also be a file: SAGAPROOF_POSTGRES_DSN_FILE names one that holds the value.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

SECRETS = ("postgres_dsn", "amqp_url", "operator_tokens", "door_keys")
URLS = {
    "postgres_dsn": "postgresql://ROLE:PASSWORD@HOST:5432/DATABASE",
    "amqp_url": "amqp://USER:PASSWORD@HOST:5672/VHOST",
}
SCHEMES = {"postgres_dsn": ("postgresql", "postgres"), "amqp_url": ("amqp", "amqps")}


@dataclass(frozen=True)
class Policy:
    """The retry policy: how long a reply may take, and how often it is requested again; seconds.

    Reads no clock and draws no random numbers.
    """

    timeout_seconds: float
    attempts: int
    backoff_first_seconds: float
    backoff_cap_seconds: float
    resend_cap_seconds: float
    stuck_after_seconds: float
    approval_expiry_seconds: float = 604_800.0

    def patience(self, attempt: int, *, capped: bool, jitter: float) -> float:
        """Return how long to wait for the reply to an attempt; `jitter` in [0, 1) is random.

        It is the timeout, and from the second attempt on exponential backoff with full jitter.
        Uncapped attempts (undo, fence, retriable) slow down to `resend_cap_seconds`.
        """
        doubled = self.backoff_first_seconds * 2.0 ** min(attempt - 2, 32) if attempt > 1 else 0.0
        if capped:
            return self.timeout_seconds + jitter * min(doubled, self.backoff_cap_seconds)
        return min(self.timeout_seconds + jitter * doubled, self.resend_cap_seconds)


class Settings(BaseSettings):
    """The configuration of a process."""

    model_config = SettingsConfigDict(
        env_prefix="SAGAPROOF_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # an error in one secret must not quote another
    )

    postgres_dsn: SecretStr = Field(description="libpq URL of this service's own role")
    amqp_url: SecretStr = Field(description="amqp:// or amqps:// URL of the broker")
    amqp_ca_file: Path | None = Field(
        None,
        description="PEM file of the authority that the broker's certificate must come from; unset:"
        " the system's. For Postgres its URL says it: `?sslmode=verify-full&sslrootcert=...`",
    )
    process: str = Field(
        "", description="this process's name in logs and saga logs; default: the service's"
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="least severe level logged"
    )
    health_port: int = Field(
        0, ge=0, le=65535, description="port of /live, /ready and /metrics; 0: none"
    )
    watch_every_seconds: float = Field(
        2, gt=0, description="how often the gauges that need SQL are refreshed"
    )
    relay_behind_seconds: float = Field(
        30, gt=0, description="age of the oldest outbox row at which a process is not ready"
    )
    health_host: str = Field("127.0.0.1", description="address that health_port listens on")
    door_host: str = Field("127.0.0.1", description="address the door listens on")
    door_port: int = Field(8080, ge=0, le=65535, description="port the door listens on")
    operator_host: str = Field("127.0.0.1", description="address the operator's API listens on")
    operator_port: int = Field(
        8082, ge=0, le=65535, description="port the operator's API listens on"
    )
    operator_tokens: SecretStr | None = Field(
        None,
        description="who may use the operator's API: `NAME:ROLE:TOKEN`, several separated by spaces"
        " or lines; roles `viewer` and `operator`",
    )
    door_keys: SecretStr | None = Field(
        None, description="who may use the door: `NAME:KEY`, several separated by spaces or lines"
    )
    body_limit_bytes: int = Field(1_048_576, gt=0, description="largest HTTP body that is read")
    requests_per_second: float = Field(
        500, gt=0, description="HTTP requests of one name, in the long run; twice as many at once"
    )

    definitions: str = Field(
        "orchestrator.sagas.order:DEFINITIONS,orchestrator.sagas.returns:RETURN_SAGA",
        description="sagas the orchestrator runs: `module:NAME` by comma, each a Definition or a"
        " sequence of them",
    )
    style: Literal["orchestrated", "choreographed"] = Field(
        "orchestrated",
        description="what decides the next step: the orchestrator, or each service's reactions",
    )
    step_timeout_seconds: float = Field(5, gt=0, description="timeout after which a step is resent")
    step_attempts: int = Field(
        5, ge=1, description="attempts before a step counts as unknown and the saga turns"
    )
    backoff_first_seconds: float = Field(
        0.2, gt=0, description="added to the timeout of the second attempt, doubling, full jitter"
    )
    backoff_cap_seconds: float = Field(30, gt=0, description="where that doubling ends")
    resend_cap_seconds: float = Field(
        60, gt=0, description="undo and retriable steps are resent for ever, at most this far apart"
    )
    stuck_after_seconds: float = Field(
        300, gt=0, description="an undo or retriable step that takes longer marks its saga stuck"
    )
    approval_expiry_seconds: float = Field(
        604_800, gt=0, description="how long a saga waits at a gate before it is undone"
    )
    approval_thresholds: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {},
        description="per currency the total, in minor units, from which on a person decides at a"
        ' gate, as JSON: `{"EUR": 100000}`',
    )
    start_resend_seconds: float = Field(
        5, gt=0, description="after this a PENDING order's start is resent, doubling"
    )
    reconcile_every_seconds: float = Field(
        0.5, gt=0, description="how often overdue deadlines are looked for"
    )

    retention_seconds: float = Field(
        30 * 86_400, gt=0, description="an ended saga is archived and forgotten then; 30 days"
    )
    retention_batch: int = Field(
        200, ge=1, le=1000, description="sagas archived in one transaction, and forgotten in one"
    )

    running_limit: int = Field(
        1000, ge=1, description="sagas under way at a time; more wait in their queue"
    )
    prefetch_deliveries: int = Field(
        500, ge=1, le=65535, description="unacked deliveries a consumer may hold"
    )
    batch_envelopes: int = Field(200, ge=1, description="envelopes decided in one transaction")
    relay_rows: int = Field(1024, ge=1, description="outbox rows one relay transaction takes")
    relay_poll_seconds: float = Field(
        0.25, gt=0, description="how often rows that another process left behind are looked for"
    )
    confirm_timeout_seconds: float = Field(
        5, gt=0, description="a publish not confirmed by then stays in the outbox"
    )
    solo_tries: int = Field(5, ge=1, description="tries alone before an envelope is dead-lettered")
    bad_deploy_messages: int = Field(
        3,
        ge=2,
        description="different messages with the same error that mean a bad deploy; before"
        " any handler succeeded in a process, failures with it",
    )
    bad_deploy_pause_seconds: float = Field(
        30, gt=0, description="pause after a bad deploy; doubles while every message fails"
    )
    bad_deploy_pause_cap_seconds: float = Field(300, gt=0, description="where that doubling ends")
    query_timeout_seconds: float = Field(2, gt=0, description="deadline of a query over the broker")

    pool_size: int = Field(6, ge=2, description="Postgres connections of one process")
    connect_timeout_seconds: float = Field(
        3, gt=0, description="deadline to get a connection to Postgres or the broker"
    )
    statement_timeout_seconds: float = Field(4, gt=0, description="Postgres statement_timeout")
    lock_timeout_seconds: float = Field(
        2, gt=0, description="Postgres lock_timeout; below the step timeout (rule 12)"
    )
    idle_in_transaction_seconds: float = Field(
        3, gt=0, description="Postgres idle_in_transaction_session_timeout; below the step timeout"
    )
    tcp_user_timeout_seconds: float = Field(
        5, gt=0, description="unacknowledged bytes or probes end a connection, to both servers"
    )
    heartbeat_seconds: int = Field(30, ge=2, description="AMQP heartbeat")
    failpoint_dir: Path | None = Field(
        None, description="where failpoints are armed, for chaos runs; unset: nowhere"
    )
    retry_first_seconds: float = Field(
        0.1, gt=0, description="first pause after a server's failure, doubling"
    )
    retry_cap_seconds: float = Field(5, gt=0, description="where that doubling ends")

    @property
    def policy(self) -> Policy:
        """Return timeouts and retries, for the process that enforces deadlines."""
        return Policy(
            timeout_seconds=self.step_timeout_seconds,
            attempts=self.step_attempts,
            backoff_first_seconds=self.backoff_first_seconds,
            backoff_cap_seconds=self.backoff_cap_seconds,
            resend_cap_seconds=self.resend_cap_seconds,
            stuck_after_seconds=self.stuck_after_seconds,
            approval_expiry_seconds=self.approval_expiry_seconds,
        )

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in SECRETS:
            path = os.environ.get(f"SAGAPROOF_{name.upper()}_FILE")
            if path and name not in values:
                values[name] = Path(path).read_text().strip()
        return values

    @field_validator("postgres_dsn", "amqp_url")
    @classmethod
    def _names_its_server(cls, secret: SecretStr, info: ValidationInfo) -> SecretStr:
        """Refuse a URL without a server: the driver would connect to any server on localhost."""
        name = str(info.field_name)
        try:
            url = urlsplit(secret.get_secret_value())
            # A socket's directory stands in the query, where libpq looks for it.
            named = url.hostname or (name == "postgres_dsn" and "host" in parse_qs(url.query))
        except ValueError:  # whose words would quote it
            named = False
        if not named or url.scheme not in SCHEMES[name]:
            raise PydanticCustomError(
                "no_server", "it is empty, or no URL that names a server; write " + URLS[name]
            )
        return secret
