"""A media file of which parts are read: its head, and what the spans of clips take of the rest."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from acavdl.mp4 import (
    BrokenError,
    Fragments,
    Ints,
    Movie,
    Samples,
    Track,
    UnsupportedError,
    Want,
    fragment_samples,
    plan_head,
)

#: Ranges this close (bytes) are read as one: a request costs more than what lies between.
_GAP = 1 << 16
#: Reads until the head is there: the beginning, the rest of a table, one at the end, and some more.
_MOST_READS = 8
#: Fragments read beyond those that the index names, for one clip: groups of pictures may be longer.
_MOST_MORE = 16


class File(Protocol):
    """Where the bytes of a file come from."""

    @property
    def size(self) -> int | None:
        """Bytes of it; None as long as nobody knows."""

    def load(self, wants: Sequence[Want]) -> None:
        """Have these bytes at hand, as far as the file goes."""

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes that were loaded; fewer where the file ends."""

    def release(self) -> None:
        """Forget what was loaded."""


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size

    def load(self, wants: Sequence[Want]) -> None:
        """Do nothing: it is at hand."""

    def release(self) -> None:
        """Do nothing: nothing was loaded."""

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes between two offsets."""
        with self._path.open("rb") as file:
            return os.pread(file.fileno(), stop - start, start)


class MemoryFile:
    """A file in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def load(self, wants: Sequence[Want]) -> None:
        """Do nothing: it is at hand."""

    def release(self) -> None:
        """Do nothing: nothing was loaded."""

    def read(self, start: int, stop: int) -> memoryview:
        """Return the bytes between two offsets."""
        return self._data[start:stop]


def merged(wants: Iterable[Want], gap: int = _GAP) -> list[Want]:
    """Return ranges in order of the file; those that overlap or are close become one."""
    found: list[Want] = []
    for want in sorted(wants):
        if found and want.start <= found[-1].stop + gap:
            found[-1] = Want(found[-1].start, max(found[-1].stop, want.stop))
        else:
            found.append(want)
    return found


