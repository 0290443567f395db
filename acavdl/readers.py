"""Files of a clip table, and the pieces that Dask reads of them.

Parquet is read where it lies, by row groups. Text (csv, tsv, json, txt) can't be entered in the
middle: a quoted field may hold what looks like the end of a row. So each text file is read once
from the front and spooled to a local folder, as Arrow files of a piece each; so are row groups
that are too large for one piece. Either way a piece is small, and the order is that of the files.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from acavdl.errors import EmptyTableError, StorageError, UsageError, whole_text
from acavdl.storage import input_files, open_input

_T = TypeVar("_T")

#: What the end of a name says; text may be packed (``.gz``) besides.
_ENDINGS = {
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "json",
    "txt": "txt",
}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
#: Characters of a field; more are an unclosed quote that swallows the rest of the file.
_LONGEST_FIELD = 1 << 20
#: Put behind the lines of a csv: where it ends up within a field, a quote is not closed.
_END = uuid.uuid4().hex
#: Lists in lists: more can't be written as JSON (orjson bears 254).
_DEEPEST = 100
#: Characters of the names in a message.
_SHOWN = 300
#: Records that are looked at to learn the columns of json lines.
_PEEK = 100
#: Rows and bytes of a piece.
PIECE_ROWS = 250_000
_PIECE_BYTES = 64 << 20
#: A row group so many times larger than a piece is spooled.
_TOO_LARGE = 4


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Either `clips`, or `start` and (`end` or `length`), is set; none of them: whole videos.

    Parameters
    ----------
    video
        Ids or links.
    clips
        Lists of spans.
    start, end, length
        Times; `length` in seconds where there is no end.
    unit
        Of the numbers of times: ``s``, ``ms`` or ``us``.
    caption, captions_listed
        Captions; whether a cell lists one for each clip.
    extra
        The additional columns.
    header
        Names of the columns where the files have none.
    """

    video: str
    clips: str | None = None
    start: str | None = None
    end: str | None = None
    length: float | None = None
    unit: str = "s"
    caption: str | None = None
    captions_listed: bool = False
    extra: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether the table is of whole videos."""
        return self.clips is None and self.start is None

    @property
    def roles(self) -> dict[str, str]:
        """The column of each role that is filled."""
        roles = ("video", "clips", "start", "end", "caption")
        found = {role: getattr(self, role) for role in roles}
        return {role: name for role, name in found.items() if name is not None}

    @property
    def wanted(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys([*self.roles.values(), *self.extra]))


@dataclass(frozen=True)
class TableFiles:
    """The files of a table, all of one format, in their order."""

    url: str
    format: str
    files: tuple[str, ...]

    def digest(self) -> str:
        """Return the sha256 of what the files hold: the same table may lie under another name."""
        parts = []
        for name in self.files:
            with open_input(name, unpack=False) as file:
                parts.append(hashlib.file_digest(file, "sha256").hexdigest())
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """The columns of a table, and the first row of one that can do without a header."""

    names: tuple[str, ...]
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one partition reads: consecutive rows of one file.

    Parameters
    ----------
    file
        Number of the file in the table.
    path
        The parquet file with its row `groups` (from, to), or a spooled Arrow file (None).
    before
        Rows of the file before this piece.
    rows
        Rows of the piece.
    kinds
        What the additional columns hold (see `merged_kinds`).
    size
        Bytes of the rows, unpacked, about.
    """

    file: int
    path: str
    before: int
    rows: int
    groups: tuple[int, int] | None = None
    kinds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    size: int = 0


