"""The writer of clips: samples as they are, with new tables, in an mp4 that plays everywhere.

Source: ISO/IEC 14496-12. ``moov`` comes first, data are interleaved by the second, edit lists say
what is shown. Nothing in the file but samples and tables: the same samples give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acavdl.mp4 import Ints, Samples, Track

#: Ticks a second of the movie, in which edit lists tell how long: a multiple of the usual rates.
_MOVIE_RATE = 90_000
#: "und": no language is claimed (8.4.2).
_LANGUAGE = 0x55C4
_UNITY = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
#: Bytes of a file: its offsets have 32 bits, as have times and sizes in it.
MOST_BYTES = 1 << 32

#: Returns the bytes of a file between two offsets.
Read = Callable[[int, int], bytes | memoryview]


@dataclass(frozen=True, eq=False)
class Part:
    """One track of a clip.

    Parameters
    ----------
    track
        Where it comes from.
    samples
        What is copied, in decode order: at least one.
    read
        Gives the bytes that they name.
    begin, stop
        What is shown, in ticks of the track: `begin` is the time 0 of the clip.
    """

    track: Track
    samples: Samples
    read: Read
    begin: int
    stop: int


def write_mp4(parts: Sequence[Part]) -> bytes:
    """Return an mp4 of pictures and sound, or an m4a of sound alone.

    Raises
    ------
    OverflowError
        If it would be larger than its offsets can tell, or longer than its times; or if samples are
        not decoded in their order.
    """
    chunks = [_chunks(part.samples, part.track.timescale) for part in parts]
    order = sorted(
        (chunk.second, n, i) for n, of in enumerate(chunks) for i, chunk in enumerate(of)
    )
    data = [piece for _, n, i in order for piece in _pieces(parts[n], chunks[n][i])]
    sizes = [
        [int(part.samples.size[chunk.first : chunk.stop].sum()) for chunk in of]
        for part, of in zip(parts, chunks, strict=True)
    ]
    total = sum(map(sum, sizes))
    if total >= MOST_BYTES - (1 << 26):
        raise OverflowError(f"a clip of {total} bytes")
    places = [[0] * len(of) for of in chunks]
    kind = _ftyp(parts)
    at = len(kind) + len(_moov(parts, chunks, places)) + 8
    for _, n, i in order:
        places[n][i] = at
        at += sizes[n][i]
    head = struct.pack(">I4s", total + 8, b"mdat")
    return b"".join([kind, _moov(parts, chunks, places), head, *data])


@dataclass(frozen=True)
class _Chunk:
    """Samples that lie together: those decoded within one second."""

    second: int
    first: int
    stop: int


def _chunks(samples: Samples, timescale: int) -> list[_Chunk]:
    seconds = (samples.dts - samples.dts[0]) // timescale
    firsts = np.flatnonzero(np.diff(seconds, prepend=-1))
    stops = np.append(firsts[1:], len(samples))
    return [
        _Chunk(second, first, stop)
        for second, first, stop in zip(
            seconds[firsts].tolist(), firsts.tolist(), stops.tolist(), strict=True
        )
    ]


def _pieces(part: Part, chunk: _Chunk) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a chunk: as few pieces as they lie in."""
    offset = part.samples.offset[chunk.first : chunk.stop]
    ends = offset + part.samples.size[chunk.first : chunk.stop]
    breaks = np.flatnonzero(offset[1:] != ends[:-1])
    for start, stop in zip(
        offset[[0, *(breaks + 1)]].tolist(), ends[[*breaks, -1]].tolist(), strict=True
    ):
        yield part.read(start, stop)


# --- boxes ---------------------------------------------------------------------------------------


def _box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _full(kind: bytes, version: int, flags: int, *content: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *content)


def _counted(kind: bytes, rows: NDArray[np.integer]) -> bytes:
    """Return a full box of a table: its count, and 32 bits for each value."""
    _check_values(rows.min(initial=0), rows.max(initial=0))
    return _full(kind, 0, 0, struct.pack(">I", len(rows)), rows.astype(">u4").tobytes())


def _check_values(least: int, most: int) -> None:
    if least < 0 or most >= MOST_BYTES:
        raise OverflowError(f"a clip with values from {least} to {most}")


def _ftyp(parts: Sequence[Part]) -> bytes:
    pictures = [part.track for part in parts if part.track.is_video]
    if not pictures:
        return _box(b"ftyp", b"M4A ", struct.pack(">I", 0x200), b"M4A isomiso2")
    codec = b"av01" if pictures[0].codec == "av1" else b"avc1"
    return _box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2", codec, b"mp41")


