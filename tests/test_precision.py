"""How exact cuts are, by `precision`: read from the pixels and the sound, with three decoders."""

from __future__ import annotations

import bisect
import io
import itertools
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from math import ceil, floor
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from acavdl.cut import CutForm, cut_chosen, cut_files
from acavdl.errors import ClipError, Outcome
from acavdl.media import File, LocalFile, Media
from acavdl.models import Cut
from acavdl.mp4 import Want
from acavdl.pick import choose_clips
from acavdl.sandbox.media import (
    CODE_CELLS,
    CODE_ROWS,
    DEMO_MASTERS,
    Master,
    MasterSpec,
    Timeline,
    code_box,
    keyframes,
    make_masters,
    read_code,
)
from acavdl.sandbox.probe import ClipProbe, probe
from acavdl.sandbox.virtual import stretched_body

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
PRECISIONS = ("low", "editlist", "keyframe_adjusted", "exact")
MILLISECOND = Fraction(1, 1000)
#: Seconds by which picture and sound may be apart; WebM stamps both in whole milliseconds.
IN_SYNC, IN_SYNC_WEBM = 0.0005, 0.0015


@dataclass(frozen=True)
class Case:
    """Files that picture and sound come from, by itag; `virtual`: stretched to hours."""

    code: str
    pair: tuple[int, ...]
    virtual: bool = False

    @property
    def spec(self) -> MasterSpec:
        return SPECS[self.code]

    @property
    def duration(self) -> Fraction:
        """Seconds that random clips are taken of."""
        seconds = self.spec.virtual if self.virtual else self.spec.duration
        return Fraction(seconds or 0).limit_denominator(1000)

    @property
    def length(self) -> Fraction:
        """Seconds of a random clip."""
        return Fraction(10 if self.duration >= 20 else 3)

    @property
    def in_sync(self) -> float:
        return IN_SYNC_WEBM if 251 in self.pair else IN_SYNC

    def time(self, frame: int) -> Fraction:
        """Seconds at which a frame is shown."""
        time = frame / self.spec.fps
        return round(time * 1000) * MILLISECOND if 243 in self.pair else time

    def frame(self, seconds: Fraction) -> int:
        """Return the number of the frame that is shown then."""
        return (
            bisect.bisect_right(range(ceil((seconds + 1) * self.spec.fps)), seconds, key=self.time)
            - 1
        )

    def keyframes(self, start: Fraction, end: Fraction) -> list[int]:
        """Return the keyframes from `start` to `end`, both included."""
        repeated = self.spec.frames if self.virtual else 0
        last = floor(end * self.spec.fps) // self.spec.frames if self.virtual else 0
        found = [
            number * repeated + frame
            for number in range(last + 1)
            for frame in keyframes(self.spec)
        ]
        return [frame for frame in found if start <= self.time(frame) <= end]

    def __str__(self) -> str:
        return f"{self.code}-{'+'.join(map(str, self.pair))}{'-3h' if self.virtual else ''}"


PAIRS = ((134, 140), (18,), (134, 139), (134, 251), (243, 251))
CASES = [
    Case(spec.code, pair) for spec in DEMO_MASTERS for pair in PAIRS if set(pair) <= set(spec.itags)
]
HOURS = Case("h3", (134, 140), virtual=True)
ALL = [*CASES, HOURS]
#: One of each rate of frames, container and way.
SOME = [
    case
    for case in ALL
    if case.pair != (134, 139)
    and str(case) not in ("m25-18", "m24-18", "m30-134+251", "ntsc-134+251", "h3-134+140")
]


@cache
def master(code: str) -> Master:
    return make_masters([SPECS[code]])[code]


@dataclass
class VirtualFile:
    """A file of hours, of which parts are composed when they are read; counts what is loaded."""

    itag: int
    loaded: int = 0
    size: int = field(init=False)

    def __post_init__(self) -> None:
        rendition = master(HOURS.code).rendition(self.itag)
        self._body = stretched_body(rendition, float(HOURS.duration))
        self.size = self._body.size

    def load(self, wants: Sequence[Want]) -> None:
        self.loaded += sum(min(want.stop, self.size) - want.start for want in wants)

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self._body.read(start, min(stop, self.size)))

    def release(self) -> None:
        pass


def paths(case: Case) -> list[Path]:
    return [master(case.code).rendition(itag).path for itag in case.pair]


def cut(case: Case, start: Fraction, end: Fraction, precision: str) -> Cut:
    """Cut in the way that the pipeline does for files of this kind."""
    if 251 in case.pair:
        form = CutForm({"video": "mp4"}, precision=precision)
        return cut_files(paths(case), float(start), float(end), form)
    if case.virtual:
        return cut_parts([VirtualFile(itag) for itag in case.pair], start, end, precision)
    return cut_parts([LocalFile(path) for path in paths(case)], start, end, precision)


