"""What is to go: out of the shards in one step, and not back by any way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import Client
from helpers import write_csv

import acavdl
from acavdl import filesystems, shard
from acavdl.config import Config, Distribution, Output, Reading, Storage, TableOptions
from acavdl.errors import EmptyTableError, PlanMismatchError, StorageError, UsageError
from acavdl.idlists import video_ids
from acavdl.journal import Journal
from acavdl.ledger import published
from acavdl.models import Clip, name_of
from acavdl.prepare import prepare
from acavdl.removal import finish, key_of, remember, remove_from, removed_ids
from acavdl.sandbox import Sandbox, video_id
from acavdl.shard import Job, make_shard
from acavdl.storage import Store

CONFIG = Config(
    Reading(timeout=8.0, retries=0, rate_limit=None),
    Storage(number_sample_per_shard=4),
    Distribution(thread_count=4),
)
FILES = replace(CONFIG, output=Output(output_format="files"))
NAMES = [video_id(n, master="m60") for n in range(4)]
GONE = NAMES[1]


def clips(shard: int = 0) -> list[Clip]:
    """Two of each video."""
    spans = [(name, start) for name in NAMES for start in (0, 4000)]
    return [
        Clip(name, f"https://www.youtube.com/watch?v={name}", start, start + 2000, shard, row)
        for row, (name, start) in enumerate(spans)
    ]


def made(folder: Path | str, config: Config = CONFIG) -> Store:
    job = Job(str(folder), config, captions=False)
    assert make_shard(clips(), job).state == "done"
    return job.store


def samples(store: Store) -> dict[str, str]:
    """Return the hashes of the members of the shard, as its stats say they are."""
    stats = json.loads(store.read("00000_stats.json"))
    if "members" in stats["files"]:
        names = store.sizes("00000")
        found = {name: store.sha256(f"00000/{name}") for name in names}
        assert stats["files"]["members"]["count"] == len(found)
        assert stats["files"]["members"]["bytes"] == sum(names.values())
        listed = "".join(f"{sha}  {name}\n" for name, sha in sorted(found.items()))
        told = stats["files"]["members"]["sha256"]
        assert told == hashlib.sha256(listed.encode()).hexdigest()
        return found
    data = store.read("00000.tar")
    told = stats["files"]["tar"]
    assert (told["bytes"], told["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in tar}  # type: ignore[union-attr]


def check(store: Store, before: dict[str, str], old_rows: pd.DataFrame) -> None:
    """The shard is whole, and only what was to go is gone."""
    found = published(store, 0)
    assert found is not None
    assert dict(found.counts) == {"ok": 6, "removed": 2}
    assert samples(store) == {n: h for n, h in before.items() if key_of(n)[:11] != GONE}
    rows = read_rows(store)
    stays = rows["video_id"] != GONE
    pd.testing.assert_frame_equal(rows[stays], old_rows[stays])
    out = rows[~stays]
    for name in ("key", "url", "start", "end", "shard", "row"):
        assert out[name].tolist() == old_rows[~stays][name].tolist()
    assert set(out["outcome"]) == {"removed"}
    assert set(out["retry"]) == {"never"}
    for name in ("sha256", "bytes", "actual_start", "view_count", "caption", "video_duration"):
        assert out[name].isna().all()
    stats = json.loads(store.read("00000_stats.json"))
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (8, 6, 2)
    assert Counter(stats["status_dict"]) == Counter(success=6, removed=2)
    assert stats["files"]["parquet"]["sha256"] == store.sha256("00000.parquet")
    assert store.sizes("_acavdl/removing") == {}


def read_rows(store: Store) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(store.read("00000.parquet")), dtype_backend="pyarrow")


@pytest.mark.parametrize("config", [CONFIG, FILES], ids=["webdataset", "files"])
@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_video_leaves_a_shard(
    online: Sandbox, tmp_path: Path, request: pytest.FixtureRequest, where: str, config: Config
) -> None:
    place = f"s3://{request.getfixturevalue('bucket')}/out" if where == "s3" else tmp_path / "out"
    store = made(place, config)
    before, rows = samples(store), read_rows(store)
    assert remove_from(store, 0, {GONE}) == 2
    check(store, before, rows)
    # Once more changes nothing.
    stats = store.read("00000_stats.json")
    assert remove_from(store, 0, {GONE}) == 0
    assert store.read("00000_stats.json") == stats


def test_the_tar_is_that_of_a_run_without_the_video(online: Sandbox, tmp_path: Path) -> None:
    store = made(tmp_path / "with")
    remove_from(store, 0, {GONE})
    other = Store(str(tmp_path / "without"))
    remember(other, [GONE])
    made(tmp_path / "without")
    assert store.read("00000.tar") == other.read("00000.tar")
    assert published(other, 0).counts == {"ok": 6, "removed": 2}  # type: ignore[union-attr]


# --- kills ---------------------------------------------------------------------------------------

#: Steps at which a kill finds something else: what is written or removed, one after the other.
STEPS = {"webdataset": 9, "files": 12}


def _remove_until(folder: str, steps: int) -> None:
    """Remove, and be killed before the write or the removal of a file with this number."""
    left = [steps]

    def dying(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (filesystems._LocalStaged, "_publish"),
            (filesystems.LocalFiles, "remove"),
        ):
            patch.setattr(owner, name, dying(getattr(owner, name)))
        remove_from(Store(folder), 0, {GONE})


def _kill_at_each(folders: list[str], told: str) -> None:
    """Remove in each folder, in a process that dies one step later than the one before."""
    signals = []
    for steps, folder in enumerate(folders):
        pid = os.fork()
        if not pid:
            _remove_until(folder, steps)
            os._exit(0)
        signals.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
    Path(told).write_text(json.dumps(signals))


@pytest.mark.parametrize("config", [CONFIG, FILES], ids=["webdataset", "files"])
def test_killed_at_any_step(online: Sandbox, tmp_path: Path, config: Config) -> None:
    """There is the old shard or the new one; and to go on is as good as not to be killed."""
    kind = config.output.output_format
    store = made(tmp_path / "whole", config)
    before, rows = samples(store), read_rows(store)
    folders = [tmp_path / f"killed-{steps}" for steps in range(STEPS[kind] + 1)]
    for folder in folders:
        shutil.copytree(tmp_path / "whole", folder)
    told = tmp_path / "signals"
    process = multiprocessing.get_context("spawn").Process(
        target=_kill_at_each, args=([str(folder) for folder in folders], str(told))
    )
    process.start()
    process.join()
    assert json.loads(told.read_text()) == [signal.SIGKILL] * STEPS[kind] + [0]
    for folder in folders:
        killed = Store(str(folder))
        killed.sweep()
        if kind == "webdataset":
            # Whoever reads tars sees a whole one.
            with tarfile.open(folder / "00000.tar") as tar:
                assert len(tar.getnames()) in (12, 16)
        # A run finishes what was begun: it neither makes the shard again nor loses a sample.
        assert make_shard(clips(), Job(str(folder), config, captions=False)).state == "present"
        found = published(killed, 0)
        assert found is not None
        assert dict(found.counts) in ({"ok": 8}, {"ok": 6, "removed": 2})
        remove_from(killed, 0, {GONE})
        check(killed, before, rows)
        assert not list(folder.rglob(".*.tmp"))


@pytest.mark.slow
def test_broken_off_at_any_step_on_s3(online: Sandbox, bucket: str) -> None:
    """As above, with a store that is gone from some step on."""
    for steps in itertools.count():
        store = made(f"s3://{bucket}/{steps}")
        before, rows = samples(store), read_rows(store)
        left = [steps]

        def dying(real: Any, left: list[int]) -> Any:
            def call(*arguments: Any) -> Any:
                if not left[0]:
                    raise OSError("gone")
                left[0] -= 1
                return real(*arguments)

            return call

        done = False
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (filesystems._S3Staged, "_publish"),
                (filesystems.RemoteFiles, "remove"),
            ):
                patch.setattr(owner, name, dying(getattr(owner, name), left))
            with contextlib.suppress(OSError, StorageError):
                remove_from(store, 0, {GONE})
                done = True
        with tarfile.open(fileobj=io.BytesIO(store.read("00000.tar"))) as tar:
            assert len(tar.getnames()) in (12, 16)
        finish(store)
        assert published(store, 0) is not None
        remove_from(store, 0, {GONE})
        check(store, before, rows)
        if done:
            break
    assert steps == STEPS["webdataset"]


# --- the whole dataset ---------------------------------------------------------------------------


def test_no_way_leads_back(online: Sandbox, client: Client, tmp_path: Path) -> None:
    """Neither a run, a retry, an extension nor another dataset in the folder has it again."""
    out = str(tmp_path / "out")
    rows = [(name, start, start + 2.0) for name in NAMES for start in (0.0, 4.0)]
    table = write_csv(tmp_path / "clips.csv", rows)
    options: dict[str, Any] = {"config": CONFIG, "client": client, "progress": "quiet"}
    acavdl.run(str(table), out, **options)
    report = acavdl.remove(out, [f"https://youtu.be/{GONE}"])
    assert (report.videos, report.clips, report.shards, report.failed) == (1, 2, 1, {})
    assert acavdl.remove(out).clips == 0
    assert acavdl.remove(out, [GONE]).clips == 0
    online.reset()
    # A shard that is made anew.
    shard = next(n for n in range(2) if "removed" in published(Store(out), n).counts)  # type: ignore[union-attr]
    Store(out).remove(f"{shard:05d}_stats.json")
    counts = acavdl.run(str(table), out, **options).snapshot.counts
    assert dict(counts) == {"ok": 6, "removed": 2}
    report_of_retry = acavdl.retry(out, client=client, progress="quiet")
    assert report_of_retry.snapshot.shards == 2
    larger = write_csv(tmp_path / "larger.csv", [*rows, (GONE, 8.0, 9.0), (NAMES[0], 8.0, 9.0)])
    extended = acavdl.run(str(larger), out, incremental_mode="extend", **options)
    assert dict(extended.snapshot.counts) == {"ok": 7, "removed": 2}
    assert extended.made is not None
    # Each row of it, also those that the plan has already.
    assert dict(extended.made.plan.rejected) == {"removed": 3}
    anew = acavdl.run(str(larger), out, incremental_mode="overwrite", **options)
    assert dict(anew.snapshot.counts) == {"ok": 7}
    assert GONE not in online.stats().videos
    assert removed_ids(Store(out)) == {GONE}


def test_a_shard_that_was_open_has_nothing_of_it(online: Sandbox, tmp_path: Path) -> None:
    """Its checkpoints are gone, and what was on its way meanwhile is taken out at the end."""
    job = Job(str(tmp_path / "out"), CONFIG, captions=False)
    short = replace(CONFIG, distribution=Distribution(thread_count=1, slice=0.001))
    while len(Journal(job.store, "00000").resumed().rows) < 3:
        assert make_shard(clips(), replace(job, config=short)).state == "partial"
    remember(job.store, [GONE])
    # As if the video had been removed in the middle of the last slice.
    assert make_shard(clips(), job).state == "done"
    found = published(job.store, 0)
    assert found is not None
    assert dict(found.counts) == {"ok": 6, "removed": 2}
    assert not any(key_of(name)[:11] == GONE for name in samples(job.store))
    other = replace(job, output_folder=str(tmp_path / "other"))
    assert make_shard(clips(), replace(other, config=short)).state == "partial"
    assert other.store.sizes("_acavdl/open/00000")
    assert remove_from(other.store, 0, {GONE}) == 0
    assert other.store.sizes("_acavdl/open/00000") == {}


def test_a_removal_while_a_shard_is_made(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(str(tmp_path / "out"), CONFIG, captions=False)
    real = shard.TarWriter.close

    def close(self: Any) -> None:
        remember(job.store, [GONE])
        real(self)

    monkeypatch.setattr(shard.TarWriter, "close", close)
    make_shard(clips(), job)
    found = published(job.store, 0)
    assert found is not None
    assert dict(found.counts) == {"ok": 6, "removed": 2}


def test_videos_are_named_by_id_or_link() -> None:
    link = "https://example.org/a.mp4"
    named = [GONE, f"https://www.youtube.com/watch?v={NAMES[0]}&t=3", link, "u0123456789abcdef"]
    derived = name_of("", link)
    assert video_ids(named) == {GONE, NAMES[0], derived, "u0123456789abcdef"}


def test_mistakes_are_told(online: Sandbox, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "clips.csv", [(GONE, 0, 2)])
    out = str(tmp_path / "out")
    acavdl.plan(str(table), out, config=CONFIG, progress="quiet")
    with pytest.raises(UsageError, match="'short' is neither a video id"):
        acavdl.remove(out, ["short"])
    with pytest.raises(UsageError, match="no video is named"):
        acavdl.remove(out)
    listed = tmp_path / "ids.csv"
    listed.write_text("video_id,why\nshort,x\n")
    with pytest.raises(UsageError, match=r"ids\.csv, row 1: neither a video id"):
        acavdl.remove(out, ids_file=str(listed))
    listed.write_text("name,why\nshort,x\n")
    with pytest.raises(UsageError, match="has the columns: name, why"):
        acavdl.remove(out, ids_file=str(listed))
    assert removed_ids(Store(out)) == frozenset()


# --- tombstone lists in --------------------------------------------------------------------------


def test_known_dead_videos_are_not_planned(tmp_path: Path) -> None:
    rows = [(name, start, start + 2.0) for name in NAMES for start in (0.0, 4.0)]
    table = str(write_csv(tmp_path / "clips.csv", rows))
    out, dead = str(tmp_path / "out"), tmp_path / "dead.txt"
    dead.write_text(f"{GONE}\nhttps://youtu.be/{NAMES[2]}\nAAAAAAAAAAA\n")
    options: dict[str, Any] = {"config": CONFIG, "progress": "quiet", "tombstones": str(dead)}
    made = acavdl.plan(table, out, **options)
    assert (made.plan.clips, made.plan.videos) == (4, 2)
    assert dict(made.plan.rejected) == {"known_dead": 4}
    rejected = pd.read_parquet(tmp_path / "out/_acavdl/rejected.parquet")
    assert rejected["row"].tolist() == [3, 4, 5, 6]
    assert set(rejected["value"]) == {GONE, NAMES[2]}
    # The same list in another form is the same; another one is another plan.
    again = tmp_path / "dead.csv"
    again.write_text(f"video_id,outcome,date\nAAAAAAAAAAA,private,\n{NAMES[2]},,\n{GONE},,\n")
    assert acavdl.plan(table, out, **{**options, "tombstones": str(again)}).made is None
    with pytest.raises(PlanMismatchError, match=r"tombstones: '.*' there, None now"):
        acavdl.plan(table, out, config=CONFIG, progress="quiet")
    fewer = {**options, "tombstones": None, "incremental_mode": "extend"}
    assert acavdl.plan(table, out, **fewer).plan.clips == 8
    dead.write_text("\n".join(NAMES))
    with pytest.raises(EmptyTableError, match="stands in the list of --tombstones"):
        acavdl.plan(table, str(tmp_path / "none"), **options)


@pytest.mark.parametrize("piece_rows", [1, 3, 1000])
def test_the_plan_does_not_depend_on_pieces(tmp_path: Path, piece_rows: int) -> None:
    rows = [(name, start, start + 2.0) for name in NAMES for start in (0.0, 4.0)]
    table = write_csv(tmp_path / "clips.csv", [*rows, ("short", 0, 1), (GONE, 0, 9)])
    dead = tmp_path / "dead.txt"
    dead.write_text(GONE)
    options = TableOptions(str(table), tombstones=str(dead))
    found = []
    for name, size in (("one", piece_rows), ("other", 10**6)):
        store = Store(str(tmp_path / name))
        prepare(store, options, CONFIG, piece_rows=size)
        files = ("_acavdl/plan/part-00000.parquet", "_acavdl/rejected.parquet")
        found.append([store.sha256(file) for file in files])
    assert found[0] == found[1]
