"""Subtitles as sites have them, and whatever else may come in their place."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from acavdl.models import Line
from acavdl.sandbox import innertube
from acavdl.spans import MAX_MS
from acavdl.subtitles import FORMATS, SubtitlesError, parse, within


def json3(*events: Any) -> bytes:
    return json.dumps({"wireMagic": "pb3", "events": events}).encode()


def event(start: Any, duration: Any, *texts: Any, **more: Any) -> dict[str, Any]:
    segments = [{"utf8": text} for text in texts]
    return {"tStartMs": start, "dDurationMs": duration, "segs": segments, **more}


def vtt(text: str) -> tuple[Line, ...]:
    return parse(f"WEBVTT\n\n{text}".encode(), "vtt")


# --- json3 -------------------------------------------------------------------------------------


def test_segments_are_joined_and_what_says_nothing_is_left_out() -> None:
    data = json3(
        {"tStartMs": 0, "dDurationMs": 9000, "id": 1, "wpWinPosId": 1},
        event(100, 1900, " the", " first\n", "line "),
        event(1990, 10, "\n", aAppend=1),
        event(2000, 2000, "\u200b \ufeff"),
        event(2000, 0, "no time"),
        {"tStartMs": 3000, "segs": [{"utf8": "no duration"}]},
        event(4000, 500, "second"),
    )
    assert parse(data, "json3") == (
        Line(100, 2000, "the first\nline"),
        Line(4000, 4500, "second"),
    )


def test_lines_come_by_their_starts() -> None:
    data = json3(event(5000, 10, "c"), event(0, 9000, "a"), event(5000, 5, "d"), event(1, 1, "b"))
    assert [line.text for line in parse(data, "json3")] == ["a", "b", "c", "d"]


def test_lines_of_people_may_overlap_and_those_of_machines_end_with_the_next() -> None:
    data = json3(event(0, 4000, "a"), event(2000, 4000, "b"), event(2000, 100, "c"))
    spans = {
        automatic: [(line.start_ms, line.end_ms) for line in lines]
        for automatic in (False, True)
        for lines in [parse(data, "json3", automatic=automatic)]
    }
    assert spans[False] == [(0, 4000), (2000, 6000), (2000, 2100)]
    assert spans[True] == [(0, 2000), (2000, 6000), (2000, 2100)]


@pytest.mark.parametrize("automatic", [False, True])
def test_those_of_the_site(automatic: bool) -> None:
    shown = innertube.caption_lines(7.5, automatic=automatic)
    document = innertube.timedtext(shown, "json3", automatic=automatic)
    assert document is not None
    word = "words" if automatic else "line"
    assert parse(document.plain(), "json3", automatic=automatic) == tuple(
        Line(at, min(at + 2000, 7500), f"{word} at {at // 1000} seconds")
        for at in (0, 2000, 4000, 6000)
    )


@pytest.mark.parametrize("name", ["vtt", "srt"])
def test_all_formats_say_the_same(name: str) -> None:
    lines = innertube.caption_lines(9.9)
    as_json, other = (innertube.timedtext(lines, fmt) for fmt in ("json3", name))
    assert as_json is not None
    assert other is not None
    assert parse(other.plain(), name) == parse(as_json.plain(), "json3")


# --- WebVTT and SubRip -------------------------------------------------------------------------


def test_web_vtt_with_all_that_may_stand_in_it() -> None:
    lines = vtt(
        "STYLE\n::cue { color: red }\n\n"
        "NOTE not --> a cue\n\n"
        "first\n00:01.500 --> 00:00:03.000 align:start position:0%\n"
        "<v Ann>Hello &amp; <i>welcome</i>\n<00:00:02.000><c>again</c>\n\n"
        "00:03.000 --> 00:04.000\n \n\n"
        "1:00:00.000 --> 1:00:01.250\nlate &lt;3"
    )
    assert lines == (
        Line(1500, 3000, "Hello & welcome\nagain"),
        Line(3_600_000, 3_601_250, "late <3"),
    )


def test_sub_rip_with_windows_line_ends_and_a_mark() -> None:
    text = "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\nOne\r\ntwo\r\n\r\n2\r\n"
    assert parse(text.encode(), "srt") == (Line(1000, 2500, "One\ntwo"),)


def test_no_lines_are_fine() -> None:
    assert parse(json3(), "json3") == parse(b"WEBVTT", "vtt") == parse(b"\n", "srt") == ()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "json3"),
        (b"<html><title>Sorry</title></html>", "json3"),
        (b"[]", "json3"),
        (b'{"events": {}}', "json3"),
        (b"[" * 200_000, "json3"),
        (b'{"events": [{"tStartMs": ' + b"9" * 10_000 + b"}]}", "json3"),
        (b"\xff\xfe\x00", "json3"),
        (b"", "vtt"),
        (b"<html>", "vtt"),
        (b"#EXTM3U\n#EXTINF:6\na.vtt\n", "vtt"),
        (b"<html>", "srt"),
        (b"WEBVTT\n\n00:01.000 --> 00:02.000\n&#" + b"9" * 10_000, "vtt"),
    ],
    ids=range(12),
)
def test_what_is_no_subtitles(data: bytes, name: str) -> None:
    with pytest.raises(SubtitlesError, match=f"no {name}"):
        parse(data, name)


# --- hostile -----------------------------------------------------------------------------------

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
_times = st.integers(-5, 20_000) | st.integers() | _values
_segments = st.lists(
    _values | st.fixed_dictionaries({"utf8": st.text(max_size=5) | _values}), max_size=3
)
_events = st.lists(
    _values
    | st.fixed_dictionaries(
        {}, optional={"tStartMs": _times, "dDurationMs": _times, "segs": _segments | _values}
    ),
    max_size=6,
)
_cue_text = st.lists(
    st.sampled_from(
        [
            *("WEBVTT", "\n", "\n\n", "\r\n", "\r", " ", "-->", "00:01.000", "00:00:02,500"),
            *("99:99.999", "9999:59:59.999", "<", ">", "<c>", "&amp;", "&#xd800;", "&#0", "NOTE"),
            *("text", "\ufeff", "\0", "é"),
        ]
    ),
    max_size=30,
).map("".join)


def check(data: bytes, name: str, *, automatic: bool) -> None:
    try:
        lines = parse(data, name, automatic=automatic)
    except SubtitlesError:
        return
    assert [line.start_ms for line in lines] == sorted(line.start_ms for line in lines)
    for line in lines:
        assert 0 <= line.start_ms < line.end_ms <= MAX_MS
        assert line.text == line.text.strip() != ""
        line.text.encode()
    if automatic:
        for line, after in itertools.pairwise(lines):
            assert line.end_ms <= after.start_ms or line.start_ms == after.start_ms


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(FORMATS), st.booleans())
@example(b'{"events": [{"tStartMs": 1, "dDurationMs": 1, "segs": [{"utf8": "\\ud83d"}]}]}',
         "json3", False)  # fmt: skip
def test_any_bytes(data: bytes, name: str, automatic: bool) -> None:
    check(data, name, automatic=automatic)
    check(b"WEBVTT\n" + data, "vtt", automatic=automatic)


@settings(max_examples=300, deadline=None)
@given(_events, st.booleans())
def test_any_events(events: list[Any], automatic: bool) -> None:
    check(json3(*events), "json3", automatic=automatic)


@settings(max_examples=300, deadline=None)
@given(_cue_text, st.booleans())
def test_any_cues(text: str, automatic: bool) -> None:
    check(f"WEBVTT\n{text}".encode(), "vtt", automatic=automatic)
    check(text.encode(), "srt", automatic=automatic)


@pytest.mark.parametrize(
    "pattern",
    ["<", "<a", "&", "&#x", " ", "0", "0:", "00:01.000 ", "00:00 --> ", "-->", "\n", "\r", "1\n\n"],
)
def test_a_million_characters_take_no_time(pattern: str) -> None:
    text = pattern * (1_000_000 // len(pattern))
    begun = time.process_time()
    for head in ("WEBVTT\n\n", "WEBVTT\n\n00:00.000 --> 00:01.000\n"):
        for name in ("vtt", "srt"):
            check(f"{head}{text}".encode(), name, automatic=True)
    assert time.process_time() - begun < 5.0


# --- of a clip ---------------------------------------------------------------------------------

_lines = st.lists(
    st.tuples(st.integers(0, 50), st.integers(1, 50)).map(
        lambda pair: Line(pair[0], sum(pair), "x")
    ),
    max_size=10,
).map(lambda lines: sorted(lines, key=lambda line: line.start_ms))


@settings(max_examples=200, deadline=None)
@given(_lines, st.integers(0, 60), st.integers(1, 60))
def test_lines_within_a_span_are_those_that_share_a_moment_with_it(
    lines: list[Line], start: int, length: int
) -> None:
    moments = range(start, start + length)
    expected = [
        line for line in lines if any(line.start_ms <= moment < line.end_ms for moment in moments)
    ]
    assert list(within(lines, start, start + length)) == expected


def test_a_whole_video_has_all_lines() -> None:
    lines = [Line(0, 1, "a"), Line(5, 9, "b")]
    assert list(within(lines, None, None)) == lines
