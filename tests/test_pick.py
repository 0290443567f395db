"""Which samples make a clip: by tables alone, with frames in any order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acavdl.errors import ClipError, Outcome
from acavdl.mp4 import Samples, Track
from acavdl.pick import Pick, pick_frames, pick_sound

RATE = 30
TICKS = 512


def track(*, video: bool) -> Track:
    empty = Samples.joined([])
    scale = RATE * TICKS if video else 44_100
    return Track(1, video, "h264" if video else "aac", scale, b"", b"", 0, 0, 0, 0, 0, None,
                 (0, 0, 0), empty)  # fmt: skip


VIDEO, SOUND = track(video=True), track(video=False)


def frames(order: list[int], keys: set[int]) -> Samples:
    """Return frames in decode order by their numbers."""
    count = len(order)
    pts = np.array(order, np.int64) * TICKS
    return Samples(
        np.arange(count, dtype=np.int64),
        np.ones(count, np.int64),
        np.arange(count, dtype=np.int64) * TICKS,
        pts,
        np.full(count, TICKS, np.int64),
        np.array([number in keys for number in order]),
    )


def groups(count: int, size: int, *, leading: bool = False) -> Samples:
    """Return groups of pictures I P B P B …; with `leading`, two frames before each keyframe."""
    order: list[int] = []
    for begin in range(0, count * size, size):
        inside = list(range(begin, begin + size))
        for place in range(1, size - 1, 2):
            inside[place], inside[place + 1] = inside[place + 1], inside[place]
        if leading and begin:
            inside = [begin, begin - 2, begin - 1, *inside[1:-2], *[]]
        elif leading:
            inside = inside[:-2]
        order += inside
    return frames(order, set(range(0, count * size, size)))


def shown(pick: Pick) -> list[int]:
    times = sorted((pick.samples.pts // TICKS).tolist())
    return [n for n in times if pick.begin <= n * TICKS < pick.stop]


@given(st.integers(0, 2600), st.integers(1, 1300))
def test_each_precision_shows_what_it_says(start_ms: int, length_ms: int) -> None:
    samples = groups(8, 15)
    start, end = Fraction(start_ms, 1000), Fraction(start_ms + length_ms, 1000)
    low = pick_frames(samples, VIDEO, start, end, "low")
    assert shown(low)[0] == start_ms * RATE // 1000 // 15 * 15
    assert low.stop >= min(end * VIDEO.timescale, 120 * TICKS)
    for precision in ("editlist", "exact"):
        pick = pick_frames(samples, VIDEO, start, end, precision)
        numbers = shown(pick)
        assert numbers[0] == start_ms * RATE // 1000
        assert numbers == list(range(numbers[0], numbers[0] + pick.count))
        assert abs(pick.count - length_ms * RATE / 1000) < 1 or pick.count == 1
        assert pick.samples.key[0]
        assert int(pick.samples.pts[0]) == low.begin


@given(st.integers(0, 3500), st.integers(1, 2500))
def test_adjusted_is_what_the_reference_does(start_ms: int, length_ms: int) -> None:
    samples = groups(8, 15)
    start, end = Fraction(start_ms, 1000), Fraction(start_ms + length_ms, 1000)
    keyframes = [Fraction(n, RATE) for n in range(0, 120, 15)]
    inside = [k for k in keyframes if start <= k <= end]
    if len(inside) < 2:
        with pytest.raises(ClipError, match="keyframes from"):
            pick_frames(samples, VIDEO, start, end, "keyframe_adjusted")
        return
    pick = pick_frames(samples, VIDEO, start, end, "keyframe_adjusted")
    assert VIDEO.seconds(pick.begin) == inside[0]
    assert VIDEO.seconds(pick.stop) == inside[-1]


def test_frames_that_lead_an_open_group_are_not_shown_without_it() -> None:
    samples = groups(4, 12, leading=True)
    pick = pick_frames(samples, VIDEO, Fraction(24, RATE), Fraction(30, RATE), "low")
    assert shown(pick)[0] == 24
    assert (pick.samples.pts >= 24 * TICKS).all()
    before = pick_frames(samples, VIDEO, Fraction(23, RATE), Fraction(30, RATE), "editlist")
    assert shown(before) == list(range(23, 30))


@pytest.mark.parametrize(("start", "end"), [(4, 5), (5, 6), (100, 101)])
def test_beyond_the_end(start: int, end: int) -> None:
    for precision in ("low", "editlist", "exact"):
        with pytest.raises(ClipError) as raised:
            pick_frames(groups(8, 15), VIDEO, Fraction(start), Fraction(end + 1), precision)
        assert raised.value.outcome is Outcome.CLIP_OUT_OF_RANGE


def test_a_video_that_begins_late() -> None:
    late = frames([60, 61, 62, 63, 64], {60})
    with pytest.raises(ClipError, match="begins at"):
        pick_frames(late, VIDEO, Fraction(1, 2), Fraction(3), "low")
    assert pick_frames(late, VIDEO, Fraction(3, 2), Fraction(13, 6), "low").begin == 60 * TICKS


@given(st.integers(0, 50_000), st.integers(1, 50_000))
def test_sound_has_what_is_heard_and_a_packet_before(begin: int, length: int) -> None:
    count = 60
    places = np.arange(count, dtype=np.int64)
    samples = Samples(
        places, places * 0 + 1, places * 1024, places * 1024, places * 0 + 1024, places >= 0
    )
    first, stop = SOUND.seconds(begin), SOUND.seconds(begin + length)
    pick = pick_sound(samples, SOUND, first, stop)
    if begin >= count * 1024:
        assert pick is None
        return
    assert pick is not None
    assert (pick.begin, pick.stop) == (begin, min(begin + length, count * 1024))
    expected = [n for n in range(count) if n * 1024 < begin + length and (n + 1) * 1024 > begin]
    numbers = (pick.samples.pts // 1024).tolist()
    assert numbers[-len(expected) :] == expected
    assert numbers == list(range(max(0, expected[0] - 1), expected[-1] + 1))
