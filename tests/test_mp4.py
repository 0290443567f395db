"""Boxes of real files, and of files that lie."""

from __future__ import annotations

import io
import itertools
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.mp4 import (
    MOST_ALIKE,
    MOST_IN_FRAGMENT,
    Box,
    BrokenError,
    Movie,
    Samples,
    Track,
    UnsupportedError,
    Want,
    boxes,
    earliest_presentation_time,
    fragment_samples,
    has_edit_list,
    plan_head,
)
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


# --- what real files hold ----------------------------------------------------------------------


def movie_of(data: bytes) -> Movie:
    """Read the head of a file, which is there as a whole."""
    movie = plan_head(data, 0, len(data))
    assert isinstance(movie, Movie)
    return movie


def fragment_of(data: bytes, number: int) -> tuple[bytes, int]:
    """Return the bytes of a fragment, and where they begin."""
    fragments = movie_of(data).fragments
    assert fragments is not None
    start, stop = fragments.offsets[number : number + 2].tolist()
    return data[start:stop], start


def samples_of(data: bytes, track: Track) -> Samples:
    """Return all samples of a track, in decode order."""
    fragments = movie_of(data).fragments
    if fragments is None:
        return track.table
    parts = [fragment_of(data, number) for number in range(len(fragments))]
    return Samples.joined([fragment_samples(*part, track) for part in parts])


def rows(samples: Samples) -> list[tuple[int, int, int, int, int, bool]]:
    """Return (offset, size, dts, pts, duration, keyframe) of each."""
    columns = (samples.offset, samples.size, samples.dts, samples.pts, samples.duration)
    return list(zip(*(column.tolist() for column in columns), samples.key.tolist(), strict=True))


def demuxed(data: bytes, *, video: bool, late: int) -> list[tuple[int, int, int, int, int, bool]]:
    """Return the same as ffmpeg tells it; it shows frames `late` ticks late."""
    with av.open(io.BytesIO(data)) as container:
        (stream,) = container.streams.video if video else container.streams.audio
        return [
            (p.pos, p.size, p.dts, p.pts - late, p.duration, p.is_keyframe)
            for p in container.demux(stream)
            if p.pts is not None and p.dts is not None and p.pos is not None
        ]


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_samples_are_those_that_ffmpeg_finds(code: str, itag: int) -> None:
    data = content(code, itag)
    for track in movie_of(data).tracks:
        found = rows(samples_of(data, track))
        # With negative composition offsets it shows the first frame when it decodes the second.
        late = found[1][2] if (code, itag) == ("ntsc", 134) else 0
        assert found == demuxed(data, video=track.is_video, late=late)


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_tracks_are_those_that_ffmpeg_finds(code: str, itag: int) -> None:
    data = content(code, itag)
    with av.open(io.BytesIO(data)) as container:
        for track, stream in zip(movie_of(data).tracks, container.streams, strict=True):
            assert stream.time_base == Fraction(1, track.timescale)
            context = stream.codec_context
            assert (track.number, track.is_video) == (stream.id, stream.type == "video")
            assert track.codec == context.name
            if track.is_video:
                assert (track.width, track.height) == (context.width, context.height)
                assert (track.sample_rate, track.channels) == (0, 0)
            else:
                assert (track.sample_rate, track.channels) == (context.rate, context.channels)
                assert (track.width, track.height) == (0, 0)


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_index_names_fragments(code: str, itag: int) -> None:
    """They tile the rest of the file, and begin when the index says."""
    data = content(code, itag)
    movie = movie_of(data)
    if movie.fragments is None:
        assert itag == 18
        return
    (track,) = movie.tracks
    fragments = movie.fragments
    assert fragments.offsets[-1] == len(data)
    assert len(fragments.offsets) == len(fragments.times) == len(fragments) + 1
    for number in range(len(fragments)):
        found = fragment_samples(*fragment_of(data, number), track)
        shown = found.pts[found.pts >= 0]
        assert Fraction(int(shown.min()), track.timescale) == Fraction(
            int(fragments.times[number]), fragments.timescale
        )


def reads(data: bytes, guess: int) -> Iterator[Want]:
    """Read a head bit by bit, as little as was asked for each time."""
    want: Want | Movie = Want(0, guess)
    while isinstance(want, Want):
        yield want
        want = plan_head(data[want.start : want.stop], want.start, len(data))
    assert_same_movie(want, movie_of(data))


