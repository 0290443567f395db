"""Slurm by its own commands: what nodes have, whether a job is accepted, what became of it.

Formats of what the commands write: the manuals of sinfo, squeue, scontrol and sbatch (22.05).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from acavdl.errors import ClusterError

#: What a submitting machine has; any of them missing, it is none.
_COMMANDS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
#: Seconds after which a command is given up: a controller that is down may let it wait for long.
_PATIENCE = 20.0
#: States of a job that is on its way or at work; what else squeue shows is at its end.
_PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD")
_AT_WORK = ("RUNNING", "SUSPENDED", "RESIZING", "SIGNALING", "STOPPED", "STAGE_OUT")
#: States of jobs that were ended from outside, which says nothing against job or node.
#: (a node that fails is out for Slurm as well).
_ENDED_FROM_OUTSIDE = ("CANCELLED", "PREEMPTED", "TIMEOUT", "DEADLINE", "REVOKED", "NODE_FAIL")


@dataclass(frozen=True)
class NodeShape:
    """What each node of a partition has at least.

    Attributes
    ----------
    cpus
        CPUs as Slurm counts them: hardware threads, on most sites.
    cores
        Cores.
    memory
        Bytes that jobs may ask for.
    """

    cpus: int
    cores: int
    memory: int


@dataclass(frozen=True)
class Queued:
    """A job in the queue: its id, its state (``PENDING``, …), and why it is in it."""

    job_id: str
    state: str
    reason: str
    node: str

    @property
    def pending(self) -> bool:
        """Whether it waits for a node."""
        return self.state in _PENDING

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.pending or self.state in _AT_WORK


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its last state, where it was, and for how many seconds it ran."""

    job_id: str
    state: str
    node: str
    seconds: float

    @property
    def from_outside(self) -> bool:
        """Whether it was cancelled, preempted, at the end of its time, or on a node that failed."""
        return self.state in _ENDED_FROM_OUTSIDE


def check_commands() -> None:
    """See that Slurm's commands are there.

    Raises
    ------
    ClusterError
        That names the one that is not.
    """
    for name in _COMMANDS:
        if shutil.which(name) is None:
            raise ClusterError(
                f"{name} is not on the PATH: acavdl slurm runs where jobs are submitted, on a "
                "login node of a Slurm cluster"
            )


def call(*command: str) -> str:
    """Return what a command of Slurm's writes.

    Raises
    ------
    ClusterError
        With the command's own words, or that it did not answer.
    """
    # Sites and users change formats of times and columns by such variables.
    environment = {name: value for name, value in os.environ.items() if name not in _FORMATS}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE,
            env=environment, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{command[0]} has not answered for {_PATIENCE:.0f} s") from error
    except OSError as error:
        raise ClusterError(f"{command[0]} can't be called: {error.strerror}") from error
    if done.returncode:
        said = words(done.stderr or done.stdout)
        raise ClusterError(said or f"{command[0]} ends with exit status {done.returncode}")
    return done.stdout


_FORMATS = ("SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_STATES", "SINFO_FORMAT", "SLURM_TIME_FORMAT")


def words(text: str) -> str:
    """Return what a command complains of, in one line and without its name."""
    lines = [_NAME.sub("", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


_NAME = re.compile(r"^(\w+: )?((error|fatal|allocation failure): )?")


def node_shape(partition: str | None) -> NodeShape:
    """Return what each node of a partition has at least; None = of the default partition.

    Raises
    ------
    ClusterError
        If Slurm does not answer, or has no such partition.
    """
    text = call("sinfo", "-h", "-N", "-o", "%P|%c|%X|%Y|%m")
    rows = [row.split("|") for row in text.split()]
    names = list(dict.fromkeys(row[0].rstrip("*") for row in rows))
    default = next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), None)
    # A job may name several partitions; the nodes of any of them may get it.
    wanted = partition.split(",") if partition else [default] if default else names
    nodes = [row for row in rows if row[0].rstrip("*") in wanted]
    if not nodes:
        raise ClusterError(
            f"Slurm has no nodes in partition {partition}; there are: {', '.join(names) or 'none'}"
        )
    return NodeShape(
        cpus=min(int(cpus) for _, cpus, *_ in nodes),
        cores=min(
            min(int(sockets) * int(per_socket), int(cpus))
            for _, cpus, sockets, per_socket, _ in nodes
        ),
        memory=min(int(row[-1].rstrip("+")) for row in nodes) << 20,
    )


