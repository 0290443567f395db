"""Lists of videos: those that are known to be dead, and those that are to be removed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from acavdl.errors import UsageError
from acavdl.presets import VIDEO
from acavdl.readers import Columns, find_files, find_pieces, listed, read_head, read_piece
from acavdl.storage import shown
from acavdl.tables import RowError, clean, parse_video

#: What stands for a video that is not YouTube's (see `acavdl.models.name_of`).
_DERIVED = re.compile(r"u[0-9a-f]{16}", re.ASCII)


def video_ids(texts: Iterable[str]) -> frozenset[str]:
    """Return the ids of videos named by id or link, as the plan has them.

    Raises
    ------
    UsageError
        That names what is neither.
    """
    found = set()
    for text in texts:
        try:
            video = text if _DERIVED.fullmatch(text) else parse_video(text, allow_local=True)[0]
        except RowError as error:
            raise UsageError(f"{text!r} is {error}") from error
        found.add(video)
    return frozenset(found)


def read_ids(url: str) -> pa.Array:
    """Return the ids of the videos in a list, each once, in order.

    Parameters
    ----------
    url
        A table of any format that is read: a column with ids or links, or a line for each (txt).

    Raises
    ------
    UsageError
        For a list that can't be read, or a row that names no video.
    """
    table = find_files(url, None)
    head = read_head(table)
    video = next((name for name in VIDEO if name in head.names), None)
    if video is None:
        raise UsageError(
            f"{shown(url)} has the columns: {listed(head.names)}. Expected: video_id, or a link"
        )
    columns = Columns(video)
    found = [pa.array([], pa.string())]
    with tempfile.TemporaryDirectory(prefix="acavdl-list-") as folder:
        for piece in find_pieces(table, columns, Path(folder)):
            cleaned = clean(read_piece(piece, columns), columns, allow_local=True)
            if cleaned.rejected.num_rows:
                row = cleaned.rejected.slice(0, 1).to_pylist()[0]
                raise UsageError(f"{shown(url)}, row {row['row']}: {row['detail']}: {row['value']}")
            found += cleaned.clips["video_id"].chunks
    ids = pc.unique(pa.concat_arrays(found))
    return ids.take(pc.sort_indices(ids))