def assert_same_movie(one: Movie, other: Movie) -> None:
    assert len(one.tracks) == len(other.tracks)
    for a, b in zip(one.tracks, other.tracks, strict=True):
        assert rows(a.table) == rows(b.table)
        assert replace(a, table=b.table).__dict__ == b.__dict__
    assert (one.fragments is None) == (other.fragments is None)
    if one.fragments is not None and other.fragments is not None:
        assert one.fragments.times.tolist() == other.fragments.times.tolist()
        assert one.fragments.offsets.tolist() == other.fragments.offsets.tolist()


@pytest.mark.parametrize(("code", "itag"), [("m30", 134), ("ntsc", 140), ("m24", 18)])
@pytest.mark.parametrize("guess", [1, 7, 16, 40, 1000, 1 << 20])
def test_a_head_is_read_bit_by_bit(code: str, itag: int, guess: int) -> None:
    """Each want begins where the head does, and asks for more than there is."""
    found = list(reads(content(code, itag), guess))
    assert all(want.start == 0 for want in found)
    assert all(a.stop < b.stop for a, b in itertools.pairwise(found))
    assert len(found) <= 6


@pytest.mark.parametrize(("code", "itag"), [("m30", 134), ("ntsc", 140), ("m24", 18)])
def test_a_head_that_ends_too_early(code: str, itag: int) -> None:
    """Where the size is known; where it isn't, more is asked for."""
    data = content(code, itag)
    stop = boxes(data)
    end = next(box.stop for box in stop if box.kind == (b"moov" if itag == 18 else b"sidx"))
    for length in range(0, end, 13):
        with pytest.raises(BrokenError):
            list(reads(data[:length], length + 1))
        want = plan_head(data[:length], 0, None)
        assert isinstance(want, Want)
        assert want.stop > length


# --- other ways to make a file -----------------------------------------------------------------

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf")

#: Takes a kind and the content of a box; returns what stands in its place, None = as it is.
Change = Callable[[bytes, bytes], bytes | None]


def changed(data: bytes, change: Change) -> bytes:
    """Return boxes with some of them, at any depth, replaced."""
    made = []
    for found in boxes(data):
        inside = data[found.start : found.stop]
        new = change(found.kind, inside)
        if new is None:
            inside = changed(inside, change) if found.kind in CONTAINERS else inside
            new = box(found.kind, inside)
        made.append(new)
    return b"".join(made)


def swapped(wanted: bytes, new: bytes) -> Change:
    """Replace all boxes of a kind."""
    return lambda kind, _: new if kind == wanted else None


def progressive(code: str = "m24") -> bytes:
    return content(code, 18)


def head_of(data: bytes) -> bytes:
    """Return a file up to its fragments, or its media."""
    return data[: next(box.start - 8 for box in boxes(data) if box.kind in (b"moof", b"mdat"))]


def moved(by: int, *, wide: bool = False) -> Change:
    """Move all chunks by some bytes; `wide`: tell their places in 64 bits."""

    def change(kind: bytes, inside: bytes) -> bytes | None:
        if kind != b"stco":
            return None
        places = np.frombuffer(inside, ">u4", offset=8).astype(np.int64) + by
        head = inside[:8]
        return (
            box(b"co64", head + places.astype(">i8").tobytes())
            if wide
            else box(b"stco", head + places.astype(">u4").tobytes())
        )

    return change


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_table_at_the_end(*, large: bool, wide: bool) -> None:
    """Two reads: the beginning, and what comes behind the media; their sizes may have 64 bits."""
    data = progressive()
    found = {each.kind: each for each in boxes(data)}
    begin = data[: found[b"ftyp"].stop]
    media = data[found[b"mdat"].start : found[b"mdat"].stop]
    moov = data[found[b"moov"].start - 8 : found[b"moov"].stop]
    if large:
        mdat = struct.pack(">I4sQ", 1, b"mdat", len(media) + 16) + media
    else:
        mdat = box(b"mdat", media)
    by = len(begin) + len(mdat) - len(media) - found[b"mdat"].start
    made = begin + mdat + changed(moov, moved(by, wide=wide))
    wants = list(reads_to_end(made, 1 << 12))
    assert wants[0] == Want(0, 1 << 12)
    assert {want.start for want in wants[1:]} == {len(begin) + len(mdat)}
    last = wants[-1]
    movie = plan_head(made[last.start : last.stop], last.start, len(made))
    assert isinstance(movie, Movie)
    for one, other in zip(movie.tracks, movie_of(data).tracks, strict=True):
        assert (one.table.offset - by).tolist() == other.table.offset.tolist()
        assert rows(replace(one.table, offset=other.table.offset)) == rows(other.table)


