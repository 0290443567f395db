"""The plan: which clip stands where, decided once.

Order: (hash64(video_id), video_id, start_ms, end_ms), so that the clips of a video are together
and videos are shuffled; of rows with equal keys the first is kept. Shard numbers are absolute.
Written as ``_acavdl/plan/part-NNNNN.parquet`` with one row group per shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from acavdl.errors import StorageError
from acavdl.models import Clip
from acavdl.storage import Store

PLAN_FOLDER = "_acavdl/plan"
#: One parquet file of 50,000 row groups would have a footer of 43 MB.
SHARDS_PER_PART = 256

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("start_ms", pa.int64()),
        ("end_ms", pa.int64()),
        ("caption", pa.string()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """What a run has to do: `sizes` holds the clips of each shard, by its number."""

    digest: str
    videos: int
    sizes: tuple[int, ...]

    @property
    def clips(self) -> int:
        """All clips of the plan."""
        return sum(self.sizes)


def number_clips(clips: pd.DataFrame, clips_per_shard: int) -> pd.DataFrame:
    """Return the clips in the plan's order with their ``shard`` and ``row``.

    Parameters
    ----------
    clips
        Columns ``video_id, url, start_ms, end_ms, caption``.
    clips_per_shard
        At most so many in a shard; a video is only split if it alone has more.
    """
    ids = clips["video_id"].to_numpy(dtype=object)
    keyed = clips.assign(_hash=pd.util.hash_array(ids, categorize=False))
    order = ["_hash", "video_id", "start_ms", "end_ms"]
    keyed = keyed.sort_values(order, kind="stable").drop_duplicates(order[1:], keep="first")
    keyed = keyed.drop(columns="_hash").reset_index(drop=True)
    same = keyed["video_id"].eq(keyed["video_id"].shift())
    counts = (~same).cumsum().value_counts(sort=False).sort_index().to_numpy()
    shards = assign_shards(counts, clips_per_shard)
    rows = pd.Series(shards).groupby(shards).cumcount().to_numpy()
    return keyed.assign(shard=shards.astype("int32"), row=rows.astype("int32"))


def assign_shards(counts: np.ndarray, clips_per_shard: int) -> np.ndarray:
    """Return the shard of each clip, given the number of clips of each video in order."""
    shards = np.empty(int(counts.sum()), dtype=np.int64)
    shard = filled = position = 0
    for count in counts.tolist():
        if filled and filled + count > clips_per_shard:
            shard, filled = shard + 1, 0
        numbers = shard + (filled + np.arange(count)) // clips_per_shard
        shards[position : position + count] = numbers
        position += count
        shard = int(numbers[-1])
        filled = (filled + count - 1) % clips_per_shard + 1
    return shards


def write_plan(store: Store, numbered: pd.DataFrame) -> Plan:
    """Write the numbered clips; the same rows give the same bytes."""
    table = pa.Table.from_pandas(numbered[SCHEMA.names], schema=SCHEMA, preserve_index=False)
    sizes = numbered.groupby("shard").size().tolist()
    digest = hashlib.sha256()
    position = 0
    for part in range(0, len(sizes), SHARDS_PER_PART):
        with store.stage(part_name(part)) as staged:
            with pq.ParquetWriter(staged, SCHEMA, compression="zstd") as writer:
                for size in sizes[part : part + SHARDS_PER_PART]:
                    writer.write_table(table.slice(position, size), row_group_size=size)
                    position += size
            digest.update(staged.sha256.encode())
            staged.commit()
    return Plan(digest.hexdigest(), numbered["video_id"].nunique(), tuple(sizes))


def check_plan(store: Store, plan: Plan) -> None:
    """See that the plan's files are what `write_plan` wrote.

    Raises
    ------
    StorageError
        If one is missing or was changed.
    """
    digest = hashlib.sha256()
    for part in range(0, len(plan.sizes), SHARDS_PER_PART):
        digest.update(store.sha256(part_name(part)).encode())
    if digest.hexdigest() != plan.digest:
        raise StorageError(
            f"the plan in {store.path(PLAN_FOLDER)} was changed since it was made: put it back, or "
            "use another output folder"
        )


def part_name(shard: int) -> str:
    """Return the name of the plan's file that holds a shard."""
    return f"{PLAN_FOLDER}/part-{shard // SHARDS_PER_PART:05d}.parquet"


def read_shard(shard: int, output_folder: str) -> pd.DataFrame:
    """Return the clips of one shard in their order: one partition of the run's Dask dataframe.

    Raises
    ------
    StorageError
        If the plan can't be read, or holds something else under this number.
    """
    store = Store(output_folder)
    try:
        with pq.ParquetFile(store.path(part_name(shard))) as file:
            frame: pd.DataFrame = file.read_row_group(shard % SHARDS_PER_PART).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the plan of shard {shard}: {error}") from error
    if not (frame["shard"] == shard).all():
        raise StorageError(f"the plan's row group {shard} is not of one shard alone")
    return frame


def clips_of(frame: pd.DataFrame) -> list[Clip]:
    """Return the rows of `read_shard` as clips."""
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return [
        Clip(
            video_id=row["video_id"],
            url=row["url"],
            start_ms=row["start_ms"],
            end_ms=row["end_ms"],
            shard=row["shard"],
            row=row["row"],
            caption=None if pd.isna(row["caption"]) else row["caption"],
        )
        for row in rows
    ]


def by_video(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Group clips that follow each other by video."""
    groups: list[list[Clip]] = []
    for clip in clips:
        if groups and groups[-1][0].video_id == clip.video_id:
            groups[-1].append(clip)
        else:
            groups.append([clip])
    return groups