def _moov(parts: Sequence[Part], chunks: list[list[_Chunk]], places: list[list[int]]) -> bytes:
    tracks = [
        _trak(number, part, chunks[number], places[number]) for number, part in enumerate(parts)
    ]
    longest = max(_movie_ticks(part.stop - part.begin, part.track.timescale) for part in parts)
    _check_values(0, longest)
    times = struct.pack(">4I", 0, 0, _MOVIE_RATE, longest)
    rest = struct.pack(">IHxx8x", 0x10000, 0x100) + _UNITY + bytes(24)
    header = _full(b"mvhd", 0, 0, times, rest, struct.pack(">I", len(parts) + 1))
    return _box(b"moov", header, *tracks)


def _movie_ticks(ticks: int, timescale: int) -> int:
    # Rounded down: what comes after must not be shown for the rest of a tick.
    return ticks * _MOVIE_RATE // timescale


def _trak(number: int, part: Part, chunks: list[_Chunk], places: list[int]) -> bytes:
    track, samples = part.track, part.samples
    scale = track.timescale
    # Media begin with the decoding of the first sample, at 0; no sample is shown before it is
    # decoded.
    early = int(samples.dts[0]) - _shortfall(samples)
    first = max(part.begin, int(samples.pts.min()))
    delay = _movie_ticks(first - part.begin, scale)
    edits = [(delay, -1)] if delay else []
    edits.append((_movie_ticks(part.stop - first, scale), first - early))
    durations = np.append(np.diff(samples.dts), samples.duration[-1:])
    shown = delay + edits[-1][0]
    # Times of edits are signed.
    _check_values(
        min(*edits[-1], int(durations.min())), max(shown, int(durations.sum()), 2 * edits[-1][1])
    )
    # Enabled, in the movie, in its preview.
    header = _full(
        b"tkhd",
        0,
        7,
        struct.pack(">5I8x", 0, 0, number + 1, 0, shown),
        struct.pack(">HHHxx", 0, 0 if track.is_video else 1, 0 if track.is_video else 0x100),
        track.header,
    )
    listed = b"".join(struct.pack(">IiI", length, time, 0x10000) for length, time in edits)
    elst = _full(b"elst", 0, 0, struct.pack(">I", len(edits)), listed)
    times = struct.pack(">4IHxx", 0, 0, scale, int(durations.sum()), _LANGUAGE)
    kind, name = (b"vide", b"VideoHandler") if track.is_video else (b"soun", b"SoundHandler")
    media = (
        _full(b"vmhd", 0, 1, bytes(8)) if track.is_video else _full(b"smhd", 0, 0, bytes(4)),
        _box(b"dinf", _full(b"dref", 0, 0, struct.pack(">I", 1), _full(b"url ", 0, 1))),
        _box(b"stbl", *_tables(part, chunks, places, durations)),
    )
    mdia = (
        _full(b"mdhd", 0, 0, times),
        _full(b"hdlr", 0, 0, bytes(4), kind, bytes(12), name, b"\0"),
        _box(b"minf", *media),
    )
    return _box(b"trak", header, _box(b"edts", elst), _box(b"mdia", *mdia))


def _tables(part: Part, chunks: list[_Chunk], places: list[int], durations: Ints) -> list[bytes]:
    samples = part.samples
    found = [
        _full(b"stsd", 0, 0, struct.pack(">I", 1), part.track.entry),
        _counted(b"stts", _runs(durations)),
    ]
    ahead = samples.pts - samples.dts + _shortfall(samples)
    if ahead.any():
        found.append(_counted(b"ctts", _runs(ahead)))
    if not samples.key.all():
        found.append(_counted(b"stss", np.flatnonzero(samples.key) + 1))
    held = np.array([chunk.stop - chunk.first for chunk in chunks])
    starts = np.flatnonzero(np.diff(held, prepend=-1))
    runs = np.stack([starts + 1, held[starts], np.ones_like(starts)], axis=1)
    sizes = struct.pack(">II", 0, len(samples)) + samples.size.astype(">u4").tobytes()
    return [
        *found,
        _counted(b"stsc", runs),
        _full(b"stsz", 0, 0, sizes),
        _counted(b"stco", np.array(places)),
    ]


def _shortfall(samples: Samples) -> int:
    """Return by how many ticks a sample is shown before it is decoded, at most; 0 if none is.

    Offsets that need not be moved stay as they are: they tell how long the decoder holds frames
    back, and readers (OpenCV 4) find frames by the time at which they come out of it.
    """
    return max(0, int((samples.dts - samples.pts).max()))


def _runs(values: Ints) -> NDArray[np.integer]:
    """Return (how many, value) of each run of equal values."""
    firsts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    counts = np.diff(np.append(firsts, len(values)))
    return np.stack([counts, values[firsts]], axis=1)
