"""The plan: every clip once, in an order that depends on the clips alone."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.errors import StorageError
from acavdl.plan import (
    SHARDS_PER_PART,
    Plan,
    assign_shards,
    by_video,
    clips_of,
    number_clips,
    part_name,
    read_shard,
    write_plan,
)
from acavdl.storage import Store

COLUMNS = ["video_id", "url", "start_ms", "end_ms", "caption"]
VIDEOS = st.sampled_from([f"{letter}-_0123456{n}" for letter in "aAbz-" for n in (7, 88)])
ROWS = st.lists(st.tuples(VIDEOS, st.integers(0, 3), st.integers(4, 6)), min_size=1, max_size=60)


def table(
    rows: list[tuple[str, int, int]], captions: list[str | None] | None = None
) -> pd.DataFrame:
    """Return a clip table; without captions each row has its place as caption."""
    captions = [str(place) for place in range(len(rows))] if captions is None else captions
    full = [
        (video, f"https://x/{video}", start, end, caption)
        for (video, start, end), caption in zip(rows, captions, strict=True)
    ]
    frame = pd.DataFrame(full, columns=COLUMNS, dtype=object)
    return frame.astype({"start_ms": "int64", "end_ms": "int64"})


def many(videos: int, clips: int = 1) -> pd.DataFrame:
    """Return `clips` clips of each of some videos."""
    rows = [(f"{v:011d}", c * 10, c * 10 + 5) for v in range(videos) for c in range(clips)]
    return table(rows, [None] * len(rows))


def keys(frame: pd.DataFrame) -> list[tuple[str, int, int]]:
    return list(zip(frame["video_id"], frame["start_ms"], frame["end_ms"], strict=True))


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "_acavdl" / "plan").iterdir()}


# --- numbering


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 9))
def test_nothing_is_lost_nothing_is_twice(rows: list[tuple[str, int, int]], limit: int) -> None:
    numbered = number_clips(table(rows), limit)
    assert sorted(keys(numbered)) == sorted(set(rows))
    # Of equal clips the first is kept.
    kept = dict(zip(keys(numbered), numbered["caption"], strict=True))
    assert kept == {row: str(rows.index(row)) for row in rows}


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 9))
def test_shards_are_full_in_bounds_and_whole(rows: list[tuple[str, int, int]], limit: int) -> None:
    numbered = number_clips(table(rows), limit)
    shards = numbered["shard"].tolist()
    assert sorted(set(shards)) == list(range(max(shards) + 1))
    assert shards == sorted(shards)
    for _, shard in numbered.groupby("shard"):
        assert shard["row"].tolist() == list(range(len(shard)))
        assert len(shard) <= limit
    for _, clips in numbered.groupby("video_id"):
        assert len(clips) > limit or clips["shard"].nunique() == 1
        # The clips of a video stand together, by their time.
        assert np.ptp(clips.index) == len(clips) - 1
        assert keys(clips) == sorted(keys(clips))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 9))
def test_the_order_of_the_table_does_not_matter(
    rows: list[tuple[str, int, int]], chance: random.Random, limit: int
) -> None:
    rows = sorted(set(rows))
    shuffled = list(rows)
    chance.shuffle(shuffled)
    captions: list[str | None] = [str(row) for row in rows]
    again: list[str | None] = [str(row) for row in shuffled]
    pd.testing.assert_frame_equal(
        number_clips(table(rows, captions), limit), number_clips(table(shuffled, again), limit)
    )


def test_the_order_is_the_same_for_ever() -> None:
    """A plan that is made again by a later version must not shuffle what is half done."""
    rows = [(video, 0, 1) for video in ("abcdefghijk", "ABCDEFGHIJK", "-----------", "00000000000")]
    assert number_clips(table(rows), 9)["video_id"].tolist() == [
        "ABCDEFGHIJK",
        "abcdefghijk",
        "-----------",
        "00000000000",
    ]


def test_neighbours_in_the_table_are_spread() -> None:
    numbered = number_clips(many(1000), 10)
    places = numbered["video_id"].astype(int).to_numpy()
    assert np.median(np.abs(np.diff(places))) > 100


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(1, 10))
def test_assigned_shards(counts: list[int], limit: int) -> None:
    shards = assign_shards(np.array(counts), limit)
    assert len(shards) == sum(counts)
    assert shards[0] == 0
    assert set(np.diff(shards)) <= {0, 1}
    assert np.bincount(shards).max() <= limit
    first = np.cumsum([0, *counts])
    for begin, count in zip(first, counts, strict=False):
        if count <= limit:
            assert len(set(shards[begin : begin + count])) == 1
    # No shard is closed while the next video would still have fitted, or a long one be begun.
    for begin, count in zip(first[1:-1], counts[1:], strict=True):
        before = shards[begin - 1]
        if shards[begin] != before:
            assert (shards[:begin] == before).sum() + count > limit


# --- on disk


@pytest.mark.parametrize("captions", [True, False])
def test_a_shard_is_read_as_it_was_written(tmp_path: Path, captions: bool) -> None:
    rows = [(f"{video:011d}", start, 10) for video in range(30) for start in range(3)]
    texts: list[str | None] = [
        None if not captions else ("", "NA", 'é "🎬"\n', None)[place % 4]
        for place in range(len(rows))
    ]
    numbered = number_clips(table(rows, texts), 7)
    plan = write_plan(Store(str(tmp_path)), numbered)
    assert plan.videos == 30
    assert plan.clips == sum(plan.sizes) == 90
    for shard, size in enumerate(plan.sizes):
        clips = clips_of(read_shard(shard, str(tmp_path)))
        wanted = numbered[numbered["shard"] == shard]
        assert len(clips) == size
        assert [clip.caption for clip in clips] == wanted["caption"].tolist()
        assert [(c.video_id, c.start_ms, c.end_ms) for c in clips] == keys(wanted)
        assert [(c.shard, c.row) for c in clips] == [(shard, row) for row in range(size)]
        assert [clip.url for clip in clips] == wanted["url"].tolist()
        assert {len(group) for group in by_video(clips)} == {3}


def test_many_shards_are_spread_over_files(tmp_path: Path) -> None:
    count = 2 * SHARDS_PER_PART + 3
    numbered = number_clips(many(count), 1)
    plan = write_plan(Store(str(tmp_path)), numbered)
    assert plan.sizes == (1,) * count
    assert sorted(written(tmp_path)) == [f"part-{part:05d}.parquet" for part in range(3)]
    for shard in (0, SHARDS_PER_PART - 1, SHARDS_PER_PART, 2 * SHARDS_PER_PART, count - 1):
        assert keys(read_shard(shard, str(tmp_path))) == keys(numbered.iloc[[shard]])
    with pytest.raises(StorageError, match=f"shard {count}"):
        read_shard(count, str(tmp_path))
    with pytest.raises(StorageError, match=f"shard {9 * SHARDS_PER_PART}"):
        read_shard(9 * SHARDS_PER_PART, str(tmp_path))


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    frame = many(700)
    pieces = [frame.iloc[500:], frame.iloc[:3], frame.iloc[3:500]]
    plans = []
    for name, clips in (
        ("a", frame),
        ("b", pd.concat(pieces)),
        ("c", frame.sample(frac=1, random_state=1)),
    ):
        plans.append(write_plan(Store(str(tmp_path / name)), number_clips(clips, 2)))
    assert plans[0] == plans[1] == plans[2]
    assert written(tmp_path / "a") == written(tmp_path / "b") == written(tmp_path / "c")


def test_the_digest_changes_with_the_rows(tmp_path: Path) -> None:
    def digest(frame: pd.DataFrame, limit: int = 10) -> str:
        return write_plan(Store(str(tmp_path)), number_clips(frame, limit)).digest

    base = many(20)
    other = {
        "video": base.replace({"video_id": {"00000000003": "00000000099"}}),
        "url": base.assign(url=base["url"] + "?"),
        "start": base.assign(start_ms=base["start_ms"] + (base.index == 5)),
        "end": base.assign(end_ms=base["end_ms"] + (base.index == 5)),
        "caption": base.assign(caption=""),
        "fewer": base.iloc[:-1],
    }
    digests = {name: digest(frame) for name, frame in other.items()}
    digests["shard size"] = digest(base, 9)
    assert digest(base) not in digests.values()
    assert len(set(digests.values())) == len(digests)
    # Doubles change nothing.
    assert digest(pd.concat([base, base.assign(caption="later")])) == digest(base)


def test_a_damaged_plan_is_told(tmp_path: Path) -> None:
    write_plan(Store(str(tmp_path)), number_clips(many(20), 10))
    path = tmp_path / part_name(0)
    data = path.read_bytes()
    for broken in (b"", data[: len(data) // 2], data[:-1]):
        path.write_bytes(broken)
        with pytest.raises(StorageError, match="cannot read the plan of shard 1"):
            read_shard(1, str(tmp_path))
    path.unlink()
    with pytest.raises(StorageError, match="cannot read the plan of shard 1"):
        read_shard(1, str(tmp_path))


def test_a_plan_of_other_numbers_is_told(tmp_path: Path) -> None:
    numbered = number_clips(many(20), 10)
    write_plan(Store(str(tmp_path)), numbered.assign(shard=numbered["shard"] + 1))
    with pytest.raises(StorageError, match="not of one shard alone"):
        read_shard(0, str(tmp_path))


def test_a_large_table_is_planned_in_little_time_and_memory(tmp_path: Path) -> None:
    clips = many(100_000, 2)
    begin = time.monotonic()
    tracemalloc.start()
    try:
        plan = write_plan(Store(str(tmp_path)), number_clips(clips, 500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert plan.clips == 200_000
    assert plan.videos == 100_000
    assert len(plan.sizes) == 400
    # 1 kB a clip, and far from the hours of anything quadratic.
    assert peak < 200e6
    assert time.monotonic() - begin < 60


def test_a_plan_counts_its_clips() -> None:
    assert Plan("x", 2, (3, 4)).clips == 7
