"""Tell from which frame and sample of a master a clip begins and ends.

The clip is decoded as a player would: edit lists apply, pictures are shown at their presentation
times, the lead-in of the sound is dropped. Each picture says its number by its barcode. The sound
is read in windows of half a second: the frequency says where about in the chirp one is, and the
tone that is left when the chirp of that place is taken away says by how much the guess was off.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np

from acavdl.sandbox.media import (
    CODE_CELLS,
    CODE_ROWS,
    Master,
    MasterSpec,
    code_box,
    read_code,
    sweep,
    tag,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["ClipProbe", "ProbeError", "probe"]

_WINDOW = 0.5  # s of sound that are compared at once
_SHORTEST = 0.1  # s of sound that can be placed at all
_BAND = 80.0  # Hz to each side of the chirp; wider than what it rises by in half a window
_PIECE = 0.08  # s for the first look at the frequency
_STEADY = 1e-3  # s by which the sound may wander in a clip that counts as one piece
_RATE_SLACK = 2e-3  # s by which stamps may be off before they count as a gap; WebM counts in ms


class ProbeError(ValueError):
    """The clip could not be read."""


@dataclass(frozen=True)
class ClipProbe:
    """What a clip shows of its master.

    *Source* times are seconds of the master, *clip* times seconds of the clip's own timeline as a
    player shows it. What cannot be told is None.

    Attributes
    ----------
    has_video, has_audio : bool
        Whether there is such a stream.
    video_codec, audio_codec : str or None
        As ``"h264"``, ``"aac"``.
    width, height : int or None
        Pixels as coded.
    fps : float or None
        Frames per second, from the presentation times.
    sample_rate : int or None
        Hz.
    duration : float
        Seconds until the last frame or sample has been shown.
    frames : int
        Pictures that are shown.
    frame_numbers : tuple of (int or None)
        The number of each in the order in which they are shown; None where no code of this master
        can be read.
    first_frame, last_frame : int or None
        The first and last of these.
    frames_contiguous : bool
        Whether each number follows the one before, and all are read.
    first_frame_time, last_frame_time : float or None
        Clip times at which these frames appear.
    audio_start, audio_end : float or None
        Source time of the first presented sample, and of the end of the last.
    audio_start_time : float or None
        Clip time of the first presented sample.
    audio_steady : bool
        Whether the sound runs through without a cut, gap or drift of more than 1 ms.
    audio_wander : float or None
        Largest deviation of any part of the sound from one straight line, in seconds.
    audio_offset : float or None
        Source time of the sound minus source time of the picture, both as presented at the same
        moment: positive if the sound is ahead, 0 if they are in sync.
    """

    has_video: bool
    has_audio: bool
    video_codec: str | None
    audio_codec: str | None
    width: int | None
    height: int | None
    fps: float | None
    sample_rate: int | None
    duration: float
    frames: int
    frame_numbers: tuple[int | None, ...] = field(repr=False)
    first_frame: int | None
    last_frame: int | None
    frames_contiguous: bool
    first_frame_time: float | None
    last_frame_time: float | None
    audio_start: float | None
    audio_end: float | None
    audio_start_time: float | None
    audio_steady: bool
    audio_wander: float | None
    audio_offset: float | None


# ---------------------------------------------------------------------------------------------
# decoding


@dataclass(frozen=True)
class _Video:
    codec: str
    width: int
    height: int
    numbers: tuple[int | None, ...]
    times: NDArray[np.float64]


@dataclass(frozen=True)
class _Audio:
    codec: str
    rate: int
    start: float  # clip time of the first sample
    samples: NDArray[np.float64]


class _CodeReader:
    """Reads the barcodes of the frames of one stream, whatever was done to their shape."""

    def __init__(self, spec: MasterSpec) -> None:
        self._spec = spec
        self._tag = tag(spec)
        self._grids: dict[tuple[int, int], list[tuple[NDArray[np.intp], NDArray[np.intp]]]] = {}

    def read(self, luma: NDArray[np.uint8]) -> int | None:
        height, width = luma.shape
        if (width, height) not in self._grids:
            places = _places(self._spec, width, height)
            self._grids[width, height] = [_grid(place, width, height) for place in places]
        grids = self._grids[width, height]
        for index, (rows, columns) in enumerate(grids):
            points = luma[rows[:, None], columns[None, :]]
            cells = points.reshape(CODE_ROWS, 3, CODE_CELLS, 3).mean((1, 3))
            found = read_code(cells)
            if found is not None:
                grids.insert(0, grids.pop(index))  # the next frame has it at the same place
                number, owner = found
                return number if owner == self._tag else None
        return None


def _places(
    spec: MasterSpec, width: int, height: int
) -> Iterator[tuple[float, float, float, float]]:
    """Say where the code may be: after scaling, after a central crop, or between bars."""
    left, top, across, down = code_box(spec.width, spec.height)
    x, y = width / spec.width, height / spec.height
    yield left * x, top * y, across * x, down * y
    yield code_box(width, height)
    scale = min(x, y)
    inner = code_box(spec.width * scale, spec.height * scale)
    bars = (width - spec.width * scale) / 2, (height - spec.height * scale) / 2
    yield inner[0] + bars[0], inner[1] + bars[1], inner[2], inner[3]


def _grid(
    place: tuple[float, float, float, float], width: int, height: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose three rows and three columns of pixels around the middle of each cell."""
    left, top, across, down = place
    thirds = np.array([0.3, 0.5, 0.7])

    def pixels(begin: float, length: float, cells: int, end: int) -> NDArray[np.intp]:
        at = begin + length / cells * (np.arange(cells)[:, None] + thirds[None, :]).ravel()
        return np.asarray(np.floor(at).clip(0, end - 1), np.intp)

    return pixels(top, down, CODE_ROWS, height), pixels(left, across, CODE_CELLS, width)


