"""ISO base media files (ISO/IEC 14496-12), read without a library: pure functions on bytes.

What is read is what the cutting of clips needs: the tracks, which samples they have, when those are
decoded and shown, and where they lie. Times of a sample are ticks of its track on the presentation
timeline: an edit list is applied. Nothing that a file claims is believed before there are bytes for
it, so that a lie costs neither memory nor time.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Samples of one track, at most: a day of sound has 4 million.
MOST_SAMPLES = 10_000_000
#: Samples of one size that a table may claim in a few bytes: three hours of AAC without a sound.
#: What has more is raw (PCM).
MOST_ALIKE = 1 << 19
#: Samples of one fragment, at most: half an hour of sound, or of pictures.
MOST_IN_FRAGMENT = 1 << 17
#: Tracks of a file, at most.
MOST_TRACKS = 64
#: Times (ticks) and places (bytes) from here on are nonsense, and sums of them would not fit.
_MOST = 1 << 60
#: The version and flags that begin a full box (4.2).
_FULL = 4
#: Bit of a sample's flags that says it is not a keyframe (8.8.3.1).
_NOT_SYNC = 0x10000
#: ffmpeg's names of the codecs behind sample entries.
_CODECS = {
    **{b"avc1": "h264", b"avc3": "h264", b"av01": "av1", b"vp08": "vp8", b"vp09": "vp9"},
    **{b"hvc1": "hevc", b"hev1": "hevc", b"mp4a": "aac", b"Opus": "opus", b"fLaC": "flac"},
}
#: Entries of what is encrypted.
_ENCRYPTED = (b"encv", b"enca")
#: Sampling rates by index (ISO/IEC 14496-3, table 1.18).
_AAC_RATES = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025),
    *(8_000, 7_350),
)
_SBR, _PS = 5, 29
#: objectTypeIndication of AAC (ISO/IEC 14496-1, table 5); others are MP3, Vorbis, …
_AAC = 0x40

Ints = NDArray[np.int64]


class UnsupportedError(ValueError):
    """The file may be sound, but is made in a way that is not read here."""


class BrokenError(ValueError):
    """The file contradicts itself, or ends too early."""


class Box(NamedTuple):
    """A box: its type, and where its content lies in the bytes it was read from."""

    kind: bytes
    start: int
    stop: int


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Yield the boxes between two offsets; ends quietly at one that is cut off or makes no sense.

    Source: ISO/IEC 14496-12, 4.2 (size 1 = a 64-bit size follows, 0 = to the end of the file).
    """
    stop = len(data) if stop is None else min(stop, len(data))
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            if start + 16 > stop:
                return
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        elif size == 0:
            size = stop - start
        if size < header or start + size > stop:
            return
        yield Box(kind, start + header, start + size)
        start += size


def has_edit_list(head: bytes) -> bool:
    """Whether a track in `head` (the file up to its ``moov``) has an edit list (8.6.6)."""
    return any(
        child.kind == b"edts"
        for moov in boxes(head)
        if moov.kind == b"moov"
        for trak in boxes(head, moov.start, moov.stop)
        if trak.kind == b"trak"
        for child in boxes(head, trak.start, trak.stop)
    )


def earliest_presentation_time(head: bytes) -> Fraction | None:
    """Return when the first sample is presented, in seconds, as the first ``sidx`` tells (8.16.3).

    None if there is no ``sidx`` in `head`.
    """
    for box in boxes(head):
        if box.kind == b"sidx" and box.stop - box.start >= 20:
            # version and flags (4 bytes), reference_ID (4), timescale (4), then the time.
            layout = ">II" if head[box.start] == 0 else ">IQ"
            timescale, time = struct.unpack_from(layout, head, box.start + 8)
            return Fraction(time, timescale) if timescale else None
    return None


# --- what a file holds ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a track in decode order, as parallel arrays.

    `offset` and `size` are bytes in the file; `dts`, `pts` and `duration` are ticks of the track:
    when a sample is decoded and shown on the presentation timeline, and how long until the next one
    is decoded. `key` marks keyframes.
    """

    offset: Ints
    size: Ints
    dts: Ints
    pts: Ints
    duration: Ints
    key: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.size)

    def taken(self, which: slice | NDArray[np.bool_]) -> Samples:
        """Return some of them."""
        return Samples(
            self.offset[which],
            self.size[which],
            self.dts[which],
            self.pts[which],
            self.duration[which],
            self.key[which],
        )

    @staticmethod
    def joined(parts: list[Samples]) -> Samples:
        """Return the samples of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]

        def column(name: str, kind: type = np.int64) -> NDArray[Any]:
            return np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])

        return Samples(
            column("offset"),
            column("size"),
            column("dts"),
            column("pts"),
            column("duration"),
            column("key", np.bool_),
        )


