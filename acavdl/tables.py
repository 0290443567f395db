"""From a user's table to clean rows: one per clip, ids as strings, times in milliseconds."""

from __future__ import annotations

import ast
import hashlib
import math
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
from dask import threaded

from acavdl.errors import EmptyTableError, UsageError
from acavdl.models import is_youtube_id, name_of

_ID_COLUMNS = ("videoID", "video_id")
_URL_COLUMNS = ("video_link", "url", "link", "videoLoc")
_CLIP_COLUMNS = ("clips", "clip")
_PATH_ID = re.compile(r"/(?:shorts|embed|live|v)/([A-Za-z0-9_-]{11})(?:[/?#]|$)")
_YOUTUBE_HOSTS = ("youtube.com", "youtube-nocookie.com")
#: 9 digits of milliseconds: what a key has room for (11.5 days).
_MAX_MS = 999_999_999
_CSV_SAMPLE = 16 * 2**20


@dataclass(frozen=True)
class Columns:
    """Where in a table things stand; either `clips`, or `start` and `end`, is set.

    `video` holds an id or a link, `clips` lists of ``[start, end]`` pairs.
    """

    video: str
    clips: str | None
    start: str | None
    end: str | None
    caption: str | None

    @property
    def names(self) -> list[str]:
        """The columns that are read, each once."""
        found = (self.video, self.clips, self.start, self.end, self.caption)
        return list(dict.fromkeys(name for name in found if name is not None))


@dataclass(frozen=True)
class Rejected:
    """A row of the table that can't be used: its place (first row = 1), why, and what it held."""

    row: int
    reason: str
    value: str


@dataclass(frozen=True)
class Table:
    """Clean rows and rejected ones.

    `clips` has the columns ``video_id, url, start_ms, end_ms, caption`` in the order of the file.
    """

    clips: pd.DataFrame
    rejected: tuple[Rejected, ...]


class _BadRowError(ValueError):
    """Why a row is rejected."""


def table_digest(url_list: str) -> str:
    """Return the sha256 of a table's bytes: the same table may lie under another path.

    Raises
    ------
    UsageError
        If it is not a file that can be read.
    """
    try:
        with Path(url_list).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{url_list} is not a file that can be read: {error.strerror}") from error


def read_table(
    url_list: str,
    *,
    url_col: str | None = None,
    clip_col: str | None = None,
    caption_col: str | None = None,
) -> Table:
    """Read a csv or parquet table of clips.

    Parameters
    ----------
    url_list
        The file; its ending tells the format.
    url_col, clip_col, caption_col
        Names of columns, where they are not the usual ones: ``videoID, start, end``, or a link
        (``url``, ``video_link``, …) and ``clips``; with both, ``clips`` counts.

    Raises
    ------
    UsageError
        For a file that can't be read or lacks the columns: what was found, what was expected.
    EmptyTableError
        If no row can be used.
    """
    if not Path(url_list).is_file():
        raise UsageError(f"{url_list} is not a file")
    try:
        raw = _read(url_list)
        columns = find_columns(list(raw.columns), url_col, clip_col, caption_col, url_list)
        frame: pd.DataFrame = raw[columns.names].compute(scheduler=threaded.get)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {url_list}: {_cause(error)}") from error
    table = clean(frame, columns)
    if table.clips.empty:
        first = f": {table.rejected[0].reason} in row 1" if table.rejected else ""
        raise EmptyTableError(f"{url_list} has no usable row{first}")
    return table


def _read(url_list: str) -> Any:
    suffix = Path(url_list).suffix.lower()
    if suffix == ".csv":
        # As text, all of it: an id of eleven digits is no number, and "NA" no missing value. The
        # sample, which Dask finds the columns in, must hold the longest quoted text that begins it.
        frame = dd.read_csv(
            url_list, dtype=str, keep_default_na=False, blocksize=None, sample=_CSV_SAMPLE
        )
        if frame.index.dtype != "int64":
            # pandas would take the first fields for an index, and shift the others.
            raise UsageError(f"{url_list}: the first row has more fields than the header")
        return frame
    if suffix == ".parquet":
        # pyarrow takes a relative path for a URL without a scheme.
        return dd.read_parquet(str(Path(url_list).absolute()), filesystem="arrow")
    raise UsageError(f"{url_list}: a table is a .csv or .parquet file")


