"""The files of a plan: ``_acavdl/plan/part-NNNNN.parquet``, one row group per shard."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from acavdl.errors import StorageError
from acavdl.models import Clip, youtube_url
from acavdl.storage import Store

PLAN_FOLDER = "_acavdl/plan"
#: Rows of the table that can't be used.
REJECTED = "_acavdl/rejected.parquet"
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
        ("captions", pa.list_(pa.string())),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True)
class Part:
    """A file of the plan: its first shard, the clips of each of its shards, its hash and size.

    `again` counts the outcomes that its clips had before, in shards with smaller numbers; it is
    empty where they stand in the plan for the first time.
    """

    name: str
    first: int
    sizes: tuple[int, ...]
    sha256: str
    bytes: int
    again: Mapping[str, int] = field(default_factory=dict)

    def shards(self) -> range:
        """Return the numbers of its shards."""
        return range(self.first, self.first + len(self.sizes))


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Parameters
    ----------
    parts
        The files of the plan, by their first shards.
    videos
        Different videos.
    seconds
        Sum of the spans, in seconds; whole videos count nothing.
    extra
        Type of each additional column: ``string, int64, float64`` or ``bool``.
    rejected
        Rows, or clips of rows, of the table that can't be used, by reason; all stand in `REJECTED`.
    """

    parts: tuple[Part, ...]
    videos: int
    seconds: float = 0.0
    extra: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The sha256 of the hashes of the parts."""
        return hashlib.sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The clips of each shard, by its number."""
        return tuple(itertools.chain.from_iterable(part.sizes for part in self.parts))

    @property
    def clips(self) -> int:
        """All clips of the plan, those that stand in it more than once (see `again`) once."""
        return sum(self.sizes) - self.again.total()

    @property
    def again(self) -> Counter[str]:
        """The outcomes of clips that a shard with a larger number has once more."""
        return sum((Counter(part.again) for part in self.parts), Counter[str]())

    def place(self, shard: int) -> tuple[str, int]:
        """Return the file and row group that hold a shard."""
        number = bisect.bisect_right(self.parts, shard, key=lambda part: part.first) - 1
        return self.parts[number].name, shard - self.parts[number].first


def check_plan(store: Store, plan: Plan) -> None:
    """See that the plan's files have the sizes that `make_plan` wrote; pages have checksums.

    Raises
    ------
    StorageError
        If one is missing or was changed.
    """
    sizes = store.sizes(PLAN_FOLDER)
    for part in plan.parts:
        if sizes.get(part.name.rpartition("/")[2]) != part.bytes:
            raise StorageError(
                f"the plan in {store.path(PLAN_FOLDER)} was changed since it was made "
                f"({part.name}): put it back, or use another output folder"
            )


def part_name(number: int) -> str:
    """Return the name of a file of the plan."""
    return f"{PLAN_FOLDER}/part-{number:05d}.parquet"


@contextlib.contextmanager
def open_part(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """Open a file of the plan.

    Raises
    ------
    StorageError
        If it can't be read, in the block as well.
    """
    try:
        with (
            store.open(name) as source,
            pq.ParquetFile(source, page_checksum_verification=True) as file,
        ):
            yield file
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read the plan's {name}: {error}") from error


@dataclass(frozen=True)
class ShardPlace:
    """Where the plan holds a shard; how often it failed in this run, and which slice it is."""

    shard: int
    name: str
    group: int
    attempt: int = 0
    slice: int = 0


def read_shard(place: ShardPlace, store: Store) -> pd.DataFrame:
    """Return the clips of one shard in their order.

    Raises
    ------
    StorageError
        If the plan can't be read, or holds something else there.
    """
    with open_part(store, place.name) as file:
        if place.group >= file.num_row_groups:
            raise StorageError(f"the plan's {place.name} has no shard {place.shard}")
        table = file.read_row_group(place.group)
    frame: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    if not (frame["shard"] == place.shard).all():
        raise StorageError(f"the plan's {place.name} has another shard in place of {place.shard}")
    return frame


def empty_shard() -> pd.DataFrame:
    """Return what `read_shard` does, without a row: Dask's meta."""
    frame: pd.DataFrame = SCHEMA.empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    return frame


def clips_of(frame: pd.DataFrame, extra: Mapping[str, str] | None = None) -> list[Clip]:
    """Return the rows of `read_shard` as clips; `extra` has the types of additional columns."""
    table = pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False)
    return [
        Clip(
            video_id=row["video_id"],
            url=row["url"] or youtube_url(row["video_id"]),
            start_ms=row["start_ms"],
            end_ms=row["end_ms"],
            shard=row["shard"],
            row=row["row"],
            caption=row["caption"],
            captions=_all_captions(row["caption"], row["captions"]),
            extra=_typed(row["extra"], extra or {}),
        )
        for row in table.to_pylist()
    ]


def _all_captions(caption: str | None, captions: list[str] | None) -> tuple[str, ...] | None:
    if captions:
        return tuple(captions)
    return None if caption is None else (caption,)


def _typed(text: str | None, types: Mapping[str, str]) -> dict[str, Any]:
    found = orjson.loads(text) if text else {}
    return {name: _as_type(found.get(name), kind) for name, kind in types.items()}


def _as_type(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "string":
        # A column of no one type, or of lists: what is no text is its JSON.
        return value if isinstance(value, str) else orjson.dumps(value).decode()
    # A larger table, with other values, may extend the plan: what does not fit is null.
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float64":
        return float(value)
    return int(value) if value == int(value) else None


def by_video(clips: Iterable[Clip]) -> list[list[Clip]]:
    """Group clips that follow each other by video."""
    return [list(group) for _, group in itertools.groupby(clips, key=lambda clip: clip.video_id)]