def cut_parts(files: Sequence[File], start: Fraction, end: Fraction, precision: str) -> Cut:
    media = [Media(file) for file in files]
    (chosen,) = choose_clips(media[0], media[-1], [(start, end)], precision)
    if isinstance(chosen, ClipError):
        raise chosen
    form = CutForm({"video": "mp4"}, precision=precision)
    return cut_chosen(chosen, media[0], media[-1], form)


def seen(case: Case, made: Cut) -> ClipProbe:
    return probe(made.main, case.spec, near=made.actual_start if case.virtual else None)


def spans(case: Case, precision: str, count: int) -> list[tuple[Fraction, Fraction]]:
    """Random spans of whole milliseconds."""
    chance = random.Random(f"{case} {precision}")
    latest = int((case.duration - case.length) * 1000)
    starts = [chance.randint(0, latest) * MILLISECOND for _ in range(count)]
    return [(start, start + case.length) for start in starts]


def check(case: Case, start: Fraction, end: Fraction, precision: str) -> ClipProbe:
    """Cut, and compare what the clip shows with what was asked for and what is recorded."""
    made = cut(case, start, end, precision)
    shown = seen(case, made)
    first, last = shown.first_frame, shown.last_frame
    assert first is not None
    assert last is not None
    if precision in ("editlist", "exact"):
        # The frame that is shown at the start is the first, the last one ends by the end.
        assert first == case.frame(start)
        least = case.frame(min(end, case.duration)) - 1
        assert last == max(least, first)
    else:
        lead = precision == "keyframe_adjusted"
        keys = case.keyframes(start, end) if lead else case.keyframes(Fraction(0), start)
        assert first == keys[0 if lead else -1]
        least = (keys[-1] if lead else min(ceil(end * case.spec.fps), case.spec.frames)) - 1
        if not lead and case.virtual:
            least = ceil(end * case.spec.fps) - 1
        # All that come before the end, and those that the last one was coded after.
        assert least - (243 in case.pair) <= last <= least + (0 if lead else 1 + case.spec.b_frames)
    # Every one in its place, from the time 0 on, in sync with the sound.
    assert shown.frames_contiguous
    assert shown.first_frame_time == 0
    check_sound(case, made, shown)
    # What is recorded is what is shown.
    assert made.frames == shown.frames == last - first + 1
    assert made.actual_start == pytest.approx(float(case.time(first)), abs=1e-6)
    # The last frame of a WebM lasts as long as its header says, to the millisecond.
    assert made.actual_end == pytest.approx(float(case.time(last + 1)), abs=0.0011)
    assert (made.width, made.height) == (shown.width, shown.height)
    assert (made.video_codec, made.audio_codec) == (shown.video_codec, shown.audio_codec)
    return shown


def check_sound(case: Case, made: Cut, shown: ClipProbe) -> None:
    assert shown.has_audio
    if shown.duration < 0.2:
        # Too short to tell from where it is.
        return
    assert shown.audio_steady
    assert shown.audio_offset == pytest.approx(0, abs=case.in_sync)
    assert made.av_offset == 0
    assert shown.audio_start == pytest.approx(made.actual_start, abs=case.in_sync)
    # It goes on to the end, and a packet beyond at most.
    assert shown.audio_end is not None
    assert -0.001 <= shown.audio_end - made.actual_end < 0.05


# --- random cuts --------------------------------------------------------------------------------

#: Random cuts of each case; most of those that are encoded anew are slow.
CUTS = {"low": 3, "editlist": 4, "keyframe_adjusted": 3, "exact": 4}


def test_random_cuts_are_at_least_200() -> None:
    assert len(ALL) * sum(CUTS.values()) >= 200


@pytest.mark.parametrize("precision", ["low", "editlist"])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_random_copies(case: Case, precision: str) -> None:
    for start, end in spans(case, precision, CUTS[precision]):
        shown = check(case, start, end, precision)
        if precision == "editlist":
            assert abs(shown.frames - case.length * case.spec.fps) <= 1


