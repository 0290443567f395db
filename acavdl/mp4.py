"""ISO base media files (ISO/IEC 14496-12), read without a library: pure functions on bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple


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
