"""From a table to a plan in a folder: made new, found there, or extended."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from acavdl.config import Config, IncrementalMode, TableOptions
from acavdl.errors import PlanMismatchError, UsageError
from acavdl.idlists import read_ids
from acavdl.ledger import check_manifest, plan_of, read_manifest, write_manifest
from acavdl.models import RESERVED_KEYS
from acavdl.planfile import Plan, check_plan
from acavdl.planning import Made, Wanted, make_plan
from acavdl.presets import BY_NAME, recognise
from acavdl.readers import (
    PIECE_ROWS,
    Columns,
    TableFiles,
    find_files,
    find_pieces,
    listed,
    merged_kinds,
    read_head,
)
from acavdl.removal import removed_ids
from acavdl.settings import CONFIG_FILE, example
from acavdl.storage import Store, input_size, shown
from acavdl.tables import find_columns

#: Bytes of a table that takes long enough to say what is going on.
_LARGE = 50_000_000
#: Ids that are hashed at a time.
_IDS = 1_000_000
#: What may be another when a plan is extended.
_MAY_GROW = ("table_sha256", "limit", "tombstones")


@dataclass(frozen=True)
class Prepared:
    """The plan of a folder, and what was learnt when it was made (None, if it was there)."""

    plan: Plan
    table: TableFiles
    columns: Columns
    made: Made | None = None


def prepare(
    store: Store,
    options: TableOptions,
    config: Config,
    *,
    mode: IncrementalMode = "incremental",
    tmp_dir: str | None = None,
    piece_rows: int = PIECE_ROWS,
    tell: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Return the folder's plan, made now if it is new or to be extended.

    Parameters
    ----------
    store
        The folder of the dataset.
    options
        The table.
    mode
        ``incremental``: the table must be the one that the plan was made of; ``extend``: what it
        has besides becomes new shards; ``overwrite``: the dataset that is there is removed.
    tmp_dir
        Local folder that has room for about the size of the table; None = the system's.
    piece_rows
        Rows of a partition, about; the plan does not depend on it.
    tell
        Called with lines about what is going on.

    Raises
    ------
    AcavdlError
        For a table that can't be used, or a folder that holds something else.
    """
    table = _apart(find_files(options.url_list, options.input_format), store)
    columns = columns_of(table, options, config)
    dead = None if options.tombstones is None else read_ids(options.tombstones)
    source = {
        "table_sha256": table.digest(),
        **_settings(options, columns),
        "tombstones": None if dead is None else _digest(dead),
    }
    store.create()
    store.sweep()
    manifest = read_manifest(store)
    before = None
    if manifest is None and (there := store.shards()):
        raise PlanMismatchError(
            f"{store} has files named like shards ({there[0]}, …) and no plan of them: use another "
            "folder, or move them away"
        )
    overwritten = None if manifest is None or mode != "overwrite" else plan_of(manifest)
    if manifest is not None and overwritten is None:
        plan = plan_of(manifest)
        expected = {**source, **config.fingerprint()}
        found = manifest["source"]
        if mode == "extend" and any(found.get(name) != source[name] for name in _MAY_GROW):
            expected = {k: v for k, v in expected.items() if k not in _MAY_GROW}
            before = plan
        check_manifest(store, manifest, expected)
        check_plan(store, plan)
        if before is None:
            return Prepared(plan, table, columns)
    size = sum(map(input_size, table.files))
    if size > _LARGE:
        tell(f"Reading {shown(table.url)}: {size / 1e9:.1f} GB …")
    with _scratch(tmp_dir) as scratch:
        pieces = find_pieces(table, columns, scratch, piece_rows)
        if size > _LARGE:
            rows = sum(piece.rows for piece in pieces)
            tell(f"Putting the clips of {rows:,} rows in order …")
        made = make_plan(
            store,
            table.files,
            pieces,
            columns,
            replace(wanted_of(options, config), unwanted=_unwanted(store, dead)),
            scratch=scratch,
            before=before,
            extra=merged_kinds(pieces, columns) if before is None else before.extra,
            clear=lambda: store.clear(len(overwritten.sizes)) if overwritten else None,
        )
    write_manifest(store, made.plan, {"url_list": shown(options.url_list), **source}, config)
    return Prepared(made.plan, table, columns, made)


def _unwanted(store: Store, dead: pa.Array | None) -> dict[str, pa.Array]:
    """Return the videos that are not planned, by the reason."""
    removed = {"removed": pa.array(sorted(removed_ids(store)), pa.string())}
    return removed if dead is None else {**removed, "known_dead": dead}


