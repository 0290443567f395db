"""One shard in this process: order, bounds, stopping, and what is left when it fails."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import http.server
import io
import json
import tarfile
import threading
import time
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from acavdl import shard
from acavdl.config import AudioRate, Clipping, Config, Distribution, Output, Reading, Storage
from acavdl.errors import ClipError, Outcome, StorageError
from acavdl.models import Clip, Cut, Line, Source
from acavdl.resolve import Resolver
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.sandbox.media import DEMO_MASTERS
from acavdl.sandbox.probe import probe
from acavdl.shard import Job, make_shard, process_shard, report_of

READING = Reading(timeout=8.0, retries=0, rate_limit=None)
SPEC_H3 = next(spec for spec in DEMO_MASTERS if spec.code == "h3")
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
    """As the plan has them: additional columns are JSON there."""
    return pd.DataFrame([{**vars(clip), "extra": None} for clip in rows])


@pytest.fixture(autouse=True)
def _not_stopping() -> Iterator[None]:
    yield
    shard.go_on()


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


def test_how_garbage_is_collected_is_the_caller_s_again(online: Sandbox, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    before = gc.get_threshold()
    with pytest.MonkeyPatch.context() as patch:
        real = shard.cut_chosen

        def cut(*args: Any) -> Cut:
            seen.append(gc.get_threshold())
            return real(*args)

        patch.setattr(shard, "cut_chosen", cut)
        make_shard(clips(1), Job(str(tmp_path / "out"), CONFIG, captions=False))
    assert seen == [shard._GC_THRESHOLD]
    assert gc.get_threshold() == before


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
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "00003.parquet", "00003.tar", "00003_stats.json",
    ]  # fmt: skip


def test_stopping_ends_hanging_work_and_publishes_nothing(online: Sandbox, tmp_path: Path) -> None:
    patient = Config(
        Reading(timeout=100.0, rate_limit=None), distribution=Distribution(thread_count=4)
    )
    job = Job(str(tmp_path / "out"), patient, captions=False, tmp_dir=str(tmp_path))
    begun = time.monotonic()
    threading.Timer(1.0, shard.stop).start()
    # More than there are threads: what waits must not begin.
    made = make_shard(clips(12, fault=Fault.PLAYER_HANGS), job)
    assert (made.state, made.clips) == ("partial", 0)
    assert time.monotonic() - begun < 30
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failure_of_the_store_is_loud_and_leaves_nothing(online: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "out/00003.tar").mkdir(parents=True)
    job = Job(str(tmp_path / "out"), CONFIG, captions=False, tmp_dir=str(tmp_path))
    with pytest.raises(StorageError, match=r"00003\.tar"):
        make_shard(clips(2), job)
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["00003.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_captions_become_members(online: Sandbox, tmp_path: Path) -> None:
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


def test_a_video_that_waits_takes_no_thread(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread: the other one is made while the first of the plan waits."""
    told: list[tuple[str, str]] = []
    for name in ("_look_up", "_fetch"):
        real = getattr(shard._Maker, name)

        def spy(self: Any, video: Any, *rest: Any, name: str = name, real: Any = real) -> Any:
            told.append((name, video.clips[0].video_id))
            return real(self, video, *rest)

        monkeypatch.setattr(shard._Maker, name, spy)
    single = replace(CONFIG, distribution=Distribution(thread_count=1))
    (waiting,) = clips(1, fault=Fault.AD_WAIT)
    (other,) = clips(1)
    made = make_shard([waiting, other], Job(str(tmp_path), single, captions=False))
    assert made.counts == {"ok": 2}
    assert told == [
        ("_look_up", waiting.video_id),
        ("_look_up", other.video_id),
        ("_fetch", other.video_id),
        ("_fetch", waiting.video_id),
    ]


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
    begin = shard.cut_chosen

    def slowly(*args: Any) -> Cut:
        time.sleep(3.0)
        return begin(*args)

    monkeypatch.setattr(shard, "cut_chosen", slowly)
    hasty = Config(Reading(timeout=1.5, rate_limit=None), distribution=Distribution(thread_count=1))
    name = video_id(1, master="m60")
    url = f"https://www.youtube.com/watch?v={name}"
    rows = [Clip(name, url, i * 1000, i * 1000 + 900, 3, i) for i in range(2)]
    make_shard(rows, Job(str(tmp_path), hasty, captions=False))
    table = pd.read_parquet(tmp_path / "00003.parquet")
    assert table["outcome"].tolist() == [Outcome.OK, Outcome.TIMEOUT]