class Media:
    """An mp4 that is read in parts.

    Parameters
    ----------
    file
        Where its bytes come from.
    guess
        Bytes that are read first: about as long as the head may be.

    Raises
    ------
    UnsupportedError
        If it is no mp4, or one that is not read here.
    BrokenError
        If it contradicts itself.
    """

    def __init__(self, file: File, guess: int = 1 << 16) -> None:
        self._file = file
        self.movie = _read_head(file, guess)
        self._parsed: dict[tuple[int, int], Samples] = {}
        #: By tracks: see `_uncrossed`.
        self._borders: dict[int, Ints] = {}

    def duration(self, track: Track) -> Fraction:
        """Return when the last sample of a track ends, in seconds, as far as the head tells."""
        fragments = self.movie.fragments
        if fragments is not None:
            return Fraction(int(fragments.times[-1]), fragments.timescale)
        if len(track.table) == 0:
            return Fraction(0)
        return track.seconds(int((track.table.pts + track.table.duration).max()))

    def load_spans(self, track: Track, spans: Iterable[tuple[Fraction, Fraction]]) -> None:
        """Load the fragments that spans (seconds) of a track lie in, close ones in one go.

        Where the head lists all samples there is nothing to do: `load_samples` does it.
        """
        fragments = self.movie.fragments
        if fragments is None:
            return
        numbers = {
            number for start, end in spans for number in range(*_covering(fragments, start, end))
        }
        self._load(track, fragments, numbers)

    def _load(self, track: Track, fragments: Fragments, numbers: Iterable[int]) -> None:
        missing = [number for number in numbers if (track.number, number) not in self._parsed]
        self._file.load(merged(_place(fragments, number) for number in missing))

    def samples(self, track: Track, start: Fraction, end: Fraction) -> Samples:
        """Return samples that hold all that is shown in a span, in decode order.

        They begin with a keyframe at or before `start` (seconds), or with the file.
        """
        fragments = self.movie.fragments
        begin, end_at = math.floor(start * track.timescale), math.ceil(end * track.timescale)
        if fragments is None:
            if track.number not in self._borders:
                self._borders[track.number] = _uncrossed(track.table.pts)
            return _around(track.table, self._borders[track.number], begin, end_at)
        first, stop = _covering(fragments, start, end)
        for _ in range(_MOST_MORE):
            self._load(track, fragments, range(first, stop))
            parts = [self._fragment(track, fragments, number) for number in range(first, stop)]
            found = Samples.joined(parts)
            if first > 0 and not (found.pts[found.key] <= begin).any():
                first -= 1
            elif stop < len(fragments) and not (found.pts + found.duration >= end_at).any():
                stop += 1
            else:
                return found
        raise UnsupportedError("fragments that are not where the index says, or without keyframes")

    def _fragment(self, track: Track, fragments: Fragments, number: int) -> Samples:
        key = (track.number, number)
        if key not in self._parsed:
            start, stop = _place(fragments, number)
            self._parsed[key] = fragment_samples(bytes(self.read(start, stop)), start, track)
        return self._parsed[key]

    def load_samples(self, chosen: Iterable[Samples]) -> None:
        """Load the bytes of samples; those of fragments came with them."""
        if self.movie.fragments is None:
            self._file.load(merged(_places(chosen)))

    def release(self) -> None:
        """Forget all but the head: what is needed again is loaded again."""
        self._parsed.clear()
        self._file.release()

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes that were loaded.

        Raises
        ------
        BrokenError
            If the file ends before.
        """
        data = self._file.read(start, stop)
        if len(data) != stop - start:
            raise BrokenError(f"the file ends at byte {start + len(data)}, before it should")
        return data


def _read_head(file: File, guess: int) -> Movie:
    want = Want(0, guess)
    for _ in range(_MOST_READS):
        file.load([want])
        head = bytes(file.read(*want))
        found = plan_head(head, want.start, file.size)
        if isinstance(found, Movie):
            return found
        if found.start == want.start and len(head) < want.stop - want.start:
            raise BrokenError("the file ends before its head does")
        want = found
    raise UnsupportedError("its head lies in too many places")


def _covering(fragments: Fragments, start: Fraction, end: Fraction) -> tuple[int, int]:
    """Return the first fragment of a span (seconds), and the one after its last."""
    begin = math.floor(start * fragments.timescale)
    stop = math.ceil(end * fragments.timescale)
    first = max(0, int(np.searchsorted(fragments.times[:-1], begin, "right")) - 1)
    last = int(np.searchsorted(fragments.times[:-1], stop, "left"))
    return first, max(first + 1, last)


def _uncrossed(times: Ints) -> Ints:
    """Return where a table of frames in decode order can end: no later one is shown before then."""
    if len(times) == 0:
        return times
    latest = np.maximum.accumulate(times)[:-1]
    coming = np.minimum.accumulate(times[::-1])[::-1][1:]
    return np.flatnonzero(latest < coming) + 1


def _around(table: Samples, borders: Ints, begin: int, end: int) -> Samples:
    """Return what a table has of a span (ticks), and a little of what is around.

    It begins with the keyframe before the last one at or before `begin`, since sound needs the
    packet before; and goes on until something is there that is shown after the last frame.
    """
    keys = np.flatnonzero(table.key & (table.pts <= begin))
    before = np.flatnonzero(table.pts < end)
    needed = int(before[-1]) + 1 if len(before) else 1
    later = borders[np.searchsorted(borders, needed) :]
    first, stop = keys[-2] if len(keys) > 1 else 0, later[1] if len(later) > 1 else len(table)
    return table.taken(slice(int(first), int(stop)))


def _place(fragments: Fragments, number: int) -> Want:
    return Want(int(fragments.offsets[number]), int(fragments.offsets[number + 1]))


def _places(chosen: Iterable[Samples]) -> Iterable[Want]:
    """Yield where samples lie, those that follow each other as one."""
    for samples in chosen:
        ends = samples.offset + samples.size
        breaks = np.flatnonzero(samples.offset[1:] != ends[:-1])
        yield from itertools.starmap(
            Want,
            zip(
                samples.offset[[0, *(breaks + 1)]].tolist(),
                ends[[*breaks, -1]].tolist(),
                strict=True,
            ),
        )
