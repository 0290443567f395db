"""Real media that tell from which frame and sample a clip of them begins and ends.

The masters are made at first use with the ffmpeg of ``imageio-ffmpeg`` and kept in a cache of the
user. Each frame carries its number as a barcode in its pixels (:func:`frame_code`); the sound is a
chirp that rises over the whole master plus a click at each full second (:func:`sound`). The reader
for both is :mod:`acavdl.sandbox.probe`.

Adaptive files are built as YouTube serves them: ``ftyp``, ``moov``, one ``sidx``, then a ``moof``
and a ``mdat`` for each 5 s of video (one group of pictures) or 10 s of sound (ISO/IEC 14496-12, 8.8
and 8.16).
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acavdl.sandbox.virtual import (
    boxes,
    decode_durations,
    find_box,
    pack_sidx,
    parse_sidx,
    with_mehd,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "CLICK_HZ",
    "CODE_CELLS",
    "CODE_ROWS",
    "DEMO_MASTERS",
    "Master",
    "MasterSpec",
    "MediaError",
    "Rendition",
    "Timeline",
    "cache_dir",
    "code_box",
    "frame_code",
    "make_masters",
    "read_code",
    "sound",
    "sweep",
    "tag",
]

_log = logging.getLogger(__name__)

VERSION = 1
"""Part of the cache key: raise it whenever the media come out differently."""

TIMEOUT = 300.0
"""Seconds after which one call of ffmpeg is given up."""


class MediaError(RuntimeError):
    """A master could not be made."""


class Timeline(StrEnum):
    """How an adaptive mp4 says that its first sample is presented at 0.

    Encoders need lead-in: B-frames are shown later than they are decoded, and AAC begins with a
    frame that only primes the decoder. Both ways below are found in the wild.
    """

    EDIT_LIST = "edit-list"
    """An ``elst`` in ``moov`` hides the lead-in (8.6.6)."""
    NONE = "none"
    """No ``elst``: negative composition offsets for B-frames (``trun`` version 1, 8.8.8), which
    players show late by one frame; the sound begins one AAC frame into the source, so that source
    time and timeline agree from the second frame on."""


@dataclass(frozen=True)
class Rendition:
    """One file of a master.

    Attributes
    ----------
    itag : int
        YouTube's number of the format.
    path : Path
        The file in the cache.
    mime, codecs : str
        As ``"video/mp4"`` and ``"avc1.4D401E"`` (RFC 6381).
    size : int
        Bytes.
    duration : float
        Seconds.
    bitrate : int
        Average, bit/s.
    width, height : int or None
        Pixels; None without video.
    fps : Fraction or None
        Frames per second; None without video.
    sample_rate, channels : int or None
        Hz and count; None without sound.
    init_range, index_range : tuple of int, or None
        First and last byte (inclusive) of ``ftyp`` with ``moov``, and of the ``sidx``; None unless
        it is an adaptive mp4.
    """

    itag: int
    path: Path
    mime: str
    codecs: str
    size: int
    duration: float
    bitrate: int
    width: int | None
    height: int | None
    fps: Fraction | None
    sample_rate: int | None
    channels: int | None
    init_range: tuple[int, int] | None
    index_range: tuple[int, int] | None


@dataclass(frozen=True)
class MasterSpec:
    """What to make.

    Attributes
    ----------
    code : str
        2 to 4 characters of ``[a-z0-9]``; the prefix of video ids.
    duration : float
        Seconds, a whole number of frames.
    fps : Fraction
        Frames per second.
    itags : tuple of int
        YouTube's numbers of the formats to make, see :data:`FORMATS`.
    gop_seconds : float
        Seconds from keyframe to keyframe.
    width, height : int
        Pixels of the 360p rendition; the shorter side should be 360.
    b_frames : int
        Frames between two reference frames, 0 for none.
    irregular : bool
        Whether groups of pictures are shorter and longer by turns (the mean is `gop_seconds`).
    timeline : Timeline
        How the adaptive mp4 files say what comes first.
    virtual : float or None
        Seconds to which the origin stretches the files, see
        :func:`acavdl.sandbox.virtual.stretched_body`. All renditions must last exactly `duration`,
        so that all repeat in step; :func:`make_masters` sees to that.
    audio_fragment : float
        Seconds of sound in one fragment.
    """

    code: str
    duration: float
    fps: Fraction
    itags: tuple[int, ...]
    gop_seconds: float = 5.0
    width: int = 640
    height: int = 360
    b_frames: int = 0
    irregular: bool = False
    timeline: Timeline = Timeline.EDIT_LIST
    virtual: float | None = None
    audio_fragment: float = 10.0

    @property
    def frames(self) -> int:
        """Number of frames."""
        return round(self.duration * self.fps)


@dataclass(frozen=True)
class Master:
    """A made master.

    Attributes
    ----------
    spec : MasterSpec
        What was asked for.
    renditions : tuple of Rendition
        In the order of ``spec.itags``.
    """

    spec: MasterSpec
    renditions: tuple[Rendition, ...]

    def rendition(self, itag: int) -> Rendition:
        """Give the rendition of an itag.

        Raises
        ------
        KeyError
            If it was not asked for.
        """
        for rendition in self.renditions:
            if rendition.itag == itag:
                return rendition
        raise KeyError(itag)


@dataclass(frozen=True)
class _Format:
    mime: str
    video: tuple[str, ...] = ()  # encoder and its arguments
    side: int = 0  # pixels of the shorter side
    audio: tuple[str, ...] = ()
    sample_rate: int = 0
    channels: int = 0

    @property
    def mp4(self) -> bool:
        return self.mime.endswith("mp4")


def _x264(bitrate: str, crf: int) -> tuple[str, ...]:
    # ultrafast is what costs least; CABAC and B-frames come on top, as YouTube's files have them
    options = "cabac=1:threads=1:lookahead_threads=1:scenecut=0"
    limit = ("-maxrate", bitrate, "-bufsize", bitrate)
    return ("libx264", "-preset", "ultrafast", "-crf", str(crf), *limit, "-x264-params", options)


_VP9 = ("libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "350k")


def _aac(bitrate: str) -> tuple[str, ...]:
    # no noise substitution or other tools that change the waveform; what is left is also cheaper
    tools = ("-aac_pns", "0", "-aac_tns", "0", "-aac_is", "0", "-aac_ms", "0")
    return ("aac", "-b:a", bitrate, "-aac_coder", "fast", *tools)


_OPUS = ("libopus", "-b:a", "96k", "-compression_level", "0")

FORMATS: dict[int, _Format] = {
    133: _Format("video/mp4", _x264("400k", 24), 240),
    134: _Format("video/mp4", _x264("900k", 21), 360),
    135: _Format("video/mp4", _x264("1500k", 23), 480),
    243: _Format("video/webm", _VP9, 360),
    139: _Format("audio/mp4", audio=_aac("48k"), sample_rate=22_050, channels=2),
    140: _Format("audio/mp4", audio=_aac("128k"), sample_rate=44_100, channels=2),
    251: _Format("audio/webm", audio=_OPUS, sample_rate=48_000, channels=2),
    18: _Format("video/mp4", _x264("900k", 21), 360, _aac("128k"), 44_100, 2),
}
"""The formats that can be made, by YouTube's itag."""

