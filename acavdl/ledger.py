"""What a folder holds: whose plan it is, and which shards are published."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from acavdl.config import Config
from acavdl.errors import PlanMismatchError, StorageError
from acavdl.journal import Journal
from acavdl.planfile import Part, Plan
from acavdl.storage import Store

MANIFEST = "_acavdl/run.json"
FORMAT_VERSION = 2
#: Stats that are read at a time.
_READERS = 16
_VERSION = version("acavdl")


@dataclass(frozen=True)
class Published:
    """The stats of a published shard."""

    shard: int
    count: int
    counts: Mapping[str, int]


def shard_name(shard: int, digits: int = 5) -> str:
    """Return the common part of a shard's file names; `digits` of its number, at least."""
    return f"{shard:0{digits}d}"


def write_manifest(store: Store, plan: Plan, source: Mapping[str, Any], config: Config) -> None:
    """Record whose folder this is; its presence means that the plan is complete."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "acavdl": _VERSION,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "plan": _record(plan),
        "source": dict(source),
        "fingerprint": config.fingerprint(),
        "config": config.as_dict(),
    }
    store.write(MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))


def write_plan(store: Store, manifest: Mapping[str, Any], plan: Plan) -> None:
    """Record that a folder's plan has grown; all else stays as it was made."""
    grown = {**manifest, "plan": _record(plan)}
    store.write(MANIFEST, orjson.dumps(grown, option=orjson.OPT_INDENT_2))


def _record(plan: Plan) -> dict[str, Any]:
    return {"digest": plan.digest, "clips": plan.clips, **dataclasses.asdict(plan)}


def read_manifest(store: Store) -> dict[str, Any] | None:
    """Return the folder's manifest; None in a new folder.

    Raises
    ------
    PlanMismatchError
        If it was written by a version with another format.
    StorageError
        If it is not readable.
    """
    if store.size(MANIFEST) is None:
        return None
    try:
        manifest: dict[str, Any] = orjson.loads(store.read(MANIFEST))
        found = manifest["format_version"]
        if found != FORMAT_VERSION:
            raise PlanMismatchError(
                f"{store} was written in format {found}; this is acavdl "
                f"{_VERSION} with format {FORMAT_VERSION}"
            )
        plan_of(manifest)
        _made_with(manifest)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise StorageError(f"{store.path(MANIFEST)} is damaged: {error!r}") from error
    return manifest


def check_manifest(store: Store, manifest: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """See that a folder belongs to this run: the same table and the same settings.

    Raises
    ------
    PlanMismatchError
        That names what differs, with both values.
    """
    found = _made_with(manifest)
    differing = [
        f"{name}: {found.get(name)!r} there, {value!r} now"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if differing:
        raise PlanMismatchError(
            f"{store} holds another plan ({'; '.join(differing)}). Use the table and settings it "
            "was made with, another output folder, or --incremental-mode (extend for a larger "
            "table, overwrite to begin anew)"
        )


def _made_with(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest["source"], **manifest["fingerprint"]}


def plan_of(manifest: Mapping[str, Any]) -> Plan:
    """Return the plan as the manifest tells it."""
    plan = manifest["plan"]
    parts = tuple(
        Part(
            **{name: part[name] for name in ("name", "first", "sha256", "bytes")},
            sizes=tuple(part["sizes"]),
            again=part.get("again", {}),
        )
        for part in plan["parts"]
    )
    return Plan(parts, plan["videos"], plan["seconds"], dict(plan["extra"]), dict(plan["rejected"]))


def published(
    store: Store, shard: int, digits: int = 5, sizes: Mapping[str, int] | None = None
) -> Published | None:
    """Return the stats of a shard if it is published: stats, and tar and parquet as they say.

    Parameters
    ----------
    sizes
        Sizes of the folder's files, where it was listed; None = they are asked for.

    Raises
    ------
    StorageError
        If the store does not tell: what can't be read for now is not to be made again.
    """
    size = store.size if sizes is None else sizes.get
    name = shard_name(shard, digits)
    if size(f"{name}_stats.json") is None:
        return None
    content = store.read(f"{name}_stats.json")
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        stats = orjson.loads(content)
        files = stats["files"]
        # Files in the place of a tar are told by number and hash; the parquet stands for both.
        kinds = ("parquet",) if "members" in files else ("tar", "parquet")
        if all(size(f"{name}.{kind}") == files[kind]["bytes"] for kind in kinds):
            return Published(shard, stats["count"], stats["outcomes"])
    return None


def unpublish(store: Store, shard: int, digits: int = 5) -> None:
    """Take a shard back, so that it is made anew: from the removal of its stats on it is not there.

    Raises
    ------
    StorageError
        If a file can't be removed.
    """
    name = shard_name(shard, digits)
    with store.lock(name):
        for ending in ("_stats.json", ".parquet", ".tar"):
            store.remove(f"{name}{ending}")
        Journal(store, name).clear()


def published_of(store: Store, shards: int, digits: int = 5) -> dict[int, Published]:
    """Return the published shards of a plan: one listing, and the stats of those that are there.

    Raises
    ------
    StorageError
        If the store does not tell.
    """
    sizes = store.sizes()
    there = [s for s in range(shards) if f"{shard_name(s, digits)}_stats.json" in sizes]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda shard: published(store, shard, digits, sizes), there)
        return {one.shard: one for one in found if one is not None}


def read_rows(store: Store, shard: int, digits: int = 5) -> pd.DataFrame:
    """Return the rows of a published shard's parquet, one per clip.

    Raises
    ------
    StorageError
        If it can't be read.
    """
    name = f"{shard_name(shard, digits)}.parquet"
    try:
        with store.open(name) as file:
            frame: pd.DataFrame = pq.read_table(file).to_pandas(types_mapper=pd.ArrowDtype)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"cannot read {store.path(name)}: {error}") from error
    return frame
