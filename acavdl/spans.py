"""Spans of time: how tables write them, and how long ones are split. Pure; milliseconds inside."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal

#: What one unit of a table's numbers is, in milliseconds.
UNITS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
#: 9 digits of milliseconds: what a key has room for (11.5 days).
MAX_MS = 999_999_999
#: A time beyond it, in milliseconds, is as good as no number: columns of them are 64-bit.
BEYOND_MS = 2**62
#: Not all that Python takes for a number: ``1_000`` and digits of other scripts are none here.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
#: ``H:MM:SS.mmm`` or ``MM:SS``, also with a comma, as subtitles have it.
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,4}):(\d{1,2}(?:[.,]\d{1,12})?)", re.ASCII)

Strategy = Literal["all", "first"]


class SpanError(ValueError):
    """Why a span cannot be used: `reason` is one of a few words, the message tells the rest."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def milliseconds(value: Any, unit: str = "s") -> int:
    """Return a time of a table as whole milliseconds.

    Parameters
    ----------
    value
        A number (or its text) of `unit`, or the text of a clock: ``H:MM:SS.mmm``, ``MM:SS``.
    unit
        ``s``, ``ms`` or ``us``.

    Raises
    ------
    SpanError
        If it is neither.
    """
    if isinstance(value, str):
        text = value.strip()
        if found := _CLOCK.fullmatch(text):
            hours, minutes, seconds = found.groups()
            whole = int(hours or 0) * 3600 + int(minutes) * 60
            return round((whole + float(seconds.replace(",", "."))) * 1000)
        value = float(text) if _NUMBER.fullmatch(text) else math.nan
    try:
        number = math.nan if isinstance(value, bool | bytes) else float(value) * UNITS[unit]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < BEYOND_MS:
        raise SpanError("not_a_number", "a time is not a number of seconds or H:MM:SS")
    return round(number)


def check_span(start_ms: int, end_ms: int) -> tuple[int, int]:
    """Return the span if it can be planned: ``0 <= start < end``, and no longer than a key can say.

    Raises
    ------
    SpanError
        If it can't.
    """
    if start_ms < 0:
        raise SpanError("negative", "the start is negative")
    if start_ms >= end_ms:
        raise SpanError("start_after_end", "the start is not before the end")
    if end_ms > MAX_MS:
        raise SpanError("too_late", "the end is beyond 11 days")
    return start_ms, end_ms


def split_span(
    start_ms: int,
    end_ms: int,
    *,
    min_length_ms: int = 0,
    max_length_ms: int | None = None,
    strategy: Strategy = "all",
) -> Iterator[tuple[int, int]]:
    """Yield a span in pieces of at most `max_length_ms`, without a last one below `min_length_ms`.

    What the reference's ``ClippingSubsampler`` does: ``all`` pieces, or the ``first`` alone.
    """
    step = end_ms - start_ms if max_length_ms is None else max_length_ms
    for begin in range(start_ms, end_ms, step):
        stop = min(begin + step, end_ms)
        if stop - begin >= min_length_ms:
            yield begin, stop
        if strategy == "first":
            return
