"""The plan: every clip once, in an order that depends on the clips alone."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl import planning
from acavdl.config import TableOptions
from acavdl.errors import EmptyTableError, StorageError
from acavdl.models import Clip
from acavdl.planfile import (
    REJECTED,
    SHARDS_PER_PART,
    Plan,
    ShardPlace,
    by_video,
    check_plan,
    clips_of,
    part_name,
    read_shard,
)
from acavdl.planning import Made, Wanted, make_plan, shard_bounds
from acavdl.readers import find_files, find_pieces, merged_kinds, read_head
from acavdl.storage import Store
from acavdl.tables import find_columns

VIDEOS = st.sampled_from([f"{letter}-_0123456{n}" for letter in "aAbz-" for n in (7, 8)])
#: Some rows that can't be used are among them: those that end before they start.
ROWS = st.lists(
    st.tuples(VIDEOS, st.integers(0, 3), st.integers(2, 5), st.sampled_from([None, "", "x", "y"])),
    min_size=1,
    max_size=40,
)
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Planned:
    """A plan that was made, and its folder."""

    folder: Path
    made: Made

    @property
    def plan(self) -> Plan:
        return self.made.plan

    def clips(self) -> list[Clip]:
        """All clips in their order."""
        frames = (
            read_shard(ShardPlace(shard, *self.plan.place(shard)), Store(str(self.folder)))
            for shard in range(len(self.plan.sizes))
        )
        return [clip for frame in frames for clip in clips_of(frame, self.plan.extra)]

    def rejected(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / REJECTED)

    def files(self) -> dict[str, bytes]:
        folder = self.folder / "_acavdl/plan"
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_table(folder: Path, files: Sequence[Sequence[Row]], extra: Sequence[str] = ()) -> str:
    """Write a table of (video, start, end, caption, …) as parquet files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.parquet"):
        path.unlink()
    names = ["videoID", "start", "end", "caption", *extra]
    kinds: dict[str, pa.DataType] = {"videoID": pa.string(), "caption": pa.string()}
    for number, rows in enumerate(files):
        columns = list(zip(*rows, strict=True)) or [()] * len(names)
        arrays = [
            pa.array(column, kinds.get(name)) for name, column in zip(names, columns, strict=False)
        ]
        table = pa.table(arrays, names=names[: len(arrays)])
        pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=2)
    return str(folder)


def plan_of(
    folder: Path,
    files: Sequence[Sequence[Row]],
    wanted: Wanted | int = 10,
    *,
    piece_rows: int = 1000,
    captions: bool = True,
    before: Plan | None = None,
    extra: Sequence[str] = (),
    name: str = "out",
) -> Planned:
    """Plan a table; `wanted` may be the clips of a shard."""
    options = TableOptions(
        write_table(folder / "table", files, extra),
        caption_col="caption" if captions else None,
        save_additional_columns=tuple(extra),
    )
    table = find_files(options.url_list, None)
    columns = find_columns(read_head(table), options)
    store = Store(str(folder / name))
    store.create()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        pieces = find_pieces(table, columns, Path(scratch), piece_rows)
        made = make_plan(
            store,
            table.files,
            pieces,
            columns,
            wanted if isinstance(wanted, Wanted) else Wanted(wanted),
            scratch=Path(scratch),
            before=before,
            extra=merged_kinds(pieces, columns) if before is None else before.extra,
        )
    return Planned(folder / name, made)


def keys(clips: Sequence[Clip]) -> list[Any]:
    return [(clip.video_id, clip.start_ms, clip.end_ms) for clip in clips]


def many(videos: int, clips: int = 1) -> list[Row]:
    """Return `clips` clips of each of some videos."""
    return [(f"{v:011d}", c * 10, c * 10 + 5, None) for v in range(videos) for c in range(clips)]


