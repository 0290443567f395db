"""Clips whose picture is encoded anew, from exactly the frame that was asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import av.codec.context
import av.error
import numpy as np

from acavdl.errors import ClipError, Outcome
from acavdl.media import Media, MemoryFile
from acavdl.models import Cut
from acavdl.mux import Part, write_mp4
from acavdl.pick import Chosen, track_of
from acavdl.remux import frames_part, sound_part, with_sound

#: x264: near to lossless to the eye at this size, quick, and without frames that are shown in
#: another order than they are decoded, so that a clip needs no edit list for its picture. One
#: thread: a worker process has many clips in flight, and the same input gives the same bytes.
_X264 = {"preset": "veryfast", "crf": "18", "bf": "0", "threads": "1"}


def encode_clip(chosen: Chosen, picture: Media, sound: Media, *, sound_apart: bool) -> Cut:
    """Return a clip whose frames are encoded anew with H.264; the sound is copied.

    Parameters
    ----------
    chosen
        As for ``exact``: a run from a keyframe on, and which of its frames are shown.
    sound_apart
        Whether the sound is wanted as an m4a, too.

    Raises
    ------
    ClipError
        ``corrupt`` if frames can't be decoded.
    BrokenError
        As `copy_clip` does.
    """
    source = frames_part(chosen, picture)
    heard = sound_part(chosen, sound, source)
    made = Media(MemoryFile(_encoded(source)))
    track = track_of(made, video=True)
    # Rotation and shown size are the source's.
    track = replace(track, header=source.track.header)
    stop = round(source.track.seconds(source.stop - source.begin) * track.timescale)
    frames = Part(track, track.table, made.read, 0, stop)
    cut = with_sound(frames, heard, chosen, sound_apart=sound_apart)
    begin, end = (source.track.seconds(ticks) for ticks in (source.begin, source.stop))
    return replace(cut, actual_start=float(begin), actual_end=float(end))


def _encoded(source: Part) -> bytes:
    """Return an mp4 of the shown frames, from the time 0 on."""
    buffer = io.BytesIO()
    scale = source.track.timescale
    options = {"fflags": "+bitexact", "video_track_timescale": str(scale)}
    try:
        with av.open(buffer, "w", format="mp4", options=options) as output:
            stream: Any = None
            for ticks, frame, ratio in _shown(source):
                stream = stream or _stream(output, frame, ratio, source)
                frame.pts, frame.time_base = ticks - source.begin, Fraction(1, scale)
                # Which ones are keyframes is for the encoder to decide.
                frame.pict_type = 0
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError) as error:
        raise ClipError(Outcome.CORRUPT, f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()


def _shown(source: Part) -> Iterator[tuple[int, Any, Fraction | None]]:
    """Yield the frames that are shown, decoded, with their times in ticks and their pixels' shape.

    Raises
    ------
    ClipError
        ``corrupt`` if there are fewer than the samples say.
    """
    samples = source.samples
    times = np.sort(samples.pts)
    whole = replace(source, begin=int(times[0]), stop=int((samples.pts + samples.duration).max()))
    with av.open(io.BytesIO(write_mp4([whole])), "r") as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        # Decoders give frames back in the order of their times.
        frames = container.decode(stream)
        for ticks in times[times < source.stop].tolist():
            frame = next(frames, None)
            if frame is None or frame.is_corrupt:
                at = float(source.track.seconds(ticks))
                raise ClipError(Outcome.CORRUPT, f"no frame can be decoded at {at:.3f} s")
            if ticks >= source.begin:
                yield ticks, frame, stream.sample_aspect_ratio


def _stream(output: Any, frame: Any, ratio: Fraction | None, source: Part) -> Any:
    """Return an encoder for frames like this one, with pixels of this shape."""
    pts = source.samples.pts
    count = int(((pts >= source.begin) & (pts < source.stop)).sum())
    rate = count / source.track.seconds(source.stop - source.begin)
    stream = output.add_stream("libx264", rate=rate.limit_denominator(1001), options=_X264)
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
    context = stream.codec_context
    context.time_base = Fraction(1, source.track.timescale)
    context.sample_aspect_ratio = ratio or Fraction(1)
    context.flags |= av.codec.context.Flags.bitexact
    for name in ("color_range", "color_primaries", "color_trc", "colorspace"):
        setattr(context, name, getattr(frame, name))
    return stream
