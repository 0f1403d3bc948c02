"""Both APIs keep to their own documents for any request: no 5xx, nothing undocumented.

Thousands of requests made up from the documents themselves, well-formed and not, by schemathesis.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.stack.system import System
from tests.support.stages import on

COMMAND = Path(sys.executable).with_name("schemathesis")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@on("impatient")
@pytest.mark.parametrize("api", ["door", "operator"])
def test_every_answer_is_in_the_document(system: System, api: str, tmp_path: Path) -> None:
    given = system.endpoints.environment
    secret = given[f"SAGAPROOF_{api.upper()}_{'KEY' if api == 'door' else 'TOKEN'}"]
    done = subprocess.run(
        [
            *(COMMAND, "run", given[f"SAGAPROOF_{api.upper()}_URL"] + "/openapi.json"),
            *("--header", f"Authorization: Bearer {secret}", "--checks", ",".join(CHECKS)),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "8", "--seed", "7"),
            *("--generation-database", "none", "--no-shrink", "--continue-on-failure"),
            *("--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No tests" not in done.stdout