DEMO_MASTERS: tuple[MasterSpec, ...] = (
    MasterSpec("m30", 40.0, Fraction(30), (133, 134, 139, 140, 251, 18), b_frames=2),
    MasterSpec("m25", 60.0, Fraction(25), (134, 140, 18), irregular=True),
    MasterSpec(
        "ntsc",
        20.02,
        Fraction(30_000, 1001),
        (134, 140, 251),
        gop_seconds=5.005,
        b_frames=2,
        timeline=Timeline.NONE,
    ),
    MasterSpec("m24", 25.0, Fraction(24), (134, 139, 140, 18), width=480, b_frames=1),
    MasterSpec("m60", 12.0, Fraction(60), (134, 140, 251)),
    MasterSpec("webm", 9.0, Fraction(30), (243, 251)),
    MasterSpec("prog", 12.0, Fraction(30), (18,), b_frames=2),
    MasterSpec("port", 10.0, Fraction(30), (133, 134, 135, 140), width=360, height=640),
    # 10.24 s are both 256 frames at 25 fps and 441 AAC frames of 1,024 samples at 44.1 kHz: the
    # repetitions of picture and sound last exactly as long as each other
    MasterSpec(
        "h3",
        20.48,
        Fraction(25),
        (134, 140),
        gop_seconds=5.12,
        timeline=Timeline.NONE,
        virtual=10_800.0,
        audio_fragment=10.24,
    ),
)
"""What the demo and the tests use."""