# --- what tables can ask for -------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A shard as its readers find it."""

    report: Any
    rows: pd.DataFrame
    samples: dict[str, dict[str, bytes]]

    def json(self, key: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.samples[key]["json"])
        return read


def whole(name: str, row: int = 0, **more: Any) -> Clip:
    """A whole video of the site, as it is planned."""
    return Clip(name, f"https://www.youtube.com/watch?v={name}", None, None, 0, row, **more)


def local(path: Path, row: int = 0, start: int | None = 1000) -> Clip:
    end = None if start is None else start + 2000
    return Clip(f"u{row:016x}", path.as_uri(), start, end, 0, row)


def make(
    folder: Path,
    rows: Sequence[Clip],
    clipping: Clipping | None = None,
    *,
    lines: bool = False,
    reading: Reading = READING,
    output: Output | None = None,
    audio: AudioRate | None = None,
    **more: Any,
) -> Made:
    config = replace(
        CONFIG,
        reading=reading,
        output=output or Output(),
        audio=audio or AudioRate(),
        clipping=clipping or Clipping(),
        storage=Storage(captions_are_subtitles=lines),
    )
    (folder / "tmp").mkdir(parents=True)
    job = Job(str(folder / "out"), config, **{"captions": lines, **more}, tmp_dir=f"{folder}/tmp")
    report = make_shard(rows, job)
    assert list((folder / "tmp").iterdir()) == []
    table = pd.read_parquet(folder / "out/00000.parquet")
    stats = json.loads((folder / "out/00000_stats.json").read_bytes())
    assert report.clips == stats["count"] == len(table) == sum(report.counts.values())
    samples: dict[str, dict[str, bytes]] = {}
    for name, data in members(folder / "out/00000.tar"):
        key, _, extension = name.partition(".")
        assert extension not in samples.setdefault(key, {})
        samples[key][extension] = data
    keys = table.loc[table["outcome"] == "ok", "key"].tolist()
    # A folder has no order.
    listed = sorted if config.output.output_format == "files" else list
    assert listed(samples) == listed(keys)
    return Made(report, table, samples)


