"""From results to the members of a tar or a folder, and to the rows of a parquet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import orjson
import pyarrow as pa
import webdataset

from acavdl.errors import Outcome, Stage
from acavdl.filesystems import Staged
from acavdl.models import Clip, ClipResult, Cut, Line
from acavdl.storage import Store
from acavdl.subtitles import within

#: The parquet of each shard: one row per clip. Times are in seconds, sizes in bytes; start and
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
        ("source_audio_codec", pa.string()),
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
        ("audio_bytes", pa.int64()),
        ("audio_sha256", pa.string()),
        ("bytes_fetched", pa.int64()),
        ("requests", pa.int32()),
        ("attempts", pa.int32()),
        ("resolve_seconds", pa.float64()),
        ("fetch_seconds", pa.float64()),
        ("cut_seconds", pa.float64()),
        ("resolve_cpu_seconds", pa.float64()),
        ("fetch_cpu_seconds", pa.float64()),
        ("cut_cpu_seconds", pa.float64()),
        ("finished_at", pa.timestamp("ms", tz="UTC")),
        ("host", pa.string()),
        ("yt_dlp", pa.string()),
    ]
)


#: What seconds are counted of, on the wall clock and of the CPU.
_STAGES = tuple(f"{stage}{kind}" for kind in ("", "_cpu") for stage in ("resolve", "fetch", "cut"))

#: Bytes of a member that are written in one piece.
_MEMBER_BYTES = 16 << 20

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
        "source_audio_codec": cut.source_audio_codec,
        "sample_rate": cut.sample_rate,
        "channels": cut.channels,
        "av_offset": cut.av_offset,
        "format_id": result.format_id,
        **_sizes(cut),
    }


def members_of(result: ClipResult, layout: Layout = _PLAIN) -> dict[str, bytes]:
    """Return the members of a successful clip's sample, by extension."""
    if result.cut is None:
        raise ValueError(f"{result.clip.key} has no sample: {result.outcome}")
    members = {**result.cut.members, "json": orjson.dumps(sample_json(result, layout))}
    if layout.captions:
        members["txt"] = (result.clip.caption or "").encode()
    return members


def members_wanted(encode_formats: Mapping[str, str], *, captions: bool) -> tuple[str, ...]:
    """Return the extensions of each sample's members, in the order that a tar has them."""
    return tuple(sorted([*encode_formats.values(), "json", *(["txt"] if captions else [])]))


class SampleWriter(Protocol):
    """Where the samples of a shard go."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    @property
    def keeps(self) -> bool:
        """Whether there can be checkpoints."""

    def write(self, result: ClipResult) -> None:
        """Append a successful clip."""

    def checkpoint(self) -> dict[str, Any]:
        """Make what was written durable; return what another writer goes on from."""

    def close(self) -> None:
        """End what was written; more than once is the same as once."""

    def commit(self) -> None:
        """Publish what was written and closed."""

    def stats(self) -> dict[str, Any]:
        """Return what the shard's stats tell of its files, beside the parquet."""


class _Tar(webdataset.TarWriter):  # type: ignore[misc]
    """webdataset's writer without a buffer of its own, so that it can go on behind a checkpoint."""

    @staticmethod
    def tarmode(fileobj: Any, compress: Any = None) -> str:
        """Return the mode of `tarfile` that writes at the file's place."""
        return "w"


class TarWriter:
    """Writes samples into a tar: members in the order of the calls, the same bytes every time.

    Parameters
    ----------
    file
        Where the tar goes; written from front to end. What is in it already stays: whole members.
    kept
        Name under which the file stays after a checkpoint.
    layout
        What the samples hold.
    """

    def __init__(self, file: Staged, layout: Layout = _PLAIN, kept: str | None = None) -> None:
        self._file = file
        self._layout = layout
        self._kept = kept
        self._closed = False
        self._tar = _Tar(file, encoder=False, mtime=0, user="", group="")
        # A member in one piece: tarfile's own 16 kB make a hundred steps of it, in each of which
        # other threads may take their turn.
        self._tar.tarstream.copybufsize = _MEMBER_BYTES

    @property
    def size(self) -> int:
        """Bytes of the tar so far."""
        return self._file.size

    @property
    def keeps(self) -> bool:
        """Whether the tar can be kept before it is whole."""
        return self._file.keeps

    def write(self, result: ClipResult) -> None:
        """Append a successful clip."""
        self._tar.write({"__key__": result.clip.key, **members_of(result, self._layout)})

    def checkpoint(self) -> dict[str, Any]:
        """Return where the tar lies, and how much of it there is."""
        self._file.checkpoint()
        return {"tar": self._kept, "bytes": self._file.size}

    def close(self) -> None:
        """Write the end of the tar, once; the file stays open."""
        if not self._closed:
            self._closed = True
            self._tar.close()

    def commit(self) -> None:
        """Publish the tar."""
        self._file.commit()

    def stats(self) -> dict[str, Any]:
        """Return size and hash of the tar."""
        return {"tar": {"bytes": self._file.size, "sha256": self._file.sha256}}


