"""From a user's table to clean rows: one per clip, ids as strings, times in milliseconds.

What is plain (a number, an id, a usual link) is done a column at a time by Arrow; the rest goes row
by row through `parse_video`, `acavdl.spans.milliseconds` and `pairs_of`, which say what is meant.
"""

from __future__ import annotations

import ast
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from acavdl.config import TableOptions
from acavdl.errors import UsageError, whole_text
from acavdl.models import is_youtube_id, name_of, youtube_url
from acavdl.presets import BY_NAME, CLIPS, END, PRESETS, START, VIDEO, Preset, headerless, recognise
from acavdl.readers import Columns, Head, listed
from acavdl.spans import BEYOND_MS, MAX_MS, UNITS, SpanError, check_span, milliseconds, split_span

_PATH_ID = re.compile(r"/(?:shorts|embed|live|v)/([A-Za-z0-9_-]{11})(?:[/?#]|$)")
_YOUTUBE_HOSTS = ("youtube.com", "youtube-nocookie.com", "youtu.be")
#: What Arrow does in a column: patterns of RE2, whose ``$`` is the end of the text.
_ID = r"^[A-Za-z0-9_-]{11}$"
_LINK = r"^(?:https?://)?(?:www\.)?(?:youtube\.com/watch\?v=|youtu\.be/)(?P<id>[A-Za-z0-9_-]{11})$"
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,15})?"
#: As JSON and Python write them: without zeros before.
_LITERAL = r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,15})?"
_ONE_PAIR = r"^\[(\[[^\[\]]*\])\]$"
_PAIR = rf"^\[(?P<start>{_LITERAL}), ?(?P<end>{_LITERAL})\]$"
#: What stands behind a backslash in Python's texts, and what has a meaning there.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = frozenset("\n\\'\"abfnrtv01234567xNuU")
#: Lists in lists: more have no meaning in any column.
_DEEPEST = 10
#: Start and end of what has neither: a whole video.
WHOLE = -1
#: Characters of a rejected row that are kept.
_SHOWN = 200

CLIPS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("start_ms", pa.int64()),
        ("end_ms", pa.int64()),
        ("caption", pa.string()),
        ("extra", pa.string()),
        ("row", pa.int64()),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("value", pa.string()),
    ]
)


@dataclass(frozen=True)
class Cleaned:
    """Rows of a table, clean ones and rejected ones.

    Attributes
    ----------
    clips
        `CLIPS_SCHEMA`: a row per clip in the order of the table. `url` is null where the id tells
        it, `start_ms` and `end_ms` are `WHOLE` for a whole video, `extra` is a JSON object.
    rejected
        `REJECTED_SCHEMA`: a row for each row, or clip of a row, that can't be used.
    """

    clips: pa.Table
    rejected: pa.Table


# --- columns -----------------------------------------------------------------------------------


def find_columns(head: Head, options: TableOptions, *, spans: bool = True) -> Columns:
    """Find out what stands where: as told, as a known layout has it, or by the usual names.

    Parameters
    ----------
    head
        The columns of the table.
    spans
        False: the videos alone are wanted, whatever spans the table has.

    Raises
    ------
    UsageError
        That names what the table has, and what is missing or in question.
    """
    _check_named(head.names, options)
    explicit = options.url_col or options.clip_col or options.start_col or options.end_col
    fitting = [] if options.preset or explicit else recognise(head.names)
    if len(fitting) > 1:
        names = " or ".join(f"--preset {preset.name}" for preset in fitting)
        raise UsageError(f"{options.url_list} fits several layouts: say which, {names}")
    preset = _preset(options.preset) if options.preset else next(iter(fitting), None)
    found = (
        _by_names(head, options, spans=spans)
        if preset is None
        else _by_preset(preset, head, options)
    )
    caption = options.caption_col or (None if options.caption_from else found.caption)
    return replace(
        found,
        clips=found.clips if spans else None,
        start=found.start if spans else None,
        end=found.end if spans else None,
        length=found.length if spans else None,
        unit=options.time_unit or found.unit,
        caption=caption,
        captions_listed=found.captions_listed and caption == found.caption,
        extra=options.save_additional_columns,
    )