def members(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a tar, or the files of the folder that stands in its place."""
    if not tar.exists():
        yield from ((path.name, path.read_bytes()) for path in tar.with_suffix("").iterdir())
        return
    with tarfile.open(tar) as opened:
        for member in opened:
            yield member.name, opened.extractfile(member).read()  # type: ignore[union-attr]


def test_whole_videos(online: Sandbox, tmp_path: Path) -> None:
    names = [video_id(1, master="m60"), video_id(1, fault=Fault.PRIVATE)]
    made = make(tmp_path, [whole(name, row) for row, name in enumerate(names)])
    assert made.rows["key"].tolist() == [f"{name}_full" for name in names]
    assert made.rows["outcome"].tolist() == ["ok", "private"]
    assert made.rows["start"].isna().all()
    assert made.rows["end"].isna().all()
    sample = made.json(f"{names[0]}_full")
    assert sample["clips"] is None
    assert (sample["cut"]["start"], sample["cut"]["end"]) == (None, None)
    assert (sample["cut"]["actual_start"], sample["cut"]["actual_end"]) == (0.0, 12.0)
    shown = probe(made.samples[f"{names[0]}_full"]["mp4"], online.masters["m60"])
    assert (shown.first_frame, shown.last_frame, shown.frames_contiguous) == (0, 719, True)


def test_limits_of_length_are_not_for_whole_videos(online: Sandbox, tmp_path: Path) -> None:
    name = video_id(1, master="m60")
    made = make(tmp_path, [whole(name)], Clipping(min_length=100.0, max_length=200.0))
    assert list(made.samples) == [f"{name}_full"]


def test_subtitles_of_a_clip_and_of_a_whole_video(online: Sandbox, tmp_path: Path) -> None:
    bilingual, none = video_id(3, master="m60"), video_id(3, fault=Fault.SUBTITLES_NONE)
    url = f"https://www.youtube.com/watch?v={bilingual}"
    rows = [whole(bilingual), Clip(bilingual, url, 3000, 6000, 0, 1), whole(none, 2)]
    reading = replace(READING, writesubtitles="all", subtitleslangs=("en", "fr", "de"))
    made = make(tmp_path, rows, reading=reading)
    found = {key: made.json(key)["yt_meta_dict"]["subtitles"] for key in (row.key for row in rows)}
    assert [list(each) for each in found.values()] == [["en", "fr", "de"]] * 3
    everything, some, nothing = found.values()
    assert [line["text"] for line in everything["en"]] == [
        f"line at {at} seconds" for at in range(0, 12, 2)
    ]
    assert some == {
        "en": [
            {"start": 2.0, "end": 4.0, "text": "line at 2 seconds"},
            {"start": 4.0, "end": 6.0, "text": "line at 4 seconds"},
        ],
        "fr": None,
        "de": [
            {"start": 2.0, "end": 4.0, "text": "Zeile bei 2 Sekunden"},
            {"start": 4.0, "end": 6.0, "text": "Zeile bei 4 Sekunden"},
        ],
    }
    assert nothing == {"en": None, "fr": None, "de": None}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [(Fault.SUBTITLES_429, Outcome.HTTP_429), (Fault.SUBTITLES_503, Outcome.HTTP_5XX)],
)
def test_subtitles_that_are_refused_or_lost_fail_the_clip(
    online: Sandbox, tmp_path: Path, fault: Fault, outcome: Outcome
) -> None:
    online.reset()
    reading = replace(READING, writesubtitles="first")
    made = make(tmp_path, [whole(video_id(1, fault=fault))], reading=reading)
    assert made.rows["outcome"].tolist() == [outcome]
    # No byte of media is asked for in vain.
    assert online.stats().requests["media"] == 0


def test_metadata_can_be_left_out(online: Sandbox, tmp_path: Path) -> None:
    name = video_id(1, master="m60")
    reading = replace(READING, get_info=False)
    made = make(tmp_path, [whole(name)], reading=reading, caption_from="title")
    sample = made.json(f"{name}_full")
    assert sample["yt_meta_dict"] == {"info": None, "subtitles": None}
    assert sample["caption"].startswith("Video 1")


@pytest.mark.parametrize("field", ["title", "description"])
def test_caption_may_come_from_the_site(online: Sandbox, tmp_path: Path, field: Any) -> None:
    rows = [*clips(2), *clips(1, fault=Fault.PRIVATE)]
    rows = [replace(clip, shard=0, row=row) for row, clip in enumerate(rows)]
    made = make(tmp_path, rows, captions=True, caption_from=field)
    for clip in rows[:2]:
        sample = made.json(clip.key)
        assert sample["caption"] == sample["yt_meta_dict"]["info"][field] != ""
        assert sample["captions"] == [sample["caption"]]
        assert made.samples[clip.key]["txt"].decode() == sample["caption"]
    assert made.rows["caption"].tolist()[:2] == [made.json(c.key)["caption"] for c in rows[:2]]
    assert made.rows["caption"].isna().tolist() == [False, False, True]


def test_additional_columns_reach_samples_and_rows(online: Sandbox, tmp_path: Path) -> None:
    types = {
        "label": "string",
        "views": "int64",
        "score": "float64",
        "good": "bool",
        "url": "string",
    }
    values = {"label": "a", "views": 7, "score": 0.5, "good": True, "url": "theirs"}
    rows = [*clips(2), *clips(1, fault=Fault.PRIVATE)]
    extras: list[dict[str, Any]] = [values, dict.fromkeys(values), values]
    rows = [
        replace(clip, shard=0, row=row, extra=extra)
        for row, (clip, extra) in enumerate(zip(rows, extras, strict=True))
    ]
    made = make(tmp_path, rows, extra=types)
    for clip in rows[:2]:
        sample = made.json(clip.key)
        assert {name: sample[name] for name in types} == {**clip.extra, "url": clip.url}
    table = pq.read_table(tmp_path / "out/00000.parquet")
    assert [str(table.schema.field(name).type) for name in types] == [
        "string", "int64", "double", "bool", "string",
    ]  # fmt: skip
    assert table["views"].to_pylist() == [7, None, 7]
    assert table["url"].to_pylist() == [clip.url for clip in rows]


# --- subtitles that become clips ---------------------------------------------------------------


def test_lines_become_clips(online: Sandbox, tmp_path: Path) -> None:
    online.reset()
    name = video_id(1, master="m60")
    extra = {"label": "kept"}
    rows = [whole(name, 0, extra=extra), whole(video_id(1, fault=Fault.PRIVATE), 1, extra=extra)]
    made = make(tmp_path, rows, lines=True, extra={"label": "string"})
    keys = [f"{name}_{at:09d}_{at + 2000:09d}" for at in range(0, 12_000, 2000)]
    assert made.rows["key"].tolist() == [*keys, rows[1].key]
    assert made.rows["outcome"].tolist() == ["ok"] * 6 + ["private"]
    assert made.rows["row"].tolist() == [0] * 6 + [1]
    assert made.rows["start"].tolist()[:6] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert made.rows["start"].isna().tolist()[6:] == [True]
    for number, key in enumerate(keys):
        text = f"line at {2 * number} seconds"
        sample = made.json(key)
        assert (sample["caption"], sample["captions"], sample["label"]) == (text, [text], "kept")
        assert sample["clips"] == [[2.0 * number, 2.0 * number + 2.0]]
        assert sample["yt_meta_dict"]["subtitles"] is None
        assert made.samples[key]["txt"].decode() == text
        shown = probe(made.samples[key]["mp4"], online.masters["m60"])
        assert shown.first_frame == round(sample["cut"]["actual_start"] * 60)
    # One extraction, one file of each kind, and its costs in one row.
    asked = online.stats().videos[name]
    assert (asked["page"], asked["player"], asked["subtitles"], asked["media"]) == (1, 1, 1, 4)
    assert (made.rows["requests"] > 0).tolist() == [True, *[False] * 5, True]


def test_lines_are_split_and_short_ones_left_out(online: Sandbox, tmp_path: Path) -> None:
    # 9 s: its last line is of 1 s alone.
    name = video_id(1, master="webm")
    limits = Clipping(min_length=0.5, max_length=1.5)
    made = make(tmp_path, [whole(name)], limits, lines=True)
    spans = [(round(a * 1000), round(b * 1000)) for a, b in made.rows[["start", "end"]].to_numpy()]
    expected = [
        (at + a, at + b) for at in range(0, 8000, 2000) for a, b in ((0, 1500), (1500, 2000))
    ]
    assert spans == [*expected, (8000, 9000)]
    assert set(made.rows["outcome"]) == {"ok"}


@pytest.mark.parametrize(
    ("fault", "automatic", "outcome"),
    [
        (Fault.SUBTITLES_NONE, True, Outcome.NO_SUBTITLES),
        (Fault.SUBTITLES_AUTOMATIC, False, Outcome.NO_SUBTITLES),
        (Fault.SUBTITLES_429, True, Outcome.HTTP_429),
        (Fault.SUBTITLES_NOISE, True, Outcome.EXTRACTOR_BROKEN),
        (Fault.MEDIA_404, True, Outcome.HTTP_404_MEDIA),
        # It is looked up twice.
        (Fault.MEDIA_403, True, Outcome.HTTP_403_MEDIA),
    ],
)
def test_video_without_clips_is_one_row(
    online: Sandbox, tmp_path: Path, fault: Fault, automatic: bool, outcome: Outcome
) -> None:
    name = video_id(1, fault=fault)
    reading = replace(READING, writeautomaticsub=automatic)
    made = make(tmp_path, [whole(name)], lines=True, reading=reading)
    assert made.rows["outcome"].tolist() == [outcome]
    assert made.rows["key"].tolist() == [f"{name}_full"]
    assert made.rows["detail"].str.len().min() > 0
    assert made.rows[["caption", "start", "end"]].isna().all(axis=None)


def test_lines_of_speech_recognition_become_clips_if_asked_for(
    online: Sandbox, tmp_path: Path
) -> None:
    name = video_id(1, fault=Fault.SUBTITLES_AUTOMATIC)
    reading = replace(READING, writeautomaticsub=True, subtitleslangs=("fr", "en"))
    made = make(tmp_path, [whole(name)], lines=True, reading=reading)
    assert set(made.rows["outcome"]) == {"ok"}
    assert made.rows["caption"].tolist()[:2] == ["words at 0 seconds", "words at 2 seconds"]
    # Those of the next line that roll with it are not in its span.
    assert (made.rows["end"] - made.rows["start"]).max() == 2.0


def test_video_whose_lines_are_all_too_short(online: Sandbox, tmp_path: Path) -> None:
    name = video_id(1, master="m60")
    made = make(tmp_path, [whole(name)], Clipping(min_length=2.5), lines=True)
    row = made.rows.iloc[0]
    assert (row["outcome"], row["key"]) == (Outcome.NO_SUBTITLES, f"{name}_full")
    assert "none of 6 lines is as long as min_length, 2.5 s" in row["detail"]


def saying(monkeypatch: pytest.MonkeyPatch, *lines: Line) -> None:
    """Have all videos of the site say something else."""
    resolve = Resolver.resolve

    def resolved(self: Resolver, url: str) -> Source:
        return replace(resolve(self, url), subtitles={"en": lines})

    monkeypatch.setattr(Resolver, "resolve", resolved)


def test_lines_beyond_the_end_and_of_one_span(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = video_id(1, master="m60")
    lines = [Line(0, 900, "a"), Line(0, 900, "b"), Line(0, 901, "c"), Line(20_000, 21_000, "late")]
    saying(monkeypatch, *lines)
    made = make(tmp_path, [whole(name)], lines=True)
    assert made.rows["caption"].tolist() == ["a", "c", "late"]
    assert made.rows["outcome"].tolist() == ["ok", "ok", Outcome.CLIP_OUT_OF_RANGE]
    assert made.rows["key"].is_unique


def test_each_line_has_its_time(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video of many lines may take longer than a clip, and the sum of theirs at most."""
    begin = shard.cut_chosen

    def slowly(*args: Any) -> Cut:
        time.sleep(0.6)
        return begin(*args)

    monkeypatch.setattr(shard, "cut_chosen", slowly)
    reading = replace(READING, timeout=2.0)
    made = make(tmp_path, [whole(video_id(1, master="m60"))], lines=True, reading=reading)
    assert made.rows["outcome"].tolist() == ["ok"] * 6


def test_lines_without_measure_are_refused_before_they_are_made() -> None:
    source = Source((), {}, None, None, {}, subtitles={"en": (Line(0, 999_999_999, "x"),)})
    with pytest.raises(ClipError, match="more than") as raised:
        shard._line_clips([whole("a")], source, Clipping(max_length=0.001))
    assert raised.value.outcome is Outcome.NO_SUBTITLES


# --- parts of files, and whole ones -------------------------------------------------------------


@pytest.mark.parametrize("precision", ["low", "editlist", "keyframe_adjusted"])
@pytest.mark.parametrize(
    "output",
    [
        Output(),
        Output(encode_formats={"video": "mp4", "audio": "m4a"}),
        Output(encode_formats={"audio": "m4a"}),
        Output(encode_formats={"audio": "flac"}),
    ],
    ids=["mp4", "mp4+m4a", "m4a", "flac"],
)
def test_parts_and_whole_files_give_the_same_samples(
    online: Sandbox, tmp_path: Path, output: Output, precision: str
) -> None:
    """Of each kind of file: adaptive, progressive, and one that no part can be told of."""
    masters = ("m30", "ntsc", "prog", "webm")
    names = [video_id(7, master=code) for code in masters]
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", start, start + 6000, 0, row)
        for row, (name, start) in enumerate((n, s) for n in names for s in (0, 1234, 2600))
    ]
    found = {}
    for fetch in ("ranges", "whole"):
        reading = replace(READING, fetch=fetch)
        clipping = Clipping(precision=precision)
        online.reset()
        made = make(tmp_path / fetch, rows, clipping, reading=reading, output=output)
        found[fetch] = made.samples, made.rows, online.stats().videos
    (parts, parted, few), (wholes, row_of, many) = found["ranges"], found["whole"]
    assert parts == wholes
    facts = ["key", "outcome", "bytes", "sha256", "actual_start", "actual_end", "frames"]
    assert parted[facts].equals(row_of[facts])
    # Few spans of 6 s have two keyframes.
    adjusted = precision == "keyframe_adjusted" and "video" in output.encode_formats
    assert (parted["outcome"] == "ok").sum() >= (3 if adjusted else len(rows))
    assert [few[name]["media"] for name in names] != [many[name]["media"] for name in names]