def _time(frame: av.VideoFrame | av.AudioFrame) -> float:
    if frame.pts is None or frame.time_base is None:
        raise ProbeError("a frame without a presentation time")
    return float(frame.pts * frame.time_base)


def _luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    if not frame.format.name.startswith(("yuv4", "yuvj4", "nv12", "gray")) or (
        frame.format.components[0].bits != 8
    ):
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    data = np.frombuffer(cast("Any", plane), np.uint8)
    return data.reshape(-1, plane.line_size)[: frame.height, : frame.width]


def _mono(frame: av.AudioFrame) -> NDArray[np.float64]:
    values = frame.to_ndarray().astype(np.float64)
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    mixed: NDArray[np.float64] = values.mean(0)
    return mixed


def _join(pieces: Sequence[tuple[float, NDArray[np.float64]]], rate: int) -> _Audio | None:
    """Put decoded pieces where their stamps say; small rounding of the stamps is averaged out."""
    if not pieces:
        return None
    runs: list[tuple[float, list[NDArray[np.float64]]]] = []
    expected = -math.inf
    errors: list[list[float]] = []
    for time, samples in pieces:
        if abs(time - expected) > _RATE_SLACK:
            runs.append((time, []))
            errors.append([])
            expected = time
        runs[-1][1].append(samples)
        errors[-1].append(time - expected)
        expected += len(samples) / rate
    starts = [time + float(np.mean(error)) for (time, _), error in zip(runs, errors, strict=True)]
    begin = min(starts)
    at = [round((start - begin) * rate) for start in starts]
    whole = [np.concatenate(parts) for _, parts in runs]
    joined = np.zeros(max(a + len(w) for a, w in zip(at, whole, strict=True)))
    for offset, samples in zip(at, whole, strict=True):
        joined[offset : offset + len(samples)] = samples
    return _Audio("", rate, begin, joined)


def _decode(source: Path | io.BytesIO, spec: MasterSpec) -> tuple[_Video | None, _Audio | None]:
    reader = _CodeReader(spec)
    shown: list[tuple[float, int | None]] = []
    heard: list[tuple[float, NDArray[np.float64]]] = []
    with av.open(source, "r") as container:
        video = next(iter(container.streams.video), None)
        audio = next(iter(container.streams.audio), None)
        streams = [stream for stream in (video, audio) if stream is not None]
        width = height = rate = 0
        for frame in container.decode(streams) if streams else ():
            if isinstance(frame, av.VideoFrame):
                width, height = frame.width, frame.height
                shown.append((_time(frame), reader.read(_luma(frame))))
            elif isinstance(frame, av.AudioFrame):
                rate = frame.sample_rate
                heard.append((_time(frame), _mono(frame)))
        shown.sort(key=lambda item: item[0])
        pictures = sound = None
        if video is not None:
            codec = video.codec_context.codec.canonical_name
            times = np.array([time for time, _ in shown], np.float64)
            pictures = _Video(codec, width, height, tuple(n for _, n in shown), times)
        if audio is not None:
            codec = audio.codec_context.codec.canonical_name
            joined = _join(heard, rate) or _Audio(codec, audio.sample_rate, 0.0, np.zeros(0))
            sound = _Audio(codec, joined.rate, joined.start, joined.samples)
        return pictures, sound