def _cause(error: BaseException) -> str:
    """Return in one line what began it: Dask wraps the errors of pandas and pyarrow."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def find_columns(
    names: Sequence[str],
    url_col: str | None,
    clip_col: str | None,
    caption_col: str | None,
    url_list: str,
) -> Columns:
    """Find the columns of a table, the named ones or the usual ones.

    Raises
    ------
    UsageError
        That names what the table has and what is missing.
    """
    for option, name in (
        ("--url-col", url_col),
        ("--clip-col", clip_col),
        ("--caption-col", caption_col),
    ):
        if name is not None and name not in names:
            raise UsageError(
                f"{url_list} has no column {name!r} ({option}); it has: "
                f"{', '.join(map(str, names))}"
            )
    video = url_col or _first(_ID_COLUMNS + _URL_COLUMNS, names)
    clips = clip_col or _first(_CLIP_COLUMNS, names)
    start, end = _first(("start",), names), _first(("end",), names)
    if video is None or (clips is None and (start is None or end is None)):
        raise UsageError(
            f"{url_list} has the columns: {', '.join(map(str, names))}. Expected: videoID, start "
            "and end; or a link (url, video_link) and clips; or --url-col and --clip-col"
        )
    if clips is not None:
        return Columns(video, clips, None, None, caption_col)
    return Columns(video, None, start, end, caption_col)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def clean(frame: pd.DataFrame, columns: Columns) -> Table:
    """Return one row per clip of `frame`, and what had to be rejected.

    A row is used as a whole or rejected as a whole: one bad pair in its list rejects it.
    """
    videos = frame[columns.video].tolist()
    captions = _texts(frame[columns.caption]) if columns.caption else [None] * len(videos)
    spans: Callable[[int], Iterator[tuple[Any, Any]]]
    if columns.clips is not None:
        lists = frame[columns.clips].tolist()

        def spans(i: int) -> Iterator[tuple[Any, Any]]:
            return _pairs(lists[i])
    else:
        starts, ends = frame[columns.start].tolist(), frame[columns.end].tolist()

        def spans(i: int) -> Iterator[tuple[Any, Any]]:
            return iter([(starts[i], ends[i])])

    rows: list[tuple[str, str, int, int, str | None]] = []
    rejected: list[Rejected] = []
    for i, video in enumerate(videos):
        try:
            video_id, url = parse_video(video)
            times = [parse_span(start, end) for start, end in spans(i)]
        except _BadRowError as error:
            values = ", ".join(repr(frame[name].iloc[i]) for name in columns.names)
            rejected.append(Rejected(i + 1, str(error), values[:200]))
        else:
            rows += [(video_id, url, start, end, captions[i]) for start, end in times]
    clips = pd.DataFrame(
        rows, columns=["video_id", "url", "start_ms", "end_ms", "caption"], dtype=object
    ).astype({"start_ms": "int64", "end_ms": "int64"})
    return Table(clips, tuple(rejected))


def _texts(column: pd.Series) -> list[str | None]:
    """Return a column as text, and None where the table has nothing."""
    return [
        None if missing else str(value)
        for value, missing in zip(column.tolist(), column.isna().tolist(), strict=True)
    ]


def parse_video(value: Any) -> tuple[str, str]:
    """Return (id, URL) of what a table says of a video: an id, or a link.

    An id that is not YouTube's is derived from the URL (see `acavdl.models.name_of`).
    """
    text = value.strip() if isinstance(value, str) else ""
    video_id = text if is_youtube_id(text) else _id_in_link(text)
    if video_id is not None:
        return video_id, f"https://www.youtube.com/watch?v={video_id}"
    if _is_foreign_link(text):
        return name_of("", text), text
    raise _BadRowError("neither a video id (11 characters) nor a link to a video")


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
    return host == "youtu.be" or any(
        host == known or host.endswith("." + known) for known in _YOUTUBE_HOSTS
    )


def _id_in_link(text: str) -> str | None:
    parts = _split(text)
    if parts is not None and not parts.netloc:
        parts = _split(f"https://{text}")
    if parts is None:
        return None
    host = parts.hostname or ""
    if host == "youtu.be":
        found = parts.path.lstrip("/").split("/")[0]
    elif _on_youtube(host):
        in_path = _PATH_ID.match(parts.path)
        found = in_path[1] if in_path else urllib.parse.parse_qs(parts.query).get("v", [""])[0]
    else:
        return None
    return found if is_youtube_id(found) else None


def parse_span(start: Any, end: Any) -> tuple[int, int]:
    """Return a span in whole milliseconds; ``start < end`` and none negative."""
    start_ms, end_ms = _milliseconds(start), _milliseconds(end)
    if start_ms < 0:
        raise _BadRowError("the start is negative")
    if start_ms >= end_ms:
        raise _BadRowError("the start is not before the end")
    if end_ms > _MAX_MS:
        raise _BadRowError("the end is beyond 11 days")
    return start_ms, end_ms


def _milliseconds(value: Any) -> int:
    try:
        milliseconds = float(value) * 1000
    except (TypeError, ValueError, OverflowError):
        raise _BadRowError("a time is not a number of seconds") from None
    if not math.isfinite(milliseconds):
        raise _BadRowError("a time is not a number of seconds")
    return round(milliseconds)


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of a ``clips`` cell: a list, or its text; one bare pair counts as well."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise _BadRowError("clips is not a list of [start, end] pairs") from None
    items = _listed(value)
    if not isinstance(items, list):
        raise _BadRowError("clips is not a list of [start, end] pairs")
    if len(items) == 2 and not any(isinstance(item, list) for item in items):
        items = [items]
    if not items:
        raise _BadRowError("clips is empty")
    for item in items:
        if not isinstance(item, list) or len(item) != 2:
            raise _BadRowError("clips is not a list of [start, end] pairs")
        yield item[0], item[1]


def _listed(value: Any) -> Any:
    """Return arrays, tuples and lists as lists, to any depth; the rest (text, sets) as it is."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