def test_a_clip_takes_its_bytes_alone(online: Sandbox, tmp_path: Path) -> None:
    """Of a video of three hours: its head, and what holds ten seconds, in four requests."""
    name = video_id(1, master="h3")
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", start, start + 10_000, 0, 0)
        for start in (5_000_123,)
    ]
    online.reset()
    made = make(tmp_path, rows)
    assert made.rows["outcome"].tolist() == ["ok"]
    assert made.rows["requests"].tolist() == [6]
    assert online.stats().videos[name]["media"] == 4
    # Fragments last 5.12 s and 10.24 s.
    assert made.rows["bytes_fetched"][0] < 2_000_000
    (sample,) = made.samples.values()
    shown = probe(sample["mp4"], SPEC_H3, near=5000.0)
    assert shown.first_frame is not None
    assert shown.first_frame / SPEC_H3.fps == pytest.approx(made.rows["actual_start"][0])


def test_a_video_of_many_clips_is_made_in_parts(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part costs its bytes; the sums are the video's, and the samples as if made at once."""
    name = video_id(1, master="m25")
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", at, at + 2000, 0, row)
        for row, at in enumerate(range(0, 40_000, 1000))
    ]
    online.reset()
    made = make(tmp_path / "parts", rows)
    stats = online.stats()
    assert set(made.rows["outcome"]) == {"ok"}
    assert (made.rows["requests"] > 0).sum() == 3
    assert made.rows["requests"].sum() == sum(stats.requests.values())
    assert (stats.requests["page"], stats.requests["player"]) == (1, 1)
    monkeypatch.setattr(shard, "_GROUP", 1000)
    assert make(tmp_path / "once", rows).samples == made.samples


