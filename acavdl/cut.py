"""From media to the members of a clip: an mp4 with picture and sound in sync, or sound alone.

What was chosen of an mp4 is copied without a library (`acavdl.remux`), or encoded anew
(`acavdl.encode`). Whole files of any other kind are cut here, by PyAV: ``low`` at once, the other
precisions out of the mp4 that ``low`` makes.

``low``: the copy begins on the keyframe at or before the requested start, so it plays everywhere
without an edit list on the picture's side that hides frames; the true start is recorded. It ends
with the first frame at or after the requested end up to which no frame is missing. Sound is cut on
packet borders, with pre-roll for the decoder; an edit list (ISO/IEC 14496-12, 8.6.6)
hides what comes before the first frame, so that both start together. A whole video is copied in the
same way, from the keyframe at or before time 0, or the first one, to the end of its picture and of
its sound.

Sound alone needs no keyframe. AAC is copied into an m4a whose edit list hides what comes before the
requested start; everything else is decoded, and counted by the sample.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import io
import itertools
import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.codec.context
import av.error
import numpy as np
from numpy.typing import NDArray

from acavdl.config import AudioRate
from acavdl.encode import encode_clip
from acavdl.errors import ClipError, Outcome
from acavdl.media import Media, MemoryFile
from acavdl.models import Cut
from acavdl.mp4 import BrokenError, earliest_presentation_time, has_edit_list
from acavdl.pick import END_TOLERANCE, Chosen, choose_clips, closed_length
from acavdl.remux import copy_clip, copy_sound, packets_file

#: Seconds read before the start and past the end, and frames read at the beginning, to see all that
#: are shown before the last one or the first one decoded: H.264 reorders over 16 frames at most
#: (its Annex A).
_REORDER_SECONDS = 2
_REORDER_FRAMES = 32
#: Containers that are read, by ffmpeg's names. No playlists (HLS, ffconcat): what a site sends must
#: not name files of this machine.
_FORMATS = "mov,matroska,webm,avi,flv,mpeg,mpegts,ogg,asf"
_SOUND_FORMATS = f"{_FORMATS},mp3,flac,wav"
#: Bytes in which ``moov`` and the beginning of ``sidx`` are looked for.
_HEAD_BYTES = 1 << 20
#: Seconds of sound read before the first frame: more than the pre-roll of any codec here.
_AUDIO_MARGIN = Fraction(1, 2)
#: Seconds beyond the end of a clip in which a keyframe is looked for.
_KEYFRAME_SECONDS = 0.001
#: Seconds of sound that a decoder needs before it is right: Opus predicts from what came before
#: (RFC 7845, 4.6). For others the packet before is enough (AAC's windows overlap by half; ISO/IEC
#: 14496-3).
_PREROLL = {"opus": Fraction(80, 1000)}
#: Seconds by which decoded sound may be off its stamp before that counts as a gap: half of Opus's
#: usual packet, the shortest here. WebM and FLV stamp in whole milliseconds.
_GAP = Fraction(1, 100)
#: Seconds of sound that a resampler is given beyond both ends: more than its filter reaches.
_REACH = Fraction(1, 20)
#: Seconds without sound in one clip; stamps that say more are broken.
_MOST_SILENCE = 3600
#: Bytes of samples that a wav can hold: its sizes have 32 bits, and its header takes some.
_WAV_BYTES = (1 << 32) - 1024
#: AAC made of what can't be copied: bits per second of a channel, as YouTube's 128 kbit/s stereo.
_AAC_BITRATE = 64_000
#: Hz for what AAC has no rate for (ISO/IEC 14496-3, table 1.18).
_USUAL_RATE = 48_000


@dataclass(frozen=True)
class CutForm:
    """How clips are made: `Output.encode_formats`, what sound becomes, and the precision."""

    formats: Mapping[str, str]
    rate: AudioRate = field(default_factory=AudioRate)
    precision: str = "low"

    @property
    def around(self) -> Fraction:
        """Seconds of sound that are needed beyond both ends of a clip."""
        decoded = "video" not in self.formats and self.formats["audio"] != "m4a"
        return _AUDIO_MARGIN if decoded else Fraction(0)


def cut_chosen(chosen: Chosen, picture: Media, sound: Media, form: CutForm) -> Cut:
    """Make the members of a clip of what was chosen and loaded (see `acavdl.pick`).

    Parameters
    ----------
    picture, sound
        What it was chosen from.

    Raises
    ------
    ClipError
        ``corrupt`` for frames or sound that are none, else as `cut_sound`.
    """
    apart = "audio" in form.formats
    try:
        if chosen.frames is not None:
            make = encode_clip if form.precision == "exact" else copy_clip
            return make(chosen, picture, sound, sound_apart=apart)
        if form.formats["audio"] == "m4a":
            cut = copy_sound(chosen, sound)
            _refuse_short(chosen.span[0], _exactly(cut.actual_end), chosen.span[1])
            return cut
        data, first = packets_file(chosen, sound)
    except (BrokenError, OverflowError) as error:
        raise ClipError(Outcome.CORRUPT, str(error)) from error
    with _errors_as_outcomes(), _open(io.BytesIO(data), _SOUND_FORMATS) as container:
        track = _Track(container, container.streams.audio[0], -first)
        return _decoded(track, *chosen.span, form.formats["audio"], form.rate)


def cut_files(files: Sequence[Path], start: float | None, end: float | None, form: CutForm) -> Cut:
    """Make the members of a clip of whole files: the picture's and the sound's, or one of both.

    A whole video (no `start`) is copied, whatever the precision.

    Raises
    ------
    ClipError
        As the functions below.
    """
    if "video" not in form.formats:
        return cut_sound(files[-1], start, end, form.formats["audio"], form.rate)
    apart = "audio" in form.formats
    if start is None or end is None or form.precision == "low":
        return cut_low(files, start, end, sound_apart=apart)
    # A keyframe right at the end counts, if it is the adjusted one.
    low = cut_low(files, start, end + _KEYFRAME_SECONDS, sound_apart=False)
    begin = _exactly(low.actual_start)
    media = Media(MemoryFile(low.main))
    span = max(Fraction(0), _exactly(start) - begin), _exactly(end) - begin
    (chosen,) = choose_clips(media, media, [span], form.precision)
    if isinstance(chosen, ClipError):
        raise ClipError(chosen.outcome, f"{chosen.detail} (counted from {float(begin):.3f} s on)")
    cut = cut_chosen(chosen, media, media, form)
    return replace(
        cut,
        actual_start=float(begin + _exactly(cut.actual_start)),
        actual_end=float(begin + _exactly(cut.actual_end)),
    )


def cut_low(
    files: Sequence[Path], start: float | None, end: float | None, *, sound_apart: bool = False
) -> Cut:
    """Cut ``[start, end)`` seconds out of the picture in ``files[0]`` and sound in ``files[-1]``.

    Parameters
    ----------
    files
        One file with both, or the picture's and the sound's.
    start, end
        Seconds on the presentation timeline of the video; None: its beginning, its end.
    sound_apart
        Whether the sound of the mp4 is wanted as an m4a, too.

    Raises
    ------
    ClipError
        ``clip_out_of_range``, ``no_video``, ``no_audio``, or ``corrupt`` for a file that is no
        media or can't be read any more.
    """
    with _errors_as_outcomes(), _open(files[0]) as picture, _open(files[-1]) as sound:
        if not picture.streams.video:
            raise ClipError(Outcome.NO_VIDEO, "the file has no picture")
        if not sound.streams.audio:
            raise ClipError(Outcome.NO_AUDIO, "the file has no sound")
        return _cut(
            _track(picture, picture.streams.video[0], files[0]),
            _track(sound, sound.streams.audio[0], files[-1]),
            Fraction(0) if start is None else _exactly(start),
            None if end is None else _exactly(end),
            sound_apart=sound_apart,
        )


def cut_sound(
    file: Path, start: float | None, end: float | None, kind: str, rate: AudioRate
) -> Cut:
    """Cut ``[start, end)`` seconds out of the sound in `file`, whatever else is in it.

    Parameters
    ----------
    start, end
        Seconds on the presentation timeline of the file; None: the beginning of the sound, its end.
    kind
        ``m4a``: a copy of AAC, from `start` (or where its sound begins) to the border of packets
        at or after `end`; other codecs are encoded anew. ``flac``, ``wav``: 16 bits, from exactly
        `start` to exactly `end`, which are round((end - start) * rate) samples; silence where the
        span has no sound before its end.
    rate
        What flac and wav are resampled to.

    Raises
    ------
    ClipError
        ``clip_out_of_range`` if the sound ends more than `END_TOLERANCE` before `end`, or there is
        none in the span; ``no_audio`` if the file has none; ``corrupt`` as for `cut_low`.
    """
    with _errors_as_outcomes(), _open(file, _SOUND_FORMATS) as container:
        if not container.streams.audio:
            raise ClipError(Outcome.NO_AUDIO, "the file has no sound")
        track = _track(container, container.streams.audio[0], file)
        begin, stop = (None if time is None else _exactly(time) for time in (start, end))
        if kind == "m4a" and track.codec == "aac":
            return _copied(track, begin, stop)
        return _decoded(track, begin, stop, kind, rate)


def decoded(data: bytes) -> tuple[int, int]:
    """Decode a member of a sample; return its frames, and samples of its sound.

    Raises
    ------
    ClipError
        ``corrupt`` if it can't be decoded to its end.
    """
    frames = samples = 0
    with _errors_as_outcomes(), _open(io.BytesIO(data), _SOUND_FORMATS) as container:
        for stream in container.streams:
            stream.thread_count = 1
        for frame in container.decode():
            if frame.is_corrupt:
                raise ClipError(Outcome.CORRUPT, f"a damaged frame at {frame.time} s")
            if isinstance(frame, av.VideoFrame):
                frames += 1
            else:
                samples += frame.samples
    return frames, samples


@contextlib.contextmanager
def _errors_as_outcomes() -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError) as error:
        # PyAV raises ValueError for some broken headers.
        raise ClipError(Outcome.CORRUPT, f"{type(error).__name__}: {error}") from error


def _open(file: Path | io.BytesIO, formats: str = _FORMATS) -> Any:
    name = str(file) if isinstance(file, Path) else file
    return av.open(name, options={"format_whitelist": formats})


def _track(container: Any, stream: Any, path: Path) -> _Track:
    if stream.codec_context is None:
        raise ClipError(Outcome.CORRUPT, "a stream of a codec that nobody knows")
    return _Track(container, stream, _lateness(path))


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

    @property
    def codec(self) -> str:
        """The codec's name, not that of its decoder (``av1``, not ``libdav1d``)."""
        return str(self.stream.codec_context.codec.canonical_name)

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


