"""Clip tables in tests: written in a line, and read as `acavdl.prepare` does."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from acavdl.config import TableOptions
from acavdl.readers import (
    PIECE_ROWS,
    Columns,
    Piece,
    find_files,
    find_pieces,
    merged_kinds,
    read_head,
    read_piece,
)
from acavdl.tables import CLIPS_SCHEMA, REJECTED_SCHEMA, clean, find_columns

ID = "abcdefghijk"
#: Foreign text, and pieces of what is looked for in it.
HOSTILE = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40),
    st.lists(
        st.sampled_from(
            [
                *("https://", "http:", "//", "youtu.be/", "youtube.com", "www.", "/watch?v="),
                *("/shorts/", ID, "&v=", "?", "[", "]", "(", ")", "{", "}", ",", ", ", ":", "1"),
                *("12.5", "-", "+", "e999", "e5", ".5", "nan", "inf", "_", "0:01", "00:00:01.500"),
                *("'", '"', "\\", "\\d", "\\ud800", "\\x00", "\x00", "\n", "\r", "\t", " ", "%"),
                *("@", "#", "None", "null", "true", "f''", "lambda:", "0x", "ä", "٣", "\u2028"),
            ]
        ),
        max_size=20,
    ).map("".join),
)


@dataclass(frozen=True)
class Read:
    """All that a table gives."""

    columns: Columns
    pieces: list[Piece]
    clips: pa.Table
    rejected: pa.Table

    @property
    def spans(self) -> list[tuple[str, int, int]]:
        """Id, start and end of each clip."""
        columns = (self.clips[name].to_pylist() for name in ("video_id", "start_ms", "end_ms"))
        return list(zip(*columns, strict=True))

    @property
    def why(self) -> list[tuple[int, str]]:
        """Row and reason of what was rejected."""
        names = ("row", "reason")
        return list(zip(*(self.rejected[name].to_pylist() for name in names), strict=True))

    @property
    def captions(self) -> list[str | None]:
        """Caption of each clip."""
        found: list[str | None] = self.clips["caption"].to_pylist()
        return found

    @property
    def kinds(self) -> dict[str, str]:
        """Types of the additional columns."""
        return merged_kinds(self.pieces, self.columns)


def read(
    source: Path | str,
    *,
    piece_rows: int = PIECE_ROWS,
    limits: Mapping[str, Any] | None = None,
    **options: Any,
) -> Read:
    """Read a table from its name to its clips; `options` are those of `TableOptions`."""
    told = TableOptions(str(source), **options)
    table = find_files(told.url_list, told.input_format)
    columns = find_columns(read_head(table), told)
    with tempfile.TemporaryDirectory() as folder:
        pieces = find_pieces(table, columns, Path(folder), piece_rows)
        found = [
            clean(read_piece(piece, columns), columns, allow_local=told.allow_local, limits=limits)
            for piece in pieces
        ]
    # The pieces of a file follow each other.
    ends = [piece.before + piece.rows for piece in pieces]
    for piece, before, end in zip(pieces[1:], pieces, ends, strict=False):
        assert piece.before == (end if piece.file == before.file else 0)
    return Read(
        columns,
        pieces,
        pa.concat_tables([CLIPS_SCHEMA.empty_table(), *(part.clips for part in found)]),
        pa.concat_tables([REJECTED_SCHEMA.empty_table(), *(part.rejected for part in found)]),
    )


def raw_rows(source: Path | str, piece_rows: int = PIECE_ROWS, **options: Any) -> list[Any]:
    """Return the raw rows of a table, with their files."""
    told = TableOptions(str(source), **options)
    table = find_files(told.url_list, told.input_format)
    columns = find_columns(read_head(table), told)
    with tempfile.TemporaryDirectory() as folder:
        pieces = find_pieces(table, columns, Path(folder), piece_rows)
        return [
            {"file": piece.file, **row}
            for piece in pieces
            for row in read_piece(piece, columns).to_pylist()
        ]


def written(path: Path, data: bytes | str) -> Path:
    """Write a file, and return where."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def parquet(path: Path, columns: Mapping[str, Any], row_group_size: int = 2) -> Path:
    """Write a parquet file, and return where."""
    pq.write_table(pa.table(dict(columns)), path, row_group_size=row_group_size)
    return path


def of_clips(*cells: Any) -> Read:
    """Return the clips of a table with these cells in the column ``clips``."""
    return cleaned({"video": [ID] * len(cells), "clips": cells}, Columns("url", "clips"))


def cleaned(cells: Mapping[str, Any], columns: Columns, **options: Any) -> Read:
    """Return what becomes of raw rows; a role without an Arrow type has texts."""
    raw: dict[str, Any] = {"row": pa.array(range(1, len(next(iter(cells.values()))) + 1))}
    for role, values in cells.items():
        raw[role] = values if isinstance(values, pa.Array) else pa.array(list(values), pa.string())
    found = clean(pa.table(raw), columns, **options)
    return Read(columns, [], found.clips, found.rejected)