def find_files(url_list: str, input_format: str | None) -> TableFiles:
    """Find the files of a table and their format.

    Raises
    ------
    UsageError
        If there is none, or they are of several formats or an unknown one.
    """
    wanted = None if input_format is None else input_format.removesuffix(".gz")
    if wanted is not None and wanted not in _ENDINGS.values():
        known = ", ".join(dict.fromkeys(_ENDINGS.values()))
        raise UsageError(f"no input format {input_format!r}; there are: {known}")
    endings = [ending for ending, kind in _ENDINGS.items() if wanted in (None, kind)]
    files = input_files(url_list, [*endings, *(f"{e}.gz" for e in endings if e != "parquet")])
    found = {name: wanted or _format_of(name) for name in files}
    for name, kind in found.items():
        if kind is None:
            raise UsageError(
                f"{name}: the name tells no format; a table ends in .csv, .tsv, .tsv.gz, .json, "
                ".jsonl, .parquet or .txt, or --input-format says what it is"
            )
    kinds = sorted({str(kind) for kind in found.values()})
    if len(kinds) > 1:
        raise UsageError(f"{url_list} holds {' and '.join(kinds)}: choose by --input-format")
    return TableFiles(url_list, kinds[0], tuple(files))


def _format_of(name: str) -> str | None:
    # Of a chain the first link with a path counts: zip://a.csv::file:///b.zip
    links = name.split("::")
    name = next((link for link in links if "://" in link), name)
    if name.startswith("http"):
        # What follows a question mark is no part of the name.
        name = urllib.parse.urlsplit(name).path
    return _ENDINGS.get(name.lower().removesuffix(".gz").rpartition(".")[2])


def read_head(table: TableFiles) -> Head:
    """Return the columns of a table, as its first file that has any tells.

    Raises
    ------
    UsageError
        If a file can't be read.
    EmptyTableError
        If all are empty.
    """
    for name in table.files:
        head = _head(name, table.format)
        if head.names:
            return head
    raise EmptyTableError(f"{table.url} is empty; expected is a table of clips")


def _head(name: str, kind: str) -> Head:
    if kind == "parquet":
        with _parquet(name) as file:
            return Head(tuple(file.schema_arrow.names))
    if kind in _DELIMITERS:
        with _csv(name, kind) as (header, rows):
            if header:
                return Head(tuple(header))
            first = tuple(next(rows, ()))
            return Head(tuple(_stripped(first)), first)
    with _records(name, kind) as records:
        seen = [record for record, _ in itertools.islice(records, _PEEK)]
        found = [record for record in seen if isinstance(record, dict)]
        if seen and not found:
            shown = listed([str(seen[0])])
            raise UsageError(f"{name} holds no JSON objects; it begins with: {shown}")
        return Head(tuple(dict.fromkeys(str(key) for record in found for key in record)))


def find_pieces(
    table: TableFiles, columns: Columns, folder: Path, piece_rows: int = PIECE_ROWS
) -> list[Piece]:
    """Return the pieces of a table in their order, of about `piece_rows` rows each.

    Parameters
    ----------
    folder
        Local folder for what is spooled.

    Raises
    ------
    UsageError
        For a file that can't be read, or lacks a column.
    """
    found: list[Piece] = []
    for number, name in enumerate(table.files):
        if table.format == "parquet":
            found += _parquet_pieces(number, name, columns, folder, piece_rows)
        else:
            rows = _raw_text(name, table.format, columns, piece_rows)
            found += _spooled(number, rows, folder)
    return found


def read_piece(piece: Piece, columns: Columns) -> pa.Table:
    """Return the rows of a piece.

    Returns
    -------
    pyarrow.Table
        ``row`` (the first of the file = 1), ``video`` (text), ``clips`` (text or lists), ``start``
        and ``end`` (text or numbers), ``caption`` (text), ``captions`` (JSON text of a list),
        ``extra`` (JSON text of an object) and ``problem`` (why the row can't be used), as far as
        the table has them.
    """
    if piece.groups is None:
        with pa.OSFile(piece.path) as spool, pa.ipc.open_file(spool) as reader:
            return reader.read_all()
    with _parquet(piece.path) as file:
        read = file.read_row_groups(range(*piece.groups), columns=columns.wanted, use_threads=False)
    return _raw_arrow(read, columns, piece.before)