# --- picture and sound ---------------------------------------------------------------------------


def _cut(
    picture: _Track, sound: _Track, start: Fraction, end: Fraction | None, *, sound_apart: bool
) -> Cut:
    frames = deque(_video_packets(picture, start, math.inf if end is None else end))
    count, first = len(frames), picture.seconds(frames[0].pts)
    last = max(frames, key=lambda packet: packet.pts)
    stop = picture.seconds(last.pts) + _frame_duration(last, picture.stream)
    if end is not None and (stop < end - Fraction(END_TOLERANCE) or stop <= start):
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the picture ends at {float(stop):.3f} s")
    packets = deque(_audio_packets(sound, first, math.inf if end is None else stop))
    if not packets:
        detail = f"no sound between {float(first)} s and {float(stop)} s"
        raise ClipError(Outcome.NO_AUDIO, detail)
    # Before they are muxed: that moves their times.
    silence = max(first, sound.seconds(packets[0].pts)) - first
    _shift(frames, picture.ticks(first))
    _shift(packets, sound.ticks(first))
    apart = {"m4a": _mux(_m4a_kind(sound), [(sound.stream, packets)])} if sound_apart else {}
    # Packets are taken away as they are written: those of a whole video are not held twice.
    both = [(picture.stream, _taken(frames)), (sound.stream, _taken(packets))]
    video = picture.stream
    return Cut(
        members={"mp4": _mux("mp4", both), **apart},
        actual_start=float(first),
        actual_end=float(stop),
        audio_codec=sound.codec,
        source_audio_codec=sound.codec,
        sample_rate=sound.stream.codec_context.sample_rate,
        channels=sound.stream.codec_context.channels,
        frames=count,
        fps=float(video.average_rate or 0),
        width=video.codec_context.width,
        height=video.codec_context.height,
        video_codec=picture.codec,
        av_offset=float(silence),
    )


