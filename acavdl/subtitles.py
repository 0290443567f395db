"""Subtitles as lines: YouTube's json3, WebVTT and SubRip. Pure.

json3 has no specification: it is what YouTube's player asks for. Events carry times in whole
milliseconds and their text in segments; windows are events without text. WebVTT:
https://www.w3.org/TR/webvtt1/; SubRip is read as WebVTT without its head.
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from acavdl.errors import whole_text
from acavdl.models import Line
from acavdl.spans import MAX_MS, milliseconds

#: What can be read, by yt-dlp's names and preference.
FORMATS = ("json3", "vtt", "srt")

# No pattern can look further than its own line or tag: hostile text costs time in proportion.
_CLOCK = r"((?:\d{1,4}:)?\d{1,2}:\d{1,2}[.,]\d{1,3})"
_TIMES = re.compile(rf"[ \t]*{_CLOCK}[ \t]*-->[ \t]*{_CLOCK}(?!\S)", re.ASCII)
_TAG = re.compile(r"<[^<>]*>")
_INVISIBLE = str.maketrans("", "", "\u200b\ufeff")


class SubtitlesError(ValueError):
    """These are no subtitles of the format that they should be of."""


def parse(data: bytes, name: str, *, automatic: bool = False) -> tuple[Line, ...]:
    """Return the lines of a file of subtitles, by their starts.

    Parameters
    ----------
    data
        The file.
    name
        One of `FORMATS`.
    automatic
        Whether they come from speech recognition. Those roll: a line stays on the screen below
        the next one, whose words are spoken by then. So a line ends with the start of the next at
        the latest. Lines of people may overlap, as speakers do: they are kept as they are.

    Returns
    -------
    tuple of Line
        Without those that have no text, no duration, or times beyond what a clip can have.

    Raises
    ------
    SubtitlesError
        If they can't be read.
    """
    try:
        found = _json3_lines(data) if name == "json3" else _cues(data, headed=name == "vtt")
        lines = sorted(_usable(found), key=lambda line: line.start_ms)
    except (ValueError, RecursionError) as error:
        raise SubtitlesError(f"no {name}: {error}") from error
    return tuple(_rolled(lines) if automatic else lines)


def within(lines: Iterable[Line], start_ms: int | None, end_ms: int | None) -> Iterator[Line]:
    """Yield the lines that overlap ``[start_ms, end_ms)`` (None: all), with their own times."""
    for line in lines:
        if end_ms is not None and line.start_ms >= end_ms:
            # They are in order.
            return
        if start_ms is None or line.end_ms > start_ms:
            yield line


def _usable(lines: Iterable[Line]) -> Iterator[Line]:
    for line in lines:
        text = whole_text(line.text).strip()
        if 0 <= line.start_ms < line.end_ms <= MAX_MS and text.translate(_INVISIBLE).strip():
            yield replace(line, text=text)


def _rolled(lines: list[Line]) -> Iterator[Line]:
    starts = sorted({line.start_ms for line in lines})
    following = dict(itertools.pairwise(starts))
    for line in lines:
        yield replace(line, end_ms=min(line.end_ms, following.get(line.start_ms, line.end_ms)))


def _json3_lines(data: bytes) -> Iterator[Line]:
    tree = json.loads(data)
    events = tree.get("events") if isinstance(tree, dict) else None
    if not isinstance(events, list):
        raise SubtitlesError("it has no list of events")
    for event in events:
        if not isinstance(event, dict):
            continue
        start, duration = event.get("tStartMs"), event.get("dDurationMs")
        if isinstance(start, int) and isinstance(duration, int):
            yield Line(start, start + duration, _joined(event.get("segs")))


def _joined(segments: Any) -> str:
    many = segments if isinstance(segments, list) else []
    texts = [segment.get("utf8") for segment in many if isinstance(segment, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _cues(data: bytes, *, headed: bool) -> Iterator[Line]:
    """Yield the cues of WebVTT (`headed`) or SubRip."""
    text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    if headed and not text.startswith("WEBVTT"):
        raise SubtitlesError("it does not begin with WEBVTT")
    lines = iter(text.split("\n"))
    seen = headed or not text.strip()
    for line in lines:
        times = _TIMES.match(line)
        if times is None:
            continue
        seen = True
        shown = itertools.takewhile(bool, lines)
        plain = html.unescape(_TAG.sub("", "\n".join(shown)))
        yield Line(milliseconds(times[1]), milliseconds(times[2]), plain)
    if not seen:
        raise SubtitlesError("it has no line with times")
