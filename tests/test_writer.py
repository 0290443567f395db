"""Tars and rows as readers find them."""

from __future__ import annotations

import datetime
import hashlib
import io
import itertools
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.errors import Outcome
from acavdl.models import Clip, ClipResult, Cut, Line
from acavdl.resolve import typed_info
from acavdl.storage import Store
from acavdl.writer import (
    SCHEMA,
    Finished,
    FolderWriter,
    Layout,
    TarWriter,
    parquet_table,
    row_of,
    sample_json,
    schema_of,
    status_of,
)

HERE = Finished("node-7", "2026.10.26")
NOW_MS = 1_790_000_000_123
HOSTILE = [
    "../../etc/passwd",
    "a/b\\c",
    "ein Hund läuft – 犬が走る 🐕\u200b",
    "line\nbreak\r\n\ttab",
    "nul\0nul",
    '{"key": "x"}, "quoted"',
    "x" * 5000,
    "",
    "dQw4w9WgXcQ_000000000_000010000.mp4",
    "\u202egpj.exe",
]


def clip(number: int = 0, caption: str | None = None, video: str = "dQw4w9WgXcQ") -> Clip:
    start = 10_000 * number
    url = f"https://www.youtube.com/watch?v={video}"
    return Clip(video, url, start, start + 10_000, shard=3, row=number, caption=caption)


def made(number: int = 0, **changes: Any) -> ClipResult:
    """A successful clip whose times are whole numbers of seconds."""
    data = bytes([number % 256]) * (1000 + number)
    cut = Cut({"mp4": data}, 10.0, 20.0, "aac", "aac", 44_100, 2, 300, 30.0, 640, 360, "h264", 0.0)
    seconds = {"resolve": 0.5, "fetch": 0.25, "cut": 0.0}
    whole = ClipResult(
        clip(number),
        Outcome.OK,
        None,
        cut,
        info=typed_info({"title": "Ünï 🐕", "duration": 60, "tags": ["a"]}),
        format_id="134+140",
        video_duration=60.0,
        bytes_fetched=4096,
        requests=5,
        attempts=1,
        seconds=seconds,
    )
    return replace(whole, **changes)


def heard(number: int = 0, kind: str = "m4a") -> ClipResult:
    """A successful clip of sound alone."""
    cut = Cut({kind: bytes([number]) * 500}, 10.0, 20.0, "aac", "opus", 48_000, 1)
    return made(number, cut=cut, format_id="251")


def both(number: int = 0) -> ClipResult:
    """A successful clip with its sound in a second file."""
    cut = made(number).cut
    assert cut is not None
    return made(number, cut=replace(cut, members={**cut.members, "m4a": b"sound"}))


def failed(outcome: Outcome, number: int = 0) -> ClipResult:
    return ClipResult(clip(number), outcome, f"because of {outcome}")


def write(results: Sequence[ClipResult], *, captions: bool = False) -> bytes:
    file = io.BytesIO()
    writer = TarWriter(file, Layout(captions=captions))
    for result in results:
        writer.write(result)
    writer.close()
    assert not file.closed
    return file.getvalue()


def members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = []
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            found.append((member, file.read()))
        return found


# --- the tar -------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", [False, True])
def test_members_of_a_sample_stand_together_in_order(captions: bool) -> None:
    results = [made(number) for number in (4, 2, 9, 0)]
    found = members(write(results, captions=captions))
    extensions = ("mp4", "json", "txt") if captions else ("mp4", "json")
    names = [member.name for member, _ in found]
    samples = [
        (key, tuple(name.partition(".")[2] for name in group))
        for key, group in itertools.groupby(names, lambda name: name.partition(".")[0])
    ]
    assert [key for key, _ in samples] == [result.clip.key for result in results]
    assert {frozenset(kinds) for _, kinds in samples} == {frozenset(extensions)}
    contents = {member.name: content for member, content in found}
    for result in results:
        assert result.cut is not None
        assert contents[f"{result.clip.key}.mp4"] == result.cut.main
        assert json.loads(contents[f"{result.clip.key}.json"]) == sample_json(result)


def test_the_tar_tells_nothing_of_where_and_when_it_was_made() -> None:
    results = [made(number) for number in range(3)]
    slower = [
        replace(
            result, bytes_fetched=1, requests=99, attempts=7, seconds={"resolve": 9.0, "cut": 8.0}
        )
        for result in results
    ]
    data = write(results)
    assert write(slower) == data
    for member, _ in members(data):
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        assert (member.uname, member.gname) == ("", "")


