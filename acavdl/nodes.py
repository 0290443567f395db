"""Workers on nodes of a Slurm cluster: jobs that are submitted, and replaced when they end."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask
from distributed import Client, Scheduler, SpecCluster
from distributed.deploy.spec import ProcessInterface

from acavdl.cluster import DASK_CONFIG, Closing, Workers, interrupts_held_back
from acavdl.errors import ClusterError, UsageError
from acavdl.jobqueue import Job as AnyJob
from acavdl.jobqueue import JobQueueCluster, SLURMCluster, SLURMJob
from acavdl.slurm import (
    Ended,
    cancel,
    ended,
    node_shape,
    queued,
    tail,
    waiting,
    words,
)

#: Seconds between two looks at the queue: until the first worker is there, and from then on.
_LOOK_FIRST, _LOOK = 2.0, 5.0
#: Seconds between two lines on what is waited for.
_TELL, _TELL_AGAIN = 10.0, 60.0
#: A job that ends within so many seconds by itself has died of its node or its environment.
_AT_ONCE = 60.0
#: Jobs that die at once before their node is left out, and before it is called hopeless.
_TRIES = 3
#: Seconds that jobs get to be gone at the end.
_PATIENCE = 20.0


@dataclass(frozen=True)
class JobShape:
    """A node's job: what `SLURMCluster` is made with, and where its log goes.

    Attributes
    ----------
    arguments
        Keywords of `SLURMCluster`.
    name
        The jobs' name: this run's alone, so that none of its jobs can be missed.
    processes
        Worker processes in each.
    logs
        Folder of the logs.
    at_once
        Shards that a node makes at once: by its processes, or by the rate of its address; None =
        one for each process.
    """

    arguments: Mapping[str, Any]
    name: str
    processes: int
    logs: Path
    at_once: int | None = None

    def nodes_for(self, shards: int, most: int) -> int:
        """Return how many nodes so many shards can keep busy."""
        at_once = self.processes if self.at_once is None else min(self.at_once, self.processes)
        return min(most, -(-shards // at_once))

    def script(self, scheduler: str = "tcp://<scheduler>", name: str = "<worker>") -> str:
        """Return the script that each node runs, with the scheduler's address if that is known.

        Raises
        ------
        UsageError
            For an option that `SLURMCluster` does not take.
        """
        # What TLS would add are names of files that are made with the scheduler.
        unknown = (*_CLUSTER_KEYWORDS, "security")
        keywords = {k: v for k, v in self.arguments.items() if k not in unknown}
        with _told_as_usage():
            job = _Job(scheduler, name=name, **keywords)
            return str(job.job_script())  # type: ignore[no-untyped-call]


def job_shape(options: Mapping[str, Any], tmp_dir: str | None = None) -> JobShape:
    """Return the job of a node: exclusive, a worker process for each core, a thread in each.

    Parameters
    ----------
    options
        What `dask_jobqueue.SLURMCluster` takes; what is left out is the user's ``jobqueue.yaml``'s,
        and cores and memory that neither has are those of the partition's nodes.
    tmp_dir
        Folder on each node for what is on its way; None = ``SLURM_TMPDIR``, ``TMPDIR`` or ``/tmp``.

    Raises
    ------
    UsageError
        For an option that `SLURMCluster` does not have, or not of this kind.
    ClusterError
        If cores or memory are needed of Slurm and it has no answer.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _check_names(given)
    section = f"jobqueue.{given.get('config_name', 'slurm')}"

    def of(name: str) -> Any:
        yaml_name = {"job_name": "name"}.get(name, name.replace("_", "-"))
        return given.get(name, dask.config.get(f"{section}.{yaml_name}", None))

    _check_walltime(of("walltime"))
    arguments = dict(given)
    directives = ["--exclusive", "--no-requeue"]
    if of("cores") is None or of("memory") is None:
        found = node_shape(of("queue"))
        if of("cores") is None:
            arguments["cores"] = found.cores
            if of("job_cpu") is None:
                arguments["job_cpu"] = found.cpus
        if of("memory") is None:
            arguments["memory"] = f"{found.memory}B"
            if of("job_mem") is None:
                # All that a node has, whatever the site keeps of it for itself.
                arguments["job_mem"] = "0"
    processes = int(arguments.setdefault("processes", of("processes") or arguments.get("cores")
                                         or of("cores")))  # fmt: skip
    arguments["python"] = of("python") or sys.executable
    label = of("job_name")
    name = f"{'acavdl' if label in (None, 'dask-worker') else label}-{uuid.uuid4().hex[:8]}"
    arguments["job_name"] = name
    if of("log_directory") is None:
        logs = Path.cwd() / "acavdl-logs"
        directives.append(f"--output={shlex.quote(str(logs))}/%x-%j.out")
    else:
        logs = Path(of("log_directory"))
    arguments["job_extra_directives"] = [*directives, *(of("job_extra_directives") or ())]
    arguments["job_script_prologue"] = [
        *_scratch_of_job(tmp_dir),
        # The command that submits keeps its own Dask quiet; in the jobs' logs it may talk.
        "export DASK_LOGGING__DISTRIBUTED=info",
        *(of("job_script_prologue") or ()),
    ]
    # Dask's view of memory knows nothing of what shards hold: their own bounds look after it.
    arguments["worker_extra_args"] = [
        *("--nthreads", "1", "--memory-limit", "0"),
        *(of("worker_extra_args") or ()),
    ]
    # A fixed port may be taken by another run on the same login node.
    arguments["scheduler_options"] = {
        "dashboard_address": ":0",
        **(of("scheduler_options") or {}),
    }
    return JobShape(arguments, name, processes, logs)


