"""The processes of tests/python/growing.py, which are killed and keep large keyed state, on the real daemon."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GROWING = Path(__file__).resolve().parents[3] / "tests" / "python" / "growing.py"


@pytest.mark.skipif("ESKER_BIN" not in os.environ, reason="ESKER_BIN names no daemon: tests/python/run does")
@pytest.mark.parametrize("also_in_rust", [False, True])
def test_keyed_state_is_exact_while_processes_and_the_daemon_are_killed(also_in_rust, rust_example):
    command = [sys.executable, str(GROWING), "--megabytes", "2", "--seconds", "16"]
    if also_in_rust:
        command += ["--rust", rust_example("tables")]
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout
    assert "mistakes: 0" in ran.stdout and ran.stdout.count("0 key groups wrong") == 3