def test_an_address_that_expires_between_two_parts_is_asked_for_again(
    online: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = video_id(1, master="m25")
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", at, at + 2000, 0, row)
        for row, at in enumerate(range(0, 20_000, 1000))
    ]
    real, calls = shard._Maker._fetch, []

    def expired(self: Any, video: Any, source: Any, group: Any) -> Any:
        calls.append(len(group))
        if len(calls) == 2:
            raise ClipError(Outcome.HTTP_403_MEDIA, "HTTP Error 403 on a media URL: expired")
        return real(self, video, source, group)

    monkeypatch.setattr(shard._Maker, "_fetch", expired)
    online.reset()
    made = make(tmp_path, rows)
    assert calls == [16, 4, 4]
    assert made.rows["outcome"].tolist() == ["ok"] * 20
    assert made.rows["attempts"].tolist() == [1] * 16 + [2] * 4
    assert online.stats().requests["player"] == 2


# --- sound, and files --------------------------------------------------------------------------


def media_sizes(site: Sandbox, master: str) -> dict[int, int]:
    return {each.itag: each.size for each in site.masters[master].renditions}


@pytest.mark.parametrize("kind", ["m4a", "flac", "wav"])
def test_sound_alone_fetches_no_picture(online: Sandbox, tmp_path: Path, kind: str) -> None:
    online.reset()
    name = video_id(1, master="m60")
    rows = [Clip(name, f"https://www.youtube.com/watch?v={name}", 2345, 5678, 0, 0), whole(name, 1)]
    made = make(tmp_path, rows, output=Output(encode_formats={"audio": kind}))
    assert made.rows["outcome"].tolist() == ["ok", "ok"]
    assert made.rows["format_id"].tolist() == ["140", "140"]
    # Not a byte more than the file of the sound.
    assert online.stats().bytes["media"] == media_sizes(online, "m60")[140]
    for clip, length in zip(rows, (5.678 - 2.345, 12.0), strict=True):
        assert set(made.samples[clip.key]) == {kind, "json"}
        cut = made.json(clip.key)["cut"]
        shown = probe(made.samples[clip.key][kind], online.masters["m60"])
        assert not shown.has_video
        assert cut["actual_start"] == pytest.approx(clip.start or 0.0)
        assert shown.audio_start == pytest.approx(cut["actual_start"], abs=1e-4)
        assert cut["actual_end"] - cut["actual_start"] == pytest.approx(length, abs=0.03)
        assert (cut["sample_rate"], cut["channels"], cut["source_audio_codec"]) == (
            44_100,
            2,
            "aac",
        )
        assert [cut[fact] for fact in ("frames", "fps", "width", "video_codec")] == [None] * 4
        row = made.rows.set_index("key").loc[clip.key]
        assert row["bytes"] == len(made.samples[clip.key][kind])
        assert row["sha256"] == hashlib.sha256(made.samples[clip.key][kind]).hexdigest()
    assert made.rows[["audio_bytes", "audio_sha256", "frames", "width"]].isna().all(axis=None)


