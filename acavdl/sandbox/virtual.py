"""Bodies that the origin serves: real files, and videos of hours that exist nowhere.

A *stretched* body repeats the movie fragments of a small fragmented mp4 until a wanted duration is
reached. Nothing is encoded and nothing is stored: ``ftyp`` and ``moov`` are copied with the new
duration, the one ``sidx`` is written anew, and of each fragment only the sequence number (``mfhd``)
and the decode time (``tfdt``) change. The media bytes are views of the mapped master.

Where source time goes
----------------------
Each track is repeated on its own: its timestamps just continue, so one repetition lasts as long as
the samples of that track, *D* (the sum of the sample durations in its ``trun`` boxes). Decode time
``t`` of the stretched track shows the sample that the master shows at ``t mod D``; an edit list
stays as it is and moves the whole timeline at once.

For video *D* is the number of frames over the frame rate. For audio it counts codec frames, with
the one that primes the decoder, and may differ from the video's by some hundredths of a second:
after n repetitions the *source* times of sound and picture are then n times that apart, although
both timelines are right. (If the encoder shortened the last AAC frame so that it ends with the
source, it is as short in each repetition.) The demo master ``h3`` has periods that are exactly
equal and no edit list (see :data:`acavdl.sandbox.media.DEMO_MASTERS`): both tracks of it show
``t mod D``, but for the first 1,024 samples of each repetition, which prime the decoder.

Boxes are named as in ISO/IEC 14496-12.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from operator import sub
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from acavdl.sandbox.media import Rendition

__all__ = [
    "Body",
    "Box",
    "BoxError",
    "Sidx",
    "boxes",
    "decode_durations",
    "file_body",
    "find_box",
    "pack_sidx",
    "parse_sidx",
    "stretched_body",
    "with_mehd",
]

_CHUNK = 1 << 20  # bytes of one view of a real file; a socket takes less at a time anyway
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf"})


class BoxError(ValueError):
    """The bytes are not the mp4 boxes that were expected."""


class Body(Protocol):
    """Bytes that are served by range.

    Attributes
    ----------
    size : int
        Length of the whole body in bytes.
    """

    @property
    def size(self) -> int:
        """Length of the whole body in bytes."""
        ...

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """Give exactly the bytes ``[start, stop)``, clipped to the body, in order."""
        ...


# ---------------------------------------------------------------------------------------------
# boxes


@dataclass(frozen=True)
class Box:
    """Place of one mp4 box (ISO/IEC 14496-12, 4.2), all offsets in bytes.

    Attributes
    ----------
    kind : bytes
        Four characters, as ``b"moof"``.
    start, body, stop : int
        Where the header begins, where the content begins, and where the next box begins.
    """

    kind: bytes
    start: int
    body: int
    stop: int


@dataclass(frozen=True)
class Sidx:
    """A segment index (ISO/IEC 14496-12, 8.16.3).

    Attributes
    ----------
    timescale : int
        Ticks per second.
    earliest : int
        Earliest presentation time of the first fragment, in ticks.
    sizes, durations : tuple of int
        Bytes and ticks of each fragment.
    """

    timescale: int
    earliest: int
    sizes: tuple[int, ...]
    durations: tuple[int, ...]


def boxes(data: bytes | memoryview, start: int = 0, stop: int | None = None) -> Iterator[Box]:
    """Walk the boxes of one level.

    Parameters
    ----------
    data : bytes or memoryview
        A file, or a part of it that begins with a box.
    start, stop : int
        Range to walk, in bytes.

    Raises
    ------
    BoxError
        If a box does not fit into the range.
    """
    end = len(data) if stop is None else stop
    while start < end:
        if end - start < 8:
            raise BoxError(f"{end - start} bytes left at offset {start}: no room for a box header")
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            header = 16
        elif size == 0:  # "to the end of the file"
            size = end - start
        if size < header or start + size > end:
            raise BoxError(f"box {kind!r} at offset {start} has a size of {size} bytes")
        yield Box(kind, start, start + header, start + size)
        start += size


def find_box(data: bytes | memoryview, path: str, start: int = 0, stop: int | None = None) -> Box:
    """Find the first box at a path as ``"moov/mvex/trex"``.

    Raises
    ------
    BoxError
        If there is none.
    """
    kind, _, rest = path.partition("/")
    for box in boxes(data, start, stop):
        if box.kind == kind.encode("ascii"):
            return find_box(data, rest, box.body, box.stop) if rest else box
    raise BoxError(f"no box {path!r}")


def _box(kind: bytes, *content: bytes | memoryview) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


def parse_sidx(data: bytes | memoryview, box: Box) -> Sidx:
    """Read a ``sidx`` whose references all point to media.

    Raises
    ------
    BoxError
        If it points to other indexes.
    """
    at = box.body
    version = data[at]
    (timescale,) = struct.unpack_from(">I", data, at + 8)
    earliest, _first = struct.unpack_from(">QQ" if version else ">II", data, at + 12)
    at += 28 if version else 20
    (count,) = struct.unpack_from(">H", data, at + 2)
    references = tuple(struct.iter_unpack(">III", data[at + 4 : at + 4 + 12 * count]))
    if any(size >> 31 for size, _, _ in references):
        raise BoxError("the sidx refers to other indexes")
    return Sidx(
        timescale=timescale,
        earliest=earliest,
        sizes=tuple(size for size, _, _ in references),
        durations=tuple(duration for _, duration, _ in references),
    )


def pack_sidx(index: Sidx) -> bytes:
    """Write a ``sidx`` (version 1) of fragments that each start with a stream access point."""
    references = b"".join(
        # starts_with_SAP = 1, SAP_type = 0 ("unknown"), as ffmpeg writes it
        struct.pack(">III", size, duration, 1 << 31)
        for size, duration in zip(index.sizes, index.durations, strict=True)
    )
    head = struct.pack(">IIIQQ", 1 << 24, 1, index.timescale, index.earliest, 0)
    return _box(b"sidx", head, struct.pack(">HH", 0, len(index.sizes)), references)


def _movie_timescale(moov: bytes | memoryview) -> int:
    mvhd = find_box(moov, "moov/mvhd")
    timescale: int = struct.unpack_from(">I", moov, mvhd.body + (20 if moov[mvhd.body] else 12))[0]
    return timescale


def with_mehd(moov: bytes | memoryview, duration: Fraction) -> bytes:
    """Give a ``moov`` of a fragmented file the duration of the whole movie.

    A ``mehd`` box is put first into ``mvex`` in place of the one that may be there. Offsets inside
    of the file do not change as seen from a fragment, since these are relative to their ``moof``.

    Parameters
    ----------
    moov : bytes
        The box ``moov`` with its header.
    duration : Fraction
        Seconds.

    Returns
    -------
    bytes
        The new box.
    """
    mvex = find_box(moov, "moov/mvex")
    ticks = round(duration * _movie_timescale(moov))
    kept = [moov[b.start : b.stop] for b in boxes(moov, mvex.body, mvex.stop) if b.kind != b"mehd"]
    mehd = _box(b"mehd", struct.pack(">IQ", 1 << 24, ticks))
    outer = find_box(moov, "moov")
    return _box(
        b"moov",
        moov[outer.body : mvex.start],
        _box(b"mvex", mehd, *kept),
        moov[mvex.stop : outer.stop],
    )


# ---------------------------------------------------------------------------------------------
# bodies


def _map(path: Path) -> memoryview:
    """Map a file for reading; the map lives as long as a view of it."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@dataclass(frozen=True)
