"""Whether a published shard is what its stats, its parquet and the plan say.

Everything is read once, front to back; nothing is kept but one member at a time.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from acavdl.cut import decoded
from acavdl.errors import ClipError, Outcome, StorageError
from acavdl.ledger import shard_name
from acavdl.media import Media, MemoryFile
from acavdl.models import Clip
from acavdl.mp4 import BrokenError, Track, UnsupportedError
from acavdl.planfile import ShardPlace, clips_of, read_shard
from acavdl.removal import is_laid_down, key_of, removed_ids
from acavdl.shard import Job
from acavdl.storage import Store
from acavdl.writer import SCHEMA, members_digest, members_wanted

#: Seconds by which what a head says may be off `actual_end` − `actual_start`: a frame of 10 a
#: second, or a few packets of sound.
_TOLERANCE = 0.1
#: Bytes read at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checked:
    """What was found out about a shard.

    Attributes
    ----------
    problems
        What is wrong with it, a line each; none: it is whole.
    unread
        Whether the store did not tell: nothing is known of the shard then.
    removed
        Whether all that is wrong is that it holds samples of videos that were taken out.
    clips, bytes
        Rows that were checked, and bytes that were read.
    """

    shard: int
    problems: tuple[str, ...] = ()
    unread: bool = False
    removed: bool = False
    clips: int = 0
    bytes: int = 0


def check_shard(place: ShardPlace, job: Job, decode: int = 0) -> Checked:
    """Read a published shard, and compare it with its stats, its parquet and the plan.

    Parameters
    ----------
    place
        Where the plan has it.
    decode
        Samples that are decoded, spread over the shard.
    """
    store, shard = job.store, place.shard
    name = shard_name(shard, job.config.storage.oom_shard_count)
    found = _Check(store, name, job)
    try:
        held = removed_ids(store)
        problems = list(found.problems(clips_of(read_shard(place, store)), decode))
        gone = [v for v in found.videos if v in held]
        if problems and is_laid_down(store, name):
            problems.append("a removal was broken off: --repair, or the next run, finishes it")
    except StorageError as error:
        return Checked(shard, (str(error),), unread=True)
    removed = [f"holds samples of {v}, which was removed: acavdl remove" for v in gone]
    return Checked(
        shard,
        (*problems, *removed),
        removed=bool(removed) and not problems,
        clips=found.rows.num_rows,
        bytes=found.read,
    )


class _Check:
    """One shard on its way through the checks.

    Attributes
    ----------
    rows : pyarrow.Table
        Of its parquet.
    videos : set of str
        Those that it has samples of.
    read : int
        Bytes.
    """

    def __init__(self, store: Store, name: str, job: Job) -> None:
        self._store, self._name = store, name
        self._lines = job.config.storage.captions_are_subtitles
        self._kinds = members_wanted(job.config.output.encode_formats, captions=job.captions)
        self.rows = SCHEMA.empty_table()
        self.videos: set[str] = set()
        self.read = 0

    def problems(self, clips: Sequence[Clip], decode: int) -> Iterator[str]:
        """Yield what is wrong; what can't be told any more is not looked at."""
        try:
            stats = orjson.loads(self._store.read(f"{self._name}_stats.json"))
            files, outcomes = stats["files"], Counter(stats["outcomes"])
            parquet, tar = files["parquet"], files.get("tar")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            yield f"stats are damaged: {error!r}"
            return
        wrong = list(self._parquet(parquet))
        yield from wrong
        if wrong:
            return
        yield from self._plan(clips)
        found = Counter(self.rows["outcome"].to_pylist())
        if found != outcomes or stats.get("count") != self.rows.num_rows:
            yield f"the stats count {dict(outcomes)}, the parquet {dict(found)}"
        samples = [row for row in self.rows.to_pylist() if row["outcome"] == Outcome.OK.value]
        self.videos = {row["video_id"] for row in samples}
        if tar is None:
            yield from self._folder(files["members"], samples, decode)
        else:
            yield from self._tar(tar, samples, decode)

    def _whole(self, name: str, told: Mapping[str, Any]) -> Iterator[str]:
        size = self._store.size(name)
        if size is None:
            yield f"{name} is missing"
        elif size != told["bytes"]:
            yield f"{name} has {size:,} bytes, {told['bytes']:,} by the stats"

    def _parquet(self, told: Mapping[str, Any]) -> Iterator[str]:
        name = f"{self._name}.parquet"
        wrong = list(self._whole(name, told))
        yield from wrong
        if wrong:
            return
        data = self._store.read(name)
        self.read += len(data)
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            yield f"{name} has another sha256 than the stats"
            return
        try:
            self.rows = pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            yield f"{name} can't be read: {error}"
            return
        if lacking := [n for n in SCHEMA.names if n not in self.rows.column_names]:
            yield f"{name} has no {', '.join(lacking)}"

    def _plan(self, clips: Sequence[Clip]) -> Iterator[str]:
        """Compare the rows with the clips of the plan."""
        if self._lines:
            # A video has a row for each of its lines.
            planned: list[Any] = [(clip.video_id, clip.row) for clip in clips]
            columns = [self.rows[name].to_pylist() for name in ("video_id", "row")]
            found: list[Any] = list(dict.fromkeys(zip(*columns, strict=True)))
        else:
            planned = [clip.key for clip in clips]
            found = self.rows["key"].to_pylist()
        if found != planned:
            yield f"the parquet has other clips than the plan ({len(found)}, {len(planned)})"

    def _tar(
        self, told: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], decode: int
    ) -> Iterator[str]:
        name = f"{self._name}.tar"
        wrong = list(self._whole(name, told))
        yield from wrong
        if wrong:
            return
        with self._store.open(name) as file:
            source = _Hashed(file)
            yield from self._samples(_members(source), samples, decode)
            while source.read(_BLOCK):
                pass
        self.read += source.size
        if source.sha256 != told["sha256"]:
            yield f"{name} has another sha256 than the stats"

    def _folder(
        self, told: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], decode: int
    ) -> Iterator[str]:
        there = self._store.sizes(self._name)
        places = {
            f"{row['key']}.{kind}": place
            for place, (row, kind) in enumerate((r, k) for r in samples for k in self._kinds)
        }
        # In the order of the samples; those that nobody asked for at the end.
        names = sorted(
            (name for name in there if not name.startswith(".")),
            key=lambda name: (places.get(name, len(places)), name),
        )
        hashes: dict[str, str] = {}

        def read() -> Iterator[tuple[str, bytes]]:
            for name in names:
                data = self._store.read(f"{self._name}/{name}")
                hashes[name] = hashlib.sha256(data).hexdigest()
                self.read += len(data)
                yield name, data

        yield from self._samples(read(), samples, decode)
        found = {
            "count": len(hashes),
            "bytes": sum(there[name] for name in hashes),
            "sha256": members_digest(hashes),
        }
        for what, value in found.items():
            if value != told[what]:
                yield f"the files have {value} as {what}, {told[what]} by the stats"

    def _samples(
        self,
        members: Iterator[tuple[str, bytes]],
        samples: Sequence[Mapping[str, Any]],
        decode: int,
    ) -> Iterator[str]:
        """Compare members with the rows of the samples."""
        by_key = {row["key"]: row for row in samples}
        steps = min(decode, len(samples))
        to_decode = {samples[i * len(samples) // steps]["key"] for i in range(steps)}
        names = []
        try:
            for name, data in members:
                names.append(name)
                row, kind = by_key.get(key_of(name)), name.partition(".")[2]
                if row is not None and kind in self._kinds:
                    more = row["key"] in to_decode
                    yield from (f"{name}: {text}" for text in _member(kind, data, row, more))
        except tarfile.TarError as error:
            yield f"the tar can't be read: {error}"
        expected = [f"{row['key']}.{kind}" for row in samples for kind in self._kinds]
        if names != expected:
            place = next(
                (
                    i
                    for i, pair in enumerate(zip(names, expected, strict=False))
                    if len({*pair}) > 1
                ),
                min(len(names), len(expected)),
            )
            here, there = ([*some, "the end"][place] for some in (names, expected))
            yield f"member {place} is {here}, where {there} should be"


class _Hashed(io.RawIOBase):
    """A file that is read from the front, hashed on the fly."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hash of what was read, as hex."""
        return self._hash.hexdigest()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data


def _members(source: _Hashed) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the members of a tar."""
    file = cast("BinaryIO", source)
    with tarfile.open(fileobj=file, mode="r|", bufsize=_BLOCK) as tar:
        for member in tar:
            content = tar.extractfile(member)
            yield member.name, b"" if content is None else content.read()


# --- members -----------------------------------------------------------------------------------


def _member(kind: str, data: bytes, row: Mapping[str, Any], decode: bool) -> Iterator[str]:
    """Yield what is wrong with a member of a sample."""
    if kind == "json":
        yield from _json(data, row)
    elif kind != "txt":
        # The m4a beside an mp4 has columns of its own.
        second = kind == "m4a" and row["audio_sha256"] is not None
        prefix = "audio_" if second else ""
        if (len(data), hashlib.sha256(data).hexdigest()) != (
            row[f"{prefix}bytes"],
            row[f"{prefix}sha256"],
        ):
            yield "another content than the parquet has the sha256 of"
            return
        if kind in ("mp4", "m4a"):
            yield from _head(data, row, sound_alone=row["frames"] is None, second=second)
        if decode:
            yield from _decoded(data, row, second=second)


def _json(data: bytes, row: Mapping[str, Any]) -> Iterator[str]:
    try:
        sample = orjson.loads(data)
        found = (sample["key"], sample["cut"]["actual_start"], sample["cut"]["actual_end"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        yield f"no JSON of a sample: {error!r}"
        return
    if found != (row["key"], row["actual_start"], row["actual_end"]):
        yield f"tells of {found}"


def _head(data: bytes, row: Mapping[str, Any], *, sound_alone: bool, second: bool) -> Iterator[str]:
    """Compare the streams that the head of an mp4 tells of with the row."""
    try:
        media = Media(MemoryFile(data))
    except (BrokenError, UnsupportedError) as error:
        yield f"its head can't be read: {error}"
        return
    tracks = media.movie.tracks
    pictures = [track for track in tracks if track.is_video]
    sounds = [track for track in tracks if not track.is_video]
    if len(sounds) != 1 or len(pictures) != (0 if sound_alone or second else 1):
        yield f"{len(pictures)} pictures and {len(sounds)} sounds"
        return
    sound = (sounds[0].sample_rate, sounds[0].channels)
    if sound != (row["sample_rate"], row["channels"]):
        yield f"its sound has (Hz, channels) {sound}"
    for track in pictures:
        if (track.width, track.height) != (row["width"], row["height"]):
            yield f"its picture has {track.width} × {track.height} pixels"
    length = row["actual_end"] - row["actual_start"]
    shown = float(_shown(media, [*pictures, *sounds][0]))
    if not second and abs(shown - length) > _TOLERANCE:
        yield f"it shows {shown:.3f} s, {length:.3f} s by the parquet"


def _shown(media: Media, track: Track) -> Fraction:
    """Return how long a track is shown, in seconds."""
    end = media.duration(track)
    return end if track.limit is None else min(end, track.seconds(track.limit))


def _decoded(data: bytes, row: Mapping[str, Any], *, second: bool) -> Iterator[str]:
    try:
        frames, samples = decoded(data)
    except ClipError as error:
        yield f"does not decode: {error.detail}"
        return
    if not second and (row["frames"] or 0) != frames:
        yield f"{frames} frames decode, {row['frames']} by the parquet"
    if not samples:
        yield "no sound decodes"