def _check_named(names: Sequence[str], options: TableOptions) -> None:
    if options.preset is not None and not _preset(options.preset).header:
        names = _preset(options.preset).columns
    for option in ("url_col", "clip_col", "start_col", "end_col", "caption_col"):
        name = getattr(options, option)
        if name is not None and name not in names:
            raise UsageError(
                f"{options.url_list} has no column {name!r} (--{option.replace('_', '-')}); "
                f"it has: {listed(names)}"
            )
    for name in options.save_additional_columns:
        if name not in names:
            raise UsageError(
                f"{options.url_list} has no column {name!r} (--save-additional-columns); "
                f"it has: {listed(names)}"
            )


def _preset(name: str) -> Preset:
    if name not in BY_NAME:
        raise UsageError(f"no preset {name!r}; there are: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _by_preset(preset: Preset, head: Head, options: TableOptions) -> Columns:
    """Return what a layout says, but where the options say something else."""
    table, has = options.url_list, listed(head.names)
    if not preset.header and len(head.names) != len(preset.columns):
        raise UsageError(
            f"{table} has {len(head.names)} columns ({has}), "
            f"{preset.name} has {len(preset.columns)}: {', '.join(preset.columns)}"
        )
    found = Columns(
        video=preset.video,
        clips=preset.clips,
        start=preset.start,
        end=preset.end,
        length=preset.length,
        unit=preset.unit,
        caption=None if options.caption_from else preset.caption,
        captions_listed=preset.captions_listed,
        header=None if preset.header else preset.columns,
    )
    if options.clip_col:
        found = replace(found, start=None, end=None)
    elif options.start_col or options.end_col:
        found = replace(found, clips=None)
    named: dict[str, Any] = {
        "video": options.url_col,
        "clips": options.clip_col,
        "start": options.start_col,
        "end": options.end_col,
        "caption": options.caption_col,
    }
    told = {role: column for role, column in named.items() if column is not None}
    found = replace(found, **told)
    found = replace(
        found, captions_listed=preset.captions_listed and found.caption == preset.caption
    )
    if missing := set(found.roles.values()) - set(found.header or head.names):
        raise UsageError(
            f"{table} has the columns: {has}. {preset.name} has "
            f"{', '.join(sorted(missing))} besides"
        )
    if found.end is not None and found.start is None:
        raise UsageError(f"{table}: --end-col {found.end} goes with --start-col")
    return found


def _by_names(head: Head, options: TableOptions, *, spans: bool) -> Columns:
    names, table = head.names, options.url_list
    video = options.url_col or next((name for name in VIDEO if name in names), None)
    if video is None:
        raise UsageError(_no_video(head, table))
    if not spans:
        return Columns(video)
    clips = options.clip_col or next((name for name in CLIPS if name in names), None)
    start = options.start_col or _only(START, names, table, "--start-col")
    end = options.end_col or _only(END, names, table, "--end-col")
    if options.clip_col or (clips and not (options.start_col or options.end_col)):
        return Columns(video, clips)
    if start is not None and end is not None:
        return Columns(video, None, start, end)
    if start is None and end is None and (options.url_col is not None or len(names) == 1):
        return Columns(video)
    raise UsageError(
        f"{table} has the columns: {listed(names)}. Expected: videos, and start and end or "
        "lists of clips; name them by --url-col, --start-col and --end-col or --clip-col, or the "
        "layout by --preset; --whole-videos fetches videos as a whole"
    )


def _only(usual: Sequence[str], names: Sequence[str], table: str, option: str) -> str | None:
    found = [name for name in usual if name in names]
    if len(found) > 1:
        raise UsageError(f"{table} has {' and '.join(found)}: say which one counts by {option}")
    return found[0] if found else None


def _no_video(head: Head, table: str) -> str:
    if any(_looks_like_data(cell) for cell in head.first):
        shown = listed(head.first)
        if len(head.first) == 1:
            return (
                f"{table} has no header: it begins with {shown!r}. If each line is a video: "
                "--input-format txt"
            )
        fitting = headerless(len(head.names)) or [p for p in PRESETS if not p.header]
        return (
            f"{table} has no header: it begins with {shown!r}. Say which layout it is: "
            f"{' or '.join(f'--preset {preset.name}' for preset in fitting)}"
        )
    return (
        f"{table} has the columns: {listed(head.names)}. Expected: videoID, or a link (url, "
        "video_link), with start and end, or clips; name them by --url-col, --start-col and "
        "--end-col or --clip-col, or the layout by --preset"
    )


def _looks_like_data(cell: str) -> bool:
    try:
        milliseconds(cell)
    except SpanError:
        is_id = is_youtube_id(cell) and not cell.islower()
        return is_id or cell.startswith("[") or _id_in_link(cell) is not None
    return True


# --- rows --------------------------------------------------------------------------------------


class RowError(ValueError):
    """Why a row is rejected: one of a few words, and a line."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def clean(
    raw: pa.Table,
    columns: Columns,
    *,
    allow_local: bool = False,
    limits: Mapping[str, Any] | None = None,
) -> Cleaned:
    """Return one row per clip of `raw`, and what had to be rejected.

    Parameters
    ----------
    raw
        Rows of `acavdl.readers.read_piece`.
    columns
        What they hold.
    allow_local
        Whether paths of this machine may stand for videos.
    limits
        Least and greatest length, as `acavdl.spans.split_span` takes them.
    """
    found = _Rejects(raw, columns)
    if "problem" in raw.column_names:
        for row in np.flatnonzero(_filled(raw["problem"])).tolist():
            found.add(row, "malformed", raw["problem"][row].as_py())
    ids, urls = _videos(_one(raw["video"]), found, allow_local=allow_local)
    parents, starts, ends = _spans(raw, columns, found)
    alive = ~found.bad[parents]
    parents, starts, ends = parents[alive], starts[alive], ends[alive]
    places, counts = _places(parents), np.bincount(parents, minlength=raw.num_rows)
    if not columns.whole:
        keep = _usable(parents, starts, ends, counts, found)
        if limits is not None:
            keep, starts, ends = _within(parents, starts, ends, keep, found=found, limits=limits)
        else:
            starts, ends = starts[keep], ends[keep]
        parents, places = parents[keep], places[keep]
    chosen, captions = _captions(raw, columns, parents, places, counts=counts, found=found)
    parents, starts, ends = parents[chosen], starts[chosen], ends[chosen]
    rows = pa.array(parents)
    clips = pa.table(
        {
            "video_id": ids.take(rows),
            "url": urls.take(rows),
            "start_ms": starts,
            "end_ms": ends,
            "caption": captions,
            "extra": (
                _one(raw["extra"]).take(rows)
                if "extra" in raw.column_names
                else pa.nulls(len(rows), pa.string())
            ),
            "row": _one(raw["row"]).take(rows),
        },
        schema=CLIPS_SCHEMA,
    )
    return Cleaned(clips, found.table())


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _filled(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return where a column holds something, as an array of bool."""
    found: np.ndarray = pc.is_valid(column).to_numpy(zero_copy_only=False)
    return found


class _Rejects:
    """The rejected rows of a piece; `bad` marks those that are rejected as a whole."""

    def __init__(self, raw: pa.Table, columns: Columns) -> None:
        self._raw = raw
        self._shown = [r for r in ("video", *columns.roles) if r in raw.column_names]
        self._rows: list[dict[str, Any]] = []
        self.bad = np.zeros(raw.num_rows, dtype=bool)

    def add(self, row: int, reason: str, detail: str, value: str | None = None) -> None:
        """Reject a row, or with `value` what it is of a row."""
        if value is None:
            if self.bad[row]:
                return
            self.bad[row] = True
            cells = (self._raw[role][row].as_py() for role in dict.fromkeys(self._shown))
            value = ", ".join(str(cell) for cell in cells)
        number = self._raw["row"][row].as_py()
        self._rows.append(
            {"row": number, "reason": reason, "detail": detail, "value": value[:_SHOWN]}
        )

    def table(self) -> pa.Table:
        """Return all of them in the order of the table."""
        found = sorted(self._rows, key=lambda row: row["row"])
        return pa.Table.from_pylist(found, schema=REJECTED_SCHEMA)


def _places(parents: np.ndarray) -> np.ndarray:
    """Return the place of each clip in its row; `parents` are in order."""
    first = np.searchsorted(parents, parents, side="left")
    places: np.ndarray = np.arange(len(parents)) - first
    return places


# --- videos ------------------------------------------------------------------------------------


def _videos(column: pa.Array, found: _Rejects, *, allow_local: bool) -> tuple[pa.Array, pa.Array]:
    """Return ids and URLs; a URL is null where the id tells it."""
    text = pc.utf8_trim_whitespace(column)
    plain = pc.if_else(pc.match_substring_regex(text, _ID), text, None)
    ids = pc.coalesce(plain, pc.struct_field(pc.extract_regex(text, _LINK), "id"))
    urls = pa.nulls(len(ids), pa.string())
    odd = np.flatnonzero(~_filled(ids) & ~found.bad)
    if not len(odd):
        return ids, urls
    new_ids: list[str | None] = [None] * len(ids)
    new_urls: list[str | None] = [None] * len(ids)
    for row, value in zip(odd.tolist(), text.take(pa.array(odd)).to_pylist(), strict=True):
        try:
            new_ids[row], url = parse_video(value, allow_local=allow_local)
        except RowError as error:
            found.add(row, error.reason, str(error))
        else:
            new_urls[row] = None if is_youtube_id(new_ids[row] or "") else url
    return pc.coalesce(ids, pa.array(new_ids, pa.string())), pa.array(new_urls, pa.string())


def parse_video(value: Any, *, allow_local: bool = False) -> tuple[str, str]:
    """Return (id, URL) of what a table says of a video: an id, or a link.

    An id that is not YouTube's is derived from the URL (see `acavdl.models.name_of`).

    Raises
    ------
    RowError
        If it is neither.
    """
    text = value.strip() if isinstance(value, str) else ""
    video_id = text if is_youtube_id(text) else _id_in_link(text)
    if video_id is not None:
        return video_id, youtube_url(video_id)
    if _is_foreign_link(text):
        return name_of("", text), text
    if text.startswith(("/", "file:")) and text.isprintable():
        if not allow_local:
            raise RowError("local_path", "a path of this machine (--allow-local takes them)")
        url = text if text.startswith("file:") else "file://" + urllib.parse.quote(text)
        return name_of("", url), url
    raise RowError("bad_id", "neither a video id (11 characters) nor a link to a video")


def _split(text: str) -> urllib.parse.SplitResult | None:
    try:
        return urllib.parse.urlsplit(text)
    except ValueError:
        return None


def _is_foreign_link(text: str) -> bool:
    parts = _split(text)
    return (
        parts is not None
        and parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and not _on_youtube(parts.hostname or "")
        and text.isprintable()
    )


def _on_youtube(host: str) -> bool:
    return any(host == known or host.endswith("." + known) for known in _YOUTUBE_HOSTS)


def _id_in_link(text: str) -> str | None:
    parts = _split(text)
    if parts is not None and not parts.netloc:
        parts = _split(f"https://{text}")
    if parts is None:
        return None
    host = parts.hostname or ""
    if host.removeprefix("www.") == "youtu.be":
        found = parts.path.lstrip("/").split("/")[0]
    elif _on_youtube(host):
        in_path = _PATH_ID.match(parts.path)
        found = in_path[1] if in_path else urllib.parse.parse_qs(parts.query).get("v", [""])[0]
    else:
        return None
    return found if is_youtube_id(found) else None


# --- spans -------------------------------------------------------------------------------------

#: Stands for a time that is none.
_BAD = np.iinfo(np.int64).min


def _spans(
    raw: pa.Table, columns: Columns, found: _Rejects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each span its row, start and end in milliseconds (or `_BAD`)."""
    rows = np.arange(raw.num_rows)
    if columns.whole:
        whole = np.full(raw.num_rows, WHOLE)
        return rows, whole, whole
    if columns.start is not None:
        starts = _times(_one(raw["start"]), columns.unit)
        if columns.end is not None:
            return rows, starts, _times(_one(raw["end"]), columns.unit)
        length = round((columns.length or 0) * 1000)
        return rows, starts, np.where(starts == _BAD, _BAD, starts + length)
    return _listed_spans(_one(raw["clips"]), columns.unit, found)


def _times(column: pa.Array, unit: str) -> np.ndarray:
    """Return a column of times as whole milliseconds; `_BAD` where it is none."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        # Unsafe: what a float can't hold exactly is no time of a video.
        return _rounded(pc.cast(column, pa.float64(), safe=False), unit)
    if not pa.types.is_string(column.type):
        return np.array([_time(value, unit) for value in column.to_pylist()], dtype=np.int64)
    text = pc.utf8_trim_whitespace(column)
    plain = pc.match_substring_regex(text, f"^{_NUMBER}$")
    times = _rounded(pc.cast(pc.if_else(plain, text, None), pa.float64()), unit)
    odd = np.flatnonzero((times == _BAD) & _filled(text))
    for row, value in zip(odd.tolist(), text.take(pa.array(odd)).to_pylist(), strict=True):
        times[row] = _time(value, unit)
    return times


def _rounded(numbers: pa.Array, unit: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        values: np.ndarray = numbers.to_numpy(zero_copy_only=False) * UNITS[unit]
    known = np.abs(values) < BEYOND_MS
    # As `round`: half to even.
    return np.where(known, np.rint(np.where(known, values, 0)).astype(np.int64), _BAD)


def _time(value: Any, unit: str) -> int:
    try:
        return milliseconds(value, unit)
    except SpanError:
        return int(_BAD)


def _listed_spans(
    column: pa.Array, unit: str, found: _Rejects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if pa.types.is_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        bare = pc.replace_substring_regex(text, _ONE_PAIR, r"\1")
        pair = pc.extract_regex(bare, _PAIR)
        starts = _times(pc.struct_field(pair, "start"), unit)
        ends = _times(pc.struct_field(pair, "end"), unit)
        plain = _filled(pair)
    elif _is_pairs(column.type):
        return _nested_spans(column, unit, found)
    else:
        text, plain = column, np.zeros(len(column), dtype=bool)
        starts = ends = np.empty(len(column), dtype=np.int64)
    odd = np.flatnonzero(~plain)
    parents, spans = _parsed_spans(text, odd, unit, found)
    rows = np.concatenate([np.flatnonzero(plain), parents])
    order = np.argsort(rows, kind="stable")
    return (
        rows[order],
        np.concatenate([starts[plain], spans[:, 0]])[order],
        np.concatenate([ends[plain], spans[:, 1]])[order],
    )


def _is_pairs(kind: pa.DataType) -> bool:
    """Whether a type is that of lists of lists of numbers or texts."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    inner = kind.value_type
    lists = pa.types.is_list(inner) or pa.types.is_large_list(inner)
    return bool(lists) and bool(
        pa.types.is_integer(inner.value_type)
        or pa.types.is_floating(inner.value_type)
        or pa.types.is_string(inner.value_type)
    )


def _nested_spans(
    column: pa.Array, unit: str, found: _Rejects
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the spans of lists of pairs, as parquet has them; other lists go row by row."""
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    pairs = column.flatten()
    width = pc.fill_null(pc.list_value_length(pairs), 0).to_numpy(zero_copy_only=False)
    of_row = np.repeat(np.arange(len(column)), counts)
    odd = (counts == 0) | (np.bincount(of_row[width != 2], minlength=len(column)) > 0)
    plain = ~odd[of_row]
    times = _times(pairs.filter(pa.array(plain)).flatten(), unit).reshape(-1, 2)
    parents, spans = _parsed_spans(column, np.flatnonzero(odd), unit, found)
    rows = np.concatenate([of_row[plain], parents])
    times = np.concatenate([times, spans])[order := np.argsort(rows, kind="stable")]
    return rows[order], times[:, 0], times[:, 1]


def _parsed_spans(
    column: pa.Array, rows: np.ndarray, unit: str, found: _Rejects
) -> tuple[np.ndarray, np.ndarray]:
    """Return the spans of some rows, parsed one by one: row numbers, and (start, end) pairs."""
    parents: list[int] = []
    spans: list[tuple[int, int]] = []
    values = column.take(pa.array(rows, pa.int64())).to_pylist()
    for row, value in zip(rows.tolist(), values, strict=True):
        if found.bad[row]:
            continue
        try:
            pairs = [(_time(start, unit), _time(end, unit)) for start, end in pairs_of(value)]
        except RowError as error:
            found.add(row, error.reason, str(error))
        else:
            parents += [row] * len(pairs)
            spans += pairs
    return np.array(parents, dtype=np.int64), np.array(spans, dtype=np.int64).reshape(-1, 2)


def pairs_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a cell of clips: a list, or its text (JSON or Python's).

    A pair is a list of two, or an object with ``span``, or with ``start`` and ``end``; one bare
    pair counts as well.

    Raises
    ------
    RowError
        If it is none.
    """
    items = _listed(_literal(value) if isinstance(value, str) else value)
    if isinstance(items, dict):
        items = [items]
    if not isinstance(items, list):
        raise RowError("bad_clips", "clips is not a list of [start, end] pairs")
    if len(items) == 2 and not any(isinstance(item, list | dict) for item in items):
        items = [items]
    if not items:
        raise RowError("bad_clips", "clips is empty")
    for item in items:
        pair = item
        if isinstance(item, dict):
            pair = item.get("span", [item.get("start"), item.get("end")])
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("bad_clips", "clips is not a list of [start, end] pairs")
        yield pair[0], pair[1]


def _literal(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return ast.literal_eval(_ESCAPE.sub(_kept, text.strip()))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _kept(escape: re.Match[str]) -> str:
    """Return an escape as Python means it, so that it does not warn of one it doesn't know."""
    return escape[0] if escape[1] in _ESCAPED else "\\" + escape[0]


def _listed(value: Any, depth: int = 0) -> Any:
    """Return arrays, tuples and lists as lists; the rest (text, sets) as it is."""
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict | list | tuple) and depth == _DEEPEST:
        return None
    if isinstance(value, dict):
        return {key: _listed(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(item, depth + 1) for item in value]
    return value


def _usable(
    parents: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    counts: np.ndarray,
    found: _Rejects,
) -> np.ndarray:
    """Return the places of spans that can be planned, and reject the others."""
    known = (starts != _BAD) & (ends != _BAD)
    usable = known & (starts >= 0) & (starts < ends) & (ends <= MAX_MS)
    for i in np.flatnonzero(~usable).tolist():
        reason, detail = _why(int(starts[i]), int(ends[i]))
        row = int(parents[i])
        shown = None if counts[row] == 1 else _shown(starts[i], ends[i])
        found.add(row, reason, detail, shown)
    return np.flatnonzero(usable)


def _shown(start_ms: int, end_ms: int) -> str:
    return f"clip of {_clock(int(start_ms))} to {_clock(int(end_ms))}"


def _clock(time_ms: int) -> str:
    return "?" if time_ms == _BAD else f"{time_ms / 1000:g} s"


def _why(start_ms: int, end_ms: int) -> tuple[str, str]:
    try:
        if _BAD in (start_ms, end_ms):
            milliseconds(None)
        check_span(start_ms, end_ms)
    except SpanError as error:
        return error.reason, str(error)
    raise AssertionError(f"{start_ms} to {end_ms} ms is a span")


def _within(
    parents: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    keep: np.ndarray,
    *,
    found: _Rejects,
    limits: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the spans at `keep` in pieces of the right length: their places, starts and ends."""
    least, most = limits["min_length_ms"], limits["max_length_ms"]
    lengths = ends[keep] - starts[keep]
    fitting = (lengths >= least) & (most is None or lengths <= most)
    places, odd = [keep[fitting]], []
    spans = [np.stack([starts, ends], axis=1)[keep[fitting]]]
    for i in keep[~fitting].tolist():
        parts = list(split_span(int(starts[i]), int(ends[i]), **limits))
        odd += [(i, *part) for part in parts]
        if not parts:
            detail = f"shorter than {least / 1000:g} s"
            found.add(int(parents[i]), "too_short", detail, _shown(starts[i], ends[i]))
    pieces = np.array(odd, dtype=np.int64).reshape(-1, 3)
    places, spans = [*places, pieces[:, 0]], [*spans, pieces[:, 1:]]
    order = np.argsort(where := np.concatenate(places), kind="stable")
    times = np.concatenate(spans)[order]
    return where[order], times[:, 0], times[:, 1]


def _captions(
    raw: pa.Table,
    columns: Columns,
    parents: np.ndarray,
    places: np.ndarray,
    *,
    counts: np.ndarray,
    found: _Rejects,
) -> tuple[np.ndarray, pa.Array]:
    """Return the captions of the clips, and the clip that each is of, by its place in `parents`.

    A list has one caption for each clip of a row with a list of clips, or one for all of them; of a
    row with one clip it has as many captions for that as it is long.

    Parameters
    ----------
    parents, places
        Row of each clip, and its place among the clips of its row.
    counts
        Clips of each row, with those that can't be used.
    """
    rows, clips = pa.array(parents), np.arange(len(parents))
    captions = (
        _one(raw["caption"]).take(rows)
        if "caption" in raw.column_names
        else pa.nulls(len(rows), pa.string())
    )
    if "captions" not in raw.column_names or not _filled(raw["captions"]).any():
        return clips, captions
    lists: dict[int, list[str | None] | None] = {}
    for row in np.unique(parents).tolist():
        try:
            several = _caption_list(raw["captions"][row].as_py())
            if columns.clips is not None and several and len(several) not in (1, counts[row]):
                message = f"{len(several)} captions for {counts[row]} clips"
                raise RowError("bad_captions", message)
            lists[row] = several
        except RowError as error:
            found.add(row, error.reason, str(error))
    texts = captions.to_pylist()
    picked: list[tuple[int, str | None]] = []
    for i, (row, place) in enumerate(zip(parents.tolist(), places.tolist(), strict=True)):
        if found.bad[row]:
            continue
        several = lists[row]
        if not several:
            picked.append((i, texts[i]))
        elif columns.clips is None:
            picked += [(i, text) for text in several]
        else:
            picked.append((i, several[place if len(several) > 1 else 0]))
    return np.array([i for i, _ in picked], dtype=np.int64), pa.array(
        [text for _, text in picked], pa.string()
    )


def _caption_list(text: str | None) -> list[str | None] | None:
    """Return the captions of a row; None if it has none.

    Raises
    ------
    RowError
        If they are a list that can't be read.
    """
    if text is None:
        return None
    value = _listed(_literal(text))
    if not isinstance(value, list):
        if text.lstrip().startswith("["):
            raise RowError("bad_captions", "the list of captions can't be read")
        # A caption like any other.
        return [text]
    return [_caption(item) for item in value]


def _caption(item: Any) -> str | None:
    try:
        return None if item is None else whole_text(str(item))
    except ValueError:
        # A number that is longer than Python writes.
        return None
