"""From results to the members of a tar, and to the rows of its parquet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import webdataset

from acavdl.errors import Outcome, Stage
from acavdl.models import Clip, ClipResult, Line
from acavdl.subtitles import within

#: The parquet beside each tar: one row per clip. Times are in seconds, sizes in bytes; start and
#: end are null for a whole video. The additional columns come behind these (see `schema_of`).
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("status", pa.string()),
        ("outcome", pa.string()),
        ("stage", pa.string()),
        ("retry", pa.string()),
        ("detail", pa.string()),
        ("actual_start", pa.float64()),
        ("actual_end", pa.float64()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("video_codec", pa.string()),
        ("audio_codec", pa.string()),
        ("sample_rate", pa.int32()),
        ("channels", pa.int32()),
        ("av_offset", pa.float64()),
        ("format_id", pa.string()),
        ("video_duration", pa.float64()),
        ("view_count", pa.int64()),
        ("like_count", pa.int64()),
        ("comment_count", pa.int64()),
        ("channel_follower_count", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("bytes_fetched", pa.int64()),
        ("requests", pa.int32()),
        ("attempts", pa.int32()),
        ("resolve_seconds", pa.float64()),
        ("fetch_seconds", pa.float64()),
        ("cut_seconds", pa.float64()),
        ("finished_at", pa.timestamp("ms", tz="UTC")),
        ("host", pa.string()),
        ("yt_dlp", pa.string()),
    ]
)


#: Top-level keys of the JSON that no additional column may take.
_RESERVED = frozenset(
    {
        *("key", "url", "caption", "status", "error_message", "clips", "yt_meta_dict"),
        *("captions", "cut"),
    }
)


@dataclass(frozen=True)
class Layout:
    """What the samples and rows of a run hold beside what all do.

    Parameters
    ----------
    captions
        Whether each sample has a ``.txt`` member with its caption.
    languages
        Those of the subtitles in the JSON; None = no subtitles.
    extra
        The additional columns: their types by name, in Arrow's words (``string``, ``int64``,
        ``float64``, ``bool``) or ``json``, which is text.
    """

    captions: bool = False
    languages: tuple[str, ...] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


_PLAIN = Layout()


def schema_of(layout: Layout) -> pa.Schema:
    """Return `SCHEMA` and the additional columns; one with a name of `SCHEMA` is not doubled."""
    more = [
        (name, pa.string() if kind == "json" else pa.type_for_alias(kind))
        for name, kind in layout.extra.items()
        if name not in SCHEMA.names
    ]
    return pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in more)])


@dataclass(frozen=True)
class Finished:
    """What is the same for the rows of a shard: where and by what they were made."""

    host: str
    yt_dlp: str


def sample_json(result: ClipResult, layout: Layout = _PLAIN) -> dict[str, Any]:
    """Return the JSON member of a successful clip: the same keys and types in every sample.

    The reference's keys come first, then the additional columns; ``cut`` holds what plan and media
    determine. Nothing in it differs from run to run.
    """
    clip = result.clip
    return {
        "key": clip.key,
        "url": clip.url,
        "caption": clip.caption,
        "status": "success",
        "error_message": None,
        "clips": None if clip.start is None else [[clip.start, clip.end]],
        "yt_meta_dict": {
            "info": None if result.info is None else dict(result.info),
            "subtitles": _subtitles(result, layout),
        },
        **{name: clip.extra.get(name) for name in layout.extra if name not in _RESERVED},
        "captions": _captions(clip),
        "cut": cut_facts(result),
    }


def _captions(clip: Clip) -> list[str] | None:
    return None if clip.captions is None else list(clip.captions)


def _subtitles(result: ClipResult, layout: Layout) -> dict[str, list[dict[str, Any]] | None] | None:
    """Return the lines of each language that overlap the clip; null where the video has none."""
    if layout.languages is None:
        return None
    found, clip = result.subtitles or {}, result.clip
    return {
        language: [_line(line) for line in within(found[language], clip.start_ms, clip.end_ms)]
        if language in found
        else None
        for language in layout.languages
    }


def _line(line: Line) -> dict[str, Any]:
    return {"start": line.start_ms / 1000, "end": line.end_ms / 1000, "text": line.text}


def cut_facts(result: ClipResult) -> dict[str, Any]:
    """Return what plan and media determine of a successful clip's cut; times in seconds."""
    clip, cut = result.clip, result.cut
    if cut is None:
        raise ValueError(f"{clip.key} has no sample: {result.outcome}")
    return {
        "video_id": clip.video_id,
        "start": clip.start,
        "end": clip.end,
        "actual_start": cut.actual_start,
        "actual_end": cut.actual_end,
        "frames": cut.frames,
        "fps": cut.fps,
        "width": cut.width,
        "height": cut.height,
        "video_codec": cut.video_codec,
        "audio_codec": cut.audio_codec,
        "sample_rate": cut.sample_rate,
        "channels": cut.channels,
        "av_offset": cut.av_offset,
        "format_id": result.format_id,
    }