def merged_kinds(pieces: Iterable[Piece], columns: Columns) -> dict[str, str]:
    """Return the type of each additional column: ``string, int64, float64`` or ``bool``.

    Whole numbers and others make ``float64``; what has no one type, and lists, become text.
    """
    pieces = list(pieces)
    types = {}
    for name in columns.extra:
        kinds = frozenset[str]().union(*(piece.kinds.get(name, ()) for piece in pieces))
        if kinds == {"int64", "float64"}:
            types[name] = "float64"
        else:
            types[name] = "string" if len(kinds) != 1 or "json" in kinds else next(iter(kinds))
    return types


def _lacking(name: str, found: Sequence[str], columns: Columns) -> None:
    for column in columns.wanted:
        if (count := list(found).count(column)) != 1:
            problem = "no column" if count == 0 else f"{count} columns"
            has = listed(found) or "none"
            raise UsageError(f"{name} has {problem} {column!r}; it has: {has}")


def listed(names: Iterable[str]) -> str:
    """Return names for one line of a message, whatever they are."""
    text = ", ".join(names)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]} …"


# --- parquet -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _parquet(name: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_input(name, unpack=False) as file, pq.ParquetFile(file) as opened:
            yield opened
    except pa.ArrowException as error:
        # Not a few are ValueErrors as well, and others come as OSErrors.
        raise UsageError(f"cannot read {name}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _parquet_pieces(
    number: int, name: str, columns: Columns, folder: Path, piece_rows: int
) -> list[Piece]:
    with _parquet(name) as file:
        schema, groups = file.schema_arrow, range(file.num_row_groups)
        _lacking(name, schema.names, columns)
        kinds = {column: _kinds_of(schema.field(column).type) for column in columns.extra}
        metadata = [file.metadata.row_group(group) for group in groups]
        rows = [group.num_rows for group in metadata]
        sizes = [_group_bytes(group, columns) for group in metadata]
        found: list[Piece] = []
        before = 0
        for begin, stop in _runs(rows, sizes, piece_rows):
            count, size = sum(rows[begin:stop]), sum(sizes[begin:stop])
            excess = max(count / piece_rows, size / _PIECE_BYTES)
            if excess > _TOO_LARGE:
                batches = file.iter_batches(
                    max(1, int(count / excess)),
                    row_groups=list(range(begin, stop)),
                    columns=columns.wanted,
                    use_threads=False,
                )
                raw = _raw_batches(batches, columns, before)
                found += _spooled(number, ((table, kinds) for table in raw), folder)
            else:
                found.append(Piece(number, name, before, count, (begin, stop), kinds, size))
            before += count
        return found


def _runs(rows: Sequence[int], sizes: Sequence[int], piece_rows: int) -> list[tuple[int, int]]:
    """Return runs (from, to) of row groups, each as long as a piece bears, or of one group."""
    runs: list[tuple[int, int]] = []
    begin = count = size = 0
    for group, (more, larger) in enumerate(zip(rows, sizes, strict=True)):
        count, size = count + more, size + larger
        if group > begin and (count > piece_rows or size > _PIECE_BYTES):
            runs.append((begin, group))
            begin, count, size = group, more, larger
    return [*runs, (begin, len(rows))] if rows else runs


def _group_bytes(group: Any, columns: Columns) -> int:
    """Return the unpacked bytes of the columns that are read of a row group."""
    chunks = (group.column(i) for i in range(group.num_columns))
    wanted = set(columns.wanted)
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema in wanted or chunk.path_in_schema.split(".")[0] in wanted
    )


def _raw_batches(
    batches: Iterable[pa.RecordBatch], columns: Columns, before: int
) -> Iterator[pa.Table]:
    for batch in batches:
        yield _raw_arrow(pa.Table.from_batches([batch]), columns, before)
        before += batch.num_rows