class FolderWriter:
    """Writes each member of each sample into a file of its own, ``<folder>/<key>.<extension>``.

    Each file is there as soon as it is whole, over an older one of that name: what a shard that
    was given up has left is written again.

    Parameters
    ----------
    store
        Where the dataset lies.
    folder
        The shard's folder in it.
    layout
        What the samples hold.
    written
        What a checkpoint told of files that are there.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        layout: Layout = _PLAIN,
        written: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._layout = layout
        self._written: dict[str, tuple[int, str]] = {
            name: (size, sha256) for name, (size, sha256) in (written or {}).items()
        }

    @property
    def size(self) -> int:
        """Bytes of all files so far."""
        return sum(size for size, _ in self._written.values())

    @property
    def keeps(self) -> bool:
        """True: each file is there as soon as it is written."""
        return True

    def write(self, result: ClipResult) -> None:
        """Write the files of a successful clip."""
        for extension, data in members_of(result, self._layout).items():
            name = f"{result.clip.key}.{extension}"
            with self._store.stage(f"{self._folder}/{name}") as file:
                file.write(data)
                file.commit()
                self._written[name] = file.size, file.sha256

    def checkpoint(self) -> dict[str, Any]:
        """Return sizes and hashes of the files: they are durable."""
        return {"written": dict(self._written)}

    def close(self) -> None:
        """Do nothing: each file is closed."""

    def commit(self) -> None:
        """Remove what a shard that was given up has left besides; all other files are published."""
        for name in self._store.sizes(self._folder):
            if name not in self._written and not name.startswith("."):
                self._store.remove(f"{self._folder}/{name}")

    def stats(self) -> dict[str, Any]:
        """Return number and bytes of the files, and a hash of their names and hashes.

        It is that of what ``LC_ALL=C sha256sum *`` says in the folder.
        """
        digest = members_digest({name: sha256 for name, (_, sha256) in self._written.items()})
        return {"members": {"count": len(self._written), "bytes": self.size, "sha256": digest}}


def members_digest(hashes: Mapping[str, str]) -> str:
    """Return the hash of the names of files and their hashes, as ``sha256sum`` lists them."""
    lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(hashes.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
        "bytes_fetched": result.bytes_fetched,
        "requests": result.requests,
        "attempts": result.attempts,
        **{f"{stage}_seconds": result.seconds.get(stage) for stage in _STAGES},
        "finished_at": finished_at_ms,
        "host": finished.host,
        "yt_dlp": finished.yt_dlp,
    }
    columns = {name: row.get(name) for name in SCHEMA.names}
    return {**{name: clip.extra.get(name) for name in layout.extra}, **columns}


def _sizes(cut: Cut) -> dict[str, Any]:
    """Return bytes and hash of the main member, and of the sound where it is a second one."""
    found: dict[str, Any] = {"audio_bytes": None, "audio_sha256": None}
    members = zip(("", "audio_"), cut.members.values(), cut.hashes, strict=False)
    for prefix, data, sha256 in members:
        found |= {f"{prefix}bytes": len(data), f"{prefix}sha256": sha256}
    return found


def counts_of(outcomes: Mapping[str, int]) -> dict[str, Any]:
    """Return the reference's counts, for a shard's stats, of clips by outcome."""
    status = Counter[str]()
    for name, number in outcomes.items():
        status[status_of(Outcome(name))] += number
    return {
        "count": sum(outcomes.values()),
        "successes": status["success"],
        "failed_to_download": status["failed_to_download"],
        "failed_to_subsample": status["failed_to_subsample"],
        "status_dict": {"success" if n == Outcome.OK else n: c for n, c in outcomes.items()},
    }


def status_of(outcome: Outcome) -> str:
    """Return the reference's word for an outcome."""
    if outcome is Outcome.OK:
        return "success"
    return "failed_to_subsample" if outcome.stage is Stage.CUT else "failed_to_download"


def parquet_table(rows: Sequence[Mapping[str, Any]], layout: Layout = _PLAIN) -> pa.Table:
    """Return the rows as a table of `schema_of`."""
    return cast("pa.Table", pa.Table.from_pylist(list(rows), schema=schema_of(layout)))
