"""Which samples make a clip, by precision: pure, on tables of samples.

``low`` begins on the keyframe at or before the start; ``editlist`` and ``exact`` show what is shown
from the start on, ``editlist`` copying from that keyframe and hiding what comes before;
``keyframe_adjusted`` goes from the first keyframe in the span to the last (as the reference does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np

from acavdl.errors import ClipError, Outcome
from acavdl.media import Media
from acavdl.mp4 import Ints, Samples, Track

#: A clip may begin or end this much (seconds) beyond its video: tables round to whole seconds.
END_TOLERANCE = 1.0
#: Packets before the first that is heard: AAC's windows overlap by half (ISO/IEC 14496-3).
_PREROLL = 1
#: Seconds of sound read before the first that is heard: more than a packet lasts (AAC: 1,024
#: samples at 7,350 Hz).
_LEAD = Fraction(7, 50)

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Pick:
    """Samples to copy, in decode order, and what of them is shown.

    `begin` and `stop` are ticks of the track: the time of the first shown one, and the end of the
    last; `count` is how many are shown.
    """

    samples: Samples
    begin: int
    stop: int
    count: int


def pick_frames(
    samples: Samples, track: Track, start: Fraction, end: Fraction, precision: str
) -> Pick:
    """Choose the frames of ``[start, end)`` seconds.

    Parameters
    ----------
    samples
        What `Media.samples` returns for the span.

    Raises
    ------
    ClipError
        ``clip_out_of_range`` if the span is not in the video, or, for ``keyframe_adjusted``, has
        fewer than two keyframes.
    """
    if precision == "keyframe_adjusted":
        start, end = _adjusted(samples, track, start, end)
    # Times are whole ticks: the last one at or before the start, the first one at or after the end.
    start_at, end_at = math.floor(start * track.timescale), math.ceil(end * track.timescale)
    run = _from_keyframe(samples, track, start_at, end)
    order = np.argsort(run.pts, kind="stable")
    times = run.pts[order]
    # Each is shown until the next one.
    stops = np.append(times[1:], times[-1] + run.duration[order[-1]])
    if precision in ("low", "keyframe_adjusted"):
        count = closed_length(run.pts, end_at)
        begin, stop = int(times[0]), int(stops[count - 1])
        shown = count
    else:
        first = max(0, int(np.searchsorted(times, start_at, "right")) - 1)
        # Both ends snap to the frame that is shown then, so that clips are as long as each other.
        last = int(np.searchsorted(stops, math.floor(end * track.timescale), "right"))
        last = max(last, first + 1)
        begin, stop = int(times[first]), int(stops[last - 1])
        count = closed_length(run.pts, stop)
        shown = last - first
    # Not that of the clip, which may end long before `end`, where frames are shown for long.
    ended = track.seconds(int(stops[-1]))
    if ended < end - Fraction(END_TOLERANCE) or ended <= start or stop <= begin:
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the picture ends at {float(ended):.3f} s")
    return Pick(run.taken(slice(count)), begin, stop, shown)


def _adjusted(
    samples: Samples, track: Track, start: Fraction, end: Fraction
) -> tuple[Fraction, Fraction]:
    """Return the first and the last keyframe in a span, in seconds."""
    keys = np.sort(samples.pts[samples.key])
    first, last = math.ceil(start * track.timescale), math.floor(end * track.timescale)
    inside = keys[(keys >= first) & (keys <= last)]
    if len(inside) < 2:
        raise ClipError(
            Outcome.CLIP_OUT_OF_RANGE,
            f"{len(inside)} keyframes from {float(start):.3f} s to {float(end):.3f} s: "
            "keyframe_adjusted goes from the first to the last",
        )
    return track.seconds(int(inside[0])), track.seconds(int(inside[-1]))


def _from_keyframe(samples: Samples, track: Track, start: int, end: Fraction) -> Samples:
    """Return what can be decoded from the last keyframe at or before a tick on, or the first."""
    keys = np.flatnonzero(samples.key)
    if len(keys) == 0:
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, "no keyframe in the span")
    before = keys[samples.pts[keys] <= start]
    first = int(before[-1] if len(before) else keys[0])
    begin = track.seconds(int(samples.pts[first]))
    late = begin - track.seconds(start) > Fraction(END_TOLERANCE)
    if begin >= end or (late and not len(before)):
        detail = f"the picture begins at {float(begin):.3f} s"
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, detail)
    run = samples.taken(slice(first, None))
    # Frames that lead an open group of pictures need the one before: they are not shown.
    return run.taken(run.pts >= run.pts[0])


def closed_length(times: Ints, end: int) -> int:
    """Return how many frames to keep so that all before `end` are there and none is missing.

    Parameters
    ----------
    times
        Presentation times of frames in decode order; the first is the smallest.
    end
        The exclusive end, in the same unit.

    Returns
    -------
    int
        The least n so that the first n frames hold every time before `end`, and are the n
        earliest of all: frames that a kept frame was coded after come with it.
    """
    needed = max(1, int((times < end).sum()))
    closed = np.flatnonzero(np.maximum.accumulate(times) == np.sort(times)) + 1
    return int(closed[np.searchsorted(closed, needed)])


def pick_sound(samples: Samples, track: Track, first: Fraction, stop: Fraction) -> Pick | None:
    """Choose the packets that sound in ``[first, stop)`` seconds, and their pre-roll.

    `begin` and `stop` of what is returned are those of the span; None if nothing sounds in it.
    """
    begin, end = round(first * track.timescale), round(stop * track.timescale)
    ends = samples.pts + samples.duration
    last = int(np.searchsorted(samples.pts, end, "left"))
    heard = int(np.searchsorted(ends, begin, "right"))
    if heard >= last:
        return None
    chosen = samples.taken(slice(max(0, heard - _PREROLL), last))
    return Pick(chosen, begin, min(end, int(ends[last - 1])), last - heard)


# --- the clips of a video ------------------------------------------------------------------------

#: Start and end in seconds.
Span = tuple[Fraction, Fraction]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What one clip is made of; `frames` is None where it is sound alone.

    `span` is what was asked for, in seconds.
    """

    span: Span
    frames: Pick | None
    sound: Pick