def test_sound_alone_of_what_there_is(online: Sandbox, tmp_path: Path) -> None:
    """No picture is missed; Opus becomes AAC; a progressive file has sound, too."""
    names = [
        video_id(1, fault=Fault.NO_VIDEO),
        video_id(1, master="webm"),
        video_id(1, master="prog"),
        video_id(1, fault=Fault.NO_AUDIO),
    ]
    rows = [
        Clip(name, f"https://www.youtube.com/watch?v={name}", 1000, 3000, 0, row)
        for row, name in enumerate(names)
    ]
    made = make(tmp_path, rows, output=Output(encode_formats={"audio": "m4a"}))
    assert made.rows["outcome"].tolist() == ["ok", "ok", "ok", Outcome.NO_AUDIO]
    assert made.rows["audio_codec"].tolist()[:3] == ["aac"] * 3
    assert made.rows["source_audio_codec"].tolist()[1:3] == ["opus", "aac"]
    assert made.rows["format_id"].tolist()[1:3] == ["251", "18"]


def test_sound_is_resampled_as_asked_for(online: Sandbox, tmp_path: Path) -> None:
    name = video_id(1, master="m60")
    rows = [Clip(name, f"https://www.youtube.com/watch?v={name}", 2345, 5678, 0, 0)]
    formats = Output(encode_formats={"audio": "wav"})
    made = make(tmp_path, rows, output=formats, audio=AudioRate(16_000, 1))
    with wave.open(io.BytesIO(made.samples[rows[0].key]["wav"])) as read:
        assert (read.getframerate(), read.getnchannels()) == (16_000, 1)
        assert read.getnframes() == round((5.678 - 2.345) * 16_000)