# ---------------------------------------------------------------------------------------------
# the barcode

CODE_CELLS = 20  # in a row
CODE_ROWS = 2
_CELL = 2 / 45  # width and height of a cell, in shorter sides of the picture (16 of 360 pixels)
_CENTRE = 0.36  # of the code, in shorter sides below the middle of the picture
_SYNC = 0b1011  # first four cells: say black from white, and code from picture


def tag(spec: MasterSpec) -> int:
    """Give the number (8 bits) of a master that its frames carry."""
    return binascii.crc32(spec.code.encode("ascii")) & 0xFF


def frame_code(number: int, master_tag: int) -> NDArray[np.bool_]:
    """Make the barcode of a frame.

    Parameters
    ----------
    number : int
        Frame number, 0 to 2**20 - 1.
    master_tag : int
        See :func:`tag`.

    Returns
    -------
    array of bool, shape (CODE_ROWS, CODE_CELLS)
        True is white. From the upper left: 4 cells 1011, 20 of the number, 8 of the tag, 8 of a
        checksum (the low byte of CRC-32 over the other bits); high bits first.

    Raises
    ------
    ValueError
        If the number does not fit.
    """
    if not 0 <= number < 1 << 20:
        raise ValueError(f"frame {number} does not fit into 20 bits")
    content = number << 8 | master_tag
    word = _SYNC << 36 | content << 8 | binascii.crc32(content.to_bytes(4, "big")) & 0xFF
    bits = np.frombuffer(word.to_bytes(5, "big"), np.uint8)
    return np.unpackbits(bits).astype(np.bool_).reshape(CODE_ROWS, CODE_CELLS)


def read_code(cells: NDArray[Any]) -> tuple[int, int] | None:
    """Read a barcode.

    Parameters
    ----------
    cells : array of float, shape (CODE_ROWS, CODE_CELLS)
        Brightness of each cell.

    Returns
    -------
    tuple of int, or None
        Frame number and tag of the master; None if this is no code.
    """
    values = np.asarray(cells, np.float64).ravel()
    white, black = (values[0] + values[2] + values[3]) / 3, values[1]
    if white - black < 40:  # of 219 steps between black and white
        return None
    bits = np.packbits(values > (white + black) / 2)
    word = int.from_bytes(bits.tobytes(), "big")
    content = word >> 8 & (1 << 28) - 1
    if word >> 36 != _SYNC or binascii.crc32(content.to_bytes(4, "big")) & 0xFF != word & 0xFF:
        return None
    return content >> 8, content & 0xFF


def code_box(width: float, height: float) -> tuple[float, float, float, float]:
    """Give the place of the barcode in a picture: left, top, width and height in pixels.

    It lies within the central square, so that a crop to that square leaves it whole.
    """
    side = min(width, height)
    across, down = CODE_CELLS * _CELL * side, CODE_ROWS * _CELL * side
    return (width - across) / 2, height / 2 + _CENTRE * side - down / 2, across, down


# ---------------------------------------------------------------------------------------------
# pictures

_FONT = {  # 3 x 5 dots, one digit (0-7) for each row
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717",
    "6": "74757", "7": "71111", "8": "75757", "9": "75717", ":": "02020", ".": "00002",
}  # fmt: skip


def _enlarge(dots: NDArray[Any], scale: int) -> NDArray[Any]:
    """Make each dot a square of `scale` pixels."""
    return dots.repeat(scale, 0).repeat(scale, 1)