@pytest.mark.parametrize("case", ALL, ids=str)
def test_random_adjusted_copies(case: Case) -> None:
    """From keyframe to keyframe; fewer than two of them are an outcome."""
    for start, end in spans(case, "keyframe_adjusted", CUTS["keyframe_adjusted"]):
        # Long enough for two, most of the time.
        begin = max(Fraction(0), start - Fraction(11, 2))
        if len(case.keyframes(begin, end)) >= 2:
            check(case, begin, end, "keyframe_adjusted")
            continue
        with pytest.raises(ClipError, match="keyframe") as caught:
            cut(case, begin, end, "keyframe_adjusted")
        assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("case", "number"),
    [
        pytest.param(
            case, n, marks=[pytest.mark.slow] if n or case not in SOME else [], id=f"{case}-{n}"
        )
        for case in ALL
        for n in range(CUTS["exact"])
    ],
)
def test_random_cuts_encoded_anew(case: Case, number: int) -> None:
    start, end = spans(case, "exact", CUTS["exact"])[number]
    shown = check(case, start, end, "exact")
    assert shown.video_codec == "h264"
    assert abs(shown.frames - case.length * case.spec.fps) <= 1


# --- around frames, ends, and keyframes ---------------------------------------------------------


def around(case: Case) -> list[tuple[Fraction, Fraction]]:
    """Spans that begin or end where frames do, or nearly."""
    half, duration, long = 1 / case.spec.fps / 2, case.duration, Fraction(1, 2)
    key = keyframes(case.spec)[1]
    starts = [Fraction(0), duration - long, *(case.time(frame) for frame in (key, key + 7))]
    starts += [case.time(frame) + half for frame in (key, key + 7)]
    # The last whole millisecond before a frame.
    starts += [
        ceil(case.time(frame) * 1000) * MILLISECOND - MILLISECOND for frame in (key, key + 7)
    ]
    # Shorter than a frame: at the beginning of one, between two, and at the end.
    short = [case.time(key), case.time(key + 7) + half, duration - MILLISECOND]
    beyond = (duration - long, duration + Fraction(9, 10))
    return [
        *((start, start + long) for start in starts),
        *((start, start + MILLISECOND) for start in short),
        beyond,
    ]


#: Which are quick enough to be tried each time.
QUICK = {
    "low": ("m30-134+140", "m24-18", "webm-243+251"),
    "editlist": tuple(map(str, SOME)),
    "exact": ("ntsc-134+140",),
}


@pytest.mark.parametrize(
    ("case", "precision"),
    [
        pytest.param(
            case,
            precision,
            marks=[] if str(case) in quick else [pytest.mark.slow],
            id=f"{case}-{precision}",
        )
        for case in CASES
        for precision, quick in QUICK.items()
    ],
)
def test_around_frames(case: Case, precision: str) -> None:
    for start, end in around(case):
        check(case, start, end, precision)


@pytest.mark.parametrize("case", [Case("m25", (134, 140)), Case("m25", (18,))], ids=str)
def test_keyframes_right_at_both_ends_count(case: Case) -> None:
    """One millisecond less at either end leaves one out."""
    first, second, third, fourth = (case.time(frame) for frame in keyframes(case.spec)[1:5])
    shown = check(case, first, fourth, "keyframe_adjusted")
    assert shown.frames == (fourth - first) * case.spec.fps
    shown = check(case, first + MILLISECOND, fourth - MILLISECOND, "keyframe_adjusted")
    assert shown.frames == (third - second) * case.spec.fps
    with pytest.raises(ClipError, match="1 keyframes"):
        cut(case, first, second - MILLISECOND, "keyframe_adjusted")


# --- frames that last differently -----------------------------------------------------------------

#: Ticks of 1/60 s that frames last by turns: 2 in the mean, as the sound's 30 a second has it.
TURNS = (1, 3, 2, 1, 3)
SECOND = 60


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Fraction]]:
    """A file whose frames last differently, and when each one is shown."""
    (source,) = paths(Case("m30", (18,)))
    path = tmp_path_factory.mktemp("uneven") / "uneven.mp4"
    with (
        av.open(str(source)) as read,
        av.open(str(path), "w", options={"movie_timescale": "90000"}) as written,
    ):
        streams = [*read.streams.video, *read.streams.audio]
        made = [written.add_stream_from_template(stream) for stream in streams]
        packets = [packet for packet in read.demux(streams) if packet.size]
        frames = [packet for packet in packets if packet.stream is streams[0]]
        ticks = list(
            itertools.accumulate(itertools.islice(itertools.cycle(TURNS), len(frames)), initial=0)
        )
        step = Fraction(1, SECOND) / streams[0].time_base
        order = sorted(packet.pts for packet in frames)
        places = [bisect.bisect_left(order, packet.pts) for packet in frames]
        for number, (packet, place) in enumerate(zip(frames, places, strict=True)):
            packet.duration = int((ticks[place + 1] - ticks[place]) * step)
            packet.pts = int(ticks[place] * step)
            # Early enough for all: two frames last 6 ticks at most.
            packet.dts = int((ticks[number] - 6) * step)
        for packet in packets:
            packet.stream = made[streams.index(packet.stream)]
            written.mux(packet)
    return path, [Fraction(tick, SECOND) for tick in ticks]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "parts"])
