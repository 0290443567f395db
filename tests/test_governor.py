"""The rate for each egress: counted by the scheduler, for all workers together."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, get_worker
from distributed.utils import sync
from helpers import write_csv
from hypothesis import given
from hypothesis import strategies as st

from acavdl import driver, shard
from acavdl.cluster import local_client
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.governor import Bucket, Governor, install, wait_for_lease
from acavdl.sandbox import Sandbox, video_id


def test_an_hours_worth_at_once_then_one_by_one() -> None:
    bucket = Bucket(300, 1000.0)
    assert [bucket.take(1000.0) for _ in range(300)] == [0.0] * 300
    assert bucket.take(1000.0) == pytest.approx(12.0)
    assert bucket.take(1011.9) == pytest.approx(0.1)
    assert bucket.take(1012.1) == 0.0
    assert bucket.take(1012.1) > 11


def test_a_rate_below_one_an_hour_works() -> None:
    bucket = Bucket(0.5, 0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(7200.0)


@given(
    per_hour=st.floats(0.5, 10_000),
    gaps=st.lists(st.floats(0, 4000), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate(per_hour: float, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_hour, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now) == 0.0
        assert taken <= max(1.0, per_hour) + now * per_hour / 3600 + 1e-6


@given(per_hour=st.floats(0.5, 10_000), now=st.floats(0, 1e6))
def test_who_waits_as_told_gets_a_lease(per_hour: float, now: float) -> None:
    bucket = Bucket(per_hour, now)
    while (seconds := bucket.take(now)) == 0.0:
        pass
    assert bucket.take(now + seconds + 1e-3) == 0.0


def test_egresses_are_counted_apart() -> None:
    governor = Governor(1, clock=lambda: 0.0)
    assert governor.lease("a") == 0.0
    assert governor.lease("a") > 0
    assert governor.lease("b") == 0.0


def test_all_worker_processes_share_one_rate() -> None:
    def ask(count: int) -> list[float]:
        worker = get_worker()
        return [
            sync(worker.loop, worker.scheduler.acavdl_lease, egress="here") for _ in range(count)
        ]

    with local_client(2) as client:
        workers = list(client.nthreads())

        def leases() -> int:
            futures = [client.submit(ask, 10, workers=[name], pure=False) for name in workers]
            return sum(seconds == 0.0 for found in client.gather(futures) for seconds in found)

        install(client, 10)
        assert leases() == 10
        # Another run on the same scheduler begins with a governor of its own.
        install(client, 3)
        assert leases() == 3


def test_waiting_ends_when_the_worker_stops() -> None:
    def wait() -> float:
        stopping = threading.Event()
        threading.Timer(0.2, stopping.set).start()
        wait_for_lease(get_worker(), "here", stopping)
        return wait_for_lease(get_worker(), "here", stopping)

    with local_client(1) as client:
        install(client, 1)
        assert client.submit(wait).result(timeout=20) < 10


def test_run_asks_the_site_no_faster_than_the_rate(online: Sandbox, tmp_path: Path) -> None:
    """Five videos at one an hour: the first is asked for, the others wait."""
    online.reset()
    rows = [(video_id(i, master="m60"), 0.5, 4.5) for i in range(5)]
    config = Config(
        Reading(rate_limit=1.0),
        Storage(),
        Distribution(processes_count=1, thread_count=4),
    )
    source = write_csv(tmp_path / "clips.csv", rows)
    with local_client(1) as client:
        thread = threading.Thread(
            target=lambda: driver.run(
                str(source), str(tmp_path / "out"), config=config, client=client, progress="quiet"
            ),
        )
        thread.start()
        end = time.monotonic() + 20
        while not (events := client.get_events("acavdl-governor")):
            assert time.monotonic() < end
            time.sleep(0.05)
        message = events[0][1]
        assert message["egress"] == socket.gethostname()
        assert 3000 < message["seconds"] <= 3600
        asked = {video for video, kinds in online.stats().videos.items() if kinds.get("page")}
        assert len(asked) <= 1
        # Who waits for a lease ends with the worker.
        client.run(shard.stop)
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("egress", "counted"), [("node", socket.gethostname()), ("cluster", "cluster")]
)
def test_whose_address_it_is(
    online: Sandbox, tmp_path: Path, client: Client, egress: Any, counted: str
) -> None:
    source = write_csv(tmp_path / "t.csv", [(video_id(1, master="m60"), 0, 3)])
    config = Config(Reading(egress=egress))
    driver.run(str(source), str(tmp_path / "out"), config=config, client=client, progress="quiet")

    def buckets(dask_scheduler: Any) -> list[str]:
        return list(dask_scheduler.handlers["acavdl_lease"].__self__._buckets)

    assert client.run_on_scheduler(buckets) == [counted]
