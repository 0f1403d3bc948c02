"""Tests that examples/fraud_check still applies; tests/large plays what it adds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("style", ["orchestrated", "choreographed"])
def test_the_patch_of_an_added_step_applies(style: str) -> None:
    patch = ROOT / "examples" / "fraud_check" / f"{style}.patch"
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, check=True)
