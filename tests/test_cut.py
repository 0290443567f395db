"""Cuts of real media, checked frame by frame against what the media themselves show."""

from __future__ import annotations

import io
import itertools
import random
import subprocess
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path

import av
import av.logging
import imageio_ffmpeg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acavdl.cut import END_TOLERANCE, closed_length, cut_low
from acavdl.errors import ClipError, Outcome
from acavdl.models import Cut
from acavdl.sandbox.media import DEMO_MASTERS, Master, MasterSpec, keyframes, make_masters
from acavdl.sandbox.probe import probe

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
#: Files that picture and sound come from, by itag.
PAIRS = ((134, 140), (18,), (243, 251), (134, 251), (134, 139))
CASES = [
    pytest.param(spec.code, pair, id=f"{spec.code}-{'+'.join(map(str, pair))}")
    for spec in DEMO_MASTERS
    for pair in PAIRS
    if set(pair) <= set(spec.itags)
]
MILLISECOND = Fraction(1, 1000)


@cache
def master(code: str) -> Master:
    return make_masters([SPECS[code]])[code]


def files(code: str, *itags: int) -> list[Path]:
    return [master(code).rendition(itag).path for itag in itags]


def frame_time(spec: MasterSpec, frame: int, pair: Sequence[int]) -> Fraction:
    """Seconds at which a frame is shown; WebM tells whole milliseconds."""
    time = frame / spec.fps
    return round(time * 1000) * MILLISECOND if 243 in pair else time


def check(code: str, pair: Sequence[int], start: Fraction | float, end: Fraction | float) -> Cut:
    """Cut, and compare what the clip shows with what was asked for and what was recorded."""
    spec = SPECS[code]
    made = cut_low(files(code, *pair), float(start), float(end))
    shown = probe(made.data, spec)
    begins = [frame_time(spec, frame, pair) for frame in keyframes(spec)]
    first = keyframes(spec)[bisect_right(begins, Fraction(float(start))) - 1]
    # Frames that begin before the end, and not more than a group of B-frames beside.
    least = min(ceil(float(end) * spec.fps - Fraction(1, 100)), spec.frames)
    assert shown.first_frame == first
    assert shown.last_frame is not None
    assert least - 1 <= shown.last_frame <= least + spec.b_frames
    if not spec.b_frames and 243 not in pair:
        assert shown.last_frame == max(least - 1, first)
    assert shown.frames_contiguous
    assert shown.first_frame_time == 0
    assert shown.audio_steady
    # In sync, and both from the beginning.
    tolerance = 0.0015 if 251 in pair else 0.0005
    assert shown.audio_offset == pytest.approx(0, abs=tolerance)
    assert shown.audio_start_time == pytest.approx(made.av_offset, abs=0.002)
    # What is recorded is what is shown.
    assert made.actual_start == pytest.approx(first / spec.fps, abs=0.0006)
    assert made.actual_end == pytest.approx((shown.last_frame + 1) / spec.fps, abs=0.0011)
    assert made.frames == shown.frames == shown.last_frame - first + 1
    assert (made.width, made.height) == (shown.width, shown.height)
    assert made.fps == pytest.approx(float(spec.fps), rel=1e-3)
    assert (made.video_codec, made.audio_codec) == (shown.video_codec, shown.audio_codec)
    assert made.sample_rate == shown.sample_rate
    return made


def spans(spec: MasterSpec, seed: int, count: int) -> list[tuple[Fraction, Fraction]]:
    """Random spans of whole milliseconds inside a master."""
    chance = random.Random(seed)
    last = int(spec.duration * 1000)
    found = []
    for _ in range(count):
        length = chance.randint(700, 3500)
        start = chance.randint(0, last - length)
        found.append((start * MILLISECOND, (start + length) * MILLISECOND))
    return found


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_random_spans(code: str, pair: tuple[int, ...]) -> None:
    for start, end in spans(SPECS[code], seed=len(code) + sum(pair), count=4):
        check(code, pair, start, end)


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_starts_around_a_keyframe(code: str, pair: tuple[int, ...]) -> None:
    """Exactly on it and one millisecond after: from it; one before: from the one before."""
    spec = SPECS[code]
    before, frame = keyframes(spec)[:2]
    at = frame_time(spec, frame, pair)
    exactly = ceil(at * 1000) * MILLISECOND  # a table has whole milliseconds
    for start, first in ((exactly, frame), (exactly + MILLISECOND, frame)):
        made = check(code, pair, start, start + Fraction(1, 2))
        assert made.actual_start == pytest.approx(first / spec.fps, abs=0.0006)
    made = check(code, pair, exactly - MILLISECOND, exactly + Fraction(1, 5))
    assert made.actual_start == pytest.approx(before / spec.fps, abs=0.0006)