class SampleWriter:
    """Writes samples into a tar: members in the order of the calls, the same bytes every time.

    Parameters
    ----------
    file
        Where the tar goes; written from front to end.
    layout
        What the samples hold.
    """

    def __init__(self, file: BinaryIO, layout: Layout = _PLAIN) -> None:
        self._layout = layout
        self._closed = False
        self._tar = webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="")

    def write(self, result: ClipResult) -> None:
        """Append a successful clip."""
        if result.cut is None:
            raise ValueError(f"{result.clip.key} has no sample: {result.outcome}")
        members: dict[str, Any] = {
            "__key__": result.clip.key,
            "mp4": result.cut.data,
            "json": orjson.dumps(sample_json(result, self._layout)),
        }
        if self._layout.captions:
            members["txt"] = (result.clip.caption or "").encode()
        self._tar.write(members)

    def close(self) -> None:
        """Write the end of the tar, once; the file stays open."""
        if not self._closed:
            self._closed = True
            self._tar.close()


def row_of(
    result: ClipResult, finished: Finished, finished_at_ms: int, layout: Layout = _PLAIN
) -> dict[str, Any]:
    """Return the parquet row of a clip, successful or not."""
    clip, cut = result.clip, result.cut
    row: dict[str, Any] = {
        **({} if cut is None else cut_facts(result)),
        **result.counts,
        "key": clip.key,
        "video_id": clip.video_id,
        "url": clip.url,
        "caption": clip.caption,
        "captions": _captions(clip),
        "shard": clip.shard,
        "row": clip.row,
        "start": clip.start,
        "end": clip.end,
        "status": status_of(result.outcome),
        "outcome": str(result.outcome),
        "stage": str(result.outcome.stage),
        "retry": str(result.outcome.retry),
        "detail": result.detail,
        "format_id": result.format_id,
        "video_duration": result.video_duration,
        "bytes": None if cut is None else len(cut.data),
        "sha256": None if cut is None else hashlib.sha256(cut.data).hexdigest(),
        "bytes_fetched": result.bytes_fetched,
        "requests": result.requests,
        "attempts": result.attempts,
        **{f"{stage}_seconds": result.seconds.get(stage) for stage in ("resolve", "fetch", "cut")},
        "finished_at": finished_at_ms,
        "host": finished.host,
        "yt_dlp": finished.yt_dlp,
    }
    columns = {name: row.get(name) for name in SCHEMA.names}
    return {**{name: clip.extra.get(name) for name in layout.extra}, **columns}


def status_of(outcome: Outcome) -> str:
    """Return the reference's word for an outcome."""
    if outcome is Outcome.OK:
        return "success"
    return "failed_to_subsample" if outcome.stage is Stage.CUT else "failed_to_download"


def parquet_table(rows: list[dict[str, Any]], layout: Layout = _PLAIN) -> pa.Table:
    """Return the rows as a table of `schema_of`."""
    return cast("pa.Table", pa.Table.from_pylist(rows, schema=schema_of(layout)))
