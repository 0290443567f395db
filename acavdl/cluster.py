"""Where the work runs: Dask's workers, and those on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin

from acavdl import shard
from acavdl.errors import UsageError

#: A shard is a long task with its own threads: one to each worker process, none held in reserve,
#: and workers that die of a shard are told apart by our own count, not by Dask's three.
DASK_CONFIG = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.allowed-failures": 20,
    "distributed.comm.retry.count": 2,
}


@dataclass(frozen=True)
class Workers:
    """Workers that a run may use.

    Attributes
    ----------
    client
        Leads to them; more may come, and go.
    cores
        Cores that they have when all are there.
    need
        To be called with the number of shards that are left: workers without work may be let go.
    check
        To be called now and then; raises ClusterError if there are no workers, and none will come.
    patience
        Seconds for which there may be none; None = for ever: the queue of a cluster may be long.
    """

    client: Client
    cores: int
    need: Callable[[int], None] = lambda _: None
    check: Callable[[], None] = lambda: None
    patience: float | None = None


#: Seconds for which a machine's own worker processes may all be gone: they start within some.
PATIENCE = 60.0


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_count(wanted: int | None) -> int:
    """Return how many worker processes to start: one for each core, or fewer if so asked."""
    return usable_cores() if wanted is None else max(1, min(wanted, usable_cores()))


class Closing(WorkerPlugin):
    """Has a worker that is told to close save its shard, within a second or so.

    Slurm sends SIGTERM to all processes of a job that is cancelled, preempted or out of time. By
    itself a worker process would die of it.
    """

    def setup(self, worker: Worker) -> None:
        """Have SIGTERM close the worker."""
        # Workers of a notebook live in threads, and signals are not theirs.
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM,
                lambda *_: worker.loop.add_callback(worker.close, nanny=False),
            )

    def teardown(self, worker: Worker) -> None:
        """Have the worker's shard saved."""
        shard.stop()


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back in this thread; threads and processes started meanwhile never get it.

    A terminal sends it to all its processes. The driver ends the workers in order; they must not
    fall by themselves, least of all while they start. The mask of signals is inherited.
    """
    # Starting the tracker unblocks the signal in the thread that does it: not when it runs already.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _started(**options: Any) -> LocalCluster:
    try:
        return LocalCluster(**options)
    except RuntimeError as error:
        raise UsageError(
            f"the worker processes do not start ({error}). In a script, begin the run under "
            'if __name__ == "__main__": since each worker imports the script'
        ) from error


@contextlib.contextmanager
def local_client(processes: int) -> Iterator[Client]:
    """Start worker processes with one Dask thread each on this machine, and end them with it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(DASK_CONFIG))
        with interrupts_held_back():
            cluster = stack.enter_context(
                _started(
                    n_workers=processes,
                    threads_per_worker=1,
                    processes=True,
                    # Any free port: a fixed one may be taken by another run.
                    dashboard_address="127.0.0.1:0",
                    # Dask sees nothing of what shards hold; their own bounds look after memory.
                    memory_limit=None,
                )
            )
        client = stack.enter_context(Client(cluster))
        client.register_plugin(Closing())
        yield client
