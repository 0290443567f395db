"""Samples that have to go: taken out of published shards, and never made again.

What is removed is remembered first, in ``_acavdl/removed/``: whoever plans or makes a shard from
then on leaves those videos out. Then each shard that holds one is made anew without it, out of what
is there. Its parquet and stats are laid down in ``_acavdl/removing/``, the stats last; then the tar
is put in its place, then parquet and stats, as when a shard is published. Whatever comes after a
kill finds there what to go on with: nothing is fetched again, and nothing is lost.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from acavdl.errors import Outcome, StorageError
from acavdl.journal import Journal
from acavdl.ledger import published, shard_name
from acavdl.planfile import Plan, open_part
from acavdl.results import TOMBSTONES
from acavdl.storage import Store
from acavdl.writer import SCHEMA, counts_of, members_digest, status_of

REMOVED = "_acavdl/removed"
_REMOVING = "_acavdl/removing"
DETAIL = "taken out of the dataset on request (acavdl remove)"
#: Columns of the parquet that a removed clip's row keeps, besides those of the user's table.
_KEPT = ("key", "video_id", "url", "shard", "row", "start", "end", "host", "yt_dlp")
#: Bytes read at a time.
_BLOCK = 1 << 20
#: Sums are made of these.
_ZERO = ("bytes_fetched", "requests", "attempts")


# --- what is remembered ------------------------------------------------------------------------


def removed_ids(store: Store) -> frozenset[str]:
    """Return the videos that were taken out of a dataset.

    Raises
    ------
    StorageError
        If the store does not tell.
    """
    found: set[str] = set()
    for name in store.sizes(REMOVED):
        if name.endswith(".csv"):
            rows = csv.DictReader(io.StringIO(store.read(f"{REMOVED}/{name}").decode()))
            found.update(row["video_id"] for row in rows)
    return frozenset(found)


def remember(store: Store, ids: Collection[str]) -> None:
    """Write down that videos are not to be in a dataset: a tombstone list for each call.

    Raises
    ------
    StorageError
        If it can't be written.
    """
    fresh = sorted(set(ids) - removed_ids(store))
    if not fresh:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TOMBSTONES.names)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    writer.writerows((video, Outcome.REMOVED.value, today) for video in fresh)
    name = hashlib.sha256("\n".join(fresh).encode()).hexdigest()[:16]
    store.write(f"{REMOVED}/{today}-{name}.csv", text.getvalue().encode())


def shards_with(store: Store, plan: Plan, ids: Set[str]) -> list[int]:
    """Return the shards of a plan that have clips of some videos.

    Raises
    ------
    StorageError
        If the plan can't be read.
    """
    values, found = pa.array(sorted(ids), pa.string()), set[int]()
    for part in plan.parts:
        with open_part(store, part.name) as file:
            clips = file.read(columns=["shard", "video_id"])
        found.update(
            clips.filter(pc.is_in(clips["video_id"], value_set=values))["shard"].to_pylist()
        )
    return sorted(found)


# --- a shard -----------------------------------------------------------------------------------


def remove_from(store: Store, shard: int, ids: Set[str], digits: int = 5) -> int:
    """Take the samples of videos out of a shard, and return how many clips it changed.

    Of a shard that is not published the checkpoints are removed: they may hold such samples. To do
    it again changes nothing.

    Raises
    ------
    StorageError
        If the store can't be read or written, or the shard is broken.
    """
    name = shard_name(shard, digits)
    with store.lock(name):
        _finish(store, name)
        _forget(store, name)
        if store.size(f"{name}_stats.json") is None:
            Journal(store, name).clear()
            return 0
        if published(store, shard, digits) is None:
            raise StorageError(f"{store.path(name)} is broken: acavdl verify --repair mends it")
        rows = _read_rows(store, name)
        out = pc.is_in(rows["video_id"], value_set=pa.array(sorted(ids), pa.string()))
        out = pc.and_(out, pc.not_equal(rows["outcome"], Outcome.REMOVED.value))
        gone = rows.filter(out)
        if not gone.num_rows:
            return 0
        gone_keys = _keys_of_samples(gone)
        stats = orjson.loads(store.read(f"{name}_stats.json"))
        rows = without(rows, out.to_numpy())
        if "members" in stats["files"]:
            laid = _lay_down(store, name, rows, stats, _members_without(store, name, gone_keys))
        else:
            laid = _rewrite_tar(store, name, gone_keys, rows, stats)
        _put(store, name, laid)
    return int(gone.num_rows)


def is_laid_down(store: Store, name: str) -> bool:
    """Whether a removal of something of a shard was broken off, or is at work.

    Raises
    ------
    StorageError
        If the store doesn't tell.
    """
    return store.size(f"{_REMOVING}/{name}_stats.json") is not None


def finish(store: Store) -> list[str]:
    """Finish what removals that were broken off have begun; return the names of those shards.

    Raises
    ------
    StorageError
        If the store can't be read or written.
    """
    ending = "_stats.json"
    found = [n.removesuffix(ending) for n in sorted(store.sizes(_REMOVING)) if n.endswith(ending)]
    for name in found:
        finish_shard(store, name)
    return found


def finish_shard(store: Store, name: str) -> None:
    """Finish a removal that was broken off in the middle of a shard, if there is one.

    Raises
    ------
    StorageError
        If the store can't be read or written.
    """
    if is_laid_down(store, name):
        with store.lock(name):
            _finish(store, name)


def _read_rows(store: Store, name: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(store.read(f"{name}.parquet")))
    except pa.ArrowException as error:
        raise StorageError(f"cannot read {store.path(name)}.parquet: {error}") from error


def _keys_of_samples(rows: pa.Table) -> frozenset[str]:
    return frozenset(rows.filter(pc.equal(rows["outcome"], Outcome.OK.value))["key"].to_pylist())


def without(rows: pa.Table, out: np.ndarray) -> pa.Table:
    """Return the rows of a shard; those that are `out` tell of nothing but their request."""
    outcome = Outcome.REMOVED
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    values: dict[str, Any] = {
        "status": status_of(outcome),
        "outcome": outcome.value,
        "stage": outcome.stage.value,
        "retry": outcome.retry.value,
        "detail": DETAIL,
        "finished_at": now,
        **dict.fromkeys(_ZERO, 0),
    }
    mask = pa.array(out)
    for place, field in enumerate(rows.schema):
        if field.name in _KEPT or field.name not in SCHEMA.names:
            continue
        if field.name in values:
            filler = pa.repeat(pa.scalar(values[field.name], field.type), rows.num_rows)
        else:
            filler = pa.nulls(rows.num_rows, field.type)
        rows = rows.set_column(place, field, pc.if_else(mask, filler, rows[field.name]))
    return rows


@dataclass(frozen=True)
class _Laid:
    """What parquet and stats of a shard will be."""

    parquet: bytes
    stats: bytes


def _rewrite_tar(
    store: Store, name: str, gone: Set[str], rows: pa.Table, stats: Mapping[str, Any]
) -> _Laid:
    """Write the tar without some samples: the same bytes as if those clips had failed."""
    with store.stage(f"{name}.tar") as staged:
        try:
            with (
                store.open(f"{name}.tar") as source,
                tarfile.open(fileobj=source, mode="r|", bufsize=_BLOCK) as old,
                tarfile.open(fileobj=staged, mode="w") as new,
            ):
                for member in old:
                    if key_of(member.name) not in gone:
                        new.addfile(member, old.extractfile(member))
        except tarfile.TarError as error:
            raise StorageError(f"cannot read {store.path(name)}.tar: {error}") from error
        files = {"tar": {"bytes": staged.size, "sha256": staged.sha256}}
        laid = _lay_down(store, name, rows, stats, files)
        staged.commit()
    return laid


def key_of(member: str) -> str:
    """Return the key of the sample that a member, or a file, is of."""
    return member.partition(".")[0]


def _members_without(store: Store, folder: str, gone: Set[str]) -> dict[str, Any]:
    sizes = store.sizes(folder)
    kept = [n for n in sorted(sizes) if key_of(n) not in gone and not n.startswith(".")]
    hashes = {name: store.sha256(f"{folder}/{name}") for name in kept}
    total = sum(sizes[name] for name in kept)
    return {"members": {"count": len(kept), "bytes": total, "sha256": members_digest(hashes)}}


def _lay_down(
    store: Store, name: str, rows: pa.Table, stats: Mapping[str, Any], files: Mapping[str, Any]
) -> _Laid:
    """Write parquet and stats as they will be, where `_finish` finds them."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    parquet = buffer.getvalue()
    outcomes = Counter(rows["outcome"].to_pylist())
    changed = {
        **stats,
        **counts_of(outcomes),
        "outcomes": dict(outcomes),
        "files": {
            **files,
            "parquet": {"bytes": len(parquet), "sha256": hashlib.sha256(parquet).hexdigest()},
        },
    }
    store.write(f"{_REMOVING}/{name}.parquet", parquet)
    laid = _Laid(parquet, orjson.dumps(changed, option=orjson.OPT_INDENT_2))
    store.write(f"{_REMOVING}/{name}_stats.json", laid.stats)
    return laid