def check_script(script: str) -> None:
    """Ask Slurm whether it would take a job; nothing is submitted.

    Raises
    ------
    ClusterError
        With Slurm's reason, if it would not.
    """
    with tempfile.TemporaryDirectory(prefix="acavdl-") as folder:
        path = Path(folder) / "job.sh"
        path.write_text(script, encoding="utf-8")
        try:
            call("sbatch", "--test-only", str(path))
        except ClusterError as error:
            raise ClusterError(f"Slurm does not take the job: {error}") from error


def queued(name: str) -> dict[str, Queued]:
    """Return the user's jobs of a name that are in the queue, by id.

    Raises
    ------
    ClusterError
        If Slurm does not answer.
    """
    text = call("squeue", "-h", "--me", f"--name={name}", "-o", "%A|%T|%r|%N")
    rows = (line.strip().split("|") for line in text.splitlines() if line.strip())
    return {job: Queued(job, state, reason, node) for job, state, reason, node in rows}


def ended(job_id: str) -> Ended:
    """Return how a job ended that is no longer in the queue.

    What Slurm has forgotten (after `MinJobAge`, 300 s) has the state ``UNKNOWN``.
    """
    try:
        text = call("scontrol", "show", "job", "--oneliner", job_id)
    except ClusterError:
        return Ended(job_id, "UNKNOWN", "", 0.0)
    fields = dict(part.split("=", 1) for part in text.split() if "=" in part)
    node = fields.get("NodeList", "")
    return Ended(
        job_id,
        fields.get("JobState", "UNKNOWN"),
        "" if node == "(null)" else node,
        seconds_of(fields.get("RunTime", "0")),
    )


def seconds_of(text: str) -> float:
    """Return the seconds of a time as Slurm writes it: ``[days-]hours:minutes:seconds``."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [float(part) for part in clock.split(":")]
        clock_seconds = sum(value * 60.0**power for power, value in enumerate(reversed(parts)))
        return int(days or 0) * 86_400 + clock_seconds
    except ValueError:
        return 0.0


def cancel(name: str) -> None:
    """Cancel all of the user's jobs of a name, those that are only just submitted included.

    Raises
    ------
    ClusterError
        If Slurm does not answer.
    """
    call("scancel", "--me", f"--name={name}")


def tail(folder: Path, name: str, job_id: str, lines: int = 12) -> list[str]:
    """Return the end of a job's log: ``<name>-<job id>.out``, and ``.err`` where it has one."""
    texts: list[str] = []
    for kind in ("out", "err"):
        try:
            with (folder / f"{name}-{job_id}.{kind}").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                texts += file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
    return [line for line in texts if line.strip()][-lines:]


def waiting(jobs: Iterable[Queued], wanted: int) -> str:
    """Return in one line how many jobs run, and why the others wait."""
    alive = [job for job in jobs if job.alive]
    pending = [job for job in alive if job.pending]
    text = f"{len(alive) - len(pending)} of {wanted} nodes at work"
    if not pending:
        return text
    counts: dict[str, int] = {}
    for job in pending:
        counts[job.reason] = counts.get(job.reason, 0) + 1
    reasons = sorted(counts, key=lambda reason: (-counts[reason], reason))
    return f"{text}, {len(pending)} waiting: {_listed(reasons, counts)}"


def _listed(reasons: Sequence[str], counts: dict[str, int]) -> str:
    if len(reasons) == 1:
        return reasons[0]
    return ", ".join(f"{reason} ({counts[reason]})" for reason in reasons)
