"""Keys become the names of files: what may stand in them, and that they are each clip's own."""

from __future__ import annotations

import hashlib
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.models import Clip, is_youtube_id, name_of

IDS = st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True)
MS = st.integers(0, 999_999_999)


def clip(video_id: str, start_ms: int, end_ms: int, url: str = "https://x.org/a") -> Clip:
    return Clip(video_id, url, start_ms, end_ms, shard=0, row=0)


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "key"),
    [
        (0, 10_000, "abcdefghijk_000000000_000010000"),
        (292_333, 302_333, "abcdefghijk_000292333_000302333"),
        (1, 999_999_999, "abcdefghijk_000000001_999999999"),
    ],
)
def test_keys_hold_milliseconds_in_nine_digits(start_ms: int, end_ms: int, key: str) -> None:
    assert clip("abcdefghijk", start_ms, end_ms).key == key


def test_a_foreign_video_is_named_by_its_url() -> None:
    url = "https://example.com/a video.mp4?x=é"
    name = "u" + hashlib.sha256(url.encode()).hexdigest()[:16]
    assert name_of("", url) == name
    assert clip("../../etc", 1, 2, url).key == f"{name}_000000001_000000002"
    # What the table's reader gave it as id leads to the same key.
    assert clip(name, 1, 2, url).key == f"{name}_000000001_000000002"


@settings(max_examples=200, deadline=None)
@given(st.one_of(IDS, st.text(max_size=20)), MS, MS, st.text(max_size=20))
def test_keys_are_safe_as_names(video_id: str, start_ms: int, end_ms: int, url: str) -> None:
    key = clip(video_id, start_ms, end_ms, url).key
    assert re.fullmatch(r"[A-Za-z0-9_-]{11}_\d{9}_\d{9}|u[0-9a-f]{16}_\d{9}_\d{9}", key, re.ASCII)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(IDS, MS, MS), unique=True, min_size=2, max_size=20))
def test_different_clips_have_different_keys(clips: list[tuple[str, int, int]]) -> None:
    assert len({clip(*each).key for each in clips}) == len(clips)


@pytest.mark.parametrize(
    "text", ["", "abc", "abcdefghij", "abcdefghijkl", "abcdefghijk\n", "abcdefghij.", "abcdefghijé"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_youtube_id(text)


@settings(max_examples=50, deadline=None)
@given(IDS)
def test_what_is_an_id(text: str) -> None:
    assert is_youtube_id(text)
    assert name_of(text, "https://anything") == text


def test_a_clip_travels_between_processes() -> None:
    original = Clip("abcdefghijk", "https://x", 1500, 3250, 7, 3, "a", ("a", "b"), {"n": 1})
    assert pickle.loads(pickle.dumps(original)) == original
    assert (original.start, original.end) == (1.5, 3.25)


@pytest.mark.parametrize("video_id", ["abcdefghijk", "any/thing"])
def test_a_whole_video_has_no_times_and_its_own_key(video_id: str) -> None:
    whole = Clip(video_id, "https://x", None, None, 7, 3)
    assert (whole.start, whole.end) == (None, None)
    assert whole.key == name_of(video_id, "https://x") + "_full"
    assert pickle.loads(pickle.dumps(whole)) == whole