def test_captions_reach_the_text_as_they_are_and_no_name() -> None:
    results = [
        replace(made(number), clip=clip(number, caption)) for number, caption in enumerate(HOSTILE)
    ]
    results.append(replace(made(99), clip=clip(99, None)))
    found = members(write(results, captions=True))
    texts = {member.name: content.decode() for member, content in found}
    for result in results:
        assert texts[f"{result.clip.key}.txt"] == (result.clip.caption or "")
        read = json.loads(texts[f"{result.clip.key}.json"])
        assert read["caption"] == result.clip.caption
    keys = {result.clip.key for result in results}
    assert {name.partition(".")[0] for name in texts} == keys


@pytest.mark.parametrize(
    "video", ["../../../x", "/etc/passwd", "a.b.c.d.e.f", "", "é" * 11, "a\nb"]
)
def test_no_video_id_of_a_table_becomes_a_path(video: str, tmp_path: Path) -> None:
    data = write([replace(made(), clip=clip(video=video))])
    for member, _ in members(data):
        stem, dot, extension = member.name.partition(".")
        assert dot
        assert extension in ("mp4", "json")
        assert stem.isascii()
        assert stem.replace("_", "").isalnum()
    # Python before 3.11.4 has no filter: names must be harmless without one, too.
    options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(tmp_path / "here", **options)
    assert {path.parent for path in tmp_path.rglob("*.*")} == {tmp_path / "here"}


def test_an_empty_shard_is_a_valid_tar() -> None:
    assert members(write([])) == []


def test_closing_twice_writes_the_end_once() -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    writer.write(made())
    writer.close()
    size = len(file.getvalue())
    writer.close()
    assert len(file.getvalue()) == size


def test_a_failed_clip_has_no_sample() -> None:
    file = io.BytesIO()
    writer = TarWriter(file)
    with pytest.raises(ValueError, match="private"):
        writer.write(failed(Outcome.PRIVATE))
    with pytest.raises(ValueError, match="private"):
        sample_json(failed(Outcome.PRIVATE))
    writer.close()
    assert members(file.getvalue()) == []


@pytest.mark.parametrize(
    ("result", "extensions"),
    [
        (made(), ["json", "mp4"]),
        (both(), ["json", "m4a", "mp4"]),
        (heard(), ["json", "m4a"]),
        (heard(kind="flac"), ["flac", "json"]),
    ],
)
def test_members_are_those_of_the_cut(result: ClipResult, extensions: list[str]) -> None:
    names = [member.name for member, _ in members(write([result]))]
    assert names == [f"{clip().key}.{extension}" for extension in extensions]


def test_tar_tells_its_size_and_hash(tmp_path: Path) -> None:
    with Store(str(tmp_path)).stage("0.tar") as file:
        writer = TarWriter(file)
        writer.write(made())
        writer.close()
        writer.commit()
    data = (tmp_path / "0.tar").read_bytes()
    assert writer.size == len(data)
    told = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert writer.stats() == {"tar": told}
    assert data == write([made()])


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("captions", [False, True])
def test_files_hold_what_the_tar_would(captions: bool, tmp_path: Path) -> None:
    results = [made(4), both(2), replace(heard(9), clip=clip(9, "Hünd\n"))]
    layout = Layout(captions=captions)
    writer = FolderWriter(Store(str(tmp_path)), "00003", layout)
    for result in results:
        writer.write(result)
    writer.close()
    writer.commit()
    found = {path.name: path.read_bytes() for path in (tmp_path / "00003").iterdir()}
    tar = {member.name: data for member, data in members(write(results, captions=captions))}
    assert found == tar
    assert [path.name for path in tmp_path.iterdir()] == ["00003"]
    stats = writer.stats()["members"]
    assert stats["count"] == len(found) == (10 if captions else 7)
    assert stats["bytes"] == writer.size == sum(map(len, found.values()))