def reads_to_end(data: bytes, guess: int) -> Iterator[Want]:
    want: Want | Movie = Want(0, guess)
    while isinstance(want, Want):
        yield want
        want = plan_head(data[want.start : want.stop], want.start, len(data))


def test_places_of_64_bits() -> None:
    """Of ``co64``, which is larger than ``stco``; nothing else changes."""
    data = progressive()
    wide = len(changed(data, moved(0, wide=True))) - len(data)
    made = changed(data, moved(wide, wide=True))
    for one, other in zip(movie_of(made).tracks, movie_of(data).tracks, strict=True):
        assert (one.table.offset - wide).tolist() == other.table.offset.tolist()


def elst(*edits: tuple[int, int, int], version: int = 0) -> bytes:
    """Return an ``edts`` of (length, time, rate)."""
    rows = b"".join(struct.pack(">QqI" if version else ">IiI", *edit) for edit in edits)
    return box(b"edts", box(b"elst", struct.pack(">B3xI", version, len(edits)) + rows))


ONCE = 1 << 16


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("edits", "shift", "limit"),
    [
        ([(0, 1024, ONCE)], 1024, None),
        ([(1000, 0, ONCE)], 0, 12_288),
        ([(1001, 24, ONCE)], 24, 12_301),
        ([(500, -1, ONCE), (1000, 100, ONCE)], 100 - 6144, 6144 + 12_288),
        ([(250, -1, ONCE), (250, -1, 0), (0, 0, ONCE)], -6144, None),
        ([], 0, None),
    ],
)
def test_edit_lists(
    version: int, edits: list[tuple[int, int, int]], shift: int, limit: int | None
) -> None:
    """Lengths are of the movie (1,000 ticks a second), times of the track (12,288)."""
    data = changed(content("m24", 134), swapped(b"edts", elst(*edits, version=version)))
    (track,) = movie_of_any_size(data).tracks
    assert track.timescale == 12_288
    assert (track.shift, track.limit) == (shift, limit)


def movie_of_any_size(data: bytes) -> Movie:
    """Read a head whose index is that of a file of another size."""
    movie = plan_head(data, 0, None)
    assert isinstance(movie, Movie)
    return movie


@pytest.mark.parametrize(
    ("edits", "error"),
    [
        ([(10, 0, ONCE), (10, 20, ONCE)], UnsupportedError),
        ([(10, 0, 1 << 15)], UnsupportedError),
        ([(10, 0, 0)], UnsupportedError),
        ([(10, -1, ONCE)], UnsupportedError),
        ([(10, -2, ONCE)], UnsupportedError),
        ([(10, 0, ONCE), (10, -1, ONCE)], UnsupportedError),
        ([(1, -1, ONCE)] * 8 + [(10, 0, ONCE)], UnsupportedError),
        ([(2**63, 0, ONCE)], BrokenError),
        ([(2**62, -1, ONCE), (10, 0, ONCE)], BrokenError),
        ([(10, 2**62, ONCE)], BrokenError),
    ],
)
def test_edit_lists_that_are_refused(
    edits: list[tuple[int, int, int]], error: type[Exception]
) -> None:
    data = changed(content("m24", 134), swapped(b"edts", elst(*edits, version=1)))
    with pytest.raises(error):
        plan_head(data, 0, None)


def test_an_edit_list_hides_the_end() -> None:
    """What the last frames shown were coded after is kept, though it is shown later."""
    data = progressive()
    track = movie_of(data).tracks[0]
    full = track.table
    moov = next(found for found in boxes(data) if found.kind == b"moov")
    mvhd = next(found for found in boxes(data, moov.start, moov.stop) if found.kind == b"mvhd")
    (second,) = struct.unpack_from(">I", data, mvhd.start + 12)
    made = changed(
        data, lambda kind, _: elst((second, track.shift, ONCE)) if kind == b"edts" else None
    )
    cut = movie_of(made).tracks[0].table
    assert 20 < len(cut) < len(full)
    assert rows(cut) == rows(full)[: len(cut)]
    assert (full.pts[len(cut) :] >= track.timescale).all()
    assert cut.pts[-1] < track.timescale