def _finish(store: Store, name: str) -> None:
    """Put in place what is laid down for a shard, if its tar is the new one already."""
    laid = f"{_REMOVING}/{name}"
    if store.size(f"{laid}_stats.json") is None:
        return
    stats = store.read(f"{laid}_stats.json")
    files = orjson.loads(stats)["files"]
    if "members" in files or _is_there(store, f"{name}.tar", files["tar"]):
        _put(store, name, _Laid(store.read(f"{laid}.parquet"), stats))


def _put(store: Store, name: str, laid: _Laid) -> None:
    """Put parquet and stats in their places, last of all; remove what has no row any more."""
    store.write(f"{name}.parquet", laid.parquet)
    store.write(f"{name}_stats.json", laid.stats)
    if "members" in orjson.loads(laid.stats)["files"]:
        kept = _keys_of_samples(_read_rows(store, name))
        _remove_all(store, (f"{name}/{n}" for n in store.sizes(name) if key_of(n) not in kept))
    _forget(store, name)


def _forget(store: Store, name: str) -> None:
    """Remove what is laid down for a shard."""
    _remove_all(store, (f"{_REMOVING}/{name}_stats.json", f"{_REMOVING}/{name}.parquet"))


def _is_there(store: Store, name: str, told: Mapping[str, Any]) -> bool:
    return bool(store.size(name) == told["bytes"] and store.sha256(name) == told["sha256"])


def _remove_all(store: Store, names: Iterable[str]) -> None:
    for name in names:
        store.remove(name)