def test_hash_of_files_is_what_a_shell_says(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    writers = [FolderWriter(store, name) for name in ("0", "1")]
    for writer, order in zip(writers, ((3, 1, 2), (2, 3, 1)), strict=True):
        for number in order:
            writer.write(made(number))
    told = subprocess.run(
        "cd 0 && LC_ALL=C sha256sum * | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert writers[0].stats()["members"]["sha256"] == told.stdout.split()[0]
    assert writers[0].stats() == writers[1].stats()


def test_files_are_written_over(tmp_path: Path) -> None:
    """As left by a shard that was given up, or by another copy of the same task."""
    store = Store(str(tmp_path))
    for result in (made(1, cut=heard(7, "mp4").cut), made(1), made(1)):
        writer = FolderWriter(store, "00003")
        writer.write(result)
    assert (tmp_path / f"00003/{clip(1).key}.mp4").read_bytes() == bytes([1]) * 1001
    assert len(list((tmp_path / "00003").iterdir())) == 2
    with pytest.raises(ValueError, match="private"):
        writer.write(failed(Outcome.PRIVATE))


# --- the JSON ------------------------------------------------------------------------------------


def shape(value: Any) -> Any:
    """Types of a JSON value, by key; null stands for what is missing."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return None if value is None else type(value)


def agree(one: Any, other: Any) -> bool:
    """Whether two shapes have the same keys, in order, and types where both have values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(agree(one[name], other[name]) for name in one)
    return one is None or other is None or one == other


INFOS = st.fixed_dictionaries(
    {},
    optional={
        "title": st.text() | st.none(),
        "duration": st.integers(0, 10**6) | st.floats(0, 1e6),
        "view_count": st.integers(0, 2**60) | st.none(),
        "tags": st.lists(st.text(), max_size=3),
        "categories": st.none(),
        "upload_date": st.just("20260102"),
        "formats": st.just([{"url": "https://secret"}]),
    },
)


@settings(deadline=None)
@given(
    info=INFOS,
    caption=st.none() | st.text(),
    start=st.integers(0, 10**9),
    whole=st.booleans(),
)
def test_every_sample_has_the_same_keys_and_types(
    info: dict[str, Any], caption: str | None, start: int, whole: bool
) -> None:
    usual = orjson.loads(orjson.dumps(sample_json(made())))
    given_clip = replace(clip(0, caption), start_ms=start, end_ms=start + 10_000)
    result = made(clip=given_clip, info=typed_info(info))
    if not whole:
        result = replace(result, format_id=None, video_duration=None)
    written = orjson.dumps(sample_json(result))
    read = orjson.loads(written)
    assert read == json.loads(written)
    assert agree(shape(read), shape(usual))
    assert read["clips"] == [[start / 1000, (start + 10_000) / 1000]]
    assert all(type(time) is float for time in read["clips"][0])
    assert b"secret" not in written


def test_whole_numbers_of_seconds_stay_floats() -> None:
    """A reader that infers types from the first sample must not meet another one later."""
    text = orjson.dumps(sample_json(made())).decode()
    read = json.loads(text)
    for name in ("start", "end", "actual_start", "actual_end", "fps", "av_offset"):
        assert type(read["cut"][name]) is float, name
    for name in ("frames", "width", "height", "sample_rate", "channels"):
        assert type(read["cut"][name]) is int, name
    assert '"actual_start":10.0' in text


@pytest.mark.parametrize("result", [heard(), heard(kind="wav"), both()])
def test_sound_has_the_same_keys(result: ClipResult) -> None:
    """What is the picture's is null without one."""
    read, usual = (json.loads(orjson.dumps(sample_json(each))) for each in (result, made()))
    assert agree(shape(read), shape(usual))
    if result.cut is not None and result.cut.frames is None:
        picture = ("frames", "fps", "width", "height", "video_codec", "av_offset")
        assert [read["cut"][name] for name in picture] == [None] * 6
        assert (read["cut"]["audio_codec"], read["cut"]["source_audio_codec"]) == ("aac", "opus")


REFERENCE = ["key", "url", "caption", "status", "error_message", "clips", "yt_meta_dict"]


def test_the_references_keys() -> None:
    read = sample_json(made())
    assert list(read) == [*REFERENCE, "captions", "cut"]
    assert (read["status"], read["error_message"]) == ("success", None)
    assert (read["captions"], read["yt_meta_dict"]["subtitles"]) == (None, None)


def test_a_whole_video() -> None:
    whole = replace(clip(), start_ms=None, end_ms=None)
    read = json.loads(orjson.dumps(sample_json(made(clip=whole))))
    assert (read["key"], read["clips"]) == ("dQw4w9WgXcQ_full", None)
    assert (read["cut"]["start"], read["cut"]["end"]) == (None, None)
    assert agree(shape(read), shape(json.loads(orjson.dumps(sample_json(made())))))
    row = parquet_table([row_of(made(clip=whole), HERE, NOW_MS)]).to_pylist()[0]
    assert (row["key"], row["start"], row["end"]) == ("dQw4w9WgXcQ_full", None, None)


def test_metadata_that_nobody_wants_are_null() -> None:
    assert sample_json(made(info=None))["yt_meta_dict"] == {"info": None, "subtitles": None}


LINES = (
    Line(0, 10_000, "before"),
    Line(9_000, 10_001, "into"),
    Line(12_000, 13_000, "in"),
    Line(15_000, 40_000, "out of"),
    Line(20_000, 21_000, "behind"),
)


def test_subtitles_are_those_of_the_span_on_the_videos_time() -> None:
    layout = Layout(languages=("en", "de"))
    result = made(1, subtitles={"en": LINES})
    found = sample_json(result, layout)["yt_meta_dict"]["subtitles"]
    assert found == {
        "en": [
            {"start": 9.0, "end": 10.001, "text": "into"},
            {"start": 12.0, "end": 13.0, "text": "in"},
            {"start": 15.0, "end": 40.0, "text": "out of"},
        ],
        "de": None,
    }
    whole = replace(result, clip=replace(result.clip, start_ms=None, end_ms=None))
    lines = sample_json(whole, layout)["yt_meta_dict"]["subtitles"]["en"]
    assert [line["text"] for line in lines] == [line.text for line in LINES]
    assert all(type(line[time]) is float for line in lines for time in ("start", "end"))


@pytest.mark.parametrize("subtitles", [None, {}, {"de": ()}, {"fr": LINES, "en": LINES}])
def test_subtitles_have_the_languages_that_were_asked_for(subtitles: Any) -> None:
    result = made(subtitles=subtitles)
    found = sample_json(result, Layout(languages=("en", "de", "en")))["yt_meta_dict"]["subtitles"]
    assert list(found) == ["en", "de"]
    assert [found[name] is not None for name in found] == [
        name in (subtitles or {}) for name in found
    ]
    # Wanted as clips alone: they are no part of the JSON.
    assert sample_json(result)["yt_meta_dict"]["subtitles"] is None


def test_all_captions_stand_beside_the_first() -> None:
    result = made(clip=replace(clip(0, "a"), captions=("a", "b")))
    assert (sample_json(result)["caption"], sample_json(result)["captions"]) == ("a", ["a", "b"])
    row = parquet_table([row_of(result, HERE, NOW_MS)]).to_pylist()[0]
    assert (row["caption"], row["captions"]) == ("a", ["a", "b"])


EXTRA = {
    "class": "string",
    "views": "int64",
    "score": "float64",
    "good": "bool",
    "tags": "json",
    "key": "string",
    "cut": "int64",
    "start": "int64",
    "video_id": "string",
}
VALUES = {
    "class": "dög",
    "views": 2**62,
    "score": 3.0,
    "good": False,
    "tags": '["a"]',
    "key": "../x",
    "cut": 7,
    "start": 9,
    "video_id": "mine",
}


@pytest.mark.parametrize("values", [VALUES, {}, dict.fromkeys(VALUES), {"views": 1, "other": 2}])
def test_additional_columns_come_behind_the_references_keys(values: dict[str, Any]) -> None:
    layout = Layout(extra=EXTRA)
    result = made(clip=replace(clip(), extra=values))
    read = json.loads(orjson.dumps(sample_json(result, layout)))
    free = ["class", "views", "score", "good", "tags", "start", "video_id"]
    assert list(read) == [*REFERENCE, *free, "captions", "cut"]
    assert {name: read[name] for name in free} == {name: values.get(name) for name in free}
    assert read["key"] == clip().key
    assert read["cut"]["frames"] == 300
    full = json.loads(orjson.dumps(sample_json(made(clip=replace(clip(), extra=VALUES)), layout)))
    assert agree(shape(read), shape(full))


@pytest.mark.parametrize("values", [VALUES, {}])
@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.PRIVATE])
def test_additional_columns_are_columns_of_the_parquet(
    values: dict[str, Any], outcome: Outcome
) -> None:
    layout = Layout(extra=EXTRA)
    schema = schema_of(layout)
    more = ["class", "views", "score", "good", "tags", "cut"]
    assert schema.names == [*SCHEMA.names, *more]
    result = made() if outcome is Outcome.OK else failed(outcome)
    result = replace(result, clip=replace(clip(), extra=values))
    table = parquet_table([row_of(result, HERE, NOW_MS, layout)], layout)
    assert table.schema == schema
    row = table.to_pylist()[0]
    assert {name: row[name] for name in more} == {name: values.get(name) for name in more}
    # Names that the parquet has keep its own columns.
    assert (row["key"], row["start"], row["video_id"]) == (clip().key, 0.0, clip().video_id)