def _video_packets(track: _Track, start: Fraction, end: Fraction | float) -> list[Any]:
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
    if begin >= end or begin > start + Fraction(END_TOLERANCE):
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the picture begins at {float(begin):.3f} s")
    # Frames that lead an open group of pictures need the one before: they are not shown.
    shown = [packet for packet in packets if packet.pts >= packets[0].pts]
    times = np.array([packet.pts for packet in shown], np.int64)
    until = times.max() + 1 if end == math.inf else math.ceil(end / track.stream.time_base)
    return shown[: closed_length(times, until)]


def _audio_packets(track: _Track, first: Fraction, stop: Fraction | float) -> list[Any]:
    """Return the packets that sound between `first` and `stop` seconds, and their pre-roll."""
    begin = track.ticks(first)
    end = track.ticks(stop) if isinstance(stop, Fraction) else stop
    packets = list(
        itertools.takewhile(
            lambda packet: packet.pts < end, track.packets_from(first - _AUDIO_MARGIN)
        )
    )
    ends = [packet.pts + packet.duration for packet in packets]
    if not ends or ends[-1] <= begin:
        return []
    preroll = track.ticks(_PREROLL.get(track.codec, Fraction(0)))
    return packets[max(0, bisect.bisect_right(ends, begin - preroll) - 1) :]


