"""Boxes of real files, and of files that lie."""

from __future__ import annotations

import itertools
import struct
import time
import tracemalloc
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.mp4 import Box, boxes, earliest_presentation_time, has_edit_list
from acavdl.sandbox.media import DEMO_MASTERS, Timeline, make_masters

FILES = [
    pytest.param(spec.code, itag, id=f"{spec.code}-{itag}")
    for spec in DEMO_MASTERS
    for itag in spec.itags
    if itag not in (243, 251)
]


@cache
def content(code: str, itag: int) -> bytes:
    spec = next(spec for spec in DEMO_MASTERS if spec.code == code)
    return make_masters([spec])[code].rendition(itag).path.read_bytes()


def box(kind: bytes, payload: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack(">I4s", len(payload) + 8 if size is None else size, kind) + payload


def sidx(version: int, timescale: int, earliest: int) -> bytes:
    times = struct.pack(">QQ" if version else ">II", earliest, 0)
    return box(b"sidx", struct.pack(">B3xII", version, 1, timescale) + times + bytes(4))


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_boxes_of_real_files_tile_them(code: str, itag: int) -> None:
    data = content(code, itag)
    found = list(boxes(data))
    assert [b.kind for b in found[:2]] == [b"ftyp", b"moov"]
    assert found[0].start == 8
    assert found[-1].stop == len(data)
    assert all(b.start - a.stop == 8 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_timelines_of_real_files(code: str, itag: int) -> None:
    """An edit list where the master was made with one, and in progressive files; no sidx there."""
    data = content(code, itag)
    spec = next(spec for spec in DEMO_MASTERS if spec.code == code)
    progressive = itag == 18
    assert earliest_presentation_time(data) == (None if progressive else 0)
    assert has_edit_list(data) == (progressive or spec.timeline is Timeline.EDIT_LIST)


def test_a_head_is_enough() -> None:
    """Answers need the file up to the box alone, and do not change with what follows."""
    data = content("m30", 134)
    found = {b.kind: b for b in boxes(data)}
    head = data[: found[b"sidx"].stop]
    assert earliest_presentation_time(head) == earliest_presentation_time(data) == 0
    assert has_edit_list(head) == has_edit_list(data)
    cut_off = data[: found[b"sidx"].stop - 1]
    assert earliest_presentation_time(cut_off) is None
    assert has_edit_list(cut_off) == has_edit_list(data)
    assert not has_edit_list(data[: found[b"moov"].stop - 1])


@pytest.mark.parametrize(
    ("version", "timescale", "earliest", "seconds"),
    [
        (0, 1000, 2500, Fraction(5, 2)),
        (0, 30_000, 1001, Fraction(1001, 30_000)),
        (1, 1000, 2500, Fraction(5, 2)),
        (1, 90_000, 2**40, Fraction(2**40, 90_000)),
        (0, 1, 2**32 - 1, Fraction(2**32 - 1)),
        (0, 0, 1, None),
        (1, 0, 1, None),
    ],
)
def test_earliest_presentation_time(
    version: int, timescale: int, earliest: int, seconds: Fraction | None
) -> None:
    data = box(b"ftyp", b"dash") + sidx(version, timescale, earliest) + sidx(0, 1, 77)
    assert earliest_presentation_time(data) == seconds


@pytest.mark.parametrize("length", range(24))
def test_short_sidx(length: int) -> None:
    """One that is too short to say it says nothing."""
    whole = sidx(1, 1000, 5)[8:]
    assert earliest_presentation_time(box(b"sidx", whole[:length])) in (None, Fraction(5, 1000))


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x01"])
def test_sidx_that_ends_with_the_file(filling: bytes) -> None:
    for length in range(40):
        earliest_presentation_time(box(b"sidx", filling * length))


def test_sizes() -> None:
    """64-bit sizes and "to the end" are understood; what makes no sense ends the list."""
    first = box(b"free", b"abc")
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + 5) + b"12345"
    last = box(b"last", b"xy", size=0)
    assert list(boxes(first + large + last)) == [
        Box(b"free", 8, 11),
        Box(b"mdat", 27, 32),
        Box(b"last", 40, 42),
    ]
    for size in (2, 7, 12, 2**31, 2**32 - 1):
        assert [b.kind for b in boxes(first + box(b"evil", size=size))] == [b"free"]
    for size in (0, 8, 15, 2**63, 2**64 - 1):
        evil = struct.pack(">I4sQ", 1, b"evil", size)
        assert [b.kind for b in boxes(first + evil + first)] == [b"free"]
    assert list(boxes(first + b"\0\0\0\1evil")) == [Box(b"free", 8, 11)]


def test_a_child_does_not_leave_its_parent() -> None:
    inner = box(b"edts", b"", size=100)
    data = box(b"moov", box(b"trak", inner)) + bytes(200)
    assert not has_edit_list(data)
    assert has_edit_list(box(b"moov", box(b"trak", box(b"tkhd") + box(b"edts"))))
    assert not has_edit_list(box(b"moov", box(b"edts")) + box(b"trak", box(b"edts")))


def test_a_nested_bomb_costs_nothing() -> None:
    """Many boxes in many boxes, and claims of terabytes: time and memory stay small."""
    claims = struct.pack(">I4sQ", 1, b"mdat", 2**62) + bytes(64)
    many = box(b"moov", box(b"trak", box(b"free") * 20_000) * 5)
    tracemalloc.start()
    begun = time.process_time()
    for data in (
        claims,
        many,
        box(b"moov", size=0) + box(b"trak", size=0) * 50_000,
        bytes(1 << 20),
    ):
        assert not has_edit_list(data)
        assert earliest_presentation_time(data) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begun < 20
    assert peak < 20_000_000


def assert_sound(data: bytes) -> None:
    """Boxes lie in the data, in order, apart, and never more than fit."""
    found = list(boxes(data))
    assert len(found) <= len(data) // 8
    assert all(8 <= b.start <= b.stop <= len(data) for b in found)
    assert all(a.stop + 8 <= b.start for a, b in itertools.pairwise(found))
    assert has_edit_list(data) in (True, False)
    seconds = earliest_presentation_time(data)
    assert seconds is None or seconds >= 0


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes(data: bytes) -> None:
    assert_sound(data)


SIZES = st.sampled_from([0, 1, 2, 7, 8, 9, 15, 16, 20, 24, 100, 2**31, 2**32 - 1])
KINDS = st.sampled_from([b"moov", b"trak", b"edts", b"sidx", b"mdat", b"free"])
TREES = st.recursive(
    st.binary(max_size=24),
    lambda inner: st.builds(
        lambda kind, payloads, size: box(kind, b"".join(payloads), size),
        KINDS,
        st.lists(inner, max_size=4),
        st.none() | SIZES,
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(TREES)
def test_random_trees(data: bytes) -> None:
    assert_sound(data)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_mutated_heads_of_real_files(data: st.DataObject) -> None:
    code, itag = data.draw(st.sampled_from([("m30", 134), ("ntsc", 140), ("m24", 18)]))
    head = bytearray(content(code, itag)[:3000])
    changes = st.lists(
        st.tuples(st.integers(0, len(head) - 5), SIZES | st.integers(0, 2**32 - 1)), max_size=6
    )
    for place, value in data.draw(changes):
        struct.pack_into(">I", head, place, value)
    assert_sound(bytes(head[: data.draw(st.integers(0, len(head)))]))