def _raw_arrow(table: pa.Table, columns: Columns, before: int) -> pa.Table:
    """Return a table as `read_piece` does."""
    raw: dict[str, Any] = {"row": pa.array(range(before + 1, before + 1 + table.num_rows))}
    for role, name in columns.roles.items():
        column = _plain(table[name])
        if role == "video":
            raw[role] = _as_text(column)
        elif role == "caption":
            many = columns.captions_listed or _is_list(column.type)
            raw["captions" if many else role] = _as_text(column)
        else:
            raw[role] = column
    if columns.extra:
        raw["extra"] = _json_rows(table, columns.extra)
    return pa.table(raw)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, categories and views as what they stand for."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(column.cast(kind.storage_type))
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if _is_text(kind):
        column = column.cast(pa.string())
    elif _is_binary(kind):
        # What some writers make of texts.
        values = (None if v is None else v.decode("utf-8", "replace") for v in column.to_pylist())
        return pa.array(values, pa.string())
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _is_text(kind: pa.DataType) -> bool:
    # The type of views is not there in older versions of Arrow.
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or str(kind) == "binary_view"
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_integer(column.type):
        return pc.cast(column, pa.string())
    return pa.array([_text(value) for value in column.to_pylist()], pa.string())


def _json_rows(table: pa.Table, names: Sequence[str]) -> pa.Array:
    plain = pa.table({name: _plain(table[name]) for name in names})
    return pa.array((_dumps(row) for row in plain.to_pylist()), pa.string())


def _kinds_of(kind: pa.DataType) -> frozenset[str]:
    """Return what values of a type are in JSON: nothing for a column of nulls alone."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _kinds_of(kind.storage_type)
    if types.is_dictionary(kind):
        return _kinds_of(kind.value_type)
    if types.is_null(kind):
        return frozenset()
    names = {types.is_boolean: "bool", types.is_integer: "int64", types.is_floating: "float64"}
    texts = dict.fromkeys((_is_text, _is_binary, types.is_temporal), "string")
    return frozenset({next((v for of, v in {**names, **texts}.items() if of(kind)), "json")})


# --- text --------------------------------------------------------------------------------------


def _raw_text(
    name: str, kind: str, columns: Columns, piece_rows: int
) -> Iterator[tuple[pa.Table, Mapping[str, frozenset[str]]]]:
    """Yield the rows of a text file as `read_piece` returns them, with what `Piece.kinds` says."""
    if kind in _DELIMITERS:
        yield from _raw_csv(name, kind, columns, piece_rows)
    else:
        yield from _raw_records(name, kind, columns, piece_rows)


@contextlib.contextmanager
def _text_lines(name: str) -> Iterator[Iterator[str]]:
    """Open a text file; bytes that are no UTF-8 become question marks, and their rows tell."""
    with (
        open_input(name) as file,
        io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="") as text,
    ):
        first = next(text, "")
        # What becomes of the mark that UTF-16 begins with.
        if first.startswith("\ufffd\ufffd"):
            raise UsageError(f"{name} is no UTF-8 text; expected is UTF-8")
        yield itertools.chain([first], text)


@contextlib.contextmanager
def _csv(name: str, kind: str) -> Iterator[tuple[list[str] | None, Iterator[list[str]]]]:
    """Open a csv or tsv: names that stand in comments before the rows (AudioSet), and the rows.

    Blank lines are no rows. Spaces after a comma are skipped where the names have them as well.
    """
    csv.field_size_limit(_LONGEST_FIELD)

    def fields(line: str, *, spaced: bool = False) -> list[str]:
        found = csv.reader([line], delimiter=_DELIMITERS[kind], skipinitialspace=spaced)
        # What can't be read is told in its turn.
        with contextlib.suppress(csv.Error):
            return next(found, [])
        return []

    with _text_lines(name) as lines:
        comment, first, before = "", next(lines, ""), 0
        while first.startswith("#") or (first and not first.strip("\r\n")):
            if first.startswith("#"):
                comment = first.lstrip("# ")
            first, before = next(lines, ""), before + 1
        names = fields(comment)
        spaced = _are_spaced(names)
        if len(names) < 2 or (first and len(fields(first, spaced=spaced)) != len(names)):
            # The comment is one.
            names, spaced = [], _are_spaced(fields(first))
        reader = csv.reader(
            itertools.chain([first], lines, [_END]),
            delimiter=_DELIMITERS[kind],
            skipinitialspace=spaced,
        )
        yield _stripped(names) or None, _csv_rows(name, reader, before)


def _are_spaced(fields: Sequence[str]) -> bool:
    return len(fields) > 1 and all(field.startswith(" ") for field in fields[1:])


def _stripped(names: Iterable[str]) -> list[str]:
    return [name.strip() for name in names]


def _csv_rows(name: str, reader: Any, before: int) -> Iterator[list[str]]:
    """Yield the rows of a reader, whose first line has so many `before` it in the file."""
    line = before + 1
    try:
        for row in reader:
            if row and row[-1].endswith(_END):
                if len(row) > 1 or row[0] != _END:
                    raise UsageError(
                        f"{name}: a quote is not closed by the end of the file, in the row that "
                        f"begins in line {line}; is the file half-written?"
                    )
                return
            if row:
                yield row
            line = before + reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{name}: the row that begins in line {line} can't be read ({error}); is a quote not "
            "closed?"
        ) from error


def _raw_csv(
    name: str, kind: str, columns: Columns, piece_rows: int
) -> Iterator[tuple[pa.Table, Mapping[str, frozenset[str]]]]:
    kinds = dict.fromkeys(columns.extra, frozenset({"string"}))
    with _csv(name, kind) as (commented, rows):
        header = columns.header or commented or _stripped(next(rows, ()))
        if not header:
            return
        _lacking(name, header, columns)
        width, places = len(header), [header.index(column) for column in columns.wanted]

        def picked() -> Iterator[tuple[str | None, list[str]]]:
            for row in rows:
                if len(row) == width:
                    yield None, [row[place] for place in places]
                else:
                    short = [row[place] if place < len(row) else "" for place in places]
                    yield f"it has {len(row)} fields, not {width}", short

        before = 0
        for chunk in _chunks(picked(), piece_rows, lambda row: sum(map(len, row[1]))):
            cells = dict(
                zip(columns.wanted, zip(*(row for _, row in chunk), strict=True), strict=True)
            )
            raw: dict[str, Any] = {"row": pa.array(range(before + 1, before + 1 + len(chunk)))}
            for role, column in columns.roles.items():
                many = role == "caption" and columns.captions_listed
                raw["captions" if many else role] = _strings(cells[column])
            if columns.extra:
                extra = zip(*(cells[column] for column in columns.extra), strict=True)
                objects = (dict(zip(columns.extra, row, strict=True)) for row in extra)
                raw["extra"] = _strings(map(_dumps, objects))
            raw["problem"] = _strings(problem for problem, _ in chunk)
            yield pa.table(raw), kinds
            before += len(chunk)


def _chunks(items: Iterable[_T], rows: int, size: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yield items in lists of so many `rows`, or less where they are large."""
    chunk: list[_T] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += size(item)
        if len(chunk) == rows or total >= _PIECE_BYTES:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def _strings(values: Iterable[str | None]) -> pa.Array:
    return pa.array(values, pa.string())