def test_mp4_and_its_sound(online: Sandbox, tmp_path: Path) -> None:
    rows = [replace(clip, shard=0) for clip in clips(2)]
    formats = {"video": "mp4", "audio": "m4a"}
    made = make(tmp_path / "both", rows, output=Output(encode_formats=formats), captions=True)
    plain = make(tmp_path / "plain", rows, captions=True)
    for clip in rows:
        assert set(made.samples[clip.key]) == {"mp4", "m4a", "json", "txt"}
        assert made.samples[clip.key]["mp4"] == plain.samples[clip.key]["mp4"]
        sound = made.samples[clip.key]["m4a"]
        told, alone = made.json(clip.key), plain.json(clip.key)
        second = (told["cut"].pop("audio_bytes"), told["cut"].pop("audio_sha256"))
        assert second == (len(sound), hashlib.sha256(sound).hexdigest())
        assert (alone["cut"].pop("audio_bytes"), alone["cut"].pop("audio_sha256")) == (None, None)
        assert told == alone
        shown = probe(made.samples[clip.key]["mp4"], online.masters["m60"], audio=sound)
        assert shown.audio_offset == pytest.approx(0, abs=0.0005)
        row = made.rows.set_index("key").loc[clip.key]
        assert row["bytes"] == len(made.samples[clip.key]["mp4"])
        assert row["audio_bytes"] == len(sound)
        assert row["audio_sha256"] == hashlib.sha256(sound).hexdigest()


FILES = Output(output_format="files")


def test_files_are_the_members_of_the_tar(online: Sandbox, tmp_path: Path) -> None:
    rows = [*clips(2), *clips(1, fault=Fault.PRIVATE)]
    rows = [replace(clip, shard=0, row=row) for row, clip in enumerate(rows)]
    made = make(tmp_path / "files", rows, output=FILES, captions=True)
    assert made.samples == make(tmp_path / "tar", rows, captions=True).samples
    out = tmp_path / "files/out"
    assert sorted(path.name for path in out.iterdir() if path.name != "_acavdl") == [
        "00000", "00000.parquet", "00000_stats.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "00000").iterdir()) == sorted(
        f"{clip.key}.{kind}" for clip in rows[:2] for kind in ("mp4", "json", "txt")
    )
    stats = json.loads((out / "00000_stats.json").read_bytes())
    stored = sum(path.stat().st_size for path in (out / "00000").iterdir())
    assert (stats["files"]["members"]["count"], stats["files"]["members"]["bytes"]) == (6, stored)
    assert made.report.bytes_stored == stored
    assert list(stats["files"]) == ["members", "parquet"]