@cache
def _glyph(character: str, scale: int) -> NDArray[np.bool_]:
    rows = [[dot == "1" for dot in f"{int(row):03b}0"] for row in _FONT[character]]
    return _enlarge(np.array(rows), scale)


def _text(text: str, scale: int) -> NDArray[np.bool_]:
    """Set digits in dots of `scale` pixels."""
    return np.concatenate([_glyph(character, scale) for character in text], 1)


@dataclass(frozen=True)
class _Picture:
    """A frame in planar YUV 4:2:0, 8 bit, limited range."""

    data: NDArray[np.uint8]
    luma: NDArray[np.uint8]
    blue: NDArray[np.uint8]
    red: NDArray[np.uint8]


def _picture(width: int, height: int) -> _Picture:
    data = np.empty(width * height * 3 // 2, np.uint8)
    pixels, quarter = width * height, width * height // 4
    half = (height // 2, width // 2)
    return _Picture(
        data=data,
        luma=data[:pixels].reshape(height, width),
        blue=data[pixels : pixels + quarter].reshape(half),
        red=data[pixels + quarter :].reshape(half),
    )


def _scenery(width: int, height: int, master_tag: int) -> _Picture:
    """Paint what glides past: twice as wide as the picture, and the same in both halves."""
    hue = 2 * np.pi * master_tag / 256
    x = 2 * np.pi * np.arange(width)[None, :] / width
    y = np.arange(height)[:, None] / height
    luma = 105 + 35 * np.sin(x + 3 * y) + 25 * np.cos(2 * x - 5 * y) - 20 * y
    # a little grain, from a generator whose numbers are the same everywhere
    grain = np.random.PCG64(master_tag).random_raw(luma.size // 8).view(np.uint8)
    luma += (grain.reshape(luma.shape).astype(np.float64) - 127.5) / 40
    blue = 128 + 45 * np.sin(x + hue + 2 * y)
    red = 128 + 45 * np.cos(x + hue - 2 * y)
    wide = _picture(2 * width, height)
    wide.luma[:] = np.tile(luma, 2).clip(16, 235)
    wide.blue[:] = np.tile(blue[::2, ::2], 2)
    wide.red[:] = np.tile(red[::2, ::2], 2)
    return wide


@cache
def _dial(radius: int, steps: int) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Paint a clock hand in each of its positions: a mask and (steps, size, size) of luma."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(x, y)
    disc = distance <= radius
    turn = (np.arctan2(x, -y) / (2 * np.pi)) % 1.0  # 0 at the top, clockwise
    rim = distance > 0.88 * radius
    faces = np.empty((steps, *disc.shape), np.uint8)
    for step in range(steps):
        swept = (turn <= step / steps) & (distance < 0.8 * radius)
        faces[step] = np.where(rim, 225, np.where(swept, 190, 50))
    return disc, faces


def _glide(picture: _Picture, wide: _Picture, gone: int) -> None:
    """Show the scenery after `gone` pixels (even) have passed."""
    width = picture.luma.shape[1]
    picture.luma[:] = wide.luma[:, gone : gone + width]
    picture.blue[:] = wide.blue[:, gone // 2 : (gone + width) // 2]
    picture.red[:] = wide.red[:, gone // 2 : (gone + width) // 2]


def _stamp(picture: _Picture, number: int, master_tag: int) -> None:
    """Paint the barcode on a grey panel."""
    height, width = picture.luma.shape
    left, top, across, down = (round(v) for v in code_box(width, height))
    margin = across // CODE_CELLS // 4
    rows = slice(top - margin, top + down + margin)
    columns = slice(left - margin, left + across + margin)
    picture.luma[rows, columns] = 60
    for plane in (picture.blue, picture.red):
        plane[rows.start // 2 : rows.stop // 2, columns.start // 2 : columns.stop // 2] = 128
    cells = np.where(frame_code(number, master_tag), np.uint8(235), np.uint8(16))
    code = _enlarge(cells, across // CODE_CELLS)
    picture.luma[top : top + code.shape[0], left : left + code.shape[1]] = code


def _pictures(spec: MasterSpec) -> Iterator[NDArray[np.uint8]]:
    """Paint the frames of a master, each as the bytes of planar YUV 4:2:0.

    Scenery glides past, a dial turns once a second, the source time stands below it, and below
    that the barcode. The array is the same each time.
    """
    width, height = spec.width, spec.height
    side = min(width, height)
    wide = _scenery(width, height, tag(spec))
    picture = _picture(width, height)
    steps, radius, scale = round(spec.fps), side // 5, side // 90
    disc, faces = _dial(radius, steps)
    top, left = height // 2 - side // 8 - radius, width // 2 - radius
    window = slice(top, top + 2 * radius + 1), slice(left, left + 2 * radius + 1)
    below = top + 2 * radius + 2 * scale
    for number in range(spec.frames):
        _glide(picture, wide, 2 * number % width)
        np.copyto(picture.luma[window], faces[number % steps], where=disc)
        seconds, rest = divmod(number, steps)
        text = _text(f"{seconds // 60}:{seconds % 60:02d}.{rest:02d}", scale)
        column = (width - text.shape[1]) // 2
        space = picture.luma[below : below + text.shape[0], column : column + text.shape[1]]
        np.copyto(space, np.uint8(235), where=text)
        _stamp(picture, number, tag(spec))
        yield picture.data


# ---------------------------------------------------------------------------------------------
# sound

_LOW, _HIGH = 220.0, 3520.0  # Hz: four octaves
CLICK_HZ = 6000.0
"""Frequency of the clicks (Hz), above all of the chirp."""


def sweep(spec: MasterSpec) -> tuple[float, float]:
    """Give the frequency of the chirp at source time 0 (Hz) and its rise (Hz/s)."""
    return _LOW, (_HIGH - _LOW) / spec.duration


def sound(spec: MasterSpec, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the sound of a master at any source time.

    Parameters
    ----------
    spec : MasterSpec
        The master; its duration decides how fast the chirp rises.
    times : array of float
        Source times in seconds.

    Returns
    -------
    array of float
        ``0.35 sin(2 pi (f0 t + r t^2 / 2)) + 0.5 exp(-u / 0.002) sin(2 pi 6000 u)`` with `f0` and
        `r` of :func:`sweep` and `u` the time since the last full second; silence before 0.
    """
    low, rise = sweep(spec)
    since = times % 1.0
    chirp = np.sin(2 * np.pi * (low + rise / 2 * times) * times)
    value = 0.35 * chirp
    near = since < 0.02
    value[near] += 0.5 * np.exp(-since[near] / 0.002) * np.sin(2 * np.pi * CLICK_HZ * since[near])
    value[times < 0] = 0.0
    return value


def _samples(spec: MasterSpec, start: int, stop: int, form: _Format) -> NDArray[np.int16]:
    """Give the samples `start` to `stop` as 16 bit PCM, all channels the same."""
    times = np.arange(start, stop, dtype=np.float64) / form.sample_rate
    mono = np.rint(32767 * sound(spec, times)).astype(np.int16)
    return np.repeat(mono, form.channels)


# ---------------------------------------------------------------------------------------------
# ffmpeg


def _ffmpeg() -> str:
    import imageio_ffmpeg  # here, for it looks for its program when asked

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _pour(process: subprocess.Popen[bytes], feed: Iterable[NDArray[Any]]) -> None:
    """Write to a process and close its input, also if it ends early; its exit code says why."""
    if process.stdin is None:
        return
    try:
        with contextlib.suppress(BrokenPipeError):
            for piece in feed:
                process.stdin.write(piece.data)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _run(arguments: Sequence[str], feed: Iterable[NDArray[Any]] = ()) -> None:
    """Run ffmpeg, feeding it raw media.

    Raises
    ------
    MediaError
        If it fails or takes longer than `TIMEOUT`; with the end of what it said.
    """
    command = [_ffmpeg(), "-hide_banner", "-nostdin", "-loglevel", "error", "-y", *arguments]
    _log.debug("running %s", command)
    late = threading.Event()
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
    ):

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(TIMEOUT, stop)
        timer.start()
        try:
            _pour(process, feed)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        if late.is_set():
            raise MediaError(f"ffmpeg took longer than {TIMEOUT:.0f} s")
        if code:
            said.seek(0)
            words = said.read().decode("utf-8", "replace").strip()[-2000:]
            raise MediaError(f"ffmpeg ended with code {code}: {words}")


_BITEXACT = ("-fflags", "+bitexact", "-flags", "+bitexact", "-map_metadata", "-1", "-threads", "1")


def _container(form: _Format, spec: MasterSpec) -> tuple[str, ...]:
    if not form.mp4:
        limit = 10_000 if form.audio else 5_000  # ms of one cluster
        return ("-f", "webm", "-cues_to_front", "1", "-cluster_time_limit", str(limit))
    flags = "+dash+global_sidx+default_base_moof"
    if form.video:
        flags += "+frag_keyframe"
    if spec.timeline is Timeline.EDIT_LIST:
        flags += "+delay_moov"
    else:
        flags += "+empty_moov+negative_cts_offsets"
    fragment = () if form.video else ("-frag_duration", str(round(spec.audio_fragment * 1e6)))
    return ("-f", "mp4", "-movflags", flags, *fragment)


def keyframes(spec: MasterSpec) -> tuple[int, ...]:
    """Give the numbers of the frames that begin a group of pictures."""
    gop = spec.gop_seconds * spec.fps
    if not spec.irregular:
        return tuple(range(0, spec.frames, round(gop)))
    lengths = (0.6, 1.4, 0.3, 1.0, 1.7)  # times the mean, which is 1
    numbers, at = [], Fraction(0)
    while round(at) < spec.frames:
        numbers.append(round(at))
        at += Fraction(gop) * Fraction(lengths[(len(numbers) - 1) % len(lengths)])
    return tuple(numbers)


def _size(spec: MasterSpec, side: int) -> tuple[int, int]:
    """Scale a picture to a shorter side, to even numbers as YouTube does (426 x 240)."""
    shorter = min(spec.width, spec.height)
    return (
        2 * round(spec.width * side / shorter / 2),
        2 * round(spec.height * side / shorter / 2),
    )


def _encode_video(spec: MasterSpec, itags: Sequence[int], folder: Path) -> None:
    """Encode all video renditions from one run of the painter."""
    source = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", f"{spec.width}x{spec.height}"]
    arguments = [*source, "-r", str(spec.fps), "-i", "pipe:0"]
    # half a frame early, for ffmpeg compares times
    forced = ",".join(f"{float((n - Fraction(1, 2)) / spec.fps):.6f}" for n in keyframes(spec)[1:])
    for itag in itags:
        form = FORMATS[itag]
        size = _size(spec, form.side)
        scale = () if size == (spec.width, spec.height) else ("-s", f"{size[0]}x{size[1]}")
        gop = ("-g", str(spec.frames + 1), "-force_key_frames", forced or "0")
        bframes = ("-bf", str(spec.b_frames)) if form.mp4 else ()
        arguments += ["-map", "0:v", *scale, "-sws_flags", "bilinear", "-c:v", *form.video]
        arguments += [*gop, *bframes, *_BITEXACT, *_container(form, spec)]
        arguments.append(str(folder / _name(itag)))
    _run(arguments, _pictures(spec))


def _encode_audio(spec: MasterSpec, itag: int, folder: Path) -> None:
    form = FORMATS[itag]
    rate = form.sample_rate
    start, stop = 0, round(spec.duration * rate)
    if form.mp4 and spec.timeline is Timeline.NONE:
        start = 1024  # the priming frame of AAC takes the place of what is left out here
    arguments = ["-f", "s16le", "-ar", str(rate), "-ac", str(form.channels), "-i", "pipe:0"]
    arguments += ["-c:a", *form.audio, *_BITEXACT, *_container(form, spec)]
    arguments.append(str(folder / _name(itag)))
    _run(arguments, [_samples(spec, start, stop, form)])


def _progressive(spec: MasterSpec, folder: Path) -> None:
    """Put the 360p video and the sound into one file with ``moov`` at the front."""
    arguments = ["-i", str(folder / _name(134)), "-i", str(folder / _name(140))]
    arguments += ["-map", "0:v", "-map", "1:a", "-c", "copy", *_BITEXACT]
    arguments += ["-f", "mp4", "-movflags", "+faststart", str(folder / _name(18))]
    _run(arguments)


# ---------------------------------------------------------------------------------------------
# files


def _name(itag: int) -> str:
    form = FORMATS[itag]
    extension = "webm" if not form.mp4 else "mp4" if form.video else "m4a"
    return f"{itag}.{extension}"


def _finish_adaptive(path: Path, timeline: Timeline) -> None:
    """Make the mp4 that ffmpeg wrote into one as YouTube serves it.

    The ``mfra`` at the end is cut, ``moov`` says how long the movie is, and without an edit list
    the ``sidx`` agrees with the decode times: ffmpeg leaves out the priming of AAC even if nothing
    hides it.
    """
    data = path.read_bytes()
    places = list(boxes(data))
    kinds = [box.kind for box in places]
    if kinds[:3] != [b"ftyp", b"moov", b"sidx"] or kinds[-1] != b"mfra":
        raise MediaError(f"{path.name}: unexpected boxes {kinds}")
    moov, sidx = places[1], places[2]
    index = parse_sidx(data, sidx)
    if timeline is Timeline.NONE:
        index = replace(index, durations=decode_durations(data, sidx.stop, index))
    duration = Fraction(sum(index.durations), index.timescale)
    head = data[: moov.start], with_mehd(data[moov.start : moov.stop], duration), pack_sidx(index)
    path.write_bytes(b"".join((*head, data[sidx.stop : places[-1].start])))


def _period(path: Path) -> Fraction:
    """Tell how long (s) one repetition of an adaptive mp4 lasts."""
    data = path.read_bytes()
    sidx = find_box(data, "sidx")
    index = parse_sidx(data, sidx)
    return Fraction(sum(decode_durations(data, sidx.stop, index)), index.timescale)


def _codecs(form: _Format, data: bytes) -> str:
    """Name the codecs as RFC 6381 does."""
    names = []
    if form.video:
        names.append("vp9")
        if form.mp4:
            at = data.index(b"avcC")  # configurationVersion, then profile, flags, level
            names = [f"avc1.{data[at + 5 : at + 8].hex().upper()}"]
    if form.audio:
        names.append("mp4a.40.2" if form.mp4 else "opus")
    return ", ".join(names)


def _rendition(spec: MasterSpec, itag: int, folder: Path) -> Rendition:
    form = FORMATS[itag]
    path = folder / _name(itag)
    data = path.read_bytes()
    duration = Fraction(spec.frames) / spec.fps if form.video else Fraction(spec.duration)
    init_range = index_range = None
    if form.mp4 and not (form.video and form.audio):
        sidx = find_box(data, "sidx")
        index = parse_sidx(data, sidx)
        duration = Fraction(sum(index.durations), index.timescale)
        init_range, index_range = (0, sidx.start - 1), (sidx.start, sidx.stop - 1)
    width, height = _size(spec, form.side) if form.video else (None, None)
    return Rendition(
        itag=itag,
        path=path,
        mime=form.mime,
        codecs=_codecs(form, data),
        size=len(data),
        duration=float(duration),
        bitrate=round(8 * len(data) / duration),
        width=width,
        height=height,
        fps=spec.fps if form.video else None,
        sample_rate=form.sample_rate or None,
        channels=form.channels or None,
        init_range=init_range,
        index_range=index_range,
    )


def _dump(renditions: Iterable[Rendition]) -> str:
    rows = []
    for rendition in renditions:
        row = asdict(replace(rendition, path=Path(rendition.path.name)))
        row["path"] = rendition.path.name
        row["fps"] = None if rendition.fps is None else str(rendition.fps)
        rows.append(row)
    return json.dumps(rows, indent=1)


def _load(folder: Path) -> tuple[Rendition, ...] | None:
    """Read what an earlier run made; None if there is nothing whole."""
    try:
        rows = json.loads((folder / "master.json").read_text("utf-8"))
        for row in rows:
            row["path"] = folder / row["path"]
            row["fps"] = None if row["fps"] is None else Fraction(row["fps"])
            for key in ("init_range", "index_range"):
                row[key] = None if row[key] is None else tuple(row[key])
            if row["path"].stat().st_size != row["size"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(Rendition(**row) for row in rows)


def cache_dir() -> Path:
    """Give the folder for masters.

    ``$ACAVDL_CACHE``, or ``$XDG_CACHE_HOME/acavdl/sandbox``, or ``~/.cache/acavdl/sandbox``.
    """
    own = os.environ.get("ACAVDL_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "acavdl" / "sandbox"


def _key(spec: MasterSpec) -> str:
    """Name a master by all that decides its bytes."""
    needed = {itag: FORMATS[itag] for itag in spec.itags}
    text = repr((VERSION, spec, needed, Path(_ffmpeg()).name))
    return f"{spec.code}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _make(spec: MasterSpec, folder: Path) -> None:
    wanted = set(spec.itags)
    if 18 in wanted:
        wanted |= {134, 140}
        wanted.discard(18)
    videos = sorted(itag for itag in wanted if FORMATS[itag].video)
    sounds = sorted(itag for itag in wanted if FORMATS[itag].audio)
    if videos:
        _encode_video(spec, videos, folder)
    for itag in sounds:
        _encode_audio(spec, itag, folder)
    if 18 in spec.itags:
        _progressive(spec, folder)
    for itag in wanted:
        if FORMATS[itag].mp4:
            _finish_adaptive(folder / _name(itag), spec.timeline)
    for itag in wanted - set(spec.itags):
        (folder / _name(itag)).unlink()
    renditions = [_rendition(spec, itag, folder) for itag in spec.itags]
    if spec.virtual is not None:
        periods = {itag: float(_period(folder / _name(itag))) for itag in spec.itags}
        if set(periods.values()) != {spec.duration}:
            raise MediaError(f"{spec.code}: tracks that repeat must last the same: {periods}")
    (folder / "master.json").write_text(_dump(renditions), "utf-8")


def _make_cached(spec: MasterSpec, root: Path) -> Master:
    folder = root / _key(spec)
    renditions = _load(folder)
    if renditions is None:
        root.mkdir(parents=True, exist_ok=True)
        _log.info("making master %s (%g s) in %s", spec.code, spec.duration, folder)
        with tempfile.TemporaryDirectory(prefix=f".{spec.code}-", dir=root) as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            _make(spec, made)
            if folder.exists() and _load(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)  # damaged
            # another process may have been first, and then its files are as good
            with contextlib.suppress(OSError):
                made.replace(folder)
        renditions = _load(folder)
        if renditions is None:
            raise MediaError(f"could not write {folder}")
    return Master(spec, renditions)


def make_masters(specs: Sequence[MasterSpec], cache: Path | None = None) -> dict[str, Master]:
    """Make masters, or take them from the cache.

    Two processes may do so at once: files are made aside and moved into place in one step.

    Parameters
    ----------
    specs : sequence of MasterSpec
        What to make; the codes must differ.
    cache : Path, optional
        Folder; by default that of :func:`cache_dir`.

    Returns
    -------
    dict of str to Master
        By code.

    Raises
    ------
    MediaError
        If ffmpeg fails, or takes longer than :data:`TIMEOUT`.
    OSError
        If the folder cannot be written.
    ValueError
        If two specs have the same code, or a format is unknown.
    """
    codes = [spec.code for spec in specs]
    if len(set(codes)) != len(codes):
        raise ValueError(f"codes occur twice: {codes}")
    unknown = {itag for spec in specs for itag in spec.itags} - FORMATS.keys()
    if unknown:
        raise ValueError(f"unknown itags {sorted(unknown)}")
    root = cache_dir() if cache is None else cache
    # ffmpeg works in processes of its own; two are what a small machine has room for
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(codes, pool.map(lambda spec: _make_cached(spec, root), specs), strict=True))