def _shift(packets: Iterable[Any], offset: int) -> None:
    """Move packets to the time of the clip: earlier by `offset` ticks."""
    for packet in packets:
        packet.pts -= offset
        packet.dts -= offset


def _taken(packets: deque[Any]) -> Iterator[Any]:
    while packets:
        yield packets.popleft()


def _m4a_kind(sound: _Track) -> str:
    """Return ffmpeg's name of the kind of mp4; Apple's own (brand ``M4A``) has no Opus."""
    return "ipod" if sound.codec == "aac" else "mp4"


def _mux(kind: str, tracks: Sequence[tuple[Any, Iterable[Any]]]) -> bytes:
    """Return an mp4 of streams, each with its packets on the time of the clip.

    Edit lists hide what is before time 0.
    """
    buffer = io.BytesIO()
    # Bit-exact: no name of the library and no date, so the same packets give the same bytes. Edit
    # lists count in units of the movie: at the muxer's 1/1000 s they would round the sync.
    options = {"fflags": "+bitexact", "movie_timescale": "90000"}
    with av.open(buffer, "w", format=kind, options=options) as output:
        made = [output.add_stream_from_template(stream) for stream, _ in tracks]
        marked = [
            _of_stream(stream, packets) for stream, (_, packets) in zip(made, tracks, strict=True)
        ]
        for packet in heapq.merge(*marked, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return buffer.getvalue()


def _of_stream(stream: Any, packets: Iterable[Any]) -> Iterator[Any]:
    for packet in packets:
        packet.stream = stream
        yield packet


def _frame_duration(packet: Any, stream: Any) -> Fraction:
    if packet.duration:
        return Fraction(packet.duration * stream.time_base)
    rate = stream.average_rate
    return Fraction(0) if not rate else 1 / Fraction(rate)


# --- sound alone ---------------------------------------------------------------------------------


def _copied(track: _Track, begin: Fraction | None, end: Fraction | None) -> Cut:
    """Return an m4a of the packets of a span."""
    start = Fraction(0) if begin is None else begin
    packets = _audio_packets(track, start, math.inf if end is None else end)
    stop = track.seconds(packets[-1].pts + packets[-1].duration) if packets else None
    _refuse_short(start, stop, end)
    # Where the sound begins later, so does the file: many readers look past an empty edit.
    first = max(start, track.seconds(packets[0].pts))
    _shift(packets, track.ticks(first))
    return Cut(
        members={"m4a": _mux("ipod", [(track.stream, packets)])},
        actual_start=float(first),
        actual_end=float(stop or 0),
        audio_codec=track.codec,
        source_audio_codec=track.codec,
        sample_rate=track.stream.codec_context.sample_rate,
        channels=track.stream.codec_context.channels,
    )


def _refuse_short(start: Fraction, stop: Fraction | None, end: Fraction | None) -> None:
    """Raise if the sound of a span ends (`stop`; None = there is none) too early for it."""
    if stop is None:
        detail = f"no sound between {float(start)} s and "
        detail += "the end" if end is None else f"{float(end)} s"
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, detail)
    if end is not None and stop < end - Fraction(END_TOLERANCE):
        raise ClipError(Outcome.CLIP_OUT_OF_RANGE, f"the sound ends at {float(stop):.3f} s")