@contextlib.contextmanager
def _records(name: str, kind: str) -> Iterator[Iterator[tuple[Any, int]]]:
    """Open a json, jsonl or txt file: records with their sizes; a line that is no JSON as it is."""
    if kind == "json":
        with open_input(name) as file:
            content = file.read()
        whole = _whole_json(name, content)
        if whole is not None:
            # They are in the memory anyhow.
            yield ((record, 0) for record in whole)
            return
    with _text_lines(name) as lines:
        stripped = (line.strip("\r\n") for line in lines)
        filled = (line for line in stripped if line.strip())
        yield (({"url": x} if kind == "txt" else _loads(x), len(x)) for x in filled)


def _loads(line: str) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        # Python writes NaN, and half a pair of surrogates, which orjson takes for errors.
        return _storable(json.loads(line))
    except (ValueError, RecursionError):
        return line


def _whole_json(name: str, content: bytes) -> Iterator[Any] | None:
    """Return the records of one JSON text; None if it is one text a line.

    A list of records, or a column each: a list, or (as pandas writes it) values by row.
    """
    text = content.decode("utf-8-sig", "replace").strip()
    found = _loads(text) if text else []
    if found is text:
        first = text.splitlines()[0]
        if first != text and isinstance(_loads(first), dict):
            return None
        raise UsageError(f"{name} is no JSON, or not all of it: {_why_no_json(text)}")
    if isinstance(found, dict):
        columns = [list(v.values()) if isinstance(v, dict) else v for v in found.values()]
        if not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
            # One line of json lines looks like this.
            return iter([found])
        return (dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True))
    if not isinstance(found, list):
        raise UsageError(f"{name} holds no records; expected is a list of them")
    return iter(found)


