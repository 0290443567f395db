"""From media files to one mp4 per clip: a stream copy with picture and sound in sync.

``low``: the copy begins on the keyframe at or before the requested start, so it plays everywhere
without an edit list on the picture's side that hides frames; the true start is recorded. It ends
with the first frame at or after the requested end up to which no frame is missing. Sound is cut on
packet borders, with pre-roll for the decoder; an edit list (ISO/IEC 14496-12, 8.6.6)
hides what comes before the first frame, so that both start together.
"""

from __future__ import annotations

import bisect
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from acavdl.errors import ClipError, Outcome
from acavdl.models import Cut
from acavdl.mp4 import earliest_presentation_time, has_edit_list

#: Seconds read before the start and past the end, and frames read at the beginning, to see all that
#: are shown before the last one or the first one decoded: H.264 reorders over 16 frames at most
#: (its Annex A).
_REORDER_SECONDS = 2
_REORDER_FRAMES = 32
#: Containers that are read, by ffmpeg's names. No playlists (HLS, ffconcat): what a site sends must
#: not name files of this machine.
_FORMATS = "mov,matroska,webm,avi,flv,mpeg,mpegts,ogg,asf"
#: Bytes in which ``moov`` and the beginning of ``sidx`` are looked for.
_HEAD_BYTES = 1 << 20
#: Seconds of sound read before the first frame: more than the pre-roll of any codec here.
_AUDIO_MARGIN = Fraction(1, 2)
#: A clip may end this much (seconds) beyond its video: tables round times to whole seconds.
END_TOLERANCE = 1.0
#: Seconds of sound that a decoder needs before it is right: Opus predicts from what came before
#: (RFC 7845, 4.6). For others the packet before is enough (AAC's windows overlap by half; ISO/IEC
#: 14496-3).
_PREROLL = {"opus": Fraction(80, 1000)}


def cut_low(files: Sequence[Path], start: float, end: float) -> Cut:
    """Cut ``[start, end)`` seconds out of the picture in ``files[0]`` and sound in ``files[-1]``.

    Parameters
    ----------
    files
        One file with both, or the picture's and the sound's.
    start, end
        Seconds on the presentation timeline of the video.

    Raises
    ------
    ClipError
        ``clip_out_of_range``, ``no_video``, ``no_audio``, or ``corrupt`` for a file that is no
        media.
    """
    try:
        with _open(files[0]) as picture, _open(files[-1]) as sound:
            if not picture.streams.video:
                raise ClipError(Outcome.NO_VIDEO, "the file has no picture")
            if not sound.streams.audio:
                raise ClipError(Outcome.NO_AUDIO, "the file has no sound")
            if None in (
                picture.streams.video[0].codec_context,
                sound.streams.audio[0].codec_context,
            ):
                raise ClipError(Outcome.CORRUPT, "a stream of a codec that nobody knows")
            return _cut(
                _Track(picture, picture.streams.video[0], _lateness(files[0])),
                _Track(sound, sound.streams.audio[0], _lateness(files[-1])),
                _exactly(start),
                _exactly(end),
            )
    except (av.error.FFmpegError, ValueError) as error:
        # PyAV raises ValueError for some broken headers.
        raise ClipError(Outcome.CORRUPT, f"{type(error).__name__}: {error}") from error


def _open(path: Path) -> Any:
    return av.open(str(path), options={"format_whitelist": _FORMATS})


def _exactly(seconds: float) -> Fraction:
    """Return the number that was written: 5.005 is 1001/200, and no hair less."""
    return Fraction(seconds).limit_denominator(1_000_000)


@dataclass(frozen=True)
class _Track:
    """A stream of a file, on the presentation timeline.

    `late` is how much later than that (seconds) the demuxer puts its packets.
    """

    container: Any
    stream: Any
    late: Fraction

    def ticks(self, seconds: Fraction) -> int:
        return round(seconds / Fraction(self.stream.time_base))

    def seconds(self, ticks: int) -> Fraction:
        return Fraction(ticks * self.stream.time_base)

    @property
    def declared_end(self) -> Fraction:
        """When the stream ends as its header says, in seconds; 0 if it doesn't."""
        if self.stream.duration is not None:
            return self.seconds(self.stream.duration)
        # WebM says it of the file alone: of its longest stream.
        alone = len(self.container.streams) == 1 and self.container.duration is not None
        return Fraction(self.container.duration, av.time_base) if alone else Fraction(0)

    def packets_from(self, seconds: Fraction) -> Iterator[Any]:
        """Yield packets from a keyframe before `seconds` on, with times of the presentation.

        Raises
        ------
        ClipError
            ``corrupt`` if they end within the stream: a demuxer takes a file that breaks off for
            one that ends.
        """
        if seconds > 0:
            self.container.seek(self.ticks(seconds + self.late), stream=self.stream)
        late = self.ticks(self.late)
        reached = max(seconds, Fraction(0))
        for packet in self.container.demux(self.stream):
            if packet.pts is None:
                continue
            if packet.is_corrupt:
                raise ClipError(Outcome.CORRUPT, f"a broken packet at {float(reached):.3f} s")
            reached = max(reached, self.seconds(packet.pts + (packet.duration or 0)))
            # WebM has no decode times; its frames are in order.
            packet.dts = (packet.pts if packet.dts is None else packet.dts) - late
            packet.pts -= late
            yield packet
        if reached < self.declared_end - Fraction(END_TOLERANCE):
            detail = f"the file breaks off at {float(reached):.3f} of {float(self.declared_end)} s"
            raise ClipError(Outcome.CORRUPT, detail)


