"""One shard in this process: order, bounds, stopping, and what is left when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from acavdl import shard
from acavdl.config import Config, Distribution, Reading
from acavdl.errors import Outcome, StorageError
from acavdl.models import Clip, Cut
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.shard import Job, StoppedError, make_shard, process_shard, report_of

READING = Reading(timeout=8.0, retries=0, rate_limit=None)
CONFIG = Config(READING, distribution=Distribution(thread_count=4))


def clips(count: int, **which: object) -> list[Clip]:
    which = which or {"master": "m60"}
    made = []
    for row in range(count):
        name = video_id(row, **which)  # type: ignore[arg-type]
        url = f"https://www.youtube.com/watch?v={name}"
        made.append(Clip(name, url, 1000, 5000, shard=3, row=row))
    return made


def frame(rows: list[Clip]) -> pd.DataFrame:
    return pd.DataFrame([vars(clip) for clip in rows])


@pytest.fixture(autouse=True)
def _not_stopping() -> Iterator[None]:
    yield
    shard._stopping.clear()


def test_report_is_one_row_and_true(online: Sandbox, tmp_path: Path) -> None:
    rows = [*clips(3), *clips(1, fault=Fault.PRIVATE)]
    frame_of_report = process_shard(frame(rows), Job(str(tmp_path / "out"), CONFIG, captions=False))
    assert len(frame_of_report) == 1
    assert dict(frame_of_report.dtypes.astype(str)) == shard.REPORT
    report = report_of(frame_of_report)
    assert (report.shard, report.state, report.clips) == (3, "done", 4)
    assert dict(report.counts) == {"ok": 3, "private": 1}
    assert report.bytes_stored == (tmp_path / "out/00003.tar").stat().st_size
    assert report.bytes_fetched == online.stats().bytes["media"] or report.bytes_fetched > 0


def test_published_shard_is_left_alone(online: Sandbox, tmp_path: Path) -> None:
    job = Job(str(tmp_path), CONFIG, captions=False)
    made = make_shard(clips(2), job)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    online.reset()
    again = make_shard(clips(2), job)
    assert again.state == "present"
    assert dict(again.counts) == dict(made.counts)
    assert sum(online.stats().requests.values()) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_two_copies_at_once_leave_one_whole_shard(online: Sandbox, tmp_path: Path) -> None:
    job = Job(str(tmp_path), CONFIG, captions=False)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: make_shard(clips(4), job), range(2))
    assert dict(first.counts) == dict(second.counts) == {"ok": 4}
    assert make_shard(clips(4), job).state == "present"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00003.parquet", "00003.tar", "00003_stats.json",
    ]  # fmt: skip


def test_stopping_ends_hanging_work_and_publishes_nothing(online: Sandbox, tmp_path: Path) -> None:
    patient = Config(
        Reading(timeout=100.0, rate_limit=None), distribution=Distribution(thread_count=4)
    )
    job = Job(str(tmp_path / "out"), patient, captions=False, tmp_dir=str(tmp_path))
    begun = time.monotonic()
    threading.Timer(1.0, shard.stop).start()
    with pytest.raises(StoppedError):
        # More than there are threads: what waits must not begin.
        make_shard(clips(12, fault=Fault.PLAYER_HANGS), job)
    assert time.monotonic() - begun < 30
    assert list((tmp_path / "out").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_of_the_store_is_loud_and_leaves_nothing(online: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "out/00003.tar").mkdir(parents=True)
    job = Job(str(tmp_path / "out"), CONFIG, captions=False, tmp_dir=str(tmp_path))
    with pytest.raises(StorageError, match=r"00003\.tar"):
        make_shard(clips(2), job)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00003.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_captions_become_members(online: Sandbox, tmp_path: Path) -> None:
    import tarfile

    name = video_id(1, master="m60")
    url = f"https://www.youtube.com/watch?v={name}"
    rows = [
        Clip(name, url, 0, 4000, 0, 0, caption="Café, “noir”\nund so"),
        Clip(name, url, 2000, 6000, 0, 1, caption=None),
    ]
    make_shard(rows, Job(str(tmp_path), CONFIG, captions=True))
    with tarfile.open(tmp_path / "00000.tar") as tar:
        texts = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".txt")}  # type: ignore[union-attr]
    assert texts == {
        f"{rows[0].key}.txt": "Café, “noir”\nund so".encode(),
        f"{rows[1].key}.txt": b"",
    }


def test_work_in_flight_is_bounded_and_results_stay_in_order() -> None:
    begun: list[int] = []
    release = threading.Event()

    def make(item: int) -> list[int]:
        begun.append(item)
        if item == 0:
            release.wait(10)
        return [item, item]

    with ThreadPoolExecutor(3) as pool:
        results = shard._in_order(pool, range(50), make, 6)
        timer = threading.Timer(0.3, lambda: (begun.append(-1), release.set()))
        timer.start()
        first = next(results)
        timer.join()
        # While the first one held up the line, no more than six were begun.
        assert set(begun[: begun.index(-1)]) == set(range(6))
        assert [first, *results] == [item for item in range(50) for _ in range(2)]


def test_a_second_extraction_is_made_for_expired_urls_only(online: Sandbox, tmp_path: Path) -> None:
    online.reset()
    rows = [*clips(1, fault=Fault.MEDIA_EXPIRED), *clips(1, fault=Fault.MEDIA_404)]
    make_shard(rows, Job(str(tmp_path), CONFIG, captions=False))
    table = pd.read_parquet(tmp_path / "00003.parquet").set_index("video_id")
    expired, gone = rows[0].video_id, rows[1].video_id
    assert list(table.loc[[expired, gone], "attempts"]) == [2, 1]
    assert list(table.loc[[expired, gone], "outcome"]) == [Outcome.OK, Outcome.HTTP_404_MEDIA]
    assert online.stats().videos[expired]["player"] == 2
    assert online.stats().videos[gone]["player"] == 1


def test_waiting_that_the_site_asks_for_is_no_time_of_the_clip(
    online: Sandbox, tmp_path: Path
) -> None:
    hasty = Config(Reading(timeout=2.5, rate_limit=None), distribution=Distribution(thread_count=1))
    make_shard(clips(1, fault=Fault.AD_WAIT), Job(str(tmp_path), hasty, captions=False))
    row = pd.read_parquet(tmp_path / "00003.parquet").iloc[0]
    assert row["outcome"] == Outcome.OK


def test_costs_of_a_dead_video_stand_in_one_row(online: Sandbox, tmp_path: Path) -> None:
    name = video_id(1, fault=Fault.MEDIA_404)
    url = f"https://www.youtube.com/watch?v={name}"
    rows = [Clip(name, url, i * 1000, i * 1000 + 900, 3, i) for i in range(3)]
    make_shard(rows, Job(str(tmp_path), CONFIG, captions=False))
    table = pd.read_parquet(tmp_path / "00003.parquet")
    assert table["resolve_seconds"].notna().tolist() == [True, False, False]
    assert (table["requests"] > 0).tolist() == [True, False, False]


def test_time_that_is_up_before_the_cut_is_a_timeout(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = shard.cut_low

    def slowly(*args: Any) -> Cut:
        time.sleep(3.0)
        return begin(*args)

    monkeypatch.setattr(shard, "cut_low", slowly)
    hasty = Config(Reading(timeout=1.5, rate_limit=None), distribution=Distribution(thread_count=1))
    name = video_id(1, master="m60")
    url = f"https://www.youtube.com/watch?v={name}"
    rows = [Clip(name, url, i * 1000, i * 1000 + 900, 3, i) for i in range(2)]
    make_shard(rows, Job(str(tmp_path), hasty, captions=False))
    table = pd.read_parquet(tmp_path / "00003.parquet")
    assert table["outcome"].tolist() == [Outcome.OK, Outcome.TIMEOUT]
