"""Threads that hang where neither sockets nor processes end them: nothing waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import write_csv

from acavdl import driver, shard
from acavdl.cluster import local_client
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.inflight import Crew, Step, Work, in_order
from acavdl.models import Clip
from acavdl.sandbox import Sandbox, video_id
from acavdl.shard import Job, make_shard

CONFIG = Config(
    Reading(timeout=3.0, retries=0, rate_limit=None),
    Storage(number_sample_per_shard=40),
    Distribution(processes_count=1, thread_count=4, checkpoint=4),
)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def names(count: int) -> list[str]:
    return [video_id(n, master="m60") for n in range(count)]


def test_a_piece_that_hangs_is_left_behind_and_its_place_is_taken(
    release: threading.Event,
) -> None:
    begun = time.monotonic()

    def hang(number: int) -> Work[int]:
        def late() -> list[int] | None:
            return [-number] if time.monotonic() - begun > 0.5 else None

        return Work(lambda: Step([number] * release.wait(60)), late=late)

    works = [hang(1), hang(2), *(Work(lambda n=n: Step([n])) for n in range(3, 30))]  # type: ignore[misc]
    crew = Crew(2)
    assert list(in_order(crew, works, 10, threading.Event())) == [-1, -2, *range(3, 30)]
    # What they bring in the end is nobody's, and nobody waits for it.
    crew.shutdown()
    assert not release.is_set()


def test_a_clip_whose_thread_hangs_is_a_timeout(
    online: Sandbox, tmp_path: Path, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", 1000, 4000, 3, row)
        for row, name in enumerate(names(12))
    ]
    real, calls = shard.cut_chosen, iter(range(100))

    def cut(*args: Any) -> Any:
        if next(calls) in (2, 5):
            release.wait(60)
        return real(*args)

    monkeypatch.setattr(shard, "cut_chosen", cut)
    made = make_shard(rows, Job(str(tmp_path), CONFIG, captions=False))
    assert not release.is_set()
    assert (made.state, dict(made.counts)) == ("done", {"ok": 10, "timeout": 2})
    found = pd.read_parquet(tmp_path / "00003.parquet")
    assert (found[found["outcome"] == "timeout"]["detail"].str.contains("it hung")).all()
    assert not shard.worn_out()


def _hang_often() -> None:
    real, calls = shard.cut_chosen, iter(range(10_000))

    def cut(*args: Any) -> Any:
        if next(calls) % 3 == 2:
            threading.Event().wait()
        return real(*args)

    shard.cut_chosen = cut  # type: ignore[assignment]


@pytest.mark.slow
def test_a_worker_with_eight_of_them_begins_anew(online: Sandbox, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", [(name, 1.0, 4.0) for name in names(60)])
    config = replace(CONFIG, storage=Storage(number_sample_per_shard=60))
    with local_client(1) as client:
        client.run(_hang_often)
        before = set(client.nthreads())
        report = driver.run(
            str(source), str(tmp_path / "out"), config=config, client=client, progress="quiet"
        )
        assert set(client.nthreads()) != before
    counts = dict(report.snapshot.counts)
    assert report.failed_shards == {}
    # The others are made by the process that follows.
    assert sum(counts.values()) == 60
    assert 8 <= counts["timeout"] <= 8 + 4