@pytest.mark.parametrize("precision", ["low", "editlist", "exact"])
def test_frames_that_last_differently(
    uneven: tuple[Path, list[Fraction]], precision: str, whole: bool
) -> None:
    path, times = uneven
    spec = SPECS["m30"]
    for start, end in [(Fraction(6123, 1000), Fraction(9123, 1000)), (times[200], times[260])]:
        if whole:
            form = CutForm({"video": "mp4"}, precision=precision)
            made = cut_files([path], float(start), float(end), form)
        else:
            made = cut_parts([LocalFile(path)], start, end, precision)
        shown = probe(made.main, spec)
        first, last = shown.first_frame, shown.last_frame
        assert first is not None
        assert last is not None
        assert shown.frames_contiguous
        if precision == "low":
            assert first == 150
            assert times[last] < end + Fraction(1, 5)
            assert times[last + 1] >= end
        else:
            assert first == bisect.bisect_right(times, start) - 1
            assert last == bisect.bisect_right(times, end) - 2
        # Each frame at its own time, and the sound where it belongs.
        expected = [float(time - times[first]) for time in times[first : last + 1]]
        assert frame_times(made.main) == pytest.approx(expected, abs=2e-5)
        assert shown.audio_start == pytest.approx(float(times[first]), abs=0.001)
        assert shown.audio_start_time == pytest.approx(0, abs=0.0005)
        assert made.actual_start == pytest.approx(float(times[first]), abs=1e-5)
        assert made.actual_end == pytest.approx(float(times[last + 1]), abs=1e-5)


def frame_times(data: bytes) -> list[float]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.time for frame in container.decode(video=0)]


# --- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "case", [Case("m30", (134, 140)), Case("m24", (18,)), Case("m60", (134, 251))], ids=str
)
def test_same_input_gives_the_same_bytes(case: Case, precision: str) -> None:
    once, again = (cut(case, *span_for(precision), precision) for _ in range(2))
    assert once == again


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [Case("m25", (134, 140)), Case("m30", (18,))], ids=str)
def test_sound_is_copied(case: Case, precision: str) -> None:
    with av.open(str(paths(case)[-1])) as source:
        packets = [bytes(packet) for packet in source.demux(audio=0) if packet.size]
    made = cut(case, *span_for(precision), precision)
    with av.open(io.BytesIO(made.main)) as clip:
        copied = [bytes(packet) for packet in clip.demux(audio=0) if packet.size]
    at = packets.index(copied[0])
    assert packets[at : at + len(copied)] == copied


@pytest.mark.parametrize("precision", PRECISIONS)
def test_three_hours_cost_what_a_clip_takes(precision: str) -> None:
    files = [VirtualFile(itag) for itag in HOURS.pair]
    cut_parts(files, Fraction(7000), Fraction(7002 if precision == "exact" else 7012), precision)
    assert sum(file.size for file in files) > 500_000_000
    assert sum(file.loaded for file in files) < 3_000_000


def test_pixels_keep_their_shape_and_turn(tmp_path: Path) -> None:
    """As encoded anew: pixels that are wider than high, in a picture that is shown upright."""
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    pictures = ["-f", "lavfi", "-i", "testsrc=d=3:r=30:s=320x240"]
    tone = ["-f", "lavfi", "-i", "sine=d=3", "-c:a", "aac", "-c:v", "libx264"]
    ffmpeg(*pictures, *tone, "-vf", "setsar=4/3,format=yuv420p", str(plain))
    ffmpeg("-display_rotation", "90", "-i", str(plain), "-c", "copy", str(turned))
    for precision in PRECISIONS[:2] + PRECISIONS[3:]:
        made = cut_parts([LocalFile(turned)], Fraction(1), Fraction(2), precision)
        with av.open(io.BytesIO(made.main)) as container:
            assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
            assert next(container.decode(video=0)).rotation == 90


# --- what decoders show -----------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What a decoder gives: numbers of frames, and the source time (s) of the first sample."""

    frames: list[int | None]
    sound: float | None = None


def number_in(luma: NDArray[np.uint8]) -> int | None:
    """Return the number that a frame carries."""
    height, width = luma.shape
    left, top, across, down = code_box(width, height)
    rows = (top + down / CODE_ROWS * (np.arange(CODE_ROWS) + 0.5)).astype(int)
    columns = (left + across / CODE_CELLS * (np.arange(CODE_CELLS) + 0.5)).astype(int)
    found = read_code(luma[np.ix_(rows, columns)])
    return None if found is None else found[0]