ENTRY_TESTS = [
    pytest.param(lambda e: box(b"encv", e[8:]), id="encrypted"),
    pytest.param(lambda e: box(b"enca", e[8:]), id="encrypted sound"),
    pytest.param(lambda e: e + e, id="several"),
    pytest.param(lambda _: b"", id="none"),
    pytest.param(lambda e: e[:-1], id="cut off"),
]


@pytest.mark.parametrize("make", ENTRY_TESTS)
@pytest.mark.parametrize(("code", "itag"), [("m24", 134), ("m24", 140)])
def test_entries_that_are_refused(code: str, itag: int, make: Callable[[bytes], bytes]) -> None:
    data = content(code, itag)
    entry = movie_of(data).tracks[0].entry
    made = changed(data, swapped(b"stsd", box(b"stsd", struct.pack(">II", 0, 1) + make(entry))))
    with pytest.raises((UnsupportedError, BrokenError)):
        plan_head(made, 0, None)


@pytest.mark.parametrize(
    "make",
    [
        lambda e: struct.pack(">I", 0) + e[4:],
        lambda e: struct.pack(">I4sQ", 1, e[4:8], len(e) + 8) + e[8:],
        lambda e: e + bytes(4),
    ],
)
def test_an_entry_is_whole(make: Callable[[bytes], bytes]) -> None:
    """However its header tells the size, and with QuickTime's end mark: it stands for itself."""
    data = content("m24", 140)
    (track,) = movie_of(data).tracks
    stsd = box(b"stsd", struct.pack(">II", 0, 1) + make(track.entry))
    (made,) = movie_of_any_size(changed(data, swapped(b"stsd", stsd))).tracks
    assert (made.entry, made.codec, made.sample_rate) == (track.entry, "aac", 44_100)


def test_heads_that_are_refused() -> None:
    fragmented, listed = content("m24", 134), progressive()
    references = struct.pack(">IIIIIHH", 0, 1, 12_288, 0, 0, 0, 1)

    def index(reference: bytes, head: bytes = references) -> Change:
        return swapped(b"sidx", box(b"sidx", head + reference))

    of_indexes = index(struct.pack(">III", 1 << 31 | 100, 5, 0))
    of_nothing = index(b"", references[:-2] + bytes(2))
    of_another = index(bytes(12), references[:4] + struct.pack(">I", 7) + references[8:])
    without_scale = index(bytes(12), references[:8] + bytes(4) + references[12:])
    for change in (of_indexes, of_nothing, of_another, without_scale, swapped(b"sidx", b"")):
        with pytest.raises(UnsupportedError):
            plan_head(changed(fragmented, change), 0, None)
    for kind in (b"stsz", b"stco", b"stsc", b"stts", b"stsd", b"stbl", b"mdhd", b"hdlr", b"tkhd"):
        with pytest.raises(BrokenError):
            plan_head(changed(listed, swapped(kind, b"")), 0, None)
    table = movie_of(listed).tracks[0].table.size
    packed = box(b"stz2", struct.pack(">III", 0, 16, len(table)) + table.astype(">u2").tobytes())
    with pytest.raises(BrokenError):
        plan_head(changed(listed, swapped(b"stsz", packed)), 0, None)
    for data in (b"<!DOCTYPE html><html>", b"\x1aE\xdf\xa3" + bytes(100), bytes(100)):
        with pytest.raises((UnsupportedError, BrokenError)):
            plan_head(data, 0, len(data))
    for data in (box(b"ftyp", b"isom", size=0), box(b"ftyp", b"isom") + box(b"mdat", size=0)):
        with pytest.raises(UnsupportedError):
            plan_head(data + bytes(16), 0, None)


def test_samples_of_a_table_lie_in_the_file() -> None:
    """One that is cut off is not taken for whole."""
    data = progressive()
    head = head_of(data)
    end = max(int((t.table.offset + t.table.size).max()) for t in movie_of(data).tracks)
    assert isinstance(plan_head(head, 0, end), Movie)
    with pytest.raises(BrokenError):
        plan_head(head, 0, end - 1)


