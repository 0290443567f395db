"""Shards that are broken off: another task goes on, and what comes of it is the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from helpers import write_csv

from acavdl import driver, filesystems, shard
from acavdl.config import Config, Distribution, Output, Reading, Storage
from acavdl.filesystems import KEPT_BYTES
from acavdl.journal import Journal
from acavdl.models import Clip
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.shard import Job, make_shard

THREADS, CHECKPOINT = 2, 4
READING = Reading(timeout=20.0, retries=0, rate_limit=None)
CONFIG = Config(
    READING, distribution=Distribution(thread_count=THREADS, checkpoint=CHECKPOINT, slice=600.0)
)
FILES = replace(CONFIG, output=Output(output_format="files"))


@pytest.fixture(autouse=True)
def _not_stopping() -> Iterator[None]:
    yield
    shard.go_on()


def clips(count: int = 40) -> list[Clip]:
    """Clips of as many videos; each fifth one is dead."""
    names = [
        video_id(n, fault=Fault.PRIVATE) if n % 5 == 4 else video_id(n, master="m60")
        for n in range(count)
    ]
    return [
        Clip(name, f"https://www.youtube.com/watch?v={name}", 1000, 4000, 3, row)
        for row, name in enumerate(names)
    ]


def digests(folder: Path) -> dict[str, str]:
    """What a shard's samples are: its tar, or the files in its place."""
    found = [*folder.glob("*.tar"), *(path for path in folder.glob("0*/*") if path.is_file())]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def check(folder: Path, undisturbed: Path, rows: Sequence[Clip]) -> None:
    """The samples are those of a run that nothing came between; the stats are true."""
    assert digests(folder) == digests(undisturbed) != {}
    table = pd.read_parquet(folder / "00003.parquet")
    assert table["key"].tolist() == [clip.key for clip in rows]
    stats = orjson.loads((folder / "00003_stats.json").read_bytes())
    assert stats["count"] == len(rows)
    assert stats["outcomes"] == table["outcome"].value_counts().to_dict()
    assert stats["bytes_downloaded"] == table["bytes_fetched"].sum()
    if "tar" in stats["files"]:
        told = stats["files"]["tar"]
        data = (folder / "00003.tar").read_bytes()
        assert (told["bytes"], told["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert [path for path in (folder / "_acavdl/open").rglob("*") if path.is_file()] == []
    assert list(folder.rglob(".*.tmp")) == []


def undisturbed(folder: Path, rows: Sequence[Clip], config: Config = CONFIG) -> Path:
    made = make_shard(rows, Job(str(folder / "undisturbed"), config, captions=False))
    assert made.state == "done"
    return folder / "undisturbed"


def _work(rows: Sequence[Clip], job: Job) -> None:
    make_shard(rows, job)


def saved(job: Job) -> int:
    """Return how many clips are in checkpoints."""
    return len(Journal(job.store, "00003").resumed().rows)


def kill_in_the_middle(rows: Sequence[Clip], job: Job, least: int) -> None:
    """Begin a shard in another process, and kill that when some checkpoints are made."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(rows, job))
    process.start()
    until = time.monotonic() + 120
    while saved(job) < least and process.is_alive():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


@pytest.mark.parametrize("config", [CONFIG, FILES], ids=["webdataset", "files"])
def test_after_a_kill_the_rest_is_made(online: Sandbox, tmp_path: Path, config: Config) -> None:
    """No more is asked for twice than was in flight, and since the last checkpoint."""
    rows, out = clips(), tmp_path / "out"
    job = Job(str(out), config, captions=False)
    online.reset()
    kill_in_the_middle(rows, job, least=10)
    assert not (out / "00003_stats.json").exists()
    there = saved(job)
    assert 10 <= there < len(rows)
    done = {clip.video_id for clip in rows[:there]}
    before = {name: dict(asked) for name, asked in online.stats().videos.items()}
    job.store.sweep()
    assert make_shard(rows, job).state == "done"
    after = online.stats().videos
    assert all(after[name] == before[name] for name in done)
    again = sum(
        asked["player"] > before.get(name, {}).get("player", 0) > 0 for name, asked in after.items()
    )
    assert again <= 2 * THREADS + CHECKPOINT
    check(out, undisturbed(tmp_path, rows, config), rows)


def test_a_second_kill_is_as_good_as_one(online: Sandbox, tmp_path: Path) -> None:
    """The second task's checkpoints hold what it took over from the first."""
    rows, out = clips(), tmp_path / "out"
    job = Job(str(out), CONFIG, captions=False)
    for least in (8, 20):
        kill_in_the_middle(rows, job, least)
        job.store.sweep()
    assert saved(job) >= 20
    assert make_shard(rows, job).state == "done"
    check(out, undisturbed(tmp_path, rows), rows)


@pytest.mark.parametrize("config", [CONFIG, FILES], ids=["webdataset", "files"])
def test_slices_make_the_same_shard(online: Sandbox, tmp_path: Path, config: Config) -> None:
    rows, out = clips(), tmp_path / "out"
    short = replace(config, distribution=replace(config.distribution, slice=0.001))
    states, counts = [], []
    while not states or states[-1] == "partial":
        made = make_shard(rows, Job(str(out), short, captions=False))
        states.append(made.state)
        counts.append(made.clips)
    # Each slice finishes what it has begun, and that is something.
    assert len(states) > 3
    assert counts == sorted(set(counts))
    assert counts[-1] == len(rows)
    check(out, undisturbed(tmp_path, rows, config), rows)


def test_a_worker_that_closes_saves_what_it_has(online: Sandbox, tmp_path: Path) -> None:
    rows, out = clips(), tmp_path / "out"
    seldom = replace(CONFIG, distribution=replace(CONFIG.distribution, checkpoint=1000))
    job = Job(str(out), seldom, captions=False)
    written = threading.Semaphore(0)
    real = shard.TarWriter.write

    def write(self: Any, result: Any) -> None:
        real(self, result)
        written.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard.TarWriter, "write", write)

        def stop() -> None:
            for _ in range(6):
                written.acquire()
            shard.stop()

        threading.Thread(target=stop).start()
        assert make_shard(rows, job).state == "partial"
    shard.go_on()
    assert saved(job) >= 6
    assert make_shard(rows, job).state == "done"
    check(out, undisturbed(tmp_path, rows), rows)


def test_a_checkpoint_that_does_not_fit_is_not_used(online: Sandbox, tmp_path: Path) -> None:
    """A tar that is shorter than it was, rows of other clips: all is made anew."""
    rows, out = clips(12), tmp_path / "out"
    job = Job(str(out), CONFIG, captions=False)
    short = replace(CONFIG, distribution=replace(CONFIG.distribution, slice=0.001))
    assert make_shard(rows, Job(str(out), short, captions=False)).state == "partial"
    (tar,) = (out / "_acavdl/open/00003").glob("*.tar")
    os.truncate(tar, tar.stat().st_size // 2)
    assert make_shard(rows, job).state == "done"
    check(out, undisturbed(tmp_path, rows), rows)
    other = tmp_path / "other"
    assert make_shard(rows, Job(str(other), short, captions=False)).state == "partial"
    changed = [replace(clip, start_ms=500) for clip in rows]
    assert make_shard(changed, Job(str(other), CONFIG, captions=False)).state == "done"
    assert pd.read_parquet(other / "00003.parquet")["start"].tolist() == [0.5] * len(rows)


def test_lines_of_subtitles_are_saved_by_whole_videos(online: Sandbox, tmp_path: Path) -> None:
    names = [video_id(n, master="m60") for n in range(6)]
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", None, None, 3, row)
        for row, name in enumerate(names)
    ]
    config = replace(CONFIG, storage=Storage(captions_are_subtitles=True))
    short = replace(config, distribution=replace(CONFIG.distribution, slice=0.001, thread_count=1))
    made, out = None, tmp_path / "out"
    slices = 0
    while made is None or made.state == "partial":
        made = make_shard(rows, Job(str(out), short, captions=True))
        slices += 1
    assert slices > 1
    whole = tmp_path / "whole"
    make_shard(rows, Job(str(whole), config, captions=True))
    assert digests(out) == digests(whole)
    with tarfile.open(out / "00003.tar") as tar:
        assert len(tar.getnames()) == 3 * 6 * 6


@pytest.mark.parametrize("part", [KEPT_BYTES, 5 << 20], ids=["in_one_part", "in_parts"])
def test_slices_and_kills_on_s3(
    online: Sandbox, bucket: str, tmp_path: Path, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are objects until the shard is published; then the tar is there, and nothing else."""
    monkeypatch.setattr(filesystems, "KEPT_BYTES", part)
    rows = clips(60)
    job = Job(f"s3://{bucket}/out", CONFIG, captions=False)
    kill_in_the_middle(rows, job, least=10)
    there = saved(job)
    assert 10 <= there < len(rows)
    short = replace(CONFIG, distribution=replace(CONFIG.distribution, slice=0.001))
    states = [make_shard(rows, replace(job, config=short)).state for _ in range(2)]
    assert states == ["partial", "partial"]
    assert saved(job) > there
    assert list(job.store.sizes()) == []
    made = make_shard(rows, job)
    assert (made.state, made.clips) == ("done", len(rows))
    whole = undisturbed(tmp_path, rows)
    assert job.store.read("00003.tar") == (whole / "00003.tar").read_bytes()
    assert len(job.store.read("00003.tar")) > 10 << 20
    stats = orjson.loads(job.store.read("00003_stats.json"))
    assert stats["files"]["tar"]["sha256"] == job.store.sha256("00003.tar")
    assert sorted(job.store.sizes()) == ["00003.parquet", "00003.tar", "00003_stats.json"]
    assert job.store.sizes("_acavdl/open/00003") == {}


def test_the_driver_goes_on_with_slices(online: Sandbox, tmp_path: Path) -> None:
    rows = [(video_id(n, master="m60"), 1.0, 4.0) for n in range(36)]
    table = write_csv(tmp_path / "clips.csv", rows)
    storage = Storage(number_sample_per_shard=18)
    for name, seconds in (("out", 0.001), ("whole", 600.0)):
        config = Config(
            READING,
            storage,
            Distribution(processes_count=2, thread_count=2, checkpoint=4, slice=seconds),
        )
        report = driver.run(str(table), str(tmp_path / name), config=config, progress="quiet")
        assert dict(report.snapshot.counts) == {"ok": 36}
        assert (report.snapshot.shards_done, report.failed_shards) == (2, {})
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert [p for p in (tmp_path / "out/_acavdl/open").rglob("*") if p.is_file()] == []
