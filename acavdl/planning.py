"""The plan: which clip stands where, decided once.

Order: (hash64(video_id), video_id, start_ms, end_ms), ties by file and row, so that the clips of a
video are together and videos are shuffled; of rows with equal keys the first is kept, and captions
that differ become a list. Shard numbers are absolute (see `acavdl.planfile`).

It is made out of core: Dask shuffles the clips into buckets, ranges of the hash; each bucket is put
in order by itself, and the shards are counted over all of them. So neither the memory nor the bytes
of the plan depend on how the table was partitioned.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import dask.config
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask import threaded
from dask.base import compute
from dask.delayed import delayed

from acavdl.errors import EmptyTableError
from acavdl.planfile import REJECTED, SCHEMA, SHARDS_PER_PART, Part, Plan, open_part, part_name
from acavdl.readers import Columns, Piece, read_piece
from acavdl.storage import Store, shown
from acavdl.tables import REJECTED_SCHEMA, WHOLE, clean

#: Rows of a bucket, about; each thread holds one.
_BUCKET_ROWS = 1_000_000
_MAX_BUCKETS = 4096
#: Bytes of a bucket, about, where captions or additional columns are long.
_BUCKET_BYTES = 256 << 20
#: Rows of a row group of `REJECTED`.
_REJECTED_ROWS = 100_000
#: Stands for the plan that is extended, in place of a file's number: before all files.
_PLANNED = -1

_REJECTED_SCHEMA = pa.schema([("file", pa.string()), *REJECTED_SCHEMA])

_TEXT = pd.ArrowDtype(pa.string())
#: What is shuffled: a clip's key, what goes with it, and its place in the table.
_SCATTERED = {
    "hash": "uint64",
    "video_id": _TEXT,
    "url": _TEXT,
    "start_ms": "int64",
    "end_ms": "int64",
    "caption": _TEXT,
    "extra": _TEXT,
    "file": "int32",
    "row": "int64",
    "place": "int32",
    "bucket": "int64",
}
_ORDER = ("hash", "video_id", "start_ms", "end_ms", "file", "row", "place")
_KEY = ("video_id", "start_ms", "end_ms")
_ORDERED = {
    "bucket": "int64",
    "clips": "int64",
    "videos": "int64",
    "captions": "int64",
    "left_out": "int64",
    "planned": "int64",
}


@dataclass(frozen=True)
class Wanted:
    """Which of a table's clips are planned, and how.

    Parameters
    ----------
    clips_per_shard
        At most so many in a shard; a video is only split if it alone has more.
    unique_videos
        Keep one clip of each video, the one with the smallest start.
    limit
        Clips of the plan at most.
    allow_local, limits
        See `acavdl.tables.clean`.
    unwanted
        Videos that are left out, each list under the reason for which their rows are rejected: a
        key of `UNWANTED`.
    """

    clips_per_shard: int
    unique_videos: bool = False
    limit: int | None = None
    allow_local: bool = False
    limits: Mapping[str, Any] | None = None
    unwanted: Mapping[str, pa.Array] = field(default_factory=dict)


#: Why videos are left out that could be planned.
UNWANTED = {
    "removed": "taken out of the dataset before (acavdl remove)",
    "known_dead": "stands in the list of --tombstones",
}


@dataclass(frozen=True)
class Made:
    """A new plan, and what became of the rows that are not in it.

    Parameters
    ----------
    plan
        The plan, with what was there before.
    rows
        Rows of the table.
    examples
        The first of the rejected ones: rows of `REJECTED`.
    captions
        Rows that gave a further caption to a clip.
    left_out
        Clips left out by ``unique_videos`` or ``limit``.
    planned
        Clips that the plan held before.
    """

    plan: Plan
    rows: int
    examples: Sequence[Mapping[str, Any]] = ()
    captions: int = 0
    left_out: int = 0
    planned: int = 0


def make_plan(
    store: Store,
    files: Sequence[str],
    pieces: Sequence[Piece],
    columns: Columns,
    wanted: Wanted,
    *,
    scratch: Path,
    before: Plan | None = None,
    extra: Mapping[str, str] | None = None,
    clear: Callable[[], None] = lambda: None,
) -> Made:
    """Read the pieces of a table, and write the plan of its clips.

    Parameters
    ----------
    store
        The dataset.
    files
        Names of the table's files.
    pieces, columns
        What is read (see `acavdl.readers.find_pieces`).
    scratch
        Local folder; holds about the size of the table meanwhile.
    before
        A plan to extend: its clips stay where they are, new ones become new shards.
    extra
        Types of the additional columns.
    clear
        Called when the table has turned out to be usable, before the plan is written.

    Raises
    ------
    EmptyTableError
        If no row of a new plan can be used.
    UsageError
        For a file that can't be read.
    StorageError
        If the store can't be written.
    """
    buckets = _bucket_count(
        sum(piece.rows for piece in pieces) + (before.clips if before else 0),
        sum(piece.size for piece in pieces),
    )
    sources: list[Piece | tuple[Store, Part]] = list(pieces)
    if before is not None:
        sources += [(store, part) for part in before.parts]
    ordered = _ordered(sources, columns, wanted, buckets, scratch)
    counted = _count(scratch, buckets, wanted, before.clips if before else 0)
    if counted.clips:
        clear()
    name = REJECTED if before is None else f"_acavdl/rejected-{len(before.parts):05d}.parquet"
    rejected = _write_rejected(store, name, scratch, files)
    totals = {name: int(ordered[name].sum()) for name in ("captions", "left_out", "planned")}
    totals["left_out"] += counted.left_out
    if not counted.clips and before is None:
        raise EmptyTableError(_nothing(files, rejected))
    bounds = shard_bounds(counted.counts, wanted.clips_per_shard)
    parts, seconds = _write_parts(store, _Ordered(scratch, buckets), bounds, before)
    plan = Plan(
        parts=(*(before.parts if before else ()), *parts),
        videos=counted.videos + (before.videos if before else 0),
        seconds=round(seconds + (before.seconds if before else 0), 3),
        extra=dict(extra or {}),
        rejected=rejected.counts,
    )
    return Made(plan, sum(piece.rows for piece in pieces), rejected.examples, **totals)


def plan_again(store: Store, before: Plan, places: pd.DataFrame, clips_per_shard: int) -> Plan:
    """Add clips of a plan to it once more, in new shards behind the last one.

    They are held in memory.

    Parameters
    ----------
    places
        ``shard`` and ``row`` of each, and the ``outcome`` that it had.

    Raises
    ------
    StorageError
        If the plan can't be read or written.
    """
    found = []
    for part in before.parts:
        of_part = places[places["shard"].isin(part.shards())]
        if of_part.empty:
            continue
        begins = np.concatenate([[0], np.cumsum(part.sizes)])
        at = begins[of_part["shard"].to_numpy() - part.first] + of_part["row"].to_numpy()
        outcomes = pa.array(of_part["outcome"], pa.string())
        with open_part(store, part.name) as file:
            taken = file.read().take(pa.array(at))
        found.append(taken.append_column("outcome", outcomes))
    clips = pa.concat_tables(found).drop_columns(["shard", "row"])
    ids = clips["video_id"].to_numpy()
    clips = clips.append_column("hash", pa.array(pd.util.hash_array(ids, categorize=False)))
    order = [(name, "ascending") for name in ("hash", *_KEY)]
    clips = clips.take(pc.sort_indices(clips, order)).combine_chunks()
    for name in ("start_ms", "end_ms"):
        place = clips.column_names.index(name)
        clips = clips.set_column(place, name, pc.fill_null(clips[name], WHOLE))
    videos = np.flatnonzero(_begins(clips, ["video_id"]))
    bounds = shard_bounds(np.diff(np.r_[videos, clips.num_rows]), clips_per_shard)
    parts, _ = _write_parts(store, _InMemory(clips), bounds, before)
    begin, counted = 0, []
    for part in parts:
        size = sum(part.sizes)
        outcomes = Counter(clips["outcome"].slice(begin, size).to_pylist())
        counted.append(replace(part, again=dict(sorted(outcomes.items()))))
        begin += size
    return replace(before, parts=(*before.parts, *counted))


def _bucket_count(rows: int, size: int) -> int:
    """Return a power of two: a bucket is what the first bits of the hash say."""
    return min(
        _MAX_BUCKETS,
        int(2 ** math.ceil(math.log2(max(1, rows / _BUCKET_ROWS, size / _BUCKET_BYTES)))),
    )


def _nothing(files: Sequence[str], rejected: _Rejected) -> str:
    table = shown(files[0]) + (f" … ({len(files)} files)" if len(files) > 1 else "")
    if not rejected.examples:
        return f"{table} has no rows; expected is a row for each clip"
    first = rejected.examples[0]
    return f"{table} has no usable row: {first['detail']} in row {first['row']} ({first['value']})"


# --- into order --------------------------------------------------------------------------------


def _ordered(
    sources: Sequence[Piece | tuple[Store, Part]],
    columns: Columns,
    wanted: Wanted,
    buckets: int,
    scratch: Path,
) -> pd.DataFrame:
    """Put the clips in order, a file for each bucket; return what became of each bucket's."""
    frame = dd.from_map(
        _scatter,
        list(enumerate(sources)),
        job=_Job(columns, wanted, buckets, scratch, _Unwanted(wanted.unwanted)),
        meta=_nothing_of(_SCATTERED),
    )
    with dask.config.set({"temporary_directory": str(scratch), "dataframe.convert-string": False}):
        # Each bucket is a partition: its number is the index, and the divisions are all of them.
        shuffled = frame.set_index(
            "bucket", divisions=list(range(buckets + 1)), shuffle_method="disk"
        )
        done = shuffled.map_partitions(
            _order_bucket,
            scratch=scratch,
            unique_videos=wanted.unique_videos,
            meta=_nothing_of(_ORDERED),
        )
        counts: pd.DataFrame = done.compute(scheduler=threaded.get)
    return counts