# ---------------------------------------------------------------------------------------------
# sound


def _windows(count: int, rate: int) -> list[tuple[int, int]]:
    """Cut samples into windows; the last one ends with the sound."""
    length = min(count, round(_WINDOW * rate))
    if length < _SHORTEST * rate:
        return []
    starts = [*range(0, count - length, length), count - length]
    return [(start, start + length) for start in starts]


def _chirp_time(spec: MasterSpec, samples: NDArray[np.float64], rate: int) -> float | None:
    """Find the source time (s) of the middle of a window; None if there is no chirp in it."""
    low, rise = sweep(spec)
    count = len(samples)
    middle = (count - 1) / 2
    # where about: the strongest frequency of a short piece in the middle
    half = min(count, round(_PIECE * rate)) // 2
    piece = samples[count // 2 - half : count // 2 + half]
    size = 1 << (4 * len(piece)).bit_length()
    power = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), size))
    frequencies = np.arange(len(power)) * rate / size
    power[(frequencies < low / 2) | (frequencies > 4500.0)] = 0.0
    about = (float(frequencies[np.argmax(power)]) - low) / rise
    # the band around it, moved down to 0 Hz and so sampled at the width of the band
    spectrum = np.fft.rfft(samples * np.hanning(count))
    margin = _BAND + rise * count / rate / 2
    first = max(round((low + rise * about - margin) * count / rate), 1)
    width = min(2 * round(margin * count / rate), len(spectrum) - first)
    band = np.fft.ifft(spectrum[first : first + width])
    times = np.arange(width) * (count / rate / width)
    # take away the chirp as it would be if the guess were right: a tone is left
    source = times - middle / rate + about
    expected = 2 * np.pi * ((low + rise / 2 * source) * source - first * rate / count * times)
    rest = band * np.exp(-1j * expected)
    size = 1 << (64 * width).bit_length()
    line = np.abs(np.fft.fft(rest, size))
    peak = int(np.argmax(line))
    before, at, after = line[peak - 1], line[peak], line[(peak + 1) % size]
    # a tone of a Hann window holds 2/3 of what the energy allows
    if at == 0 or at**2 < 0.4 * width * float(np.sum(np.abs(rest) ** 2)):
        return None
    bend = before - 2 * at + after
    fine = peak + (0.5 * (before - after) / bend if bend else 0.0)
    if fine > size / 2:
        fine -= size
    off = float(fine) * width / size * rate / count
    return about + off / rise


@dataclass(frozen=True)
class _Track:
    """How a track lies on the source: source time = clip time + shift."""

    first: float
    last: float
    shift: float
    wander: float


def _audio_track(
    spec: MasterSpec, audio: _Audio, near: float | None, period: float | None
) -> _Track | None:
    """Place the sound.

    Parameters
    ----------
    near : float or None
        A shift that is about right, to choose among repetitions.
    period : float or None
        Seconds after which the source repeats.
    """
    shifts: list[float] = []
    for start, stop in _windows(len(audio.samples), audio.rate):
        time = _chirp_time(spec, audio.samples[start:stop], audio.rate)
        if time is None:
            continue
        shift = time - audio.start - (start + stop - 1) / 2 / audio.rate
        if period is not None:
            anchor = near if near is not None else shifts[0] if shifts else shift
            shift += period * round((anchor - shift) / period)
        shifts.append(shift)
    if not shifts:
        return None
    middle = float(np.median(shifts))
    wander = max(abs(shift - middle) for shift in shifts)
    if wander <= _STEADY:
        return _Track(middle, middle, middle, wander)
    return _Track(shifts[0], shifts[-1], middle, wander)


# ---------------------------------------------------------------------------------------------
# pictures