def _digest(ids: pa.Array) -> str:
    """Return a hash of a list of videos, whatever the form of the list."""
    found = hashlib.sha256()
    for begin in range(0, len(ids), _IDS):
        found.update("\n".join([*ids.slice(begin, _IDS).to_pylist(), ""]).encode())
    return found.hexdigest()


def _apart(table: TableFiles, store: Store) -> TableFiles:
    """Return the files of a table without those of the dataset, which may lie in its folder."""
    files = tuple(name for name in table.files if not store.owns(name))
    if not files:
        raise UsageError(
            f"{shown(table.url)} has the name of a shard in the output folder: use another folder"
        )
    return replace(table, files=files)


def columns_of(table: TableFiles, options: TableOptions, config: Config) -> Columns:
    """Return what stands where in a table.

    Raises
    ------
    UsageError
        That names what is missing, in question, or contradicts itself.
    """
    subtitles = config.storage.captions_are_subtitles
    if subtitles and (options.clip_col or options.start_col or options.whole_videos):
        raise UsageError(
            "captions_are_subtitles makes its own clips: it goes without --clip-col, --start-col "
            "and --whole-videos"
        )
    if subtitles and (options.caption_col or options.caption_from):
        raise UsageError("captions_are_subtitles has its own captions: it goes without others")
    spans = not subtitles and not options.whole_videos
    columns = find_columns(read_head(table), options, spans=spans)
    if subtitles:
        columns = replace(columns, caption=None)
    taken = {"url": columns.video, "caption": columns.caption, "clips": columns.clips}
    for name in columns.extra:
        if name in RESERVED_KEYS and taken.get(name) != name:
            raise UsageError(
                f"the additional column {name!r} has the name of a key that each sample has "
                f"already ({', '.join(RESERVED_KEYS)}): rename it in the table"
            )
    return columns


def _settings(options: TableOptions, columns: Columns) -> dict[str, Any]:
    """Return what changes the plan: columns as they were found, by the names of the options."""
    return {
        "url_col": columns.video,
        "clip_col": columns.clips,
        "start_col": columns.start,
        "end_col": columns.end,
        "clip_length": columns.length,
        "time_unit": columns.unit,
        "caption_col": columns.caption,
        "captions_listed": columns.captions_listed,
        "header": None if columns.header is None else list(columns.header),
        "caption_from": options.caption_from,
        "save_additional_columns": list(columns.extra),
        "unique_videos": options.unique_videos,
        "limit": options.limit,
        "allow_local": options.allow_local,
        "whole_videos": options.whole_videos,
    }


@contextlib.contextmanager
def _scratch(parent: str | None) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="acavdl-plan-", dir=parent)
    except OSError as error:
        raise UsageError(f"cannot write to --tmp-dir {parent}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def wanted_of(options: TableOptions, config: Config) -> Wanted:
    """Return which clips are planned, and how."""
    return Wanted(
        clips_per_shard=config.storage.number_sample_per_shard,
        unique_videos=options.unique_videos,
        limit=options.limit,
        allow_local=options.allow_local,
        limits=config.clipping.limits(),
    )


def write_settings(
    url_list: str,
    output_folder: str,
    preset: str | None = None,
    input_format: str | None = None,
    *,
    force: bool = False,
) -> str:
    """Write ``acavdl.yaml`` for a table into the current folder; return its name.

    Parameters
    ----------
    url_list, output_folder, preset, input_format
        What the file will say; without `preset`, what the columns tell.
    force
        Whether to replace a file that is there.

    Raises
    ------
    UsageError
        For a table that can't be read, or a file that is there.
    """
    path = Path(CONFIG_FILE)
    if path.exists() and not force:
        raise UsageError(f"{path} is there already: --force replaces it")
    options = TableOptions(url_list, input_format=input_format, preset=preset)
    head = read_head(find_files(url_list, input_format))
    values: dict[str, Any] = {"url_list": url_list, "output_folder": output_folder}
    if input_format is not None:
        values["input_format"] = input_format
    remarks = {"url_list": f"Its columns: {listed(head.names)}"}
    columns = find_columns(head, options)
    if preset is not None or (fitting := recognise(head.names)):
        values["preset"] = preset or fitting[0].name
        remarks["preset"] = f"Known: {', '.join(BY_NAME)}"
    else:
        roles = {"video": "url_col", "clips": "clip_col", "start": "start_col", "end": "end_col"}
        found = columns.roles
        values |= {option: found[role] for role, option in roles.items() if role in found}
    if columns.caption is not None:
        values["caption_col"] = columns.caption
    text = example(values, remarks)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    return str(path)