@dataclass(frozen=True)
class _Form:
    """What samples look like: container, codec, sample format (ffmpeg's names), Hz and speakers."""

    kind: str
    container: str
    codec: str
    samples: str
    rate: int
    layout: str

    @property
    def channels(self) -> int:
        return int(av.AudioLayout(self.layout).nb_channels)


def _form(kind: str, source: Any, rate: AudioRate) -> _Form:
    """Return the form of a member of `kind` that is made of what `source` (a decoder) gives."""
    hertz = rate.sample_rate or source.sample_rate
    if not hertz:
        raise ClipError(Outcome.CORRUPT, "a stream of sound that tells no rate")
    layout = source.layout.name
    if rate.n_audio_channels is not None or "channels" in layout:
        # The usual places of so many speakers, by ffmpeg's names: some files tell none.
        layout = f"{rate.n_audio_channels or source.layout.nb_channels}c"
    if kind == "m4a":
        known = av.Codec("aac", "w").audio_rates or ()
        return _Form(kind, "ipod", "aac", "flt", hertz if hertz in known else _USUAL_RATE, layout)
    codec = {"flac": "flac", "wav": "pcm_s16le"}[kind]
    return _Form(kind, kind, codec, "s16", hertz, layout)


def _decoded(
    track: _Track, begin: Fraction | None, end: Fraction | None, kind: str, rate: AudioRate
) -> Cut:
    """Return a span of the sound, decoded and put into another form."""
    form = _form(kind, track.stream.codec_context, rate)
    heard = _heard(track, begin or Fraction(0), math.inf if end is None else end)
    first = list(itertools.islice(heard, 1))
    # A whole video begins with its sound.
    start = max([Fraction(0), *(time for time, _ in first)]) if begin is None else begin
    total = sys.maxsize if end is None else round((end - start) * form.rate)
    placed = _placed(itertools.chain(first, heard), start, form)
    data, count = _encoded(form, _filled(placed, form, total))
    stop = start + Fraction(count, form.rate)
    _refuse_short(start, stop if count else None, end)
    return Cut(
        members={kind: data},
        actual_start=float(start),
        actual_end=float(stop),
        audio_codec=form.codec,
        source_audio_codec=track.codec,
        sample_rate=form.rate,
        channels=form.channels,
    )


def _heard(track: _Track, begin: Fraction, end: Fraction | float) -> Iterator[tuple[Fraction, Any]]:
    """Yield the decoded frames of a span (seconds), with their times, and a little around it."""
    packets = track.packets_from(begin - _AUDIO_MARGIN)
    decoded = itertools.chain.from_iterable(packet.decode() for packet in packets)
    due = Fraction(0)
    for frame in itertools.chain(decoded, _last(track.stream.codec_context)):
        # What a decoder has kept to the end may come without a stamp.
        time = due if frame.pts is None else Fraction(frame.pts * frame.time_base)
        due = time + _length(frame)
        # The first one after a seek may lack samples, and be stamped by a guess at how many.
        if due > begin - _REACH:
            yield time, frame
        if time >= end + _REACH:
            return


