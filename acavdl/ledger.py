"""What a folder holds: whose plan it is, and which shards are published."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson

from acavdl.config import Config
from acavdl.errors import PlanMismatchError, StorageError
from acavdl.plan import Plan
from acavdl.storage import Store

MANIFEST = "_acavdl/run.json"
FORMAT_VERSION = 1
_VERSION = version("acavdl")


@dataclass(frozen=True)
class Published:
    """The stats of a published shard."""

    shard: int
    count: int
    counts: Mapping[str, int]


def shard_name(shard: int) -> str:
    """Return the common part of a shard's file names."""
    return f"{shard:05d}"


def write_manifest(store: Store, plan: Plan, source: Mapping[str, Any], config: Config) -> None:
    """Record whose folder this is, once; its presence means that the plan is complete."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "acavdl": _VERSION,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "plan": {"digest": plan.digest, "videos": plan.videos, "sizes": list(plan.sizes)},
        "source": dict(source),
        "fingerprint": config.fingerprint(),
        "config": config.as_dict(),
    }
    store.write(MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))


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
            f"{store} holds another plan ({'; '.join(differing)}). Use the settings it was made "
            "with, or another output folder"
        )


def _made_with(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {**manifest["source"], **manifest["fingerprint"]}


def plan_of(manifest: Mapping[str, Any]) -> Plan:
    """Return the plan as the manifest tells it."""
    plan = manifest["plan"]
    return Plan(plan["digest"], plan["videos"], tuple(plan["sizes"]))


def published(store: Store, shard: int) -> Published | None:
    """Return the stats of a shard if it is published: stats, and tar and parquet as they say.

    Raises
    ------
    StorageError
        If the store does not tell: what can't be read for now is not to be made again.
    """
    name = shard_name(shard)
    if store.size(f"{name}_stats.json") is None:
        return None
    content = store.read(f"{name}_stats.json")
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        stats = orjson.loads(content)
        sizes = stats["files"]
        if all(store.size(f"{name}.{kind}") == sizes[kind]["bytes"] for kind in ("tar", "parquet")):
            return Published(shard, stats["count"], stats["outcomes"])
    return None
