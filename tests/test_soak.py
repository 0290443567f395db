"""Long runs, by `scripts/soak`: figures are printed for notes and docs, never asserted on time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from helpers import write_csv

from acavdl import driver
from acavdl.cluster import local_client
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.sandbox import Fault, Sandbox, video_id

CLIPS = int(os.environ.get("ACAVDL_SOAK_CLIPS", "4000"))
#: Failures that end quickly; a hang costs its timeout and no CPU.
FAULTS = (Fault.PRIVATE, Fault.MEDIA_NOISE, Fault.MEDIA_404, Fault.PLAYER_503, Fault.MEDIA_RESET)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_clips_with_two_fifths_failing(
    online: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        (
            video_id(i, fault=FAULTS[i // 5 % 5]) if i % 5 < 2 else video_id(i, master="m60"),
            1.0,
            6.0,
        )
        for i in range(CLIPS)
    ]
    source = write_csv(tmp_path / "clips.csv", rows)
    config = Config(
        Reading(timeout=30.0, rate_limit=None, retries=0),
        Storage(number_sample_per_shard=250),
        Distribution(thread_count=16),
    )
    online.reset()
    with local_client(2) as client:
        before = _cpu(client)
        begun = time.monotonic()
        report = driver.run(
            str(source), str(tmp_path / "out"), config=config, client=client, progress="plain"
        )
        wall, cpu = time.monotonic() - begun, _cpu(client) - before
        peaks = client.run(_peak_rss)
    counts = report.snapshot.counts
    table = pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / "out").glob("*.parquet"))])
    assert len(table) == table["key"].nunique() == CLIPS
    assert counts["ok"] == sum(i % 5 >= 2 for i in range(CLIPS))
    assert set(counts) == {"ok", "private", "corrupt", "http_404_media", "http_5xx", "network"}
    stats = online.stats()
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{CLIPS} clips, {counts['ok']} ok, {wall:.0f} s wall, workers "
            f"{1000 * cpu / CLIPS:.0f} ms CPU a clip, peak {max(peaks.values()) / 1e6:.0f} MB a "
            f"worker; {table['requests'].sum() / CLIPS:.2f} requests and "
            f"{table['bytes_fetched'].sum() / CLIPS / 1e6:.2f} MB a clip; origin "
            f"{stats.cpu_seconds:.0f} CPU-s"
        )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("failing", [False, True], ids=["all_there", "half_failing"])
def test_memory_of_a_worker_is_bounded(
    online: Sandbox, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: bool
) -> None:
    """A shard of 2,000 clips to S3, with 48 videos in flight in its worker."""
    rows = [
        (
            video_id(i, fault=FAULTS[i // 2 % 5])
            if failing and i % 2
            else video_id(i, master="m30"),
            1.0,
            11.0,
        )
        for i in range(2000)
    ]
    source = write_csv(tmp_path / "clips.csv", rows)
    config = Config(
        Reading(timeout=60.0, rate_limit=None, retries=0),
        Storage(number_sample_per_shard=2000),
        Distribution(thread_count=48),
    )
    with local_client(1) as client:
        report = driver.run(
            str(source), f"s3://{bucket}/out", config=config, client=client, progress="plain"
        )
        peaks = client.run(_peak_rss)
    assert report.snapshot.counts["ok"] == len(rows) // (2 if failing else 1)
    assert report.failed_shards == {}
    with capsys.disabled():
        print(f"\npeak {max(peaks.values()) / 1e6:.0f} MB a worker, failing: {failing}")  # noqa: T201
    assert max(peaks.values()) <= 600e6


def _cpu(client: driver.Client) -> float:
    return sum(client.run(lambda: sum(psutil.Process().cpu_times()[:2])).values())


def _peak_rss() -> int:
    """Return the peak in bytes; (`ru_maxrss` begins with that of the process that forked)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM")