def _last(decoder: Any) -> Iterator[Any]:
    yield from decoder.decode(None)


def _length(frame: Any) -> Fraction:
    if not frame.sample_rate:
        raise ClipError(Outcome.CORRUPT, "sound without a rate")
    return Fraction(frame.samples, frame.sample_rate)


class _Run:
    """Sound without a gap, on its way to another form."""

    def __init__(self, form: _Form, at: int) -> None:
        self._resampler = av.AudioResampler(form.samples, form.layout, form.rate)
        self._channels = form.channels
        self._at = at

    def feed(self, frame: Any) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield pieces of sound (samples, channels) and their places; None: the last ones."""
        made = self._resampler.resample(frame)
        # Where nothing is to be done, it gives back what it was given, the None at the end too.
        for each in made if frame is not None or made != [None] else ():
            data = each.to_ndarray().reshape(-1, self._channels)
            yield self._at, data
            self._at += len(data)


def _placed(
    frames: Iterable[tuple[Fraction, Any]], start: Fraction, form: _Form
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield pieces of sound in another form, with their places in samples from `start` on.

    Samples are counted on from the stamp of the first; after a gap, or where the form of the source
    changes, from a new one.
    """
    run, expected, known = None, Fraction(0), None
    for time, frame in frames:
        source = (frame.sample_rate, frame.layout.name, frame.format.name)
        if run is None or source != known or abs(time - expected) > _GAP:
            if run is not None:
                yield from run.feed(None)
            run = _Run(form, round((time - start) * form.rate))
            expected, known = time, source
        expected += _length(frame)
        yield from run.feed(frame)
    if run is not None:
        yield from run.feed(None)


def _filled(
    pieces: Iterable[tuple[int, NDArray[Any]]], form: _Form, total: int
) -> Iterator[NDArray[Any]]:
    """Yield the samples 0 to `total` of `pieces`, with silence where there are none before the end.

    Nothing if there is no sound at all.

    Raises
    ------
    ClipError
        ``corrupt`` if there is too much of silence to be true.
    """
    count, silent, heard = 0, 0, False
    for at, data in pieces:
        kept = data[max(0, count - at) : max(0, total - at)]
        heard = heard or len(kept) > 0
        if not heard or at + len(data) <= count:
            continue
        gap = max(0, min(at, total) - count)
        silent += gap
        if silent > _MOST_SILENCE * form.rate:
            raise ClipError(Outcome.CORRUPT, f"more than {_MOST_SILENCE} s without sound")
        for done in range(0, gap, form.rate):
            yield np.zeros((min(form.rate, gap - done), form.channels), data.dtype)
        if len(kept):
            yield kept
        count += gap + len(kept)
        if count >= total:
            return


def _encoded(form: _Form, pieces: Iterable[NDArray[Any]]) -> tuple[bytes, int]:
    """Return a file of samples, and how many there are of each channel."""
    buffer, count = io.BytesIO(), 0
    # Bit-exact, and times of the movie, as in `_mux`.
    options = {"fflags": "+bitexact"}
    if form.container == "ipod":
        options["movie_timescale"] = "90000"
    with av.open(buffer, "w", format=form.container, options=options) as output:
        stream: Any = output.add_stream(form.codec, rate=form.rate, layout=form.layout)
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        if form.codec == "aac":
            stream.bit_rate = _AAC_BITRATE * form.channels
        for data in pieces:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(data).reshape(1, -1), form.samples, form.layout
            )
            frame.sample_rate, frame.time_base = form.rate, Fraction(1, form.rate)
            frame.pts = count
            count += len(data)
            if form.kind == "wav" and count * data.itemsize * form.channels > _WAV_BYTES:
                raise ClipError(Outcome.CLIP_OUT_OF_RANGE, "longer than what a wav can hold")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue(), count
