"""What became of the clips: the rows of published shards, and which is the last word about a clip.

A clip that is retried stands in a shard with a larger number once more (see `acavdl.planfile.Part`,
`again`). Its rows in earlier shards stay as they are; the one in the highest shard counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from acavdl.errors import Outcome, Retry, Scope, StorageError
from acavdl.ledger import Published, shard_name
from acavdl.models import youtube_url
from acavdl.planfile import Plan, open_part
from acavdl.storage import Store
from acavdl.writer import SCHEMA

#: Parquet files that are read at a time: most of it is waiting for a store.
_READERS = 16
#: Examples that are kept of each outcome.
EXAMPLES = 3


def read_shards(
    store: Store, shards: Iterable[int], columns: Sequence[str], digits: int = 5
) -> Iterator[pa.Table]:
    """Yield columns of the parquet of published shards, a table each, in their order.

    Raises
    ------
    StorageError
        If one can't be read.
    """

    def read(shard: int) -> pa.Table:
        name = f"{shard_name(shard, digits)}.parquet"
        try:
            with store.open(name) as source, pq.ParquetFile(source) as file:
                wanted = [column for column in columns if column in file.schema_arrow.names]
                return file.read(columns=wanted, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"cannot read {store.path(name)}: {error}") from error

    with ThreadPoolExecutor(_READERS) as pool:
        waiting = iter(shards)
        # No more of them than are read at a time wait in memory.
        while some := list(itertools.islice(waiting, _READERS)):
            yield from pool.map(read, some)


# --- the last word -----------------------------------------------------------------------------


class LastWords:
    """Which row of a clip is the last: there is none in a shard with a larger number.

    Parameters
    ----------
    store, plan
        The dataset.
    shards
        Those that count, published or not.
    """

    def __init__(self, store: Store, plan: Plan, shards: Collection[int]) -> None:
        keys, numbers = [np.array([], np.uint64)], [np.array([], np.int32)]
        wanted = np.array(sorted(shards), np.int32)
        for part in plan.parts:
            if part.again:
                with open_part(store, part.name) as file:
                    table = file.read(columns=["shard", "video_id", "start_ms", "end_ms"])
                found = table.filter(pa.array(np.isin(table["shard"].to_numpy(), wanted)))
                keys.append(_hashes(_keys(found)))
                numbers.append(found["shard"].to_numpy())
        # By 64 bits of hash: of 100 million clips, two have the same with a chance of 1 in 3000.
        found = pd.Series(np.concatenate(numbers), np.concatenate(keys)).groupby(level=0).max()
        self._index, self._last = found.index, found.to_numpy()

    def among(self, rows: pa.Table) -> np.ndarray:
        """Return which of the rows (``key, shard``) are the last word about their clips."""
        if not len(self._index):
            return np.ones(rows.num_rows, dtype=bool)
        place = self._index.get_indexer(pd.Index(_hashes(rows["key"])))
        last: np.ndarray = (place < 0) | (self._last[place] <= rows["shard"].to_numpy())
        return last


def _hashes(keys: pa.ChunkedArray) -> np.ndarray:
    texts = keys.to_numpy() if isinstance(keys, pa.ChunkedArray) else keys
    return pd.util.hash_array(texts, categorize=False)


def _keys(clips: pa.Table) -> pa.ChunkedArray:
    """Return the keys of clips of the plan, as `acavdl.models.Clip.key` has them."""
    start, end = (
        pc.utf8_lpad(pc.cast(clips[name], pa.string()), 9, "0") for name in ("start_ms", "end_ms")
    )
    span = pc.coalesce(pc.binary_join_element_wise(start, end, "_"), "full")
    return pc.binary_join_element_wise(clips["video_id"], span, "_")


#: Of `to_retry`.
_TAKEN = pa.schema([("shard", pa.int32()), ("row", pa.int32()), ("outcome", pa.string())])


def to_retry(
    store: Store,
    plan: Plan,
    done: Mapping[int, Published],
    outcomes: Set[str],
    *,
    whole_only: bool,
    digits: int = 5,
) -> pd.DataFrame:
    """Return the clips that are to be asked for once more.

    Of shards that are published, clips of one of `outcomes`, which stand in no later shard: one
    that is not published yet will tell, and one that is has told.

    Parameters
    ----------
    done
        The published shards.
    outcomes
        Names of outcomes.
    whole_only
        Only rows of whole videos: with ``captions_are_subtitles`` a row with a span was no clip of
        the plan.

    Returns
    -------
    pandas.DataFrame
        ``shard`` and ``row`` of each in the plan, and its ``outcome``.

    Raises
    ------
    StorageError
        If the store can't be read.
    """
    last = LastWords(store, plan, range(len(plan.sizes)))
    wanted = pa.array(sorted(outcomes), pa.string())
    having = [n for n, found in sorted(done.items()) if not outcomes.isdisjoint(found.counts)]
    found = [_TAKEN.empty_table()]
    for table in read_shards(store, having, ["key", "shard", "row", "start", "outcome"], digits):
        mask = pc.is_in(table["outcome"], value_set=wanted)
        if whole_only:
            mask = pc.and_(mask, pc.is_null(table["start"]))
        rows = table.filter(mask)
        found.append(rows.filter(pa.array(last.among(rows))).select(_TAKEN.names))
    taken: pd.DataFrame = pa.concat_tables(found).to_pandas()
    return taken


# --- failures ----------------------------------------------------------------------------------


@dataclass
class Failed:
    """What failed in one way: how many clips and videos' rows, where, and the first few.

    `examples` hold key and detail.
    """

    count: int = 0
    hosts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Failures:
    """The clips of a dataset that failed.

    Attributes
    ----------
    output_folder
        The dataset.
    clips
        Clips of published shards, each once.
    shards, shards_done
        Shards of the plan, and those that are published.
    outcomes
        What failed, by outcome.
    """

    output_folder: str
    clips: int
    shards: int
    shards_done: int
    outcomes: dict[str, Failed] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Clips that failed."""
        return sum(found.count for found in self.outcomes.values())

    @property
    def hosts(self) -> Counter[str]:
        """How many failed on each machine."""
        return sum((found.hosts for found in self.outcomes.values()), Counter[str]())

    def add(self, rows: pa.Table) -> None:
        """Count rows of `failed_rows`."""
        columns = [rows[name].to_pylist() for name in ("outcome", "host", "key", "detail")]
        for outcome, host, key, detail in zip(*columns, strict=True):
            found = self.outcomes.setdefault(outcome, Failed())
            found.count += 1
            found.hosts[host] += 1
            if len(found.examples) < EXAMPLES:
                found.examples.append((key, detail or ""))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "output_folder": self.output_folder,
            "clips": self.clips,
            "failed": self.count,
            "shards": self.shards,
            "shards_done": self.shards_done,
            "outcomes": [
                {
                    "outcome": name,
                    **{what: str(getattr(Outcome(name), what)) for what in _TOLD},
                    "count": found.count,
                    "hosts": dict(found.hosts.most_common()),
                    "examples": [{"key": key, "detail": text} for key, text in found.examples],
                }
                for name, found in self.most_common()
            ],
        }

    def most_common(self) -> list[tuple[str, Failed]]:
        """Return outcomes, the most frequent first."""
        return sorted(self.outcomes.items(), key=lambda item: (-item[1].count, item[0]))