@dataclass(frozen=True, eq=False)
class Track:
    """A track of pictures or sound.

    Parameters
    ----------
    number
        Its ``track_ID``.
    is_video
        Whether it has pictures; else it has sound.
    codec
        ffmpeg's name of the codec; the four letters of the sample entry where it has none here.
    timescale
        Ticks a second.
    entry
        The sample entry, a whole box (8.5.2): codec, sizes, and what a decoder needs to begin.
    header
        Content of the ``tkhd`` from its matrix on: rotation and shown size (8.3.2).
    width, height
        Pixels; 0 for sound.
    sample_rate, channels
        Hz and count; 0 for pictures.
    shift
        Ticks of the media before what is shown at time 0; negative if it begins later.
    limit
        Ticks of the presentation after which nothing is shown; None = to the end.
    defaults
        Duration, size and flags of samples of fragments that say nothing else (8.8.3).
    table
        The samples that ``moov`` lists; none in a fragmented file.
    """

    number: int
    is_video: bool
    codec: str
    timescale: int
    entry: bytes
    header: bytes
    width: int
    height: int
    sample_rate: int
    channels: int
    shift: int
    limit: int | None
    defaults: tuple[int, int, int]
    table: Samples

    def seconds(self, ticks: int) -> Fraction:
        """Return a time of the track in seconds."""
        return Fraction(ticks, self.timescale)


@dataclass(frozen=True, eq=False)
class Fragments:
    """The fragments of a track, as the ``sidx`` lists them (8.16.3).

    Fragment i lies in the bytes ``[offsets[i], offsets[i + 1])``; all of its samples are presented
    at or after ``times[i]``, in ticks of `timescale`, and those of earlier ones before.
    """

    timescale: int
    offsets: Ints
    times: Ints

    def __len__(self) -> int:
        return len(self.times) - 1


@dataclass(frozen=True, eq=False)
class Movie:
    """What the head of a file tells: its tracks, and where fragments lie, if it has some."""

    tracks: tuple[Track, ...]
    fragments: Fragments | None


class Want(NamedTuple):
    """Bytes ``[start, stop)`` of a file that have to be there to go on."""

    start: int
    stop: int


# --- the head ------------------------------------------------------------------------------------


def plan_head(head: bytes, start: int, size: int | None) -> Movie | Want:
    """Read the head of a file, as far as it is there; or say which bytes are missing.

    Parameters
    ----------
    head
        The bytes of the file from `start` on.
    start
        Where they begin: 0, or where a ``Want`` said.
    size
        Bytes of the whole file; None if unknown.

    Returns
    -------
    Movie or Want
        What the file holds; else what to read. The next call is made with the bytes of a want
        alone, or, where it begins at `start`, with more of the same.

    Raises
    ------
    UnsupportedError
        If it is no mp4, or one that is not read here.
    BrokenError
        If it contradicts itself.
    """
    at = 0
    moov: Box | None = None
    while True:
        box = _top_box(head, at)
        if box is None:
            return _more(start, at, at + 16, size)
        if start == 0 and at == 0 and box.kind not in (b"ftyp", b"styp", b"moov"):
            raise UnsupportedError("it does not begin as an mp4 does")
        at = box.stop
        if box.kind == b"mdat" and moov is None:
            # A progressive file with its table at the end.
            if len(head) < box.stop:
                return _more(start + box.stop, 0, 1 << 16, size, least=16)
        elif box.kind in (b"moof", b"mdat"):
            raise UnsupportedError("fragments without an index")
        elif box.kind in (b"moov", b"sidx"):
            if len(head) < box.stop:
                return _more(start, box.start, box.stop, size)
            if box.kind == b"sidx" and moov is not None:
                tracks = _tracks(head, moov, size)
                if any(len(track.table) for track in tracks):
                    raise UnsupportedError("samples both in a table and in fragments")
                return Movie(tracks, _fragments(head, box, start, tracks, size))
            if box.kind == b"moov":
                if not _fragmented(head, box):
                    return Movie(_tracks(head, box, size), None)
                moov = box