def _nothing_of(types: Mapping[str, Any]) -> pd.DataFrame:
    """Return a frame without rows."""
    return pd.DataFrame({name: pd.array([], dtype=kind) for name, kind in types.items()})


@dataclass(frozen=True)
class _Job:
    columns: Columns
    wanted: Wanted
    buckets: int
    scratch: Path
    unwanted: _Unwanted


def _scatter(numbered: tuple[int, Piece | tuple[Store, Part]], job: _Job) -> pd.DataFrame:
    """Return the clips of a piece with their buckets; what is rejected goes into a file."""
    number, source = numbered
    if isinstance(source, Piece):
        cleaned = clean(
            read_piece(source, job.columns),
            job.columns,
            allow_local=job.wanted.allow_local,
            limits=job.wanted.limits,
        )
        clips, unwanted = _wanted(cleaned.clips, job.unwanted)
        rejected = pa.concat_tables([cleaned.rejected, unwanted])
        if rejected.num_rows:
            order = pc.sort_indices(rejected, [("row", "ascending")])
            named = _with_file(rejected.take(order), source.file)
            pq.write_table(named, job.scratch / f"rejected-{number:06d}.parquet")
        file = source.file
    else:
        clips, file = _planned(*source), _PLANNED
    ids = clips["video_id"].to_numpy()
    hashes = pd.util.hash_array(ids, categorize=False)
    rows = clips["row"].to_numpy()
    first = np.r_[True, rows[1:] != rows[:-1]][: len(rows)]
    steps = np.arange(len(rows))
    shift = np.uint64(64 - int(math.log2(job.buckets)))
    frame = pd.DataFrame(
        {
            **{name: pd.array(clips[name], dtype=_TEXT) for name in ("video_id", "url")},
            "start_ms": clips["start_ms"].to_numpy(),
            "end_ms": clips["end_ms"].to_numpy(),
            **{name: pd.array(clips[name], dtype=_TEXT) for name in ("caption", "extra")},
            "hash": hashes,
            "file": np.int32(file),
            "row": rows,
            "place": (steps - np.maximum.accumulate(np.where(first, steps, 0))).astype("int32"),
            "bucket": (hashes >> shift if job.buckets > 1 else hashes * 0).astype("int64"),
        }
    )
    return frame[list(_SCATTERED)]