def test_additional_columns_have_their_types_where_all_are_missing() -> None:
    layout = Layout(extra={"views": "int64", "good": "bool"})
    table = parquet_table([row_of(made(), HERE, NOW_MS, layout)], layout)
    assert table.schema.types[-2:] == [pa.int64(), pa.bool_()]
    assert parquet_table([], layout).schema == table.schema


# --- the parquet ---------------------------------------------------------------------------------


def test_row_of_a_clip() -> None:
    row = parquet_table([row_of(made(2), HERE, NOW_MS)]).to_pylist()[0]
    data = bytes([2]) * 1002
    assert (row["key"], row["status"], row["outcome"]) == (clip(2).key, "success", "ok")
    assert (row["start"], row["end"]) == (20.0, 30.0)
    assert (row["actual_start"], row["actual_end"], row["frames"]) == (10.0, 20.0, 300)
    assert (row["bytes"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (row["resolve_seconds"], row["fetch_seconds"], row["cut_seconds"]) == (0.5, 0.25, 0.0)
    assert (row["host"], row["yt_dlp"]) == (HERE.host, HERE.yt_dlp)
    assert (row["bytes_fetched"], row["requests"], row["attempts"]) == (4096, 5, 1)
    assert row["detail"] is None
    when = datetime.datetime.fromtimestamp(NOW_MS / 1000, datetime.UTC)
    assert row["finished_at"] == when
    assert (row["audio_bytes"], row["audio_sha256"]) == (None, None)


def test_row_tells_both_files() -> None:
    rows = [row_of(result, HERE, NOW_MS) for result in (both(2), heard(3))]
    one, alone = parquet_table(rows).to_pylist()
    data = bytes([2]) * 1002
    assert (one["bytes"], one["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    sound = hashlib.sha256(b"sound").hexdigest()
    assert (one["audio_bytes"], one["audio_sha256"]) == (5, sound)
    # Where there is one file it is the main one.
    data = bytes([3]) * 500
    assert (alone["bytes"], alone["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (alone["audio_bytes"], alone["audio_sha256"], alone["frames"]) == (None, None, None)


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OK])
def test_row_of_a_failure(outcome: Outcome) -> None:
    row = parquet_table([row_of(failed(outcome), HERE, NOW_MS)]).to_pylist()[0]
    assert set(row) == set(SCHEMA.names)
    assert row["outcome"] == outcome.value
    assert row["detail"] == f"because of {outcome}"
    assert row["status"] in ("failed_to_download", "failed_to_subsample")
    for name in ("actual_start", "frames", "bytes", "sha256", "width", "video_codec", "av_offset"):
        assert row[name] is None, name
    assert (row["start"], row["end"], row["key"]) == (0.0, 10.0, clip().key)


def test_the_references_words() -> None:
    assert status_of(Outcome.OK) == "success"
    assert status_of(Outcome.PRIVATE) == status_of(Outcome.TIMEOUT) == "failed_to_download"
    assert status_of(Outcome.CORRUPT) == status_of(Outcome.NO_AUDIO) == "failed_to_subsample"


@pytest.mark.parametrize(
    "results",
    [
        [],
        [made(number) for number in range(3)],
        [failed(Outcome.PRIVATE, number) for number in range(3)],
        [failed(Outcome.TIMEOUT), made(1), failed(Outcome.CORRUPT, 2)],
    ],
    ids=["none", "ok", "failed", "both"],
)
def test_every_shard_has_the_same_columns(results: list[ClipResult], tmp_path: Path) -> None:
    """Also one where nothing worked: else the shards of a dataset cannot be read together."""
    path = tmp_path / "0.parquet"
    pq.write_table(parquet_table([row_of(result, HERE, NOW_MS) for result in results]), path)
    table = pq.read_table(path)
    assert table.schema.names == SCHEMA.names
    assert table.schema.types == SCHEMA.types
    assert pa.null() not in table.schema.types
    assert table["key"].to_pylist() == [result.clip.key for result in results]


@settings(deadline=None)
@given(st.text() | st.none(), st.text())
def test_captions_and_messages_survive_the_parquet(caption: str | None, detail: str) -> None:
    result = replace(failed(Outcome.UNKNOWN), clip=clip(0, caption), detail=detail)
    row = parquet_table([row_of(result, HERE, NOW_MS)]).to_pylist()[0]
    assert (row["caption"], row["detail"]) == (caption, detail)
