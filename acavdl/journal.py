"""What an open shard has made so far: checkpoints that another task, anywhere, goes on from.

Each task that works on a shard keeps its own files in ``_acavdl/open/<shard>/``, named by a token:
``<token>-NNNNNN.parquet`` has the rows since the checkpoint before, and in its metadata where the
samples stand. So two tasks at work on one shard, which Dask may cause, don't get in each other's
way; the shard is published by the first that is done, and then all of it is removed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from acavdl.errors import ShardError, StorageError
from acavdl.storage import Store

logger = logging.getLogger(__name__)

_SEGMENT = re.compile(r"([0-9a-f]{12})-(\d{6})\.parquet")
_MARK = re.compile(r"[0-9a-f]{12}-([^-]*)-(\d+)\.begun")
_STATE = b"acavdl"
#: Tasks of a run that vanish at the same clips before the shard is set aside.
_DEATHS = 5


@dataclass(frozen=True)
class Resumed:
    """Where an open shard stands.

    Parameters
    ----------
    rows
        Of its parquet, in order.
    state
        What was given to `Journal.save` with the last of them.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The checkpoints of one task on one shard.

    Parameters
    ----------
    store
        Where the dataset lies.
    name
        Of the shard.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._folder = f"_acavdl/open/{name}"
        self._token = uuid.uuid4().hex[:12]
        self._segments = 0

    def path(self, extension: str) -> str:
        """Return the name of a file that this task may keep with its checkpoints."""
        return f"{self._folder}/{self._token}.{extension}"

    @contextlib.contextmanager
    def begun(self, run: str, done: int) -> Iterator[None]:
        """Leave a mark as long as the task is at work: that of a task that was killed stays.

        Dask runs again what was on a worker that died, elsewhere; a shard of which workers die
        (media on which a library crashes, say) would cost one worker after the other.

        Parameters
        ----------
        run
            Name of the run: the next one may try again.
        done
            Clips that are made, on which the task goes on.

        Raises
        ------
        ShardError
            If too many tasks of this run have begun there, and have left their marks.
        StorageError
            If the mark can't be written.
        """
        marks = [_MARK.fullmatch(name) for name in self._store.sizes(self._folder)]
        dead = sum(mark is not None and mark.groups() == (run, str(done)) for mark in marks)
        if dead >= _DEATHS:
            raise ShardError(
                f"{dead} workers have died at it, behind its first {done} clips: it is set aside. "
                "The next run tries it again"
            )
        name = f"{self._folder}/{self._token}-{run}-{done}.begun"
        self._store.write(name, b"")
        try:
            yield
        finally:
            self._store.remove(name)

    def save(self, rows: pa.Table, state: Mapping[str, Any]) -> None:
        """Make a checkpoint: rows since the last one, and where the samples stand.

        Raises
        ------
        StorageError
            If it can't be written.
        """
        table = rows.replace_schema_metadata({_STATE: orjson.dumps(dict(state))})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        name = f"{self._folder}/{self._token}-{self._segments:06d}.parquet"
        self._store.write(name, buffer.getvalue())
        self._segments += 1

    def resumed(self) -> Resumed:
        """Return the checkpoint of any task on this shard that has most rows; the last good one.

        Raises
        ------
        StorageError
            If the store does not tell what there is.
        """
        found: dict[str, list[int]] = {}
        for name in self._store.sizes(self._folder):
            if (match := _SEGMENT.fullmatch(name)) is not None:
                found.setdefault(match[1], []).append(int(match[2]))
        candidates = [self._read(token, sorted(numbers)) for token, numbers in found.items()]
        return max(candidates, key=lambda each: len(each.rows), default=Resumed())

    def _read(self, token: str, numbers: Sequence[int]) -> Resumed:
        rows: list[Mapping[str, Any]] = []
        state: Mapping[str, Any] = {}
        for expected, number in enumerate(numbers):
            name = f"{self._folder}/{token}-{number:06d}.parquet"
            try:
                if number != expected:
                    raise ValueError(f"checkpoint {expected} is missing")
                table = pq.read_table(io.BytesIO(self._store.read(name)))
                state = orjson.loads((table.schema.metadata or {})[_STATE])
                rows += table.to_pylist()
            except (StorageError, OSError, ValueError, KeyError, pa.ArrowException) as error:
                # Another task may have published the shard and removed it; else what it has is
                # made again.
                logger.warning("cannot go on from %s: %s", self._store.path(name), error)
                return Resumed()
        return Resumed(rows, state)

    def clear(self) -> None:
        """Remove the checkpoints of all tasks on the shard: it is published.

        Raises
        ------
        StorageError
            If one can't be removed.
        """
        for name in self._store.sizes(self._folder):
            self._store.remove(f"{self._folder}/{name}")
