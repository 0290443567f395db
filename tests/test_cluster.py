"""Workers on this machine."""

from __future__ import annotations

import os

import pytest

from acavdl.cluster import local_client, process_count, usable_cores


def test_processes_are_capped_by_the_cores() -> None:
    assert process_count(None) == usable_cores() == len(os.sched_getaffinity(0))
    assert process_count(1) == 1
    assert process_count(10_000) == usable_cores()


def test_one_process_and_one_thread_to_each_worker() -> None:
    with local_client(2) as client:
        threads = client.nthreads()
        pids = client.run(os.getpid)
    assert sorted(threads.values()) == [1, 1]
    assert len(set(pids.values())) == 2
    assert os.getpid() not in pids.values()


def test_workers_end_with_the_block_that_fails() -> None:
    pids: dict[str, int] = {}

    def fail_in_the_block() -> None:
        with local_client(1) as client:
            pids.update(client.run(os.getpid))
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_the_block()
    (pid,) = pids.values()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