def _top_box(head: bytes, at: int) -> Box | None:
    """Return the box at an offset, whether its content is there or not; None if it can't be told.

    `start` is where its content begins.
    """
    if at + 16 > len(head):
        return None
    size, kind, large = struct.unpack_from(">I4sQ", head, at)
    header = 16 if size == 1 else 8
    size = large if size == 1 else size
    if size == 0:
        # To the end of the file, of which nobody knows where it is.
        raise UnsupportedError(f"a box {kind!r} without a size")
    if size < header:
        raise BrokenError(f"a box {kind!r} of {size} bytes")
    return Box(kind, at + header, at + size)


#: Bytes of a head, at most: the table of a day of pictures and sound takes less.
MOST_HEAD = 128 << 20


def _more(start: int, at: int, stop: int, size: int | None, least: int | None = None) -> Want:
    """Return what to read so that the bytes ``[at, stop)`` behind `start` are there.

    At least `least` of them must be in the file; None = all.
    """
    if stop > MOST_HEAD:
        raise UnsupportedError(f"a head of {stop} bytes")
    needed = stop if least is None else at + least
    if size is not None and start + needed > size:
        raise BrokenError("the file ends before its head does")
    stop = start + stop
    return Want(start, stop if size is None else min(stop, size))


def _fragmented(head: bytes, moov: Box) -> bool:
    return any(box.kind == b"mvex" for box in boxes(head, moov.start, moov.stop))


def _child(data: bytes, parent: Box, *path: bytes) -> Box | None:
    """Return the first box at a path below `parent`."""
    found: Box | None = parent
    for kind in path:
        if found is None:
            return None
        inside = boxes(data, found.start, found.stop)
        found = next((box for box in inside if box.kind == kind), None)
    return found


def _needed(data: bytes, parent: Box, *path: bytes, size: int = 0) -> Box:
    """Return the box at a path, of at least `size` bytes."""
    found = _child(data, parent, *path)
    if found is None or found.stop - found.start < size:
        raise BrokenError(f"no box {b'/'.join(path).decode('latin-1')}, or a short one")
    return found


def _tracks(head: bytes, moov: Box, size: int | None) -> tuple[Track, ...]:
    """Return the tracks of pictures and sound that are read here."""
    movie = _needed(head, moov, b"mvhd", size=32)
    # Two times of 32 or 64 bits come first (8.2.2).
    (rate,) = struct.unpack_from(">I", head, movie.start + (20 if head[movie.start] else 12))
    found = []
    for box in boxes(head, moov.start, moov.stop):
        if box.kind == b"trak":
            track = _track(head, moov, box, rate)
            if track is not None:
                found.append(track)
            if len(found) > MOST_TRACKS:
                raise UnsupportedError(f"more than {MOST_TRACKS} tracks")
    ends = [int((track.table.offset + track.table.size).max(initial=0)) for track in found]
    if size is not None and max(ends, default=0) > size:
        raise BrokenError("samples that lie behind the end of the file")
    return tuple(found)


def _track(head: bytes, moov: Box, trak: Box, movie_rate: int) -> Track | None:
    """Return a track; None if it has neither pictures nor sound."""
    kind = _needed(head, trak, b"mdia", b"hdlr", size=12)
    handler = head[kind.start + 8 : kind.start + 12]
    if handler not in (b"vide", b"soun"):
        return None
    header = _needed(head, trak, b"tkhd", size=84)
    late = 12 if head[header.start] else 0
    (number,) = struct.unpack_from(">I", head, header.start + (20 if late else 12))
    shown = head[header.start + 40 + late : header.stop]
    if len(shown) < 44:
        raise BrokenError("a short tkhd")
    media = _needed(head, trak, b"mdia", b"mdhd", size=24)
    (timescale,) = struct.unpack_from(">I", head, media.start + (20 if head[media.start] else 12))
    if timescale == 0:
        raise BrokenError("a track without a timescale")
    stbl = _needed(head, trak, b"mdia", b"minf", b"stbl")
    entry, codec = _entry(head, stbl)
    shift, limit = _edits(head, trak, timescale, movie_rate)
    width, height, rate, channels = 0, 0, 0, 0
    if handler == b"vide":
        width, height = _unpacked(">HH", entry, 32)
    else:
        rate, channels, codec = _sound_of(entry, codec)
    return Track(
        number=number,
        is_video=handler == b"vide",
        codec=codec,
        timescale=timescale,
        entry=entry,
        header=shown[:44],
        width=width,
        height=height,
        sample_rate=rate,
        channels=channels,
        shift=shift,
        limit=limit,
        defaults=_defaults(head, moov, number),
        table=_table(head, stbl, shift, limit),
    )