def _unwrap(numbers: Iterable[int | None], near: float | None, period: int) -> list[int | None]:
    """Number the frames of a repeated master on, so that they grow with time."""
    result: list[int | None] = []
    anchor = near
    for number in numbers:
        if number is not None:
            around = number if anchor is None else anchor
            anchor = number + period * round((around - number) / period)
            result.append(round(anchor))
        else:
            result.append(None)
    return result


def _video_shift(spec: MasterSpec, video: _Video, numbers: Sequence[int | None]) -> float | None:
    shifts = [
        number / float(spec.fps) - time
        for number, time in zip(numbers, video.times, strict=True)
        if number is not None
    ]
    return float(np.median(shifts)) if shifts else None


def _rate(times: NDArray[np.float64]) -> float | None:
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return float((len(times) - 1) / (times[-1] - times[0]))


def _source(clip: Path | str | bytes) -> Path | io.BytesIO:
    return io.BytesIO(clip) if isinstance(clip, bytes) else Path(clip)


def _open(clip: Path | str | bytes, spec: MasterSpec) -> tuple[_Video | None, _Audio | None]:
    try:
        return _decode(_source(clip), spec)
    except (av.FFmpegError, OSError) as error:
        raise ProbeError(f"cannot read the clip: {error}") from error


def probe(
    clip: Path | str | bytes,
    master: Master | MasterSpec,
    *,
    audio: Path | str | bytes | None = None,
    near: float | None = None,
) -> ClipProbe:
    """Read a clip of a master.

    Parameters
    ----------
    clip : Path, str or bytes
        The file or its content: mp4, WebM or whatever else ffmpeg reads.
    master : Master or MasterSpec
        What it was cut from.
    audio : Path, str or bytes, optional
        A second file with the sound, if the clip has it apart; its timeline begins with the clip's.
    near : float, optional
        For a master that is served stretched (``spec.virtual``): about where the clip begins, in
        seconds of the stretched video. Numbers and source times then count on over the
        repetitions; without it they are those of the first repetition.

    Returns
    -------
    ClipProbe

    Raises
    ------
    ProbeError
        If the clip cannot be opened or decoded.
    """
    spec = master.spec if isinstance(master, Master) else master
    pictures, sound = _open(clip, spec)
    if audio is not None:
        sound = _open(audio, spec)[1]
    numbers: list[int | None] = []
    times = np.zeros(0)
    video_shift = None
    if pictures is not None:
        numbers, times = list(pictures.numbers), pictures.times
        if spec.virtual is not None:
            start = None if near is None else near * float(spec.fps)
            numbers = _unwrap(numbers, start, spec.frames)
        video_shift = _video_shift(spec, pictures, numbers)
    track = None
    sound_end = 0.0
    if sound is not None:
        sound_end = sound.start + len(sound.samples) / sound.rate
        anchor = near if video_shift is None else video_shift
        period = None if spec.virtual is None else spec.duration
        track = _audio_track(spec, sound, anchor, period)
    known = [number for number in numbers if number is not None]
    fps = _rate(times)
    picture_end = float(times[-1]) + 1 / (fps or float(spec.fps)) if len(times) else 0.0
    steps = np.diff(np.array(known))
    return ClipProbe(
        has_video=pictures is not None,
        has_audio=sound is not None,
        video_codec=pictures.codec if pictures else None,
        audio_codec=sound.codec if sound else None,
        width=pictures.width if pictures else None,
        height=pictures.height if pictures else None,
        fps=fps,
        sample_rate=sound.rate if sound else None,
        duration=max(picture_end, sound_end),
        frames=len(numbers),
        frame_numbers=tuple(numbers),
        first_frame=known[0] if known else None,
        last_frame=known[-1] if known else None,
        frames_contiguous=bool(known) and len(known) == len(numbers) and bool(np.all(steps == 1)),
        first_frame_time=float(times[0]) if len(times) else None,
        last_frame_time=float(times[-1]) if len(times) else None,
        audio_start=track.first + sound.start if track and sound else None,
        audio_end=track.last + sound_end if track else None,
        audio_start_time=sound.start if sound and len(sound.samples) else None,
        audio_steady=track is not None and track.wander <= _STEADY,
        audio_wander=track.wander if track else None,
        audio_offset=track.shift - video_shift
        if track is not None and video_shift is not None
        else None,
    )