def _lateness(path: Path) -> Fraction:
    """Return how much (seconds) ffmpeg's demuxer puts the packets of a file behind their time.

    Negative composition offsets (ISO/IEC 14496-12, 8.8.8) make it delay a track of fragmented mp4
    so that no frame is shown before it is decoded; the ``sidx`` tells the right time. With an edit
    list it does as the list says.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    earliest = None if has_edit_list(head) else earliest_presentation_time(head)
    if earliest is None:
        return Fraction(0)
    with _open(path) as container:
        stream = container.streams[0]
        packets = itertools.islice(container.demux(stream), _REORDER_FRAMES)
        times = [packet.pts for packet in packets if packet.pts is not None]
        return min(times) * Fraction(stream.time_base or 0) - earliest if times else Fraction(0)


def _cut(picture: _Track, sound: _Track, start: Fraction, end: Fraction) -> Cut:
    frames = _video_packets(picture, start, end)
    first = picture.seconds(frames[0].pts)
    last = max(frames, key=lambda packet: packet.pts)
    stop = picture.seconds(last.pts) + _frame_duration(last, picture.stream)
    if stop < end - Fraction(END_TOLERANCE) or stop <= start:
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the picture ends at {float(stop):.3f} s")
    packets = _audio_packets(sound, first, stop)
    # Before they are muxed: that moves their times.
    silence = max(first, sound.seconds(packets[0].pts)) - first
    video, audio = picture.stream, sound.stream
    return Cut(
        data=_mux(picture, frames, sound, packets, first),
        actual_start=float(first),
        actual_end=float(stop),
        frames=len(frames),
        fps=float(video.average_rate or 0),
        width=video.codec_context.width,
        height=video.codec_context.height,
        video_codec=video.codec_context.name,
        audio_codec=audio.codec_context.name,
        sample_rate=audio.codec_context.sample_rate,
        channels=audio.codec_context.channels,
        av_offset=float(silence),
    )


def _video_packets(track: _Track, start: Fraction, end: Fraction) -> list[Any]:
    """Return the packets of a closed run of frames, in decode order, that covers the span."""
    packets: list[Any] = []
    # Demuxers seek by the time of decoding: straight to the start, they would come to a keyframe
    # that is decoded before it and shown after. The last one that is shown in time counts.
    for packet in track.packets_from(start - _REORDER_SECONDS):
        if packet.is_keyframe and (not packets or track.seconds(packet.pts) <= start):
            packets = []
        if packets or packet.is_keyframe:
            packets.append(packet)
        if track.seconds(packet.dts) >= end + _REORDER_SECONDS:
            break
    if not packets:
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"no picture at {float(start):.3f} s")
    begin = track.seconds(packets[0].pts)
    if begin >= end:
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the picture begins at {float(begin):.3f} s")
    # Frames that lead an open group of pictures need the one before: they are not shown.
    shown = [packet for packet in packets if packet.pts >= packets[0].pts]
    return shown[: closed_length([packet.pts for packet in shown], end / track.stream.time_base)]


def closed_length(times: Sequence[int], end: int | Fraction) -> int:
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
    in_order = sorted(times)
    needed = max(1, sum(time < end for time in times))
    latest = times[0]
    for count, time in enumerate(times, start=1):
        latest = max(latest, time)
        if count >= needed and latest == in_order[count - 1]:
            return count
    return len(times)


def _audio_packets(track: _Track, first: Fraction, stop: Fraction) -> list[Any]:
    """Return the packets that sound between `first` and `stop` seconds, and their pre-roll."""
    begin, end = track.ticks(first), track.ticks(stop)
    packets = list(
        itertools.takewhile(
            lambda packet: packet.pts < end, track.packets_from(first - _AUDIO_MARGIN)
        )
    )
    ends = [packet.pts + packet.duration for packet in packets]
    if not ends or ends[-1] <= begin:
        raise ClipError(Outcome.NO_AUDIO, f"no sound between {float(first)} s and {float(stop)} s")
    preroll = track.ticks(_PREROLL.get(track.stream.codec_context.name, Fraction(0)))
    return packets[max(0, bisect.bisect_right(ends, begin - preroll) - 1) :]


def _mux(
    picture: _Track, frames: Sequence[Any], sound: _Track, packets: Sequence[Any], first: Fraction
) -> bytes:
    """Return an mp4 of both tracks whose time 0 is `first` seconds of the source."""
    buffer = io.BytesIO()
    # Bit-exact: no name of the library and no date, so the same packets give the same bytes. Edit
    # lists count in units of the movie: at the muxer's 1/1000 s they would round the sync.
    options = {"fflags": "+bitexact", "movie_timescale": "90000"}
    with av.open(buffer, "w", format="mp4", options=options) as output:
        streams = [output.add_stream_from_template(track.stream) for track in (picture, sound)]
        for stream, track, kept in zip(streams, (picture, sound), (frames, packets), strict=True):
            offset = track.ticks(first)
            for packet in kept:
                packet.pts -= offset
                packet.dts -= offset
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


def _frame_duration(packet: Any, stream: Any) -> Fraction:
    if packet.duration:
        return Fraction(packet.duration * stream.time_base)
    rate = stream.average_rate
    return Fraction(0) if not rate else 1 / Fraction(rate)