def _entry(head: bytes, stbl: Box) -> tuple[bytes, str]:
    """Return the one sample entry of a track, and its codec."""
    stsd = _needed(head, stbl, b"stsd", size=16)
    entries = list(boxes(head, stsd.start + 8, stsd.stop))
    if len(entries) != 1 or entries[0].kind in _ENCRYPTED:
        raise UnsupportedError("a track that is encrypted, or changes its codec")
    kind, start, stop = entries[0]
    # Its header may tell the size in another way, which is right in its place alone.
    whole = struct.pack(">I4s", stop - start + 8, kind) + head[start:stop]
    return whole, _CODECS.get(kind, kind.decode("latin-1"))


def _edits(head: bytes, trak: Box, timescale: int, movie_rate: int) -> tuple[int, int | None]:
    """Return shift and limit of a track, in its ticks (8.6.6)."""
    elst = _child(head, trak, b"edts", b"elst")
    if elst is None:
        return 0, None
    version, count = _unpacked(">BxxxI", head[elst.start : elst.stop], 0)
    layout = ">QqI" if version else ">IiI"
    step = struct.calcsize(layout)
    if count > (elst.stop - elst.start - 8) // step:
        raise BrokenError("a short elst")
    delay = 0
    shown: list[tuple[int, int, int]] = []
    for number in range(min(count, 8)):
        length, time, rate = struct.unpack_from(layout, head, elst.start + 8 + number * step)
        if time == -1 and not shown:
            delay += length
        else:
            shown.append((length, time, rate))
    if count == 0:
        return 0, None
    if count > 8 or len(shown) != 1 or shown[0][2] != 1 << 16 or shown[0][1] < 0 or not movie_rate:
        raise UnsupportedError("an edit list that does more than to trim")
    length, time, _ = shown[0]
    ahead = round(Fraction(delay * timescale, movie_rate))
    # 0 = all that there is: fragments come later.
    limit = ahead + math.ceil(Fraction(length * timescale, movie_rate)) if length else None
    if max(ahead, time, limit or 0) > _MOST:
        raise BrokenError("an edit at the end of time")
    return time - ahead, limit


def _defaults(head: bytes, moov: Box, number: int) -> tuple[int, int, int]:
    for mvex in boxes(head, moov.start, moov.stop):
        for trex in boxes(head, mvex.start, mvex.stop) if mvex.kind == b"mvex" else ():
            if trex.kind == b"trex" and trex.stop - trex.start >= 24:
                found, _, *values = struct.unpack_from(">5I", head, trex.start + 4)
                if found == number:
                    return values[0], values[1], values[2]
    return 0, 0, 0