def _scratch_of_job(tmp_dir: str | None) -> list[str]:
    """Return lines that give a job a folder of its own on its node and remove it at its end."""
    parent = '"${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"' if tmp_dir is None else shlex.quote(tmp_dir)
    return [
        f"TMPDIR=$(mktemp -d -p {parent} acavdl-XXXXXX || mktemp -d -p /tmp acavdl-XXXXXX)",
        "export TMPDIR",
        "trap 'rm -rf \"$TMPDIR\"' EXIT",
    ]


def _keywords(*functions: Callable[..., Any]) -> frozenset[str]:
    names = {name for function in functions for name in inspect.signature(function).parameters}
    return frozenset(names - {"self", "base_class_kwargs", "job_kwargs", "scheduler", "loop"})


_JOB_KEYWORDS = _keywords(SLURMJob.__init__, AnyJob.__init__)
_CLUSTER_KEYWORDS = _keywords(JobQueueCluster.__init__) - _JOB_KEYWORDS


def _check_names(given: Mapping[str, Any]) -> None:
    known = (_JOB_KEYWORDS | _CLUSTER_KEYWORDS) - {
        *("name", "asynchronous", "n_workers", "job_cls", "dashboard_address", "host"),
    }
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1, 0.6)
            hint = f"the nearest is {near[0]}" if near else f"there are: {', '.join(sorted(known))}"
            raise UsageError(f"distribution.slurm has no {name}; {hint}")


def _check_walltime(walltime: Any) -> None:
    if walltime is not None and not isinstance(walltime, str):
        # YAML reads 24:00:00 as the number 86400, which for Slurm are minutes.
        raise UsageError(
            f"walltime must be a text, not {walltime!r}: quote it in YAML, as in "
            'walltime: "24:00:00"'
        )


#: What a job says that can't begin on its node.
_UNFIT = 'echo "acavdl: $(hostname) cannot work: it needs the same environment and the network"'