_TOLD = ("stage", "scope", "retry")
#: Columns of a shard's parquet that `failed_rows` reads, besides additional ones.
_READ = (
    *("key", "video_id", "url", "start", "end", "caption", "shard"),
    *("outcome", "stage", "retry", "detail", "host", "finished_at"),
)


def failed_rows(
    store: Store,
    plan: Plan,
    done: Mapping[int, Published],
    outcomes: Collection[str] = (),
    digits: int = 5,
) -> Iterator[pa.Table]:
    """Yield the rows of clips that failed, each clip's last word, a table a shard.

    Parameters
    ----------
    done
        The published shards; those without such a clip are not read.
    outcomes
        Names of the outcomes that are wanted; none = all.

    Raises
    ------
    StorageError
        If the store can't be read.
    """
    wanted = {name.value for name in Outcome} - {Outcome.OK.value}
    wanted &= set(outcomes) or wanted
    last = LastWords(store, plan, done.keys())
    having = [n for n, found in sorted(done.items()) if not wanted.isdisjoint(found.counts)]
    values = pa.array(sorted(wanted), pa.string())
    for table in read_shards(store, having, [*_READ, *plan.extra], digits):
        found = table.filter(pc.is_in(table["outcome"], value_set=values))
        yield found.filter(pa.array(last.among(found)))


def schema_of_table(rows: pa.Schema, *, whole: bool) -> pa.Schema:
    """Return the schema of `table_of` for parquet files of this schema."""
    names = [name for name in rows.names if name in _READ or name not in SCHEMA.names]
    return table_of(rows.empty_table().select(names), whole=whole).schema


def table_of(rows: pa.Table, *, whole: bool) -> pa.Table:
    """Return failed rows as a table of clips that can be planned again: ``url, start, end, …``.

    Parameters
    ----------
    whole
        Whether the videos were wanted as a whole: there are no spans.
    """
    more = [name for name in rows.column_names if name not in _READ]
    spans = [] if whole else ["start", "end"]
    names = [*spans, "caption", *more, "key", "outcome", "stage", "retry", "detail", "host"]
    found = rows.select(["url", *names, "finished_at"])
    scopes = [str(Outcome(name).scope) for name in rows["outcome"].to_pylist()]
    place = found.column_names.index("stage")
    return found.add_column(place, "scope", pa.array(scopes, pa.string()))


#: Of a tombstone list; a video that is not YouTube's stands in it by its URL.
TOMBSTONES = pa.schema([("video_id", pa.string()), ("outcome", pa.string()), ("date", pa.string())])


def tombstones_of(rows: pa.Table) -> pa.Table:
    """Return the videos among failed rows that are dead for good, each once: `TOMBSTONES`."""
    dead = [o.value for o in Outcome if (o.scope, o.retry) == (Scope.VIDEO, Retry.NEVER)]
    found = rows.filter(pc.is_in(rows["outcome"], value_set=pa.array(dead, pa.string())))
    ids, urls = found["video_id"].to_pylist(), found["url"].to_pylist()
    dates = pc.strftime(found["finished_at"], format="%Y-%m-%d").to_pylist()
    listed = {
        video: {
            "video_id": video if url == youtube_url(video) else url,
            "outcome": outcome,
            "date": date,
        }
        for video, url, outcome, date in zip(
            ids, urls, found["outcome"].to_pylist(), dates, strict=True
        )
    }
    return pa.Table.from_pylist(list(listed.values()), schema=TOMBSTONES)
