"""A Slurm on this machine for tests, by `slurm/lab/up` in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from acavdl.demo import environment

LAB = Path(__file__).parents[1] / "slurm/lab"


@dataclass(frozen=True)
class Lab:
    """A running Slurm: its folder, and how many nodes it has."""

    folder: Path
    nodes: int

    def call(self, *command: str, check: bool = True) -> str:
        """Return what a command of Slurm's says."""
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, *options: str, columns: str = "%A") -> list[str]:
        """Return the jobs in the queue."""
        return self.call("squeue", "-h", "-o", columns, *options).split()

    def nodes_in(self, state: str) -> list[str]:
        """Return the nodes in a state."""
        return self.call("sinfo", "-h", "-N", "-p", "main", "-t", state, "-o", "%N").split()

    def set_node(self, node: str, state: str) -> None:
        """Set a node down, or bring it back."""
        reason = ["reason=test"] if state == "down" else []
        self.call("scontrol", "update", f"nodename={node}", f"state={state}", *reason)

    def kill_daemon(self, node: str) -> None:
        """Kill a node's slurmd, as if its machine had lost power but for the job's processes."""
        os.kill(int((self.folder / f"slurmd-{node}.pid").read_text()), 9)

    def _resume(self) -> None:
        for node in range(self.nodes):
            self.call("scontrol", "update", f"nodename=n{node}", "state=resume", check=False)

    def mend(self) -> list[str]:
        """Start what has died, bring back all nodes; cancel all jobs, and return those."""
        self._resume()
        subprocess.run([LAB / "up", str(self.nodes)], check=True, capture_output=True)
        left = self.jobs()
        for job in left:
            self.call("scancel", job, check=False)
        self._resume()
        waited_for(lambda: not self.jobs() and len(self.nodes_in("idle")) == self.nodes)
        return left


@contextlib.contextmanager
def slurm(folder: Path, nodes: int, processes: int) -> Iterator[Lab]:
    """Have a Slurm with so many nodes, of so many CPUs each, for the time of the block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        # Some hundreds below those that the system gives away.
        port = server.getsockname()[1] % 10_000 + 20_000
    values = {
        "SLURM_LAB": str(folder),
        "SLURM_LAB_CPUS": str(processes),
        "SLURM_LAB_MEMORY": "4000",
        "SLURM_LAB_PORT": str(port),
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    with environment(values):
        try:
            subprocess.run([LAB / "up", str(nodes)], check=True, capture_output=True)
            yield Lab(folder, nodes)
        finally:
            subprocess.run([LAB / "down", "--keep-logs"], check=False)


def waited_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