def test_shard_of_files_is_published_once(online: Sandbox, tmp_path: Path) -> None:
    job = Job(str(tmp_path), replace(CONFIG, output=FILES), captions=False)
    # What a shard that was given up has left.
    (tmp_path / "00003").mkdir()
    (tmp_path / f"00003/{clips(1)[0].key}.mp4").write_bytes(b"half")
    (tmp_path / "00003/of_a_clip_that_failed_now.mp4").write_bytes(b"whole")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: make_shard(clips(3), job), range(2))
    assert dict(first.counts) == dict(second.counts) == {"ok": 3}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "_acavdl") == [
        "00003", "00003.parquet", "00003_stats.json",
    ]  # fmt: skip
    assert len(list((tmp_path / "00003").iterdir())) == 6
    table = pd.read_parquet(tmp_path / "00003.parquet").set_index("key")
    for clip in clips(3):
        data = (tmp_path / f"00003/{clip.key}.mp4").read_bytes()
        assert hashlib.sha256(data).hexdigest() == table.loc[clip.key, "sha256"]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_shard(clips(3), job).state == "present"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    (tmp_path / "00003.parquet").unlink()
    assert make_shard(clips(3), job).state == "done"


# --- other places ------------------------------------------------------------------------------


def test_files_of_this_machine(sandbox: Sandbox, tmp_path: Path, no_variables: None) -> None:
    both = sandbox.masters["prog"].rendition(18).path
    path = tmp_path / "a b#é.mp4"
    path.write_bytes(both.read_bytes())
    path.chmod(0o444)
    before = path.stat()
    sound = sandbox.masters["m60"].rendition(140).path
    rows = [
        local(path, 0),
        local(path, 0, start=None),
        local(tmp_path / "gone.mp4", 1),
        local(sound.parent, 2),
        local(sound, 3),
    ]
    reading = replace(READING, writesubtitles="all")
    made = make(tmp_path / "made", rows, reading=reading, captions=True, caption_from="title")
    assert made.rows["outcome"].tolist() == ["ok", "ok", "bad_input", "bad_input", "no_video"]
    assert "No such file or directory" in made.rows["detail"].iloc[2]
    sample = made.json(rows[0].key)
    assert set(sample["yt_meta_dict"]["info"].values()) == {None}
    assert sample["yt_meta_dict"]["subtitles"] == {"en": None}
    assert (sample["url"], sample["caption"]) == (path.as_uri(), None)
    assert made.samples[rows[0].key]["txt"] == b""
    shown = probe(made.samples[rows[1].key]["mp4"], sandbox.masters["prog"])
    assert (shown.first_frame, shown.last_frame) == (0, 359)
    assert made.rows["bytes_fetched"].sum() == 0
    # Read where it lies, and left there.
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (
        before.st_mtime_ns, before.st_size, before.st_ino,
    )  # fmt: skip


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ignores ranges, as plain servers do."""

    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is not the place."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_direct_links_to_media(sandbox: Sandbox, tmp_path: Path, no_variables: None) -> None:
    (tmp_path / "www").mkdir()
    data = sandbox.masters["prog"].rendition(18).path.read_bytes()
    names = ["a.mp4", "a b.mp4", "nothing.bin", "gone.mp4"]
    (tmp_path / "www" / names[0]).write_bytes(data)
    (tmp_path / "www" / names[1]).write_bytes(data)
    (tmp_path / "www" / names[2]).write_bytes(b"nothing")
    with served(tmp_path / "www") as base:
        urls = [f"{base}/{name.replace(' ', '%20')}" for name in names]
        rows = [Clip(f"u{n:016x}", url, 2000, 5000, 0, n) for n, url in enumerate(urls)]
        made = make(tmp_path / "made", rows)
    assert made.rows["outcome"].tolist()[:2] == ["ok", "ok"]
    assert made.rows["outcome"].tolist()[3] == "unavailable"
    assert made.rows["outcome"].iloc[2] != "ok"
    shown = probe(made.samples[rows[0].key]["mp4"], sandbox.masters["prog"])
    cut = made.json(rows[0].key)["cut"]
    assert cut["actual_start"] <= 2.0
    assert cut["actual_end"] >= 5.0
    assert shown.first_frame == round(cut["actual_start"] * 30)
    assert shown.frames_contiguous