def test_an_index_of_another_size_is_refused() -> None:
    data = content("m24", 134)
    for size in (len(data) - 1, len(data) * 2):
        with pytest.raises(BrokenError):
            plan_head(head_of(data), 0, size)
    assert isinstance(plan_head(head_of(data), 0, len(data) + 1000), Movie)


def test_an_index_may_count_in_other_ticks() -> None:
    """Of the media, too, where an edit list hides the beginning: the first thing is shown at 0."""
    data = content("m24", 134)
    (track,) = movie_of(data).tracks
    assert track.shift > 0
    for scale in (1000, track.timescale, 48_000):
        earliest = track.shift * scale // track.timescale
        head = struct.pack(">IIIIIHH", 0, 1, scale, earliest, 0, 0, 1)
        made = changed(
            data, swapped(b"sidx", box(b"sidx", head + struct.pack(">III", 9, scale, 0)))
        )
        fragments = movie_of_any_size(made).fragments
        assert fragments is not None
        assert fragments.times.tolist() == [0, scale]


# --- fragments ---------------------------------------------------------------------------------


def full(kind: bytes, flags: int, content: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags) + content)


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *(value % 2**32 for value in values))


def traf(*truns: bytes, number: int = 1, flags: int = 0x20000, values: bytes = b"") -> bytes:
    tfdt = full(b"tfdt", 0, struct.pack(">Q", 1000), version=1)
    return box(b"traf", full(b"tfhd", flags, u32(number) + values) + tfdt + b"".join(truns))


def moof(*trafs: bytes, media: int = 40) -> bytes:
    return box(b"moof", b"".join(trafs)) + box(b"mdat", bytes(media))


def track(**changes: object) -> Track:
    """Return a track whose samples last 10 ticks and have 4 bytes, unless told otherwise."""
    (found,) = movie_of(content("m24", 134)).tracks
    usual = {"shift": 0, "limit": None, "defaults": (10, 4, 0), **changes}
    return replace(found, **usual)  # type: ignore[arg-type]


def short(samples: Samples) -> list[tuple[int, ...]]:
    """Return (offset, size, dts, pts, duration) of each."""
    return [row[:5] for row in rows(samples)]


def test_defaults_of_a_fragment() -> None:
    """A trun's own, else those of its tfhd, else those of the movie."""
    at = len(moof(traf(full(b"trun", 1, u32(2, 0))), media=0))
    plain = moof(traf(full(b"trun", 1, u32(2, at))))
    assert rows(fragment_samples(plain, 500, track())) == [
        (500 + at, 4, 1000, 1000, 10, True),
        (504 + at, 4, 1010, 1010, 10, True),
    ]
    values = u32(7, 3, 0x10000)
    told = moof(traf(full(b"trun", 1, u32(2, 0)), flags=0x20038, values=values))
    assert rows(fragment_samples(told, 0, track())) == [
        (0, 3, 1000, 1000, 7, False),
        (3, 3, 1007, 1007, 7, False),
    ]
    own = u32(2, 0, 20, 5, 0x10000, -10, 30, 6, 0, 20)
    listed = moof(traf(full(b"trun", 0xF01, own, version=1), flags=0x20038, values=values))
    assert rows(fragment_samples(listed, 0, track(shift=100))) == [
        (0, 5, 900, 890, 20, False),
        (5, 6, 920, 940, 30, True),
    ]


def test_flags_of_the_first_sample() -> None:
    """A fragment whose first frame is its keyframe."""
    made = moof(traf(full(b"trun", 0x5, u32(3, 0, 0)), flags=0x20020, values=u32(0x10000)))
    found = fragment_samples(made, 0, track())
    assert found.key.tolist() == [True, False, False]


def test_several_runs_follow_each_other() -> None:
    """Without a place of its own a run begins where the one before ends."""
    runs = [full(b"trun", 1, u32(2, 50)), full(b"trun", 0, u32(1)), full(b"trun", 1, u32(1, 30))]
    found = fragment_samples(moof(traf(*runs), media=90), 0, track())
    expected = [(50, 1000), (54, 1010), (58, 1020), (30, 1030)]
    assert [row[:3:2] for row in short(found)] == expected
    empty = full(b"trun", 1, u32(0, 99))
    again = fragment_samples(moof(traf(empty, *runs), media=90), 0, track())
    assert short(again) == short(found)