def in_ms(row: Row) -> Row:
    return (row[0], row[1] * 1000, row[2] * 1000)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several buckets for tables of some rows."""
    monkeypatch.setattr(planning, "_BUCKET_ROWS", 8)


# --- what is planned


@pytest.mark.usefixtures("small_buckets")
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 9))
def test_nothing_is_lost_nothing_is_twice(rows: list[Row], limit: int) -> None:
    good = [row for row in rows if row[1] < row[2]]
    with tempfile.TemporaryDirectory() as name:
        if not good:
            with pytest.raises(EmptyTableError):
                plan_of(Path(name), [rows], limit)
            return
        planned = plan_of(Path(name), [rows], limit)
        clips = planned.clips()
        rejected = planned.rejected()
    assert sorted(keys(clips)) == sorted({in_ms(row) for row in good})
    # Of equal clips the first that has one gives the caption; the others' are kept behind it.
    for clip in clips:
        texts = [row[3] for row in good if in_ms(row) == keys([clip])[0]]
        others = [text for text in dict.fromkeys(texts) if text]
        assert clip.caption == (others[0] if others else texts[0])
        assert (clip.captions or ()) == tuple(others or [t for t in texts[:1] if t is not None])
    # Each row is planned, gave a caption, or is rejected.
    assert len(rows) == len(clips) + planned.made.captions + len(rejected)
    assert Counter(rejected["reason"]) == dict(planned.plan.rejected)
    assert sorted(rejected.loc[rejected["reason"] != "duplicate", "row"]) == [
        i for i, row in enumerate(rows, 1) if row[1] >= row[2]
    ]


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 9))
def test_shards_are_full_in_bounds_and_whole(rows: list[Row], limit: int) -> None:
    rows = [*rows, ("zzzzzzzzzzz", 0, 1, None)]
    with tempfile.TemporaryDirectory() as name:
        planned = plan_of(Path(name), [rows], limit)
        clips = planned.clips()
    assert [clip.shard for clip in clips] == sorted(clip.shard for clip in clips)
    assert planned.plan.sizes == tuple(
        Counter(clip.shard for clip in clips)[shard] for shard in range(len(planned.plan.sizes))
    )
    assert max(planned.plan.sizes) <= limit
    for shard, size in enumerate(planned.plan.sizes):
        assert [clip.row for clip in clips if clip.shard == shard] == list(range(size))
    videos = by_video(clips)
    assert len({group[0].video_id for group in videos}) == len(videos) == planned.plan.videos
    for group in videos:
        assert len(group) > limit or len({clip.shard for clip in group}) == 1
        assert keys(group) == sorted(keys(group))


@settings(max_examples=25, deadline=None)
@given(
    rows=ROWS,
    chance=st.randoms(use_true_random=False),
    limit=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    piece_rows=st.sampled_from([1, 3, 1000]),
    bucket_rows=st.sampled_from([1, 5, 1_000_000]),
)
def test_the_plan_does_not_depend_on_partitions(
    *,
    rows: list[Row],
    chance: random.Random,
    limit: int,
    cuts: list[int],
    piece_rows: int,
    bucket_rows: int,
) -> None:
    rows = [*rows, ("zzzzzzzzzzz", 0, 1, None)]
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    files = [rows[a:b] for a, b in pairwise(edges)]
    files = [file for file in files if file]
    shuffled = list({in_ms(row): row for row in reversed(rows)}.values())
    chance.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        base = plan_of(Path(name), [rows], limit, name="base")
        first = {in_ms(row): row for row in reversed(rows)}.values()
        unlike = plan_of(Path(name), [list(first)], limit, name="first")
        patch.setattr(planning, "_BUCKET_ROWS", bucket_rows)
        other = plan_of(Path(name), files, limit, piece_rows=piece_rows, name="other")
        order = plan_of(Path(name), [shuffled], limit, piece_rows=piece_rows, name="order")
        assert base.files() == other.files()
        assert base.plan.digest == other.plan.digest
        assert base.rejected()["reason"].tolist() == other.rejected()["reason"].tolist()
        # The order of the rows doesn't matter either, but for which of equal ones is the first.
        assert unlike.files() == order.files()


def test_the_order_is_the_same_for_ever(tmp_path: Path) -> None:
    """A plan that is extended by a later version must not be unlike what it was."""
    rows = [(v, 0, 1, None) for v in ("abcdefghijk", "ABCDEFGHIJK", "-----------", "00000000000")]
    assert [clip.video_id for clip in plan_of(tmp_path, [rows]).clips()] == [
        "ABCDEFGHIJK",
        "abcdefghijk",
        "-----------",
        "00000000000",
    ]


def test_neighbours_in_the_table_are_spread(tmp_path: Path) -> None:
    places = [int(clip.video_id) for clip in plan_of(tmp_path, [many(1000)], 100).clips()]
    assert np.median(np.abs(np.diff(places))) > 100


def test_videos_of_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pd.util, "hash_array", lambda ids, **_: np.full(len(ids), 7, dtype="uint64")
    )
    rows = [(f"{v:011d}", start, 9, None) for start in (2, 1) for v in (3, 1, 2, 1)]
    clips = plan_of(tmp_path, [rows]).clips()
    assert keys(clips) == [(f"{v:011d}", s * 1000, 9000) for v in (1, 2, 3) for s in (1, 2)]


@pytest.mark.usefixtures("small_buckets")
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, limit=st.integers(1, 12))
def test_unique_videos_and_a_limit(rows: list[Row], limit: int) -> None:
    rows = [*rows, ("zzzzzzzzzzz", 0, 1, None)]
    good = [row for row in rows if row[1] < row[2]]
    with tempfile.TemporaryDirectory() as name:
        full = plan_of(Path(name), [rows], 4, name="full").clips()
        some = plan_of(Path(name), [rows], Wanted(4, limit=limit), name="some")
        unique = plan_of(Path(name), [rows], Wanted(4, unique_videos=True), name="unique")
        # The limit keeps the beginning of the plan: a larger one has more of the same.
        assert keys(some.clips()) == keys(full)[:limit]
        assert some.made.left_out == max(0, len(full) - limit)
        assert some.plan.videos == len({clip.video_id for clip in full[:limit]})
        first: dict[str, Row] = {}
        for row in good:
            best = first.setdefault(row[0], in_ms(row))
            first[row[0]] = min(best, in_ms(row))
        assert sorted(keys(unique.clips())) == sorted(first.values())
        assert unique.plan.videos == len(first)
        # Nothing is unaccounted for.
        total = len(unique.clips()) + unique.made.left_out + unique.made.captions
        assert total + sum(unique.plan.rejected.values()) == len(rows)


@pytest.mark.usefixtures("small_buckets")
@settings(max_examples=25, deadline=None)
@given(before=ROWS, more=ROWS, limit=st.integers(1, 6), unique=st.booleans())
def test_extending_never_renumbers(
    before: list[Row], more: list[Row], limit: int, unique: bool
) -> None:
    before = [*before, ("zzzzzzzzzzz", 0, 1, None)]
    wanted = Wanted(limit, unique_videos=unique)
    with tempfile.TemporaryDirectory() as name:
        old = plan_of(Path(name), [before], wanted)
        files, clips = old.files(), old.clips()
        new = plan_of(Path(name), [more, before], wanted, before=old.plan)
        # What was there stands there, byte for byte.
        assert {name: new.files()[name] for name in files} == files
        assert new.plan.parts[: len(old.plan.parts)] == old.plan.parts
        assert new.clips()[: len(clips)] == clips
        both = keys(new.clips())
        assert len(set(both)) == len(both)
        check_plan(Store(str(new.folder)), new.plan)
    good = {in_ms(row) for row in [*before, *more] if row[1] < row[2]}
    videos = {key[0] for key in both}
    assert new.plan.videos == len(videos) == len({row[0] for row in good})
    if unique:
        assert len(both) == len(videos)
        assert set(both) <= good
    else:
        assert set(both) == good
    # Shards of the new part begin behind those of the old one.
    sizes = new.plan.sizes
    assert sizes[: len(old.plan.sizes)] == old.plan.sizes
    assert max(sizes) <= limit


def test_extending_by_nothing_changes_nothing(tmp_path: Path) -> None:
    old = plan_of(tmp_path, [many(9)])
    new = plan_of(tmp_path, [many(9)], before=old.plan)
    assert new.plan.parts == old.plan.parts
    assert new.made.planned == 9
    assert new.plan.seconds == old.plan.seconds == 45.0


def test_extending_keeps_to_the_limit(tmp_path: Path) -> None:
    old = plan_of(tmp_path, [many(9)], Wanted(4, limit=5))
    new = plan_of(tmp_path, [many(20)], Wanted(4, limit=8), before=old.plan)
    assert (old.plan.clips, new.plan.clips) == (5, 8)
    less = plan_of(tmp_path, [many(20)], Wanted(4, limit=3), before=new.plan)
    assert less.plan.parts == new.plan.parts


def test_whole_videos(tmp_path: Path) -> None:
    (tmp_path / "videos.txt").write_text("abcdefghijk\nhttps://youtu.be/-bcdefghijk\nabcdefghijk\n")
    options = TableOptions(str(tmp_path / "videos.txt"))
    table = find_files(options.url_list, None)
    columns = find_columns(read_head(table), options)
    pieces = find_pieces(table, columns, tmp_path)
    made = make_plan(
        Store(str(tmp_path / "out")), table.files, pieces, columns, Wanted(10), scratch=tmp_path
    )
    clips = Planned(tmp_path / "out", made).clips()
    assert {clip.key for clip in clips} == {"abcdefghijk_full", "-bcdefghijk_full"}
    assert {(clip.start, clip.end) for clip in clips} == {(None, None)}
    assert (made.plan.videos, made.plan.seconds) == (2, 0.0)
    assert made.plan.rejected == {"duplicate": 1}


def test_additional_columns_have_one_type(tmp_path: Path) -> None:
    values = [(1, 1.5, "a", True), (2, 2.0, None, False), (None, None, "", None)]
    rows = [(f"{i:011d}", 0, 1, None, *row) for i, row in enumerate(values)]
    planned = plan_of(tmp_path, [rows], extra=("n", "x", "text", "flag"))
    assert planned.plan.extra == {
        "n": "int64",
        "x": "float64",
        "text": "string",
        "flag": "bool",
    }
    found = {int(clip.video_id): tuple(clip.extra.values()) for clip in planned.clips()}
    assert [found[i] for i in range(3)] == values
    assert isinstance(found[0][0], int)
    assert isinstance(found[1][1], float)


def test_types_of_files_are_joined(tmp_path: Path) -> None:
    first = [("00000000000", 0, 1, None, 1, 1, "x")]
    second = [("00000000001", 0, 1, None, 1.5, "y", None)]
    planned = plan_of(tmp_path, [first, second], extra=("number", "mixed", "text"))
    assert planned.plan.extra == {"number": "float64", "mixed": "string", "text": "string"}
    found = {clip.video_id: dict(clip.extra) for clip in planned.clips()}
    assert found["00000000000"] == {"number": 1.0, "mixed": "1", "text": "x"}
    assert isinstance(found["00000000000"]["number"], float)
    assert found["00000000001"] == {"number": 1.5, "mixed": "y", "text": None}


# --- numbering


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(1, 10))
def test_bounds_of_shards(counts: list[int], limit: int) -> None:
    bounds = shard_bounds(np.array(counts), limit)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == sum(counts)
    assert sizes.min() >= 1
    assert sizes.max() <= limit
    edges = np.cumsum([0, *counts])
    for begin, count in zip(edges, counts, strict=False):
        inside = bounds[(bounds > begin) & (bounds < begin + count)]
        # A video is split only if it alone is too long, and then as rarely as can be.
        assert len(inside) == 0 or count > limit
        assert len(inside) <= -(-count // limit)
    for shard, (begin, stop) in enumerate(pairwise(bounds)):
        following = edges[np.searchsorted(edges, stop, side="right") :]
        # No shard is closed while the next video would still have fitted.
        if stop in edges and len(following) and shard < len(sizes) - 1:
            assert following[0] - begin > limit


def test_many_shards_take_little_time() -> None:
    counts = np.random.default_rng(0).integers(1, 4, 3_000_000)
    assert len(shard_bounds(counts, 100)) > 60_000


# --- on disk


def test_many_shards_are_spread_over_files(tmp_path: Path) -> None:
    count = 2 * SHARDS_PER_PART + 3
    planned = plan_of(tmp_path, [many(count)], 1)
    plan = planned.plan
    assert plan.sizes == (1,) * count
    assert sorted(planned.files()) == [f"part-{part:05d}.parquet" for part in range(3)]
    for shard in (0, SHARDS_PER_PART - 1, SHARDS_PER_PART, 2 * SHARDS_PER_PART, count - 1):
        name, group = plan.place(shard)
        assert name == part_name(shard // SHARDS_PER_PART)
        assert group == shard % SHARDS_PER_PART
        [clip] = clips_of(read_shard(ShardPlace(shard, name, group), Store(str(planned.folder))))
        assert (clip.shard, clip.row) == (shard, 0)
    more = plan_of(tmp_path, [many(count + 2)], 1, before=plan)
    # Parts are written once: new shards begin a new one.
    assert more.plan.place(count) == (part_name(3), 0)
    assert len(more.clips()) == count + 2


def test_captions_and_urls_are_read_as_written(tmp_path: Path) -> None:
    texts: list[str | None] = ["", "NA", 'é "🎬"\n', None, "null"]
    rows = [(f"{i:011d}", 0, 1, text) for i, text in enumerate(texts)]
    rows.append(("https://example.org/a.mp4?x=1", 0, 1, "other"))
    clips = plan_of(tmp_path, [rows]).clips()
    found = {clip.url: clip.caption for clip in clips}
    assert found == {
        **{f"https://www.youtube.com/watch?v={i:011d}": text for i, text in enumerate(texts)},
        "https://example.org/a.mp4?x=1": "other",
    }


def test_the_digest_changes_with_the_rows(tmp_path: Path) -> None:
    base = [(v, s, e, "text") for v, s, e, _ in many(20)]

    def changed(place: int, value: Any) -> list[Row]:
        row = list(base[5])
        row[place] = value
        return [*base[:5], tuple(row), *base[6:]]

    tables = {
        "base": base,
        "video": changed(0, "00000000099"),
        "link": changed(0, "https://example.org/a.mp4"),
        "start": changed(1, 1),
        "end": changed(2, 9),
        "caption": changed(3, ""),
        "two captions": [*base, (*base[5][:3], "another")],
        "fewer": base[:-1],
    }
    digests = {
        name: plan_of(tmp_path, [rows], name=name).plan.digest for name, rows in tables.items()
    }
    digests["shard size"] = plan_of(tmp_path, [base], 9, name="nine").plan.digest
    assert len(set(digests.values())) == len(digests)
    # Doubles change nothing.
    doubled = plan_of(tmp_path, [[*base, *base]], name="doubled").plan
    assert doubled.digest == digests["base"]
    assert doubled.rejected == {"duplicate": 20}


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    planned = plan_of(tmp_path, [many(20)])
    path = planned.folder / part_name(0)
    data = path.read_bytes()
    place = ShardPlace(1, part_name(0), 1)
    for broken in (b"", data[: len(data) // 2], data[:-1]):
        path.write_bytes(broken)
        with pytest.raises(StorageError, match="cannot read the plan's"):
            read_shard(place, Store(str(planned.folder)))
        with pytest.raises(StorageError, match=r"was changed .*part-00000"):
            check_plan(Store(str(planned.folder)), planned.plan)
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot read .*part-00000.parquet: No such file"):
        read_shard(place, Store(str(planned.folder)))
    with pytest.raises(StorageError, match="was changed"):
        check_plan(Store(str(planned.folder)), planned.plan)


def test_another_shard_in_a_place_is_told(tmp_path: Path) -> None:
    planned = plan_of(tmp_path, [many(20)])
    with pytest.raises(StorageError, match="another shard in place of 1"):
        read_shard(ShardPlace(1, part_name(0), 0), Store(str(planned.folder)))


def test_a_table_without_a_usable_row_is_told(tmp_path: Path) -> None:
    rows = [("nope", 0, 1, None), ("abcdefghijk", 3, 2, None)]
    with pytest.raises(EmptyTableError, match=r"no usable row: neither a video id.* in row 1 \(no"):
        plan_of(tmp_path, [rows])
    assert len(pd.read_parquet(tmp_path / "out" / REJECTED)) == 2
    assert not (tmp_path / "out/_acavdl/plan").exists()


def test_rejected_rows_are_told_with_file_and_row(tmp_path: Path) -> None:
    files = [
        [("abcdefghijk", 0, 1, None), ("nope", 0, 1, None)],
        [("abcdefghijk", 0, 1, None), ("abcdefghijk", -1, 1, None), ("abcdefghijl", 0, 2, None)],
    ]
    planned = plan_of(tmp_path, files, piece_rows=1)
    found = planned.rejected()
    assert [
        (Path(row["file"]).name, row["row"], row["reason"], row["value"])
        for row in found.to_dict("records")
    ] == [
        ("000.parquet", 2, "bad_id", "nope, 0, 1, None"),
        ("001.parquet", 2, "negative", "abcdefghijk, -1, 1, None"),
        ("001.parquet", 1, "duplicate", "abcdefghijk, 0 s to 1 s"),
    ]
    assert [row["row"] for row in planned.made.examples] == [1, 2, 2]


def test_many_rejected_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_REJECTED_ROWS", 7)
    rows = [*many(5), *((f"bad {i}", 0, 1, None) for i in range(30))]
    planned = plan_of(tmp_path, [rows], piece_rows=4)
    assert planned.rejected()["row"].tolist() == list(range(6, 36))
    metadata = pq.ParquetFile(planned.folder / REJECTED).metadata
    assert [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)] == [
        *(7, 7, 7, 7),
        2,
    ]
