"""Times as tables write them, and spans in pieces."""

from __future__ import annotations

import decimal
import math
from typing import Any

import numpy as np
import pytest
from clip_tables import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.spans import BEYOND_MS, MAX_MS, SpanError, check_span, milliseconds, split_span

# --- times


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (30, "s", 30_000),
        (12.5, "s", 12_500),
        ("30.000", "s", 30_000),
        (" 292.3329999997\n", "s", 292_333),
        ("1e1", "s", 10_000),
        ("+.5", "s", 500),
        ("5.", "s", 5_000),
        ("-0.001", "s", -1),
        (-0.0, "s", 0),
        (np.float32(1.25), "s", 1_250),
        (np.int64(7), "s", 7_000),
        (decimal.Decimal("1.001"), "s", 1_001),
        (1500, "ms", 1_500),
        ("1500.4", "ms", 1_500),
        (13_280_000, "us", 13_280),
        ("13280000", "us", 13_280),
        ("0:00:13.280", "s", 13_280),
        ("00:12:34.567", "s", 754_567),
        ("1:02", "s", 62_000),
        ("90:00", "s", 5_400_000),
        ("00:00:01,500", "s", 1_500),
        ("100:00:00.001", "s", 360_000_001),
        # Clocks mean what they say, whatever the numbers are.
        ("0:00:13.280", "us", 13_280),
        ("00:00:00.0005", "s", 0),
        ("00:00:00.0015", "s", 2),
    ],
)
def test_times(value: Any, unit: str, expected: int) -> None:
    assert milliseconds(value, unit) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "x", "nan", "inf", "-Infinity", "1e999", "1 2", "1,5", "0x10", "1_000", "1j"),
        *("٣", "²", ":", "1:", ":2", "1:2:3:4", "-1:00", "1:02 x", "1:1:1:", "0:00:13.", "½"),
        *("0:00:1٣", "\x00", "1\x00", None, [], {}, (1,), b"1.5", True, False, 1j),
        *(math.nan, math.inf, -math.inf, 10**400, 1e308, BEYOND_MS),
    ],
)
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(SpanError, match="not a number") as raised:
        milliseconds(value)
    assert raised.value.reason == "not_a_number"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, MAX_MS))
def test_whole_milliseconds_are_kept(time_ms: int) -> None:
    hours, rest = divmod(time_ms, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    seconds, rest = divmod(rest, 1000)
    assert milliseconds(time_ms / 1000) == time_ms
    assert milliseconds(f" {time_ms / 1000:.3f} ") == time_ms
    assert milliseconds(time_ms, "ms") == time_ms
    assert milliseconds(time_ms * 1000, "us") == time_ms
    assert milliseconds(f"{hours}:{minutes:02d}:{seconds:02d}.{rest:03d}") == time_ms
    if hours < 166:
        assert milliseconds(f"{time_ms // 60_000}:{seconds:02d}.{rest:03d}") == time_ms


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(HOSTILE, st.text(), st.floats(), st.integers(), st.none(), st.binary(max_size=8)),
    st.sampled_from(["s", "ms", "us"]),
)
def test_anything_is_a_time_or_none(value: Any, unit: str) -> None:
    try:
        found = milliseconds(value, unit)
    except SpanError:
        return
    assert type(found) is int
    assert abs(found) <= BEYOND_MS


# --- spans


def test_a_good_span_comes_back() -> None:
    assert check_span(0, 1) == (0, 1)
    assert check_span(5, MAX_MS) == (5, MAX_MS)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (-1, 1, "negative"),
        (-2, -1, "negative"),
        (2, 1, "start_after_end"),
        (1, 1, "start_after_end"),
        (0, MAX_MS + 1, "too_late"),
    ],
)
def test_spans_that_are_none(start: int, end: int, reason: str) -> None:
    with pytest.raises(SpanError) as raised:
        check_span(start, end)
    assert raised.value.reason == reason


# --- splitting


def reference(start: int, end: int, least: int, most: int) -> list[tuple[int, int]]:
    """What the reference's rule says: full pieces, and a rest that is long enough."""
    full = [(start + i * most, start + (i + 1) * most) for i in range((end - start) // most)]
    rest = (start + len(full) * most, end)
    return [*full, *([rest] if rest[1] > rest[0] and rest[1] - rest[0] >= least else [])]


@pytest.mark.parametrize(
    ("span", "least", "most", "expected"),
    [
        ((0, 25_000), 0, 10_000, [(0, 10_000), (10_000, 20_000), (20_000, 25_000)]),
        ((0, 25_000), 5_000, 10_000, [(0, 10_000), (10_000, 20_000), (20_000, 25_000)]),
        ((0, 25_000), 5_001, 10_000, [(0, 10_000), (10_000, 20_000)]),
        ((3, 10_003), 10_000, 10_000, [(3, 10_003)]),
        ((0, 4_000), 5_000, 10_000, []),
        ((0, 4_000), 4_000, None, [(0, 4_000)]),
        ((0, 4_000), 4_001, None, []),
        ((0, 10**8), 0, None, [(0, 10**8)]),
    ],
)
def test_splitting(
    span: tuple[int, int], least: int, most: int | None, expected: list[tuple[int, int]]
) -> None:
    assert list(split_span(*span, min_length_ms=least, max_length_ms=most)) == expected
    first = split_span(*span, min_length_ms=least, max_length_ms=most, strategy="first")
    assert list(first) == expected[:1]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 10_000), st.integers(0, 500), st.integers(50, 10_000))
def test_pieces_are_those_of_the_reference(start: int, length: int, least: int, most: int) -> None:
    least = min(least, most)
    end = start + length
    pieces = list(split_span(start, end, min_length_ms=least, max_length_ms=most))
    assert pieces == reference(start, end, least, most)
    assert all(least <= stop - begin <= most for begin, stop in pieces)
    # Without gaps, and without more left out than a piece that is too short.
    assert [begin for begin, _ in pieces[1:]] == [stop for _, stop in pieces[:-1]]
    assert end - (pieces[-1][1] if pieces else start) < max(least, 1)
    first = split_span(start, end, min_length_ms=least, max_length_ms=most, strategy="first")
    assert list(first) == pieces[:1]