def test_several_fragments_in_one_piece() -> None:
    """Each counts from its own beginning, also where that has a header of 16 bytes."""
    first = moof(traf(full(b"trun", 1, u32(1, 100))), media=60)
    inside = traf(full(b"trun", 1, u32(1, 100)))
    second = struct.pack(">I4sQ", 1, b"moof", len(inside) + 16) + inside + box(b"mdat", bytes(60))
    found = fragment_samples(first + second, 1000, track())
    assert found.offset.tolist() == [1100, 1100 + len(first)]


def test_base_data_offset() -> None:
    """Places may count from anywhere in the file."""
    values = struct.pack(">Q", 5040)
    made = moof(traf(full(b"trun", 1, u32(1, 8)), flags=0x1, values=values))
    assert fragment_samples(made, 5000, track()).offset.tolist() == [5048]
    # With the number of a sample description in between.
    made = moof(traf(full(b"trun", 1, u32(1, 8)), flags=0xB, values=values + u32(1, 77)))
    assert fragment_samples(made, 5000, track()).duration.tolist() == [77]
    for place in (0, 2**59, 2**62, 2**64 - 1):
        far = moof(traf(full(b"trun", 0, u32(1)), flags=0x1, values=struct.pack(">Q", place)))
        with pytest.raises(BrokenError):
            fragment_samples(far, 5000, track())


def test_several_tracks_in_a_fragment() -> None:
    """Where all count from the fragment; if not, the second one can't be told from here."""
    run = full(b"trun", 1, u32(1, 8))
    both = moof(traf(full(b"trun", 1, u32(1, 16)), number=2), traf(run), media=60)
    assert fragment_samples(both, 0, track()).offset.tolist() == [8]
    assert fragment_samples(both, 0, track(number=2)).offset.tolist() == [16]
    chained = moof(traf(run, number=2, flags=0), traf(run, flags=0), media=60)
    assert fragment_samples(chained, 0, track(number=2)).offset.tolist() == [8]
    with pytest.raises(UnsupportedError):
        fragment_samples(chained, 0, track())
    with pytest.raises(BrokenError):
        fragment_samples(both, 0, track(number=3))


def test_an_edit_list_hides_the_end_of_a_fragment() -> None:
    run = full(b"trun", 0x801, u32(4, 8, 0, 20, 0, 0), version=1)
    found = fragment_samples(moof(traf(run)), 0, track(limit=1021))
    # Shown at 1000, 1030, 1020 and 1030: the second one is needed for the third.
    assert found.pts.tolist() == [1000, 1030, 1020]


def test_fragments_that_are_refused() -> None:
    run = full(b"trun", 1, u32(1, 0))
    late = box(b"traf", full(b"tfhd", 0x20000, u32(1)) + full(b"tfdt", 0, b"\x7f" * 8, 1) + run)
    timeless = box(b"traf", full(b"tfhd", 0x20000, u32(1)) + run)
    for data in (
        b"",
        box(b"mdat", bytes(20)),
        moof(),
        moof(traf(run))[:-1],
        moof(traf(run)) + b"\0",
        moof(traf(full(b"trun", 1, u32(1, 2**31)))),
        moof(traf(full(b"trun", 1, u32(1, -1)))),
        moof(traf(full(b"trun", 1, u32(1)))),
        moof(traf(full(b"trun", 0x201, u32(3, 0, 4, 4)))),
        moof(traf(full(b"trun", 0, b""))),
        moof(late),
        moof(timeless),
    ):
        with pytest.raises(BrokenError):
            fragment_samples(data, 0, track())


# --- lies --------------------------------------------------------------------------------------


def peak_of(make: Callable[[], object]) -> int:
    """Return how many bytes a call allocates at the most."""
    tracemalloc.start()
    try:
        make()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(make: Callable[[], object]) -> None:
    with pytest.raises((UnsupportedError, BrokenError)):
        make()