@contextlib.contextmanager
def _told_as_usage() -> Iterator[None]:
    """Turn what dask-jobqueue says of its options into ours."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UsageError(f"distribution.slurm: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"distribution.slurm: {error.filename}: {error.strerror}") from error


class _Job(SLURMJob):
    """A job that first sees whether its node is fit, and keeps why Slurm refused it.

    dask-jobqueue leaves a refusal to a log that nobody sees.
    """

    refusal: str | None = None

    def __init__(self, scheduler: str, *, python: str, **keywords: Any) -> None:
        check = f"{python} -m acavdl.reach {shlex.quote(scheduler)} || {{ {_UNFIT}; exit 1; }}"
        keywords["job_script_prologue"] = [*keywords["job_script_prologue"], check]
        super().__init__(scheduler, python=python, **keywords)  # type: ignore[no-untyped-call]

    async def start(self) -> None:
        try:
            await super().start()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            self.refusal = words(str(error).partition("stderr:")[2] or str(error))
            await ProcessInterface.start(self)

    async def close(self) -> None:
        await super().close()  # type: ignore[no-untyped-call]
        await ProcessInterface.close(self)


@contextlib.contextmanager
def slurm_workers(
    shape: JobShape, nodes: int, shards: int, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Workers]:
    """Have jobs on nodes of a Slurm cluster; the block begins when the first worker is there.

    Jobs that end are replaced while there is work for them; after the block none is left.

    Parameters
    ----------
    shape
        What each job is.
    nodes
        How many there are to be; fewer, if fewer have work.
    shards
        Shards that there are to make.
    tell
        Called with lines on what is waited for, and on jobs that end.

    Raises
    ------
    ClusterError
        If Slurm does not take the jobs, or they end as soon as they begin.
    """
    needed = shape.nodes_for(shards, nodes)
    if needed < nodes:
        tell(f"{shards:,} shards keep {needed} nodes busy, no more")
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_CONFIG))
        keeper = stack.enter_context(_kept(shape, needed, shards, tell))
        client = stack.enter_context(Client(keeper.cluster))
        client.register_plugin(Closing())
        keeper.wait_for_first()
        yield Workers(client, needed * shape.processes, keeper.need)


@contextlib.contextmanager
def _kept(
    shape: JobShape, nodes: int, shards: int, tell: Callable[[str], None]
) -> Iterator[_Keeper]:
    """Start a scheduler here and submit the jobs; end both in any case."""
    # Children of this block, sbatch among them, must not fall to a Ctrl-C by themselves.
    with interrupts_held_back(), _told_as_usage():
        cluster: Any = SLURMCluster(job_cls=_Job, **shape.arguments)  # type: ignore[arg-type]
    try:
        with contextlib.suppress(OSError):
            # Slurm does not make it. If it can't be made, the jobs' state tells.
            shape.logs.mkdir(parents=True, exist_ok=True)
        tell(f"{nodes} jobs named {shape.name}; dashboard: {cluster.dashboard_link}")
        keeper = _Keeper(cluster, shape, nodes, shards, tell)
        with interrupts_held_back():
            keeper.start()
        try:
            yield keeper
        finally:
            keeper.stop()
    finally:
        _end(cluster, shape.name, tell)


def _end(cluster: Any, name: str, tell: Callable[[str], None]) -> None:
    """Cancel all jobs of this run and see that they are gone; interrupts have to wait."""
    with _no_interrupts():
        try:
            # One call for all; by name, which those have too whose id is not known yet.
            cancel(name)
            for job in cluster.workers.values():
                job.job_id = None
            with contextlib.suppress(TimeoutError):
                cluster.close(timeout=_PATIENCE)
            end = time.monotonic() + _PATIENCE
            while any(job.alive for job in queued(name).values()):
                if time.monotonic() > end:
                    raise ClusterError(f"they are there after {_PATIENCE:.0f} s")
                time.sleep(0.2)
                cancel(name)
        except ClusterError as error:
            tell(f"Jobs may be left ({error}). To cancel them:\n  scancel --me --name={name}")
            with contextlib.suppress(TimeoutError):
                cluster.close(timeout=_PATIENCE)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C and the like: a clean-up that is broken off would leave jobs behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.signal(name, signal.SIG_IGN) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@dataclass(frozen=True)
class _Seen:
    """A job as the cluster object has it: its id, why Slurm refused it, whether it has workers."""

    job_id: str | None
    refusal: str | None
    workers: bool


def _text(end: Ended) -> str:
    where = f" on {end.node}" if end.node else ""
    return f"Job {end.job_id}{where} has ended after {end.seconds:.0f} s ({end.state})"


@contextlib.contextmanager
def allocation_workers(
    shape: JobShape, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Workers]:
    """Have workers on all nodes of the Slurm job that this process runs in.

    The block begins when the first of them is there. A node that fails takes its workers with it,
    and the others go on.

    Parameters
    ----------
    shape
        What runs on each node: as what would be a job of its own.
    tell
        Called with lines on what becomes of them.

    Raises
    ------
    ClusterError
        Outside of a job, or if no worker comes.
    """
    nodes, options = _nodes_of_allocation(), shape.arguments
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_CONFIG))
        with interrupts_held_back(), _told_as_usage():
            cluster: Any = stack.enter_context(
                SpecCluster(
                    workers={},
                    scheduler={
                        "cls": Scheduler,
                        "options": {
                            "interface": options.get("interface"),
                            **options["scheduler_options"],
                        },
                    },
                    name=shape.name,
                )
            )
        tell(f"{nodes} nodes of job {os.environ['SLURM_JOB_ID']}; {cluster.dashboard_link}")
        script = shape.script(cluster.scheduler_address, name='"$SLURMD_NODENAME"')
        step = stack.enter_context(_Step(script, shape, nodes))
        # Its end is that of the workers, and so of the step.
        stack.callback(cluster.close)
        client = stack.enter_context(Client(cluster))
        client.register_plugin(Closing())
        while not client.nthreads():
            step.check()
            time.sleep(0.2)
        yield Workers(client, nodes * shape.processes, check=step.check)


def _nodes_of_allocation() -> int:
    try:
        return int(os.environ["SLURM_JOB_NUM_NODES"])
    except (KeyError, ValueError) as error:
        raise ClusterError(
            "--in-allocation works within a job of Slurm: sbatch -N 64 slurm/acavdl.sbatch, say"
        ) from error


class _Step:
    """A step of this job that runs a script on each of its nodes, until the block ends."""

    def __init__(self, script: str, shape: JobShape, nodes: int) -> None:
        self._shape = shape
        shape.logs.mkdir(parents=True, exist_ok=True)
        command = [
            *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--overlap"),
            # All of a node for its task, in which there are the worker processes.
            *("--cpus-per-task", os.environ.get("SLURM_CPUS_ON_NODE", "1"), "--cpu-bind=none"),
            # A node that fails, or whose workers end, is no reason to end the others.
            *("--no-kill", "--kill-on-bad-exit=0", "--wait=0"),
            f"--output={shape.logs}/{shape.name}-%N.out",
            *("bash", "-c", script),
        ]
        with interrupts_held_back():
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def check(self) -> None:
        """See that it is there.

        Raises
        ------
        ClusterError
            If it has ended: no worker is left.
        """
        status = self._process.poll()
        if status is not None:
            raise ClusterError(
                f"no worker is left: srun has ended with status {status}; logs are in "
                f"{self._shape.logs}/{self._shape.name}-*.out"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with _no_interrupts():
            for end in (None, signal.SIGTERM, signal.SIGKILL):
                if end is not None:
                    self._process.send_signal(end)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE / 2)
                    return


class _Keeper:
    """Looks after the jobs of a cluster in a thread: replaces what ends, says what is waited for.

    dask-jobqueue's `adapt` neither gives up nor lets go of nodes that have nothing left to do.
    """

    def __init__(
        self, cluster: Any, shape: JobShape, nodes: int, shards: int, tell: Callable[[str], None]
    ) -> None:
        self.cluster = cluster
        self._shape, self._nodes, self._shards, self._tell = shape, nodes, shards, tell
        self._had_workers: set[str] = set()
        self._died = 0
        self._last_death = ""
        self._died_on: Counter[str] = Counter()
        self._not_before = 0.0
        self._told, self._told_at = "", -_TELL_AGAIN
        self._failure: ClusterError | None = None
        self._first = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="slurm", daemon=True)

    def start(self) -> None:
        """Submit the jobs and begin to look after them."""
        self.cluster.sync(self._fill, self._nodes)
        self._thread.start()

    def stop(self) -> None:
        """Look after them no longer."""
        self._over.set()
        self._thread.join()

    def need(self, shards: int) -> None:
        """Note how many shards are left to make."""
        self._shards = shards

    def wait_for_first(self) -> None:
        """Wait until there is a worker, however long the queue is.

        Raises
        ------
        ClusterError
            If jobs are not taken, or end as soon as they begin.
        """
        while not self._first.wait(0.1):
            if self._failure is not None:
                raise self._failure
            if not self._thread.is_alive():
                # Its traceback is on stderr: a bug, which must not look like a long queue.
                raise ClusterError("nobody looks after the jobs any more")

    def _look_after(self) -> None:
        while self._failure is None and not self._over.wait(
            _LOOK if self._first.is_set() else _LOOK_FIRST
        ):
            try:
                self._look()
            except ClusterError as error:
                # A controller may be restarted; the workers do not need it.
                self._tell_now_and_then(f"Slurm does not answer: {error}")

    def _look(self) -> None:
        jobs = self.cluster.sync(self._seen)
        self._note_workers(jobs)
        found = queued(self._shape.name)
        gone = [name for name, job in jobs.items() if job.job_id not in found]
        self._note_deaths([job for name in gone if (job := self._note_end(name, jobs[name]))])
        many = self._died >= (_TRIES if len(gone) == len(jobs) else _TRIES * self._nodes)
        if many and not self._first.is_set():
            self._failure = ClusterError(f"no job lasts. {self._last_death}")
            return
        if gone:
            self.cluster.sync(self._forget, gone)
        wanted = self._shape.nodes_for(self._shards, self._nodes)
        if time.monotonic() >= self._not_before:
            self.cluster.sync(self._fill, wanted)
        if any(job.pending for job in found.values()) or not self._first.is_set():
            self._tell_now_and_then(waiting(found.values(), wanted))

    def _note_workers(self, jobs: Mapping[str, _Seen]) -> None:
        there = {name for name, job in jobs.items() if job.workers}
        self._had_workers |= there
        if there:
            self._died = 0
            self._first.set()

    def _note_end(self, name: str, job: _Seen) -> Ended | None:
        """Note that a job is no longer there; return it if it died of its node or environment."""
        if job.job_id is None:
            self._died += 1
            self._last_death = f"Slurm does not take it: {job.refusal}"
            self._not_before = time.monotonic() + (_AT_ONCE if self._first.is_set() else 0.0)
            self._tell_now_and_then(f"Slurm does not take a job: {job.refusal}")
            return None
        end = ended(job.job_id)
        if end.from_outside or (name in self._had_workers and end.seconds >= _AT_ONCE):
            self._tell(f"{_text(end)}; another takes its place")
            return None
        return end

    def _note_deaths(self, deaths: Sequence[Ended]) -> None:
        """Count jobs that died, and show the log of one of them."""
        for end in deaths:
            self._died += 1
            self._died_on[end.node] += 1
            if end.node and self._died_on[end.node] == _TRIES:
                self._tell(f"{end.node} is left out from now on: {_TRIES} jobs have died there")
        if deaths:
            logs, end = self._shape.logs, deaths[-1]
            lines = tail(logs, self._shape.name, end.job_id)
            told = f"its log in {logs} ends with:" if lines else f"it has no log in {logs}"
            self._last_death = "\n  | ".join([f"{_text(end)}; {told}", *lines])
            more = f"{len(deaths)} jobs have died. " if len(deaths) > 1 else ""
            self._tell(f"{more}{self._last_death}")

    def _tell_now_and_then(self, text: str) -> None:
        """Tell of what lasts: a change at most every 10 s, the same again each minute."""
        now = time.monotonic()
        if now - self._told_at >= (_TELL_AGAIN if text == self._told else _TELL):
            self._tell(text)
            self._told, self._told_at = text, now

    # In the cluster's event loop:

    async def _seen(self) -> dict[str, _Seen]:
        """Return the jobs that have been submitted, by their names in the cluster object."""
        with_workers = {str(worker.name) for worker in self.cluster.scheduler.workers.values()}
        return {
            name: _Seen(job.job_id, job.refusal, bool(self._workers_of(name) & with_workers))
            for name, job in self.cluster.workers.items()
            if job.job_id is not None or job.refusal is not None
        }

    def _workers_of(self, name: str) -> set[str]:
        suffixes = self.cluster.new_spec.get("group", [""])
        return {f"{name}{suffix}" for suffix in suffixes}

    async def _forget(self, gone: Iterable[str]) -> None:
        """Have the cluster object forget jobs that are gone; their names are used again."""
        for name in gone:
            self.cluster.worker_spec.pop(name, None)
        self.cluster.scale(jobs=len(self.cluster.worker_spec))
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end and any(name in self.cluster.workers for name in gone):
            await asyncio.sleep(0.05)

    async def _fill(self, wanted: int) -> None:
        """Submit jobs, or give some back, so that `wanted` are there."""
        cluster = self.cluster
        bad = sorted(node for node, died in self._died_on.items() if node and died >= _TRIES)
        if bad:
            directives = self._shape.arguments["job_extra_directives"]
            cluster.new_spec["options"]["job_extra_directives"] = [
                *directives,
                f"--exclude={','.join(bad)}",
            ]
        for name in self._idle()[: max(0, len(cluster.worker_spec) - wanted)]:
            cluster.worker_spec.pop(name)
        # Never fewer than there are: it would not look which are at work.
        cluster.scale(jobs=max(wanted, len(cluster.worker_spec)))

    def _idle(self) -> list[str]:
        """Return the jobs that have no task, those first that have not even begun."""
        workers = {str(w.name): w for w in self.cluster.scheduler.workers.values()}
        of_job = {
            name: [workers[w] for w in self._workers_of(name) if w in workers]
            for name in self.cluster.worker_spec
        }
        idle = [name for name, ws in of_job.items() if not any(w.processing for w in ws)]
        return sorted(idle, key=lambda name: bool(of_job[name]))
