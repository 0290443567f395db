"""The whole line: table → plan → Dask → real yt-dlp → real origin → shards, read back."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import EXPECTED, QUICK, write_csv

from acavdl import driver
from acavdl.demo import environment
from acavdl.driver import RunReport
from acavdl.errors import Outcome
from acavdl.sandbox import DEMO_MASTERS, Fault, Sandbox, parse, video_id
from acavdl.sandbox.probe import probe

CLIP_SECONDS = 4.0


@dataclass(frozen=True)
class Made:
    """A dataset, and what it was made of."""

    folder: Path
    table: Path
    report: RunReport
    rows: pd.DataFrame
    samples: dict[str, dict[str, bytes]]


def read_tars(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return the members of all samples by key and extension, in order; each member once."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                assert extension not in samples.setdefault(key, {}), member.name
                samples[key][extension] = file.read()
    return samples


def rows_of(folder: Path) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))], ignore_index=True
    )


def key_of(video: str, start: float, end: float) -> str:
    return f"{video}_{round(start * 1000):09d}_{round(end * 1000):09d}"


def table_rows() -> list[tuple[str, float, float]]:
    """Clips all over each of the site's videos, and one for each way to fail."""
    chance = random.Random(7)
    rows = []
    for spec in DEMO_MASTERS:
        if spec.virtual is None:
            for number in range(3):
                last = spec.duration - CLIP_SECONDS
                starts = (0.0, chance.uniform(0, last), chance.uniform(0, last), last - 0.5)
                for start in starts[number:]:
                    begin = round(start, 3)
                    rows.append((video_id(number, master=spec.code), begin, begin + CLIP_SECONDS))
    rows += [(video_id(1, fault=fault), 1.25, 1.25 + CLIP_SECONDS) for fault in Fault]
    # Beyond the end of the video, and a second clip of a dead one.
    rows.append((video_id(9, master="m60"), 100.0, 104.0))
    rows.append((video_id(1, fault=Fault.PRIVATE), 7.0, 11.0))
    return rows