def _why_no_json(text: str) -> str:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return _one_line(error)
    return "it can't be read"


def _raw_records(
    name: str, kind: str, columns: Columns, piece_rows: int
) -> Iterator[tuple[pa.Table, Mapping[str, frozenset[str]]]]:
    with _records(name, kind) as records:
        before = 0
        seen: dict[str, None] = {}
        for chunk in _chunks(records, piece_rows, lambda record: record[1]):
            found = [record for record, _ in chunk]
            problems = [None if isinstance(r, dict) else "it is no JSON object" for r in found]
            shown = [None if isinstance(r, dict) else _text(r) or "null" for r in found]
            rows: list[dict[str, Any]] = [r if isinstance(r, dict) else {} for r in found]
            seen |= dict.fromkeys(itertools.chain.from_iterable(rows))
            raw: dict[str, Any] = {"row": pa.array(range(before + 1, before + 1 + len(rows)))}
            for role, column in columns.roles.items():
                values = [row.get(column) for row in rows]
                if role == "caption":
                    lists = [columns.captions_listed or isinstance(v, list) for v in values]
                    pairs = list(zip(values, lists, strict=True))
                    raw["captions"] = _strings(_text(v) if many else None for v, many in pairs)
                    values = [None if many else v for v, many in pairs]
                raw[role] = _strings(map(_text, values))
            raw["video"] = pc.coalesce(raw["video"], _strings(shown))
            if columns.extra:
                picked = [{column: row.get(column) for column in columns.extra} for row in rows]
                raw["extra"] = _strings(map(_dumps, picked))
            raw["problem"] = _strings(problems)
            yield pa.table(raw), _kinds_in(columns.extra, rows)
            before += len(rows)
        if before:
            _lacking(name, list(seen), columns)


def _kinds_in(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    types = {name: {type(row.get(name)) for row in rows} - {type(None)} for name in names}
    known = {str: "string", int: "int64", float: "float64", bool: "bool"}
    return {name: frozenset(known.get(t, "json") for t in found) for name, found in types.items()}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else _dumps(value)


def _dumps(value: Any) -> str:
    """Return JSON of anything that tables hold: times as ISO, the rest as its text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps(_storable(value)).decode()


def _storable(value: Any, depth: int = 0) -> Any:
    """Return what orjson writes and reads: no half surrogates, numbers of 64 bits, not too deep."""
    if isinstance(value, dict | list | tuple) and depth == _DEEPEST:
        return "…"
    if isinstance(value, dict):
        items = value.items()
        return {whole_text(str(key)): _storable(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_storable(item, depth + 1) for item in value]
    if (
        value is None
        or isinstance(value, float)
        or (isinstance(value, int) and -(2**63) <= value < 2**63)
    ):
        return value
    return whole_text(str(value))


# --- spooling ----------------------------------------------------------------------------------


def _spooled(
    number: int, tables: Iterable[tuple[pa.Table, Mapping[str, frozenset[str]]]], folder: Path
) -> list[Piece]:
    """Write tables of raw rows of a file, and return them as pieces."""
    found: list[Piece] = []
    for table, kinds in tables:
        before = table["row"][0].as_py() - 1
        path = folder / f"{number:05d}-{before:012d}.arrow"
        try:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        except OSError as error:
            raise StorageError(f"cannot write to {folder}: {_one_line(error)}") from error
        found.append(Piece(number, str(path), before, table.num_rows, None, kinds, table.nbytes))
    return found
