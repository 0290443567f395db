"""What a job says of a scheduler that it does not reach."""

from __future__ import annotations

import socket
import subprocess
import sys

from acavdl.reach import unreachable


def test_a_scheduler_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert unreachable(f"tcp://127.0.0.1:{server.getsockname()[1]}") is None


def test_one_that_is_not_there_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tls://127.0.0.1:{server.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-m", "acavdl.reach", address], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"does not reach the scheduler at {address}" in done.stderr
    assert "interface" in done.stderr