def test_claims_of_billions_cost_nothing() -> None:
    """Of samples that need no bytes in the tables, in a table or in one or many runs."""
    table = progressive()
    for size, count in ((1, 2**32 - 1), (4, 10_000_000), (0, 2**32 - 1), (1, MOST_ALIKE + 1)):
        stsz = box(b"stsz", u32(0, size, count))
        stts = box(b"stts", u32(0, 1, 2**32 - 1, 1))
        made = changed(
            changed(changed(table, swapped(b"stsz", stsz)), swapped(b"stts", stts)),
            swapped(b"ctts", b""),
        )
        assert peak_of(lambda made=made: refused(lambda: plan_head(made, 0, None))) < 8 << 20
    billions = full(b"trun", 0, u32(2**32 - 1))
    many = [full(b"trun", 1, u32(MOST_IN_FRAGMENT // 2, 0))] * 3
    none = replace(track(), defaults=(1, 0, 0))
    for truns in ([billions], many):
        for made in (moof(traf(*truns)), moof(*(traf(run) for run in truns))):
            fragment = moof(traf(*truns)) if made is None else made
            assert (
                peak_of(lambda f=fragment: refused(lambda: fragment_samples(f, 0, none))) < 32 << 20
            )


def test_as_many_samples_of_one_size_as_there_may_be() -> None:
    """Three hours of silence are no lie, and cost what their arrays do."""
    data = content("m24", 140)
    stbl = {
        b"stsz": u32(0, 6, MOST_ALIKE),
        b"stts": u32(0, 1, MOST_ALIKE, 1024),
        b"stsc": u32(0, 1, 1, MOST_ALIKE, 1),
        b"stco": u32(0, 1, 100),
    }
    made = changed(
        changed(data, lambda kind, _: box(kind, stbl[kind]) if kind in stbl else None),
        swapped(b"mvex", b""),
    )
    (track,) = movie_of_any_size(made).tracks
    assert len(track.table) == MOST_ALIKE
    assert track.table.offset[-1] == 100 + 6 * (MOST_ALIKE - 1)
    assert peak_of(lambda: movie_of_any_size(made)) < 80 << 20


def test_many_small_boxes_cost_little() -> None:
    """What is there is gone through a few times, not once for each."""
    free = box(b"free")
    moov = box(b"moov", free * 5000 + box(b"mvex"))
    begun = time.process_time()
    with pytest.raises(UnsupportedError):
        plan_head(box(b"ftyp", b"isom") + moov + free * 5000 + box(b"moof", bytes(8)), 0, None)
    trafs = traf(full(b"trun", 1, u32(1, 0)), number=2) * 20_000
    with pytest.raises(BrokenError):
        fragment_samples(moof(trafs), 0, track())
    assert time.process_time() - begun < 20
    tracks = changed(content("m24", 134), lambda *_: None)
    trak = next(b for b in boxes(tracks) if b.kind == b"moov")
    inner = next(b for b in boxes(tracks, trak.start, trak.stop) if b.kind == b"trak")
    one = tracks[inner.start - 8 : inner.stop]
    with pytest.raises(UnsupportedError):
        plan_head(changed(tracks, swapped(b"trak", one * 1000)), 0, None)


def assert_movie(movie: Movie, size: int) -> None:
    """What was made of a head that lies lies in the file, whatever it is."""
    for each in movie.tracks:
        table = each.table
        assert len({len(column) for column in vars(table).values()}) == 1
        assert (table.offset >= 0).all()
        assert (table.size >= 0).all()
        assert (table.offset + table.size <= size).all()
        assert each.timescale > 0
    if movie.fragments is not None:
        assert len(movie.fragments) > 0
        assert movie.fragments.timescale > 0
        assert movie.fragments.offsets[0] >= 0
        assert movie.fragments.offsets[-1] <= size
        assert (np.diff(movie.fragments.offsets) >= 0).all()
        assert (np.diff(movie.fragments.times) >= 0).all()


def try_head(data: bytes, size: int) -> None:
    try:
        found = plan_head(data, 0, size)
    except (UnsupportedError, BrokenError):
        return
    if isinstance(found, Want):
        assert 0 <= found.start < found.stop <= size
    else:
        assert_movie(found, size)


def try_fragment(data: bytes, start: int, track: Track) -> None:
    try:
        found = fragment_samples(data, start, track)
    except (UnsupportedError, BrokenError):
        return
    assert len({len(column) for column in vars(found).values()}) == 1
    assert len(found) <= MOST_IN_FRAGMENT
    assert (found.offset >= start).all()
    assert (found.size >= 0).all()
    assert (found.offset + found.size <= start + len(data)).all()


HEADS = [("m30", 134), ("ntsc", 134), ("ntsc", 140), ("prog", 18)]


def places_of(data: bytes, step: int) -> range:
    return range(0, len(data) - 8, step)


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("code", "itag"), HEADS)
def test_each_number_of_a_head_may_lie(code: str, itag: int, value: int) -> None:
    """All counts, sizes, times and places, one after the other."""
    data = content(code, itag)
    head, size = bytearray(head_of(data)), len(data)

    def lie() -> None:
        for place in places_of(head, 4 if itag != 18 else 20):
            told = head[place : place + 4]
            head[place : place + 4] = u32(value)
            try_head(bytes(head), size)
            head[place : place + 4] = told

    assert peak_of(lie) < 80 << 20


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("code", "itag"), [("m30", 134), ("ntsc", 134), ("m24", 139)])
def test_each_number_of_a_fragment_may_lie(code: str, itag: int, value: int) -> None:
    data = content(code, itag)
    (track,) = movie_of(data).tracks
    whole, start = fragment_of(data, 1)
    (head,) = (each for each in boxes(whole) if each.kind == b"moof")
    fragment = bytearray(whole)

    def lie() -> None:
        for place in range(0, head.stop, 4):
            told = fragment[place : place + 4]
            fragment[place : place + 4] = u32(value)
            try_fragment(bytes(fragment), start, track)
            fragment[place : place + 4] = told

    assert peak_of(lie) < 40 << 20


NUMBERS = (
    SIZES
    | st.integers(0, 2**32 - 1)
    | st.sampled_from([1 << 62, 1 << 63, 2**64 - 1, 2**63 - 1]).map(lambda wide: wide >> 32)
)


@st.composite
def mutations(draw: st.DrawFn, length: int) -> tuple[list[tuple[int, int]], int]:
    """Draw numbers of 32 bits to be written at places, and a length to cut off at."""
    changes = draw(st.lists(st.tuples(st.integers(0, max(0, length - 4)), NUMBERS), max_size=8))
    return changes, draw(st.just(length) | st.integers(0, length))


def mutated(data: bytes, mutation: tuple[Sequence[tuple[int, int]], int]) -> bytes:
    made = bytearray(data)
    for place, value in mutation[0]:
        struct.pack_into(">I", made, place, value)
    return bytes(made[: mutation[1]])


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_mutated_heads_are_refused_or_lie_in_the_file(data: st.DataObject) -> None:
    file = content(*data.draw(st.sampled_from(HEADS)))
    head = head_of(file)
    # The tables of the long one are for the test above: here it is what they stand in.
    made = mutated(head, data.draw(mutations(len(head))))
    try_head(made, data.draw(st.just(len(file)) | st.integers(0, 2 * len(file))))


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_mutated_fragments_are_refused_or_lie_in_the_file(data: st.DataObject) -> None:
    file = content(*data.draw(st.sampled_from([("m30", 134), ("ntsc", 134), ("m24", 139)])))
    (track,) = movie_of(file).tracks
    whole, start = fragment_of(file, 1)
    head = next(each.stop for each in boxes(whole))
    made = mutated(whole[:head], data.draw(mutations(head))) + whole[head:]
    try_fragment(made, start, track)


@settings(deadline=None, max_examples=100)
@given(
    shift=st.integers(-(2**60), 2**60),
    time=st.integers(0, 2**60),
    scale=st.integers(1, 2**32 - 1),
    values=st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12),
)
def test_times_at_the_edges_fit(shift: int, time: int, scale: int, values: list[int]) -> None:
    """Sums of what is let in are no larger than what holds them."""
    tfdt = full(b"tfdt", 0, struct.pack(">Q", time), version=1)
    run = full(b"trun", 0xF01, u32(3, 0, *values), version=1)
    made = moof(box(b"traf", full(b"tfhd", 0x20000, u32(1)) + tfdt + run))
    try_fragment(made, 0, track(shift=shift, timescale=scale))
    zero = [0 if place % 4 in (1,) else value for place, value in enumerate(values)]
    run = full(b"trun", 0xF01, u32(3, 0, *zero), version=1)
    made = moof(box(b"traf", full(b"tfhd", 0x20000, u32(1)) + tfdt + run))
    found = fragment_samples(made, 0, track(shift=shift, timescale=scale))
    assert found.dts.tolist() == [time - shift + sum(values[:place:4]) for place in (0, 4, 8)]