class _Unwanted:
    """Videos that are left out, with the reason; made to be looked up in by many threads."""

    def __init__(self, lists: Mapping[str, pa.Array]) -> None:
        ids = pa.concat_arrays([pa.array([], pa.string()), *lists.values()])
        hashes = pd.util.hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
        order = np.argsort(hashes, kind="stable")
        reasons = np.repeat(
            np.array(list(lists), dtype=object), [len(ids) for ids in lists.values()]
        )
        self._ids, self._hashes = ids.take(pa.array(order)), hashes[order]
        self._reasons = reasons[order]

    def among(self, ids: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of videos that are left out, and why each is."""
        if not len(self._hashes):
            return np.array([], dtype=np.int64), self._reasons
        hashes = pd.util.hash_array(ids.to_numpy(), categorize=False)
        place = np.searchsorted(self._hashes, hashes) % len(self._hashes)
        rows = np.flatnonzero(self._hashes[place] == hashes)
        # What has the same hash is the same video, but for one in 10¹⁹ pairs.
        same = pc.equal(self._ids.take(pa.array(place[rows])), ids.take(pa.array(rows)))
        rows = rows[same.to_numpy()]
        return rows, self._reasons[place[rows]]


def _wanted(clips: pa.Table, unwanted: _Unwanted) -> tuple[pa.Table, pa.Table]:
    """Return the clips whose videos are wanted, and the rows of the others as rejected."""
    rows, reasons = unwanted.among(clips["video_id"])
    if not len(rows):
        return clips, REJECTED_SCHEMA.empty_table()
    keep = np.ones(clips.num_rows, dtype=bool)
    keep[rows] = False
    out = clips.take(pa.array(rows))
    columns = [
        out["row"],
        pa.array(reasons, pa.string()),
        pa.array([UNWANTED[reason] for reason in reasons], pa.string()),
        out["video_id"],
    ]
    return clips.filter(pa.array(keep)), pa.table(columns, schema=REJECTED_SCHEMA)


def _with_file(rejected: pa.Table, file: int) -> pa.Table:
    return rejected.add_column(0, "file", pa.array([file] * rejected.num_rows, pa.int32()))


def _planned(store: Store, part: Part) -> pa.Table:
    """Return the clips of a part of the plan, as `clean` would."""
    with open_part(store, part.name) as file:
        found = file.read(columns=[*_KEY, "row"])
    for name in ("start_ms", "end_ms"):
        place = found.column_names.index(name)
        found = found.set_column(place, name, pc.fill_null(found[name], WHOLE))
    nothing = pa.nulls(found.num_rows, pa.string())
    for name in ("url", "caption", "extra"):
        found = found.append_column(name, nothing)
    return found


def _order_bucket(frame: pd.DataFrame, scratch: Path, *, unique_videos: bool) -> pd.DataFrame:
    """Put the clips of a bucket in order, each once, into files; return their counts."""
    if frame.empty:
        return _nothing_of(_ORDERED)
    bucket = int(frame.index[0])
    table = pa.Table.from_pandas(frame, preserve_index=False).combine_chunks()
    table = table.take(pc.sort_indices(table, [(name, "ascending") for name in _ORDER]))
    new_video = _begins(table, ["video_id"])
    videos = np.flatnonzero(new_video)
    group = new_video if unique_videos else _begins(table, _KEY)
    begins = np.flatnonzero(group)
    old = table["file"].to_numpy()[begins] == _PLANNED
    if unique_videos:
        # A video that is planned already has its one clip, whichever that is.
        old = np.logical_or.reduceat(table["file"].to_numpy() == _PLANNED, begins)
    kept = begins[~old]
    first, captions, further = _merged_captions(table, _begins(table, _KEY), kept)
    clips = table.take(pa.array(kept))
    clips = clips.set_column(clips.column_names.index("caption"), "caption", first)
    of_video = np.searchsorted(videos, kept, side="right") - 1
    counts = np.bincount(of_video, minlength=len(videos))
    fresh = ~np.logical_or.reduceat(table["file"].to_numpy() == _PLANNED, videos)
    np.savez(_counts_path(scratch, bucket), counts=counts[counts > 0], fresh=fresh[counts > 0])
    clips = clips.select(["video_id", "url", "start_ms", "end_ms", "caption", "extra"])
    clips = clips.append_column("captions", captions)
    path = str(_bucket_path(scratch, bucket))
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, clips.schema) as writer:
        writer.write_table(clips)
    rest = np.ones(len(frame), dtype=bool)
    rest[kept] = False
    rest &= table["file"].to_numpy() != _PLANNED
    same = ~_begins(table, _KEY)
    in_old = np.repeat(old, np.diff(np.r_[begins, len(frame)])) & rest
    doubles = np.flatnonzero(rest & same & ~in_old & ~further)
    if len(doubles):
        _reject_doubles(table.take(pa.array(doubles)), scratch, bucket)
    row = {
        "bucket": bucket,
        "clips": len(kept),
        "videos": int((counts > 0).sum()),
        "captions": int(further.sum()),
        "left_out": int((rest & ~same & ~in_old).sum()),
        "planned": int(in_old.sum()),
    }
    return pd.DataFrame([row]).astype(_ORDERED)


def _begins(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Return where rows differ from the one before in one of the columns."""
    found = np.zeros(table.num_rows, dtype=bool)
    found[0] = True
    for name in names:
        column = table[name]
        unlike = pc.not_equal(column.slice(1), column.slice(0, table.num_rows - 1))
        found[1:] |= unlike.to_numpy()
    return found


def _merged_captions(
    table: pa.Table, begins: np.ndarray, kept: np.ndarray
) -> tuple[pa.Array, pa.Array, np.ndarray]:
    """Return the caption of each clip, all of clips that have several, and who gave a further one.

    Nothing, and no text, is no caption where another row has one.
    """
    caption = table["caption"].take(pa.array(kept)).combine_chunks()
    lists: list[list[str] | None] = [None] * len(kept)
    firsts: list[str | None] = [None] * len(kept)
    further = np.zeros(table.num_rows, dtype=bool)
    first = np.flatnonzero(begins)
    sizes = np.diff(np.r_[first, table.num_rows])
    is_kept = np.zeros(table.num_rows, dtype=bool)
    is_kept[kept] = True
    several = np.flatnonzero((sizes > 1) & is_kept[first])
    if table["caption"].null_count == table.num_rows:
        several = several[:0]
    place = np.cumsum(is_kept) - 1
    for begin, size in zip(first[several].tolist(), sizes[several].tolist(), strict=True):
        texts = table["caption"].slice(begin, size).to_pylist()
        found: dict[str, None] = {}
        for i, text in enumerate(texts, begin):
            if text and text not in found:
                found[text] = None
                further[i] = i > begin
        firsts[place[begin]] = next(iter(found), None)
        if len(found) > 1:
            lists[place[begin]] = list(found)
    if len(several):
        caption = pc.coalesce(pa.array(firsts, pa.string()), caption)
    return caption, pa.array(lists, pa.list_(pa.string())), further


def _reject_doubles(doubles: pa.Table, scratch: Path, bucket: int) -> None:
    detail = "the same clip stands in the table before"
    values = [
        video if start == WHOLE else f"{video}, {start / 1000:g} s to {end / 1000:g} s"
        for video, start, end in zip(*(doubles[name].to_pylist() for name in _KEY), strict=True)
    ]
    count = doubles.num_rows
    columns = [
        *(doubles["file"], doubles["row"]),
        *(pa.array([text] * count) for text in ("duplicate", detail)),
        pa.array(values, pa.string()),
    ]
    table = pa.table(columns, names=["file", *REJECTED_SCHEMA.names])
    pq.write_table(table, scratch / f"rejected-doubles-{bucket:06d}.parquet")


def _bucket_path(scratch: Path, bucket: int) -> Path:
    return scratch / f"bucket-{bucket:06d}.arrow"


def _counts_path(scratch: Path, bucket: int) -> Path:
    return scratch / f"counts-{bucket:06d}.npz"


# --- into shards -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """`counts`: clips of each video in order; `left_out` behind the limit."""

    counts: np.ndarray
    clips: int
    videos: int
    left_out: int


def _count(scratch: Path, buckets: int, wanted: Wanted, planned: int) -> _Counted:
    counts, fresh = [np.array([], dtype=np.int64)], [np.array([], dtype=bool)]
    for bucket in range(buckets):
        path = _counts_path(scratch, bucket)
        if path.exists():
            with np.load(path) as found:
                counts.append(found["counts"])
                fresh.append(found["fresh"])
    clips_of_video, is_fresh = np.concatenate(counts), np.concatenate(fresh)
    total = clips = int(clips_of_video.sum())
    if wanted.limit is not None and (clips := max(0, min(total, wanted.limit - planned))) < total:
        ends = np.cumsum(clips_of_video)
        last = int(np.searchsorted(ends, clips, side="left")) + 1 if clips else 0
        clips_of_video, is_fresh = clips_of_video[:last].copy(), is_fresh[:last]
        if last:
            clips_of_video[-1] -= ends[last - 1] - clips
    return _Counted(clips_of_video, clips, int(is_fresh.sum()), total - clips)


def shard_bounds(counts: np.ndarray, clips_per_shard: int) -> np.ndarray:
    """Return where shards begin among all clips, and behind the last where it ends.

    Parameters
    ----------
    counts
        Clips of each video, in order.
    clips_per_shard
        At most so many in a shard; a video is only split if it alone has more.
    """
    edges = np.concatenate([[0], np.cumsum(counts)])
    bounds, at, total = [0], 0, int(edges[-1])
    while at < total:
        # The last video that ends in reach; where none does, the one that is begun is split.
        stop = int(edges[np.searchsorted(edges, at + clips_per_shard, side="right") - 1])
        at = stop if stop > at else at + clips_per_shard
        bounds.append(at)
    return np.array(bounds, dtype=np.int64)


def _write_parts(
    store: Store, sources: _Source, bounds: np.ndarray, before: Plan | None
) -> tuple[list[Part], float]:
    """Write the parts of new shards; return them and the seconds of their spans."""
    shards, first = len(bounds) - 1, len(before.sizes) if before else 0
    number = len(before.parts) if before else 0
    tasks = [
        delayed(_write_part)(
            store,
            sources,
            bounds[begin : begin + SHARDS_PER_PART + 1],
            first + begin,
            part_name(number + begin // SHARDS_PER_PART),
        )
        for begin in range(0, shards, SHARDS_PER_PART)
    ]
    done = compute(*tasks, scheduler=threaded.get)
    return [part for part, _ in done], math.fsum(seconds for _, seconds in done)


class _Source(Protocol):
    def read(self, begin: int, stop: int) -> pa.Table:
        """Return the clips from `begin` to `stop`, of all in their order."""


@dataclass(frozen=True)
class _InMemory:
    """Clips that are in order already."""

    clips: pa.Table

    def read(self, begin: int, stop: int) -> pa.Table:
        """Return the clips from `begin` to `stop`."""
        return self.clips.slice(begin, stop - begin)


class _Ordered:
    """All clips in their order, bucket behind bucket."""

    def __init__(self, scratch: Path, buckets: int) -> None:
        paths = (_bucket_path(scratch, bucket) for bucket in range(buckets))
        self._paths = [path for path in paths if path.exists()]
        sizes = []
        for path in self._paths:
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
                sizes.append(
                    sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
                )
        self._edges = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def read(self, begin: int, stop: int) -> pa.Table:
        """Return the clips from `begin` to `stop`."""
        slices = []
        bucket = int(np.searchsorted(self._edges, begin, side="right")) - 1
        while begin < stop:
            end = min(stop, int(self._edges[bucket + 1]))
            with pa.memory_map(str(self._paths[bucket])) as file, pa.ipc.open_file(file) as reader:
                edge = int(self._edges[bucket])
                slices.append(reader.read_all().slice(begin - edge, end - begin))
            begin, bucket = end, bucket + 1
        return pa.concat_tables(slices)


def _write_part(
    store: Store, clips: _Source, bounds: np.ndarray, first: int, name: str
) -> tuple[Part, float]:
    table = clips.read(int(bounds[0]), int(bounds[-1])).combine_chunks()
    seconds = pc.sum(pc.subtract(table["end_ms"], table["start_ms"])).as_py() / 1000
    whole = pc.equal(table["start_ms"], WHOLE)
    for column in ("start_ms", "end_ms"):
        place = table.column_names.index(column)
        table = table.set_column(place, column, pc.if_else(whole, None, table[column]))
    sizes = np.diff(bounds)
    shards = np.repeat(np.arange(first, first + len(sizes), dtype=np.int32), sizes)
    rows = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    table = table.append_column("shard", pa.array(shards)).append_column("row", pa.array(rows))
    table = table.select(SCHEMA.names).cast(SCHEMA)
    with store.stage(name) as staged:
        with pq.ParquetWriter(
            staged, SCHEMA, compression="zstd", write_page_checksum=True
        ) as writer:
            for begin, size in zip(bounds - bounds[0], sizes.tolist(), strict=False):
                writer.write_table(table.slice(int(begin), size), row_group_size=size)
        staged.commit()
        return Part(name, first, tuple(sizes.tolist()), staged.sha256, staged.size), seconds


# --- what is rejected --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rejected:
    counts: Mapping[str, int]
    examples: Sequence[Mapping[str, Any]]


def _write_rejected(store: Store, name: str, scratch: Path, files: Sequence[str]) -> _Rejected:
    """Gather the rejected rows into a file; return their counts by reason, and the first."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[Mapping[str, Any]]] = {}
    names = np.array([shown(file) for file in files], dtype=object)
    with store.stage(name) as staged:
        with pq.ParquetWriter(staged, _REJECTED_SCHEMA, compression="zstd") as writer:
            for found in _in_equal_parts(sorted(scratch.glob("rejected-*.parquet"))):
                named = pa.array(names[found["file"].to_numpy()], pa.string())
                table = found.set_column(0, "file", named).cast(_REJECTED_SCHEMA)
                writer.write_table(table, row_group_size=_REJECTED_ROWS)
                reasons = table["reason"].to_pylist()
                counts.update(reasons)
                for i, reason in enumerate(reasons):
                    if len(kept := examples.setdefault(reason, [])) < 2:
                        kept += table.slice(i, 1).to_pylist()
        staged.commit()
    first = sorted(itertools.chain.from_iterable(examples.values()), key=lambda row: row["row"])
    return _Rejected(dict(counts.most_common()), first)


def _in_equal_parts(paths: Iterable[Path]) -> Iterator[pa.Table]:
    """Yield the rows of files, `_REJECTED_ROWS` at a time: the same whatever the files are."""
    waiting: list[pa.Table] = []
    for path in paths:
        waiting.append(pq.read_table(path))
        while sum(table.num_rows for table in waiting) >= _REJECTED_ROWS:
            joined = pa.concat_tables(waiting)
            yield joined.slice(0, _REJECTED_ROWS)
            waiting = [joined.slice(_REJECTED_ROWS)]
    if waiting and (joined := pa.concat_tables(waiting)).num_rows:
        yield joined