def choose_clips(
    picture: Media, sound: Media, spans: Sequence[Span], precision: str
) -> list[Chosen | ClipError]:
    """Choose and load what the clips of a video are made of; for each span that, or why not.

    Parameters
    ----------
    picture, sound
        Two files, or the same one twice.
    spans
        What is asked for.
    precision
        As in `pick_frames`.

    Raises
    ------
    ClipError
        ``no_video`` or ``no_audio``, if there is none at all.
    UnsupportedError, BrokenError
        As `Media` does.
    """
    shown, heard = track_of(picture, video=True), track_of(sound, video=False)
    # What lies beyond the end is not looked for: the head tells when that is.
    reached = [_reached(span, shown, precision) for span in spans]
    picture.load_spans(shown, _inside(picture, shown, reached))
    frames = [
        _attempt(_frames, picture, shown, (span, reach), precision)
        for span, reach in zip(spans, reached, strict=True)
    ]
    sounding = [None if isinstance(pick, ClipError) else _shown(pick, shown) for pick in frames]
    sound.load_spans(heard, [_led(span) for span in sounding if span is not None])
    found = [
        pick
        if isinstance(pick, ClipError)
        else _attempt(_with_sound, sound, heard, (asked, span), pick)
        for pick, span, asked in zip(frames, sounding, spans, strict=True)
    ]
    _load(picture, sound, found)
    return found


def choose_sound(sound: Media, spans: Sequence[Span], around: Fraction) -> list[Chosen | ClipError]:
    """Choose and load the sound of spans, as `choose_clips` does.

    Parameters
    ----------
    around
        Seconds of sound to take beyond both ends, as far as there is some.
    """
    heard = track_of(sound, video=False)
    wider = [(max(Fraction(0), start - around), end + around) for start, end in spans]
    sound.load_spans(heard, _inside(sound, heard, map(_led, wider)))
    found = [
        _attempt(_with_sound, sound, heard, pair, None) for pair in zip(spans, wider, strict=True)
    ]
    _load(sound, sound, found)
    return found


def track_of(media: Media, *, video: bool) -> Track:
    """Return the track of pictures, or of sound.

    Raises
    ------
    ClipError
        ``no_video`` or ``no_audio``.
    """
    track = next((each for each in media.movie.tracks if each.is_video is video), None)
    if track is None:
        outcome = Outcome.NO_VIDEO if video else Outcome.NO_AUDIO
        raise ClipError(outcome, f"the file has no {'picture' if video else 'sound'}")
    return track


def _attempt(make: Callable[..., _Made], *arguments: Any) -> _Made | ClipError:
    """Return what is made, or why it is not: one clip's failure is not that of the others."""
    try:
        return make(*arguments)
    except ClipError as error:
        return error


def _reached(span: Span, track: Track, precision: str) -> Span:
    """Return the span whose samples tell how a clip is cut."""
    start, end = span
    # A keyframe right at the end counts.
    return (start, end + track.seconds(1)) if precision == "keyframe_adjusted" else (start, end)


def _inside(media: Media, track: Track, spans: Iterable[Span]) -> list[Span]:
    """Return the spans that begin before a track ends; what is beyond need not be looked for."""
    latest = media.duration(track) + Fraction(END_TOLERANCE)
    return [span for span in spans if span[0] < latest]


def _frames(media: Media, track: Track, spans: tuple[Span, Span], precision: str) -> Pick:
    asked, reached = spans
    if not _inside(media, track, [asked]):
        detail = f"the picture ends at {float(media.duration(track)):.3f} s"
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, detail)
    return pick_frames(media.samples(track, *reached), track, *asked, precision)


def _shown(pick: Pick, track: Track) -> Span:
    return track.seconds(pick.begin), track.seconds(pick.stop)


def _led(span: Span) -> Span:
    """Return the span of sound to read, with what comes before for the decoder."""
    start, end = span
    return max(Fraction(0), start - _LEAD), end


def _with_sound(
    media: Media, track: Track, spans: tuple[Span, Span], frames: Pick | None
) -> Chosen:
    """Return a clip with the sound of the second of two spans; the first was asked for."""
    asked, span = spans
    inside = _inside(media, track, [span])
    packets = pick_sound(media.samples(track, *_led(span)), track, *span) if inside else None
    if packets is None:
        outcome = Outcome.CLIP_OUT_OF_RANGE if frames is None else Outcome.NO_AUDIO
        raise ClipError(outcome, f"no sound between {float(span[0])} s and {float(span[1])} s")
    return Chosen(asked, frames, packets)


def _load(picture: Media, sound: Media, found: Iterable[Chosen | ClipError]) -> None:
    """Load the bytes of what was chosen; from one file, if it is the same one, in one go."""
    chosen = [each for each in found if isinstance(each, Chosen)]
    frames = [each.frames.samples for each in chosen if each.frames is not None]
    packets = [each.sound.samples for each in chosen]
    if picture is sound:
        sound.load_samples(frames + packets)
    else:
        picture.load_samples(frames)
        sound.load_samples(packets)