def ffmpeg(*arguments: str) -> None:
    program = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([program, "-v", "error", "-nostdin", *arguments], check=True, timeout=60)


def by_ffmpeg(path: Path, case: Case) -> Shown:
    """Decode as loaders do: to raw frames and raw sound, without a thought of times."""
    raw, wav = path.with_suffix(".gray"), path.with_suffix(".wav")
    pictures = ["-map", "0:v", "-pix_fmt", "gray", "-f", "rawvideo", str(raw)]
    ffmpeg("-i", str(path), *pictures, "-map", "0:a", str(wav))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shape = (-1, stream.height, stream.width)
    frames = np.fromfile(raw, np.uint8).reshape(shape)
    return Shown([number_in(frame) for frame in frames], probe(wav, case.spec).audio_start)


def by_pyav(path: Path, case: Case) -> Shown:
    shown = probe(path, case.spec)
    return Shown(list(shown.frame_numbers), shown.audio_start)


def by_opencv(path: Path) -> Shown:
    video = cv2.VideoCapture(str(path))
    try:
        frames = []
        while (number := next_in(video)) is not None:
            frames.append(number)
        return Shown(frames)
    finally:
        video.release()


def next_in(video: cv2.VideoCapture) -> int | None:
    found, picture = video.read()
    return number_in(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)) if found else None


#: H.264 with B-frames and without, at each kind of rate, AAC and Opus; VP9.
DECODED = [
    Case("m30", (134, 140)),
    Case("ntsc", (134, 140)),
    Case("m24", (18,)),
    Case("m60", (134, 251)),
    Case("webm", (243, 251)),
]
QUICKLY_DECODED = [
    pytest.param(
        case, id=str(case), marks=[pytest.mark.slow] if case.code in ("m24", "m60") else []
    )
    for case in DECODED
]


def span_for(precision: str) -> tuple[Fraction, Fraction]:
    """Return a span of some frames that is cut far from keyframes."""
    if precision == "keyframe_adjusted":
        return Fraction(0), Fraction(11, 2)
    return Fraction(3217, 1000), Fraction(6217, 1000)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", QUICKLY_DECODED)
def test_decoders_show_the_same(case: Case, precision: str, tmp_path: Path) -> None:
    made = cut(case, *span_for(precision), precision)
    path = tmp_path / "clip.mp4"
    path.write_bytes(made.main)
    assert made.frames is not None
    first = case.frame(Fraction(made.actual_start).limit_denominator(100_000))
    expected = list(range(first, first + made.frames))
    for shown in (by_pyav(path, case), by_ffmpeg(path, case)):
        assert shown.frames == expected
        assert shown.sound == pytest.approx(made.actual_start, abs=case.in_sync)
    assert by_opencv(path).frames == expected


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", DECODED, ids=str)
def test_opencv_finds_frames_by_their_place(case: Case, precision: str, tmp_path: Path) -> None:
    moved = case.spec.timeline is Timeline.NONE and case.spec.b_frames > 0 and precision != "exact"
    if moved and cv2.__version__.startswith("4."):
        pytest.skip("OpenCV 4 is one frame late where offsets of composition were negative")
    check_places(case, precision, *span_for(precision), tmp_path / "clip.mp4")


@pytest.mark.parametrize("precision", ["low", "editlist"])
def test_opencv_finds_frames_of_later_groups(precision: str, tmp_path: Path) -> None:
    """OpenCV 4 seeks by when frames come out of the decoder, and that by when they are decoded."""
    span = Fraction(3217, 1000), Fraction(13217, 1000)
    check_places(Case("m30", (134, 140)), precision, *span, tmp_path / "clip.mp4")


def check_places(case: Case, precision: str, start: Fraction, end: Fraction, path: Path) -> None:
    """Look for frames by number; OpenCV counts those that are hidden, too."""
    made = cut(case, start, end, precision)
    path.write_bytes(made.main)
    assert made.frames is not None
    first = case.frame(Fraction(made.actual_start).limit_denominator(100_000))
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    assert (packets > made.frames) is (precision == "editlist")
    video = cv2.VideoCapture(str(path))
    try:
        assert video.get(cv2.CAP_PROP_FRAME_COUNT) == packets
        for place in (made.frames - 1, made.frames // 2, 0, 1):
            video.set(cv2.CAP_PROP_POS_FRAMES, place)
            assert next_in(video) == first + place
    finally:
        video.release()