def _unpacked(layout: str, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as error:
        raise BrokenError(f"a box that is too short: {error}") from error


def _sound_of(entry: bytes, codec: str) -> tuple[int, int, str]:
    """Return sampling rate (Hz), channels and codec of a sample entry of sound (12.2.3)."""
    version, channels, rate = _unpacked(">H6xH6xH", entry, 16)
    if codec != "aac":
        return rate, channels, codec
    # QuickTime's versions 1 and 2 have more fields before the boxes.
    extra = {1: 16, 2: 36}.get(version, 0)
    esds = next((box for box in boxes(entry, 36 + extra) if box.kind == b"esds"), None)
    config = None if esds is None else _audio_config(entry[esds.start + _FULL : esds.stop])
    if config is None:
        # MP3, say.
        return rate, channels, "mp4a"
    return config[0] or rate, config[1] or channels, codec


def _audio_config(data: bytes) -> tuple[int, int] | None:
    """Return rate and channels (0 where not told) of an ES_Descriptor; None if it isn't AAC's.

    Source: ISO/IEC 14496-1, 7.2.6.
    """
    at, stop = 0, len(data)
    for wanted in (3, 4, 5):
        found = _descriptor(data, at, stop, wanted)
        if found is None:
            return None
        at, stop = found
        if wanted == 3:
            (flags,) = _unpacked(">B", data, at + 2)
            at += 3 + (2 if flags & 0x80 else 0) + (2 if flags & 0x20 else 0)
            if flags & 0x40:
                at += 1 + _unpacked(">B", data, at)[0]
        elif wanted == 4:
            if _unpacked(">B", data, at)[0] != _AAC:
                return None
            at += 13
    return _specific_config(data[at:stop])


def _descriptor(data: bytes, at: int, stop: int, wanted: int) -> tuple[int, int] | None:
    """Return where the content of the next descriptor of a tag lies (ISO/IEC 14496-1, 8.3.3)."""
    while at + 2 <= stop:
        tag, at, size = data[at], at + 1, 0
        for _ in range(4):
            if at >= stop:
                return None
            byte, at = data[at], at + 1
            size = size << 7 | byte & 0x7F
            if not byte & 0x80:
                break
        if tag == wanted:
            return at, min(at + size, stop)
        at += size
    return None


def _specific_config(data: bytes) -> tuple[int, int]:
    """Return rate and channels of an AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1)."""
    bits, left = int.from_bytes(data[:16], "big"), 8 * min(len(data), 16)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise BrokenError("a short configuration of AAC")
        return bits >> left & ((1 << count) - 1)

    def rate() -> int:
        index = take(4)
        return take(24) if index == 15 else _AAC_RATES[index] if index < len(_AAC_RATES) else 0

    kind = take(5)
    kind = 32 + take(6) if kind == 31 else kind
    hertz, channels = rate(), take(4)
    if kind in (_SBR, _PS):
        hertz = rate()
    return hertz, 2 if kind == _PS and channels == 1 else 8 if channels == 7 else channels


# --- samples of a progressive file ---------------------------------------------------------------


def _array(content: bytes, at: int, count: int, columns: int, kind: str = ">u4") -> Ints:
    """Return a table in the content of a box as integers; `count` is what the box claims."""
    wide = np.dtype(kind).itemsize * columns
    if count * wide > len(content) - at:
        raise BrokenError(f"a box of {len(content)} bytes that says it has {count} entries")
    found: Ints = np.frombuffer(content, kind, count * columns, at).astype(np.int64)
    return found.reshape(count, columns)


def _counted(data: bytes, stbl: Box, kind: bytes, columns: int, dtype: str = ">u4") -> Ints | None:
    """Return the table of a full box that begins with its count; None if there is no such box."""
    box = _child(data, stbl, kind)
    if box is None:
        return None
    content = data[box.start : box.stop]
    (count,) = _unpacked(">I", content, _FULL)
    return _array(content, 8, count, columns, dtype)


def _table(data: bytes, stbl: Box, shift: int, limit: int | None) -> Samples:
    """Return the samples of a track that ``moov`` lists (8.6, 8.7)."""
    size = _sizes(data, stbl)
    count = len(size)
    if count == 0:
        return Samples.joined([])
    stts = _counted(data, stbl, b"stts", 2)
    duration = _repeated(stts, count, "stts")
    dts: Ints = np.cumsum(duration) - duration - shift
    # Offsets of version 0 are unsigned, but some write negative ones there.
    ctts = _counted(data, stbl, b"ctts", 2)
    ahead = dts * 0 if ctts is None else _repeated(ctts, count, "ctts").astype(np.int32)
    stss = _counted(data, stbl, b"stss", 1)
    key = np.ones(count, np.bool_)
    if stss is not None:
        key[:] = False
        numbers = stss[:, 0]
        key[numbers[(numbers > 0) & (numbers <= count)] - 1] = True
    samples = Samples(_places(data, stbl, size), size, dts, dts + ahead, duration, key)
    return _until(samples, limit)


def _until(samples: Samples, limit: int | None) -> Samples:
    """Return the samples that are shown before a tick, and those that they were coded after."""
    if limit is None:
        return samples
    shown = np.flatnonzero(samples.pts < limit)
    return samples.taken(slice(0, int(shown[-1]) + 1 if len(shown) else 0))


def _sizes(data: bytes, stbl: Box) -> Ints:
    stsz = _needed(data, stbl, b"stsz", size=12)
    size, count = struct.unpack_from(">II", data, stsz.start + _FULL)
    if count > MOST_SAMPLES:
        raise UnsupportedError(f"a track of {count} samples")
    if size:
        if count > MOST_ALIKE:
            raise UnsupportedError(f"a track of {count} samples of one size")
        return np.full(count, size, np.int64)
    return _array(data[stsz.start : stsz.stop], 12, count, 1)[:, 0]


def _repeated(runs: Ints | None, count: int, name: str) -> Ints:
    """Return `count` values of a table of (how many, value)."""
    if runs is None or int(runs[:, 0].sum()) < count:
        raise BrokenError(f"{name} has fewer samples than there are")
    # A run is cut where the samples end: what it claims may be billions.
    ends = np.minimum(np.cumsum(runs[:, 0]), count)
    return np.repeat(runs[:, 1], np.diff(ends, prepend=0))


def _places(data: bytes, stbl: Box, size: Ints) -> Ints:
    """Return where samples of these sizes lie in the file (8.7.4, 8.7.5)."""
    chunks = _counted(data, stbl, b"stco", 1)
    if chunks is None:
        chunks = _counted(data, stbl, b"co64", 1, ">i8")
    runs = _counted(data, stbl, b"stsc", 3)
    if chunks is None or runs is None or len(runs) == 0 or len(chunks) == 0:
        raise BrokenError("a track without chunks")
    chunks = chunks[:, 0]
    first = runs[:, 0] - 1
    if first[0] != 0 or (np.diff(first) <= 0).any():
        raise BrokenError("chunks out of order")
    if (chunks < 0).any() or (chunks > _MOST).any():
        raise BrokenError("chunks outside of the file")
    # Chunks beyond the last one that there is are none.
    lasting = np.diff(np.minimum(np.append(first, len(chunks)), len(chunks)))
    held = np.repeat(runs[:, 1], lasting)
    ends = np.minimum(np.cumsum(np.minimum(held, len(size) + 1)), len(size))
    if ends[-1] < len(size):
        raise BrokenError("chunks hold fewer samples than there are")
    held = np.diff(ends, prepend=0)
    before: Ints = np.cumsum(size) - size
    starts = (ends - held)[held > 0]
    found: Ints = np.repeat(chunks[held > 0] - before[starts], held[held > 0]) + before
    return found


# --- fragments -----------------------------------------------------------------------------------


def _fragments(
    head: bytes, box: Box, start: int, tracks: tuple[Track, ...], size: int | None
) -> Fragments:
    """Return what a ``sidx`` lists."""
    content = head[box.start : box.stop]
    version, number, timescale = _unpacked(">BxxxII", content, 0)
    earliest, ahead = _unpacked(">QQ" if version else ">II", content, 12)
    at = 28 if version else 20
    (count,) = _unpacked(">xxH", content, at)
    rows = _array(content, at + 4, count, 3)
    track = next((track for track in tracks if track.number == number), None)
    if track is None or not timescale or count == 0:
        raise UnsupportedError("an index of no track")
    if max(earliest, ahead) > _MOST:
        raise BrokenError("an index of what is at the end of time, or of the file")
    if (rows[:, 0] >> 31).any():
        raise UnsupportedError("an index of indexes")
    anchor = start + box.stop + ahead
    offsets = anchor + np.concatenate([np.zeros(1, np.int64), np.cumsum(rows[:, 0])])
    if size is not None and (offsets[-1] > size or size - offsets[-1] > (size - anchor) // 8):
        raise BrokenError("the index is that of another file")
    # What the first one presents at the time 0: some count from the media, some from what is shown.
    shift = track.shift * timescale // track.timescale
    shown = earliest - shift if earliest >= shift > 0 else earliest
    times = shown + np.concatenate([np.zeros(1, np.int64), np.cumsum(rows[:, 1])])
    return Fragments(timescale, offsets, times)


def fragment_samples(data: bytes, start: int, track: Track) -> Samples:
    """Return the samples of a track in the fragments that `data` holds (8.8).

    Parameters
    ----------
    data
        Whole fragments: ``moof`` and ``mdat``, one or more of each.
    start
        Where they begin in the file.

    Raises
    ------
    UnsupportedError, BrokenError
        If they can't be read.
    """
    found: list[Samples] = []
    stop, left = 0, MOST_IN_FRAGMENT
    for box in boxes(data):
        begin, stop = stop, box.stop
        if box.kind == b"moof":
            trafs = [inner for inner in boxes(data, box.start, box.stop) if inner.kind == b"traf"]
            for number, traf in enumerate(trafs):
                part = _traf(data, (start + begin, number), traf, track, left)
                if part is not None:
                    left -= len(part)
                    found.append(part)
    if stop != len(data) or not found:
        raise BrokenError("a fragment that is none, or is cut off")
    samples = Samples.joined(found)
    inside = (samples.offset >= start) & (samples.offset + samples.size <= start + len(data))
    if not inside.all():
        raise BrokenError("samples that lie outside of their fragment")
    return _until(samples, track.limit)


def _traf(
    data: bytes, place_in: tuple[int, int], traf: Box, track: Track, most: int
) -> Samples | None:
    """Return the samples of a ``traf``, at most `most`; None if it is of another track.

    Parameters
    ----------
    place_in
        Where its ``moof`` begins in the file, and how many come before it there.
    """
    tfhd = _needed(data, traf, b"tfhd", size=8)
    flags, number = struct.unpack_from(">II", data, tfhd.start)
    if number != track.number:
        return None
    values = list(track.defaults)
    content, at = data[tfhd.start : tfhd.stop], 8
    base, before = place_in
    if before and not flags & (0x1 | 0x20000):
        raise UnsupportedError("a track whose data come where those of another end")
    if flags & 0x1:
        (base,) = _unpacked(">Q", content, at)
        at += 8
        if base > _MOST:
            raise BrokenError("a fragment outside of the file")
    at += 4 if flags & 0x2 else 0
    for place, bit in enumerate((0x8, 0x10, 0x20)):
        if flags & bit:
            (values[place],) = _unpacked(">I", content, at)
            at += 4
    tfdt = _needed(data, traf, b"tfdt", size=8)
    layout = ">Q" if data[tfdt.start] else ">I"
    (time,) = _unpacked(layout, data[tfdt.start : tfdt.stop], _FULL)
    if time > _MOST:
        raise BrokenError("a fragment at the end of time")
    parts: list[Samples] = []
    place = base
    for trun in boxes(data, traf.start, traf.stop):
        if trun.kind == b"trun":
            content = data[trun.start : trun.stop]
            part = _trun(content, base, (place, time - track.shift), tuple(values), most)
            if len(part):
                most -= len(part)
                parts.append(part)
                time = int(part.dts[-1] + part.duration[-1]) + track.shift
                place = int(part.offset[-1] + part.size[-1])
    return Samples.joined(parts)


def _trun(
    content: bytes, base: int, begin: tuple[int, int], defaults: tuple[int, ...], most: int
) -> Samples:
    """Return the samples of a ``trun`` (8.8.8).

    Parameters
    ----------
    base
        Where offsets in it count from, in the file.
    begin
        Where its data begin if it doesn't say, and when its first sample is decoded.
    defaults
        Duration, size and flags of samples that say nothing else.
    most
        Samples that there may be: a claim of billions costs nothing.
    """
    flags, count = _unpacked(">II", content, 0)
    at, (place, dts) = 8, begin
    if flags & 0x1:
        place, at = base + _unpacked(">i", content, at)[0], at + 4
    first = None
    if flags & 0x4:
        (first,), at = _unpacked(">I", content, at), at + 4
    named = [bit for bit in (0x100, 0x200, 0x400, 0x800) if flags & bit]
    if count > most:
        raise UnsupportedError(f"a fragment of more than {MOST_IN_FRAGMENT} samples")
    rows = _array(content, at, count, len(named)) if named else np.zeros((count, 0), np.int64)

    def column(bit: int, default: int) -> Ints:
        return rows[:, named.index(bit)] if bit in named else np.full(count, default, np.int64)

    duration, size, marks = (
        column(bit, default) for bit, default in zip((0x100, 0x200, 0x400), defaults, strict=True)
    )
    if first is not None and count and not flags & 0x400:
        marks[0] = first
    ahead = column(0x800, 0).astype(np.int32)
    times = dts + np.cumsum(duration) - duration
    places = place + np.cumsum(size) - size
    return Samples(places, size, times, times + ahead, duration, marks & _NOT_SYNC == 0)