class _FileBody:
    data: memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        stop = min(stop, self.size)
        for at in range(max(start, 0), stop, _CHUNK):
            yield self.data[at : min(at + _CHUNK, stop)]


@dataclass(frozen=True)
class _Fragment:
    """One ``moof`` with what follows it, and where its two variable fields are."""

    moof: bytes
    media: memoryview
    sequence_at: int
    time_at: int
    time_format: str
    time: int

    @property
    def size(self) -> int:
        return len(self.moof) + len(self.media)

    def header(self, sequence: int, shift: int) -> bytes:
        """Give the ``moof`` with another number and a time later by `shift` ticks."""
        moof = bytearray(self.moof)
        struct.pack_into(">I", moof, self.sequence_at, sequence)
        struct.pack_into(self.time_format, moof, self.time_at, self.time + shift)
        return bytes(moof)


@dataclass(frozen=True)
class _StretchedBody:
    """Head, then `count` fragments, the `fragments` again and again."""

    head: bytes
    fragments: tuple[_Fragment, ...]
    starts: tuple[int, ...]  # of each fragment within one repetition, and the repetition's size
    period: int  # ticks of one repetition
    size: int

    def read(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        start, stop = max(start, 0), min(stop, self.size)
        while start < stop:
            base, parts = self._parts(start)
            for part in parts:
                low, high = max(start - base, 0), min(stop - base, len(part))
                if low < high:
                    yield part[low:high]
                base += len(part)
            start = base

    def _parts(self, at: int) -> tuple[int, tuple[bytes | memoryview, ...]]:
        """Find the fragment (or the head) that holds a byte: its place and its pieces."""
        if at < len(self.head):
            return 0, (self.head,)
        loop, rest = divmod(at - len(self.head), self.starts[-1])
        number = bisect_right(self.starts, rest) - 1
        fragment = self.fragments[number]
        sequence = loop * len(self.fragments) + number + 1
        base = len(self.head) + loop * self.starts[-1] + self.starts[number]
        return base, (fragment.header(sequence, loop * self.period), fragment.media)


def file_body(path: Path) -> Body:
    """Serve a real file from a memory map.

    Parameters
    ----------
    path : Path
        A file that is not empty.
    """
    return _FileBody(_map(path))


def _fragment(data: memoryview, start: int, stop: int) -> _Fragment:
    moof = find_box(data, "moof", start, stop)
    content = bytes(data[moof.start : moof.stop])
    tfhd = find_box(content, "moof/traf/tfhd")
    # base-data-offset-present would tie the fragment to its place in the file (8.8.7)
    if struct.unpack_from(">I", content, tfhd.body)[0] & 1:
        raise BoxError("the fragment has absolute offsets")
    tfdt = find_box(content, "moof/traf/tfdt")
    time_format = ">Q" if content[tfdt.body] else ">I"
    time_at = tfdt.body + 4
    return _Fragment(
        moof=content,
        media=data[moof.stop : stop],
        sequence_at=find_box(content, "moof/mfhd").body + 4,
        time_at=time_at,
        time_format=time_format,
        time=struct.unpack_from(time_format, content, time_at)[0],
    )


def _fragments(data: memoryview, start: int, index: Sidx) -> Iterator[_Fragment]:
    for size in index.sizes:
        yield _fragment(data, start, start + size)
        start += size


def _durations(fragments: Sequence[_Fragment]) -> tuple[int, ...]:
    """Ticks from the decode time of each fragment to that of the next one, or to the end."""
    last = fragments[-1]
    times = [fragment.time for fragment in fragments]
    return tuple(map(sub, [*times[1:], last.time + _trun_duration(last.moof)], times))


def decode_durations(data: bytes | memoryview, start: int, index: Sidx) -> tuple[int, ...]:
    """Tell how long the fragments last when nothing of them is hidden.

    Parameters
    ----------
    data : bytes
        The file.
    start : int
        Offset of the first fragment in bytes.
    index : Sidx
        Says how large the fragments are.

    Returns
    -------
    tuple of int
        Ticks of the track.
    """
    return _durations(tuple(_fragments(memoryview(data), start, index)))


def _trun_duration(moof: bytes) -> int:
    """Sum the sample durations of a fragment with one track (8.8.7, 8.8.8)."""
    tfhd = find_box(moof, "moof/traf/tfhd")
    (flags,) = struct.unpack_from(">I", moof, tfhd.body)
    at = tfhd.body + 8 + 8 * (flags & 1) + 4 * (flags >> 1 & 1)
    default = struct.unpack_from(">I", moof, at)[0] if flags & 8 else None
    traf = find_box(moof, "moof/traf")
    total = 0
    for trun in (box for box in boxes(moof, traf.body, traf.stop) if box.kind == b"trun"):
        flags, count = struct.unpack_from(">II", moof, trun.body)
        flags &= 0xFFFFFF
        at = trun.body + 8 + 4 * (flags & 1) + 4 * (flags >> 2 & 1)
        if flags & 0x100:
            width = 4 * (flags >> 8 & 0xF).bit_count()
            total += sum(struct.unpack_from(">I", moof, at + width * i)[0] for i in range(count))
        elif default is not None:
            total += count * default
        else:
            raise BoxError("the fragment does not say how long its samples last")
    return total


def stretched_body(rendition: Rendition, duration: float) -> Body:
    """Make a virtual fragmented mp4 of hours out of a short one.

    Parameters
    ----------
    rendition : Rendition
        An adaptive mp4: ``ftyp``, ``moov``, one ``sidx``, then fragments.
    duration : float
        Seconds. The body ends with the first fragment that ends at or after it.

    Returns
    -------
    Body
        Any range of it is composed when it is read.

    Raises
    ------
    BoxError
        If the rendition is not such a file.
    ValueError
        If the duration is not positive, or takes more than the 65,535 fragments of one ``sidx``.
    """
    if rendition.init_range is None or rendition.index_range is None:
        raise BoxError(f"itag {rendition.itag} is not an adaptive mp4")
    if not duration > 0:
        raise ValueError(f"a duration of {duration} s")
    data = _map(rendition.path)
    sidx = find_box(data, "sidx")
    index = parse_sidx(data, sidx)
    fragments = tuple(_fragments(data, sidx.stop, index))
    lasting = _durations(fragments)
    period = sum(lasting)
    loops, rest = divmod(round(duration * index.timescale), period)
    count = loops * len(fragments)
    if rest:
        count += 1 + bisect_left(list(accumulate(lasting)), rest)
    if count > 0xFFFF:
        raise ValueError(f"{count} fragments do not fit into one sidx")
    sizes = tuple(fragments[i % len(fragments)].size for i in range(count))
    # an edit list hides the lead-in of the first fragment, and of that one only
    durations = index.durations[:1] + tuple(lasting[i % len(lasting)] for i in range(1, count))
    moov = find_box(data, "moov")
    total = Fraction(sum(durations), index.timescale)
    head = b"".join(
        (
            bytes(data[: moov.start]),
            with_mehd(data[moov.start : moov.stop], total),
            pack_sidx(Sidx(index.timescale, index.earliest, sizes, durations)),
        )
    )
    return _StretchedBody(
        head=head,
        fragments=fragments,
        starts=tuple(accumulate((f.size for f in fragments), initial=0)),
        period=period,
        size=len(head) + sum(sizes),
    )