@pytest.fixture(scope="module")
def made(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The dataset of `table_rows`, made once."""
    folder = tmp_path_factory.mktemp("line")
    table = write_csv(folder / "clips.csv", table_rows())
    with environment(sandbox.environ()):
        report = driver.run(str(table), str(folder / "out"), config=QUICK, progress="quiet")
    out = folder / "out"
    return Made(out, table, report, rows_of(out), read_tars(out))


def test_every_fault_is_expected_somehow() -> None:
    assert set(EXPECTED) == set(Fault)


def test_samples_are_exactly_the_available_clips(made: Made) -> None:
    available = {
        key_of(video, start, end)
        for video, start, end in table_rows()
        if (fault := parse(video).fault) is None or EXPECTED[fault] is Outcome.OK
    } - {key_of(video_id(9, master="m60"), 100.0, 104.0)}
    assert set(made.samples) == available
    assert all(set(members) == {"mp4", "json"} for members in made.samples.values())


def test_parquet_has_every_planned_clip_once(made: Made) -> None:
    planned = {key_of(*row) for row in table_rows()}
    assert sorted(made.rows["key"]) == sorted(planned)
    ok = made.rows[made.rows["outcome"] == "ok"]
    assert set(ok["key"]) == set(made.samples)
    assert (ok["status"] == "success").all()
    assert ok["detail"].isna().all()


@pytest.mark.parametrize("fault", Fault)
def test_outcome(made: Made, fault: Fault) -> None:
    rows = made.rows[made.rows["video_id"] == video_id(1, fault=fault)]
    assert set(rows["outcome"]) == {EXPECTED[fault]}
    assert (rows["outcome"] == "ok").all() or rows["detail"].str.len().min() > 0


def test_clip_beyond_the_end_is_the_clips_own_failure(made: Made) -> None:
    row = made.rows[made.rows["video_id"] == video_id(9, master="m60")].iloc[0]
    assert row["outcome"] == Outcome.CLIP_OUT_OF_RANGE
    assert row["status"] == "failed_to_subsample"


def test_each_clip_begins_and_ends_where_its_json_says(made: Made, sandbox: Sandbox) -> None:
    for key, members in made.samples.items():
        sample = json.loads(members["json"])
        cut = sample["cut"]
        master = sandbox.masters[parse(cut["video_id"]).master]
        shown = probe(members["mp4"], master)
        fps = float(master.spec.fps)
        assert (shown.has_video, shown.has_audio) == (True, True), key
        told = (cut["bytes"], cut["sha256"], cut["audio_bytes"], cut["audio_sha256"])
        digest = hashlib.sha256(members["mp4"]).hexdigest()
        assert told == (len(members["mp4"]), digest, None, None), key
        assert shown.frames_contiguous, key
        assert shown.frames == cut["frames"], key
        # `low`: at or before the start; ends at or after the end, by a group of B-frames at most.
        assert cut["actual_start"] <= cut["start"] < cut["end"] <= cut["actual_end"], key
        assert shown.first_frame == round(cut["actual_start"] * fps), key
        assert shown.last_frame == round(cut["actual_end"] * fps) - 1, key
        assert cut["actual_end"] - cut["end"] < 4 / fps, key
        # A WebM file tells times in whole milliseconds.
        tolerance = 0.0015 if cut["audio_codec"] == "opus" else 0.0005
        assert shown.audio_offset == pytest.approx(0, abs=tolerance), key
        assert shown.audio_start == pytest.approx(cut["actual_start"], abs=0.002), key
        # The sound ends with a packet, never before the picture.
        assert -0.001 < shown.audio_end - cut["actual_end"] < 0.05, key
        assert shown.audio_steady, key
        assert (shown.width, shown.height) == (cut["width"], cut["height"]), key
        assert min(cut["width"], cut["height"]) == 360, key


def test_members_stand_in_the_order_of_the_plan(made: Made) -> None:
    plan = pd.concat(
        [
            pq.read_table(path).to_pandas()
            for path in sorted((made.folder / "_acavdl/plan").glob("*.parquet"))
        ]
    )
    planned = [
        key_of(row.video_id, row.start_ms / 1000, row.end_ms / 1000) for row in plan.itertuples()
    ]
    assert [key for key in planned if key in made.samples] == list(made.samples)
    assert planned == list(made.rows["key"])
    assert (plan.groupby("video_id")["shard"].nunique() == 1).all()


def test_parquet_tells_the_truth_about_the_samples(made: Made) -> None:
    for row in made.rows[made.rows["outcome"] == "ok"].itertuples():
        cut = json.loads(made.samples[row.key]["json"])["cut"]
        assert row.bytes == len(made.samples[row.key]["mp4"])
        # pandas makes NaN of the sizes of a second member that there is not.
        there = {name: value for name, value in cut.items() if value is not None}
        assert {name: getattr(row, name) for name in there} == there
        assert set(cut) - set(there) == {"audio_bytes", "audio_sha256"}


def test_one_extraction_serves_all_clips_of_a_video(made: Made) -> None:
    ok = made.rows[(made.rows["outcome"] == "ok") & (made.rows["attempts"] == 1)]
    ordinary = ok[[parse(video).fault is None for video in ok["video_id"]]]
    costs = ordinary.groupby("video_id").agg(requests=("requests", "sum"), clips=("key", "size"))
    assert len(costs) == 24
    # A page, a player's answer, and of each file its head, and a range for each clip at most.
    assert (costs["requests"] >= 4).all()
    assert (costs["requests"] <= 2 + 2 * (1 + costs["clips"])).all()


def test_stats_are_the_references_and_match(made: Made) -> None:
    for path in sorted(made.folder.glob("*_stats.json")):
        stats = json.loads(path.read_text())
        shard = made.rows[made.rows["shard"] == int(path.name[:5])]
        assert stats["count"] == len(shard)
        assert stats["successes"] == (shard["status"] == "success").sum()
        assert stats["failed_to_download"] == (shard["status"] == "failed_to_download").sum()
        assert stats["failed_to_subsample"] == (shard["status"] == "failed_to_subsample").sum()
        assert stats["bytes_downloaded"] == shard["bytes_fetched"].sum()
        assert stats["start_time"] < stats["end_time"]
        assert sum(stats["status_dict"].values()) == len(shard)
        for kind in ("tar", "parquet"):
            file = made.folder / f"{path.name[:5]}.{kind}"
            assert stats["files"][kind]["bytes"] == file.stat().st_size


def test_report_agrees_with_the_parquet(made: Made) -> None:
    counts = made.rows["outcome"].value_counts().to_dict()
    assert dict(made.report.snapshot.counts) == counts
    assert made.report.successes == len(made.samples)
    assert made.report.snapshot.done == made.report.snapshot.total == len(made.rows)
    assert made.report.failed_shards == {}
    assert made.report.snapshot.bytes_fetched == made.rows["bytes_fetched"].sum()


def test_nothing_else_lies_in_the_folder(made: Made) -> None:
    shards = {f"{shard:05d}" for shard in made.rows["shard"]}
    files = {f"{shard}{end}" for shard in shards for end in (".tar", ".parquet", "_stats.json")}
    assert {path.name for path in made.folder.iterdir()} == files | {"_acavdl"}


def test_a_second_run_makes_the_same_bytes(made: Made, online: Sandbox, tmp_path: Path) -> None:
    """Byte-identical tars, though threads, waits and retries came differently."""
    again = driver.run(str(made.table), str(tmp_path / "again"), config=QUICK, progress="quiet")
    assert again.successes == made.report.successes
    for path in sorted(made.folder.glob("*.tar")):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    for part in sorted((made.folder / "_acavdl/plan").iterdir()):
        assert (tmp_path / "again/_acavdl/plan" / part.name).read_bytes() == part.read_bytes()


def test_running_again_goes_on_behind_the_published_shards(made: Made, online: Sandbox) -> None:
    name = sorted(made.folder.glob("*.tar"))[0].name[:5]
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    content = (made.folder / f"{name}.tar").read_bytes()
    (made.folder / f"{name}.tar").write_bytes(content[: len(content) // 2])
    report = driver.run(str(made.table), str(made.folder), config=QUICK, progress="quiet")
    after = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    assert {file for file in after if after[file] != before[file]} == {f"{name}.tar"}
    assert (made.folder / f"{name}.tar").read_bytes() == content
    assert report.made is None
    assert dict(report.snapshot.counts) == dict(made.report.snapshot.counts)


def webdataset_samples(folder: Path) -> Iterator[dict[str, Any]]:
    import webdataset

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    yield from webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)


# webdataset leaves the files it read to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_returns_what_was_written(made: Made) -> None:
    read = {sample["__key__"]: sample for sample in webdataset_samples(made.folder)}
    assert list(read) == list(made.samples)
    for key, members in made.samples.items():
        assert {name: read[key][name] for name in members} == members


def test_hugging_face_datasets_returns_what_was_written(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = [str(path) for path in sorted(made.folder.glob("*.tar"))]
    dataset = datasets.load_dataset(
        "webdataset",
        data_files={"train": files},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    ).cast_column("mp4", datasets.Video(decode=False))
    read = {sample["__key__"]: sample for sample in dataset}
    assert list(read) == list(made.samples)
    for key, members in made.samples.items():
        assert read[key]["json"] == json.loads(members["json"]), key
        assert read[key]["mp4"]["bytes"] == members["mp4"], key


def test_samples_play_in_another_library(made: Made) -> None:
    import av

    for members in list(made.samples.values())[:5]:
        with av.open(io.BytesIO(members["mp4"])) as container:
            assert len(container.streams.video) == len(container.streams.audio) == 1
            assert sum(1 for _ in container.decode(video=0)) > 0
