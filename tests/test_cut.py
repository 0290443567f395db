"""Cuts of real media, checked frame by frame against what the media themselves show."""

from __future__ import annotations

import io
import itertools
import random
import subprocess
import wave
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache
from math import ceil
from pathlib import Path

import av
import av.logging
import imageio_ffmpeg
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from acavdl import cut
from acavdl.config import AudioRate
from acavdl.cut import CutForm, cut_files, cut_low, cut_sound
from acavdl.errors import ClipError, Outcome
from acavdl.models import Cut
from acavdl.pick import END_TOLERANCE, closed_length
from acavdl.sandbox.media import DEMO_MASTERS, Master, MasterSpec, keyframes, make_masters
from acavdl.sandbox.probe import probe

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
#: Files that picture and sound come from, by itag.
PAIRS = ((134, 140), (18,), (243, 251), (134, 251), (134, 139))
CASES = [
    pytest.param(spec.code, pair, id=f"{spec.code}-{'+'.join(map(str, pair))}")
    for spec in DEMO_MASTERS
    for pair in PAIRS
    if set(pair) <= set(spec.itags)
]
MILLISECOND = Fraction(1, 1000)


@cache
def master(code: str) -> Master:
    return make_masters([SPECS[code]])[code]


def files(code: str, *itags: int) -> list[Path]:
    return [master(code).rendition(itag).path for itag in itags]


def frame_time(spec: MasterSpec, frame: int, pair: Sequence[int]) -> Fraction:
    """Seconds at which a frame is shown; WebM tells whole milliseconds."""
    time = frame / spec.fps
    return round(time * 1000) * MILLISECOND if 243 in pair else time


def check(code: str, pair: Sequence[int], start: Fraction, end: Fraction) -> Cut:
    """Cut, and compare what the clip shows with what was asked for and what was recorded."""
    spec = SPECS[code]
    made = cut_low(files(code, *pair), float(start), float(end))
    shown = probe(made.main, spec)
    begins = [frame_time(spec, frame, pair) for frame in keyframes(spec)]
    first = keyframes(spec)[bisect_right(begins, start) - 1]
    # Frames that begin before the end, and not more than a group of B-frames beside.
    least = min(ceil(end * spec.fps), spec.frames)
    assert shown.first_frame == first
    assert shown.last_frame is not None
    assert least - 1 <= shown.last_frame <= least + spec.b_frames
    if not spec.b_frames and 243 not in pair:
        assert shown.last_frame == max(least - 1, first)
    assert shown.frames_contiguous
    assert shown.first_frame_time == 0
    assert shown.audio_steady
    # In sync, and both from the beginning.
    tolerance = 0.0015 if 251 in pair else 0.0005
    assert shown.audio_offset == pytest.approx(0, abs=tolerance)
    assert shown.audio_start_time == pytest.approx(made.av_offset, abs=0.002)
    # What is recorded is what is shown.
    assert made.actual_start == pytest.approx(first / spec.fps, abs=0.0006)
    assert made.actual_end == pytest.approx((shown.last_frame + 1) / spec.fps, abs=0.0011)
    assert made.frames == shown.frames == shown.last_frame - first + 1
    assert (made.width, made.height) == (shown.width, shown.height)
    assert made.fps == pytest.approx(float(spec.fps), rel=1e-3)
    assert (made.video_codec, made.audio_codec) == (shown.video_codec, shown.audio_codec)
    assert made.sample_rate == shown.sample_rate
    assert (list(made.members), made.source_audio_codec) == (["mp4"], made.audio_codec)
    return made


def spans(spec: MasterSpec, seed: int, count: int) -> list[tuple[Fraction, Fraction]]:
    """Random spans of whole milliseconds inside a master."""
    chance = random.Random(seed)
    last = int(spec.duration * 1000)
    found = []
    for _ in range(count):
        length = chance.randint(700, 3500)
        start = chance.randint(0, last - length)
        found.append((start * MILLISECOND, (start + length) * MILLISECOND))
    return found


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_random_spans(code: str, pair: tuple[int, ...]) -> None:
    for start, end in spans(SPECS[code], seed=len(code) + sum(pair), count=3):
        check(code, pair, start, end)


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_starts_around_a_keyframe(code: str, pair: tuple[int, ...]) -> None:
    """Exactly on it and one millisecond after: from it; one before: from the one before."""
    spec = SPECS[code]
    before, frame = keyframes(spec)[:2]
    at = frame_time(spec, frame, pair)
    exactly = ceil(at * 1000) * MILLISECOND  # a table has whole milliseconds
    for start in (exactly, exactly + MILLISECOND):
        made = check(code, pair, start, start + Fraction(1, 5))
        assert made.actual_start == pytest.approx(frame / spec.fps, abs=0.0006)
    made = check(code, pair, exactly - MILLISECOND, exactly + Fraction(1, 5))
    assert made.actual_start == pytest.approx(before / spec.fps, abs=0.0006)


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_end_a_little_beyond_the_video(code: str, pair: tuple[int, ...]) -> None:
    """Tables round to whole seconds: an end a little beyond the video's is the video's."""
    spec = SPECS[code]
    end = Fraction(spec.duration).limit_denominator(1000)
    made = check(code, pair, end - 1, end + Fraction(END_TOLERANCE) - Fraction(1, 10))
    assert made.actual_end == pytest.approx(spec.duration, abs=0.001)


@pytest.mark.parametrize(("code", "pair"), CASES)
@pytest.mark.parametrize(("start", "end"), [(-1.0, 1.5), (0.05, 0.5), (2.0, 3.0), (3600.0, 3604.0)])
def test_too_far_beyond_the_end(code: str, pair: tuple[int, ...], start: float, end: float) -> None:
    """Start and end are told from the end of the video."""
    duration = SPECS[code].duration
    with pytest.raises(ClipError) as caught:
        cut_low(files(code, *pair), duration + start, duration + end)
    assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE
    assert caught.value.detail


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_span_shorter_than_a_frame(code: str, pair: tuple[int, ...]) -> None:
    """The frame shown at that time is the last one; B-frames before it come along."""
    spec = SPECS[code]
    start = frame_time(spec, keyframes(spec)[1], pair) + Fraction(2, 5)
    start = ceil(start * 1000) * MILLISECOND
    made = check(code, pair, start, start + MILLISECOND)
    assert made.actual_start < start < made.actual_end


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_same_input_gives_the_same_bytes(code: str, pair: tuple[int, ...]) -> None:
    once, again = (cut_low(files(code, *pair), 1.5, 4.25) for _ in range(2))
    assert once == again


def test_start_written_as_a_decimal_that_no_float_is() -> None:
    """A keyframe counts from exactly its time on, though the float of it is a hair less."""
    spec = SPECS["ntsc"]
    frame = keyframes(spec)[1]
    start = frame / spec.fps
    assert start == Fraction(1001, 200)
    assert Fraction(float(start)) < start
    for pair in ((134, 140), (134, 251)):
        made = cut_low(files("ntsc", *pair), 5.005, 6.0)
        assert made.actual_start == pytest.approx(5.005)


# --- whole videos -------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "pair"), CASES)
def test_whole_video_has_every_frame_and_all_of_the_sound(code: str, pair: tuple[int, ...]) -> None:
    spec = SPECS[code]
    made = cut_low(files(code, *pair), None, None)
    shown = probe(made.main, spec)
    assert (shown.first_frame, shown.last_frame) == (0, spec.frames - 1)
    assert shown.frames_contiguous
    assert (made.frames, shown.first_frame_time) == (spec.frames, 0)
    assert shown.audio_steady
    assert (made.actual_start, made.av_offset) == (0.0, pytest.approx(0, abs=0.001))
    assert made.actual_end == pytest.approx(spec.duration, abs=0.001)
    assert shown.audio_offset == pytest.approx(0, abs=0.0015 if 251 in pair else 0.0005)
    with av.open(str(files(code, *pair)[-1])) as source, av.open(io.BytesIO(made.main)) as clip:
        sounds = [
            [bytes(packet) for packet in container.demux(audio=0) if packet.size]
            for container in (source, clip)
        ]
    # The first packet of the source may be for the decoder alone.
    assert sounds[1] == sounds[0][-len(sounds[1]) :]
    assert len(sounds[0]) - len(sounds[1]) <= 1


def test_sound_that_outlasts_the_picture_is_kept() -> None:
    """And a whole video may be one whose sound ends first."""
    long, short = files("m25", 134, 140), files("m60", 134, 140)
    outlasting = cut_low([short[0], long[1]], None, None)
    with av.open(io.BytesIO(outlasting.main)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert float(picture.duration * picture.time_base) == pytest.approx(12.0, abs=0.1)
        assert float(sound.duration * sound.time_base) == pytest.approx(60.0, abs=0.1)
    assert outlasting.actual_end == pytest.approx(12.0)
    assert cut_low([long[0], short[1]], None, None).actual_end == pytest.approx(60.0)


def test_picture_and_sound_take_turns_in_the_file() -> None:
    """A player need not read to the end of a whole video to hear its beginning."""
    with av.open(io.BytesIO(cut_low(files("m25", 134, 140), None, None).main)) as container:
        packets = [
            (packet.pos, packet.stream.type, float(packet.pts * packet.time_base))
            for packet in container.demux()
            if packet.size
        ]
    latest: dict[str, float] = {}
    for _, kind, seconds in sorted(packets):
        latest[kind] = seconds
        if len(latest) == 2:
            assert abs(latest["video"] - latest["audio"]) < 2


def test_truncated_whole_video_is_corrupt(tmp_path: Path) -> None:
    whole = files("m30", 18)[0].read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ClipError) as caught:
        cut_low([path], None, None)
    assert caught.value.outcome is Outcome.CORRUPT


def test_file_that_is_gone_is_an_outcome(tmp_path: Path) -> None:
    with pytest.raises(ClipError) as caught:
        cut_low([tmp_path / "gone.mp4"], 0.0, 1.0)
    assert caught.value.outcome is Outcome.CORRUPT


# --- sound alone --------------------------------------------------------------------------------

AS_IT_IS = AudioRate()
#: Sound of each kind: with and without an edit list, beside a picture, of other rates, Opus.
SOUNDS = [("m30", 140), ("m24", 139), ("ntsc", 140), ("m30", 18), ("webm", 251)]
#: Seconds that an AAC or Opus packet lasts at most, here: 1,024 samples at 22,050 Hz.
PACKET = 0.047


def sound_of(
    code: str, itag: int, start: float | None, end: float | None, kind: str, **rate: int
) -> Cut:
    """Cut, and compare what is heard with what was asked for and what was recorded."""
    spec = SPECS[code]
    (file,) = files(code, itag)
    made = cut_sound(file, start, end, kind, AudioRate(**rate))
    assert list(made.members) == [kind]
    shown = probe(made.main, spec)
    assert not shown.has_video
    assert shown.audio_steady
    # WebM tells whole milliseconds; else to the sample.
    stamp = 0.0006 if itag == 251 else 0
    assert shown.audio_start_time == pytest.approx(0, abs=1e-9)
    assert shown.audio_start == pytest.approx(made.actual_start, abs=stamp + 1 / made.sample_rate)
    assert shown.audio_end == pytest.approx(made.actual_end, abs=stamp + PACKET)
    picture = (made.frames, made.fps, made.width, made.height, made.video_codec, made.av_offset)
    assert picture == (None,) * 6
    assert made.source_audio_codec == ("opus" if itag == 251 else "aac")
    assert made.audio_codec == {"wav": "pcm_s16le", "flac": "flac", "m4a": "aac"}[kind]
    assert (shown.sample_rate, shown.audio_codec) == (made.sample_rate, made.audio_codec)
    return made


def samples(data: bytes) -> NDArray[np.int16]:
    """Return all samples of a file: (channels, samples)."""
    with av.open(io.BytesIO(data)) as container:
        pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
        channels = container.streams.audio[0].codec_context.channels
    return np.concatenate(pieces, axis=1).reshape(-1, channels).T


@pytest.mark.parametrize(("code", "itag"), SOUNDS)
@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("wav", {}),
        ("flac", {}),
        ("wav", {"sample_rate": 16_000, "n_audio_channels": 1}),
        ("flac", {"sample_rate": 48_000}),
    ],
)
def test_decoded_sound_is_exact_to_the_sample(
    code: str, itag: int, kind: str, rate: dict[str, int]
) -> None:
    (file,) = files(code, itag)
    with av.open(str(file)) as container:
        source = container.streams.audio[0].codec_context.sample_rate
    for start, end in [*spans(SPECS[code], itag, 3), (Fraction(0), Fraction(1, 2))]:
        made = sound_of(code, itag, float(start), float(end), kind, **rate)
        assert made.sample_rate == rate.get("sample_rate", source)
        assert made.channels == rate.get("n_audio_channels", 2)
        length = round((end - start) * made.sample_rate)
        assert samples(made.main).shape == (made.channels, length)
        assert made.actual_start == pytest.approx(float(start), abs=1e-9)
        assert made.actual_end == pytest.approx(float(start) + length / made.sample_rate, abs=1e-9)


@pytest.mark.parametrize(("code", "itag"), [sound for sound in SOUNDS if sound[1] != 251])
def test_m4a_is_a_copy_that_begins_at_the_start(code: str, itag: int) -> None:
    (file,) = files(code, itag)
    with av.open(str(file)) as container:
        source = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    for start, end in spans(SPECS[code], itag, 3):
        made = sound_of(code, itag, float(start), float(end), "m4a")
        assert made.actual_start == pytest.approx(float(start))
        assert 0 <= made.actual_end - end < PACKET
        with av.open(io.BytesIO(made.main)) as container:
            assert container.metadata["major_brand"] == "M4A "
            copied = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
        at = source.index(copied[0])
        assert source[at : at + len(copied)] == copied


def test_sound_that_is_no_aac_is_encoded_into_the_m4a() -> None:
    made = sound_of("webm", 251, 3.0, 5.5, "m4a")
    assert (made.actual_start, made.actual_end, made.sample_rate) == (3.0, 5.5, 48_000)
    assert made == sound_of("webm", 251, 3.0, 5.5, "m4a")


@pytest.mark.parametrize("pair", [(134, 140), (18,), (134, 251)])
def test_m4a_beside_the_mp4_is_its_sound(pair: tuple[int, ...]) -> None:
    given_files = files("m30", *pair)
    for start, end in ((6.1, 7.3), (None, None)):
        alone = cut_files(given_files, start, end, CutForm({"video": "mp4"}))
        made = cut_files(given_files, start, end, CutForm({"video": "mp4", "audio": "m4a"}))
        assert list(made.members) == ["mp4", "m4a"]
        assert made == replace(alone, members=made.members)
        assert made.main == alone.main
        heard = []
        for data in made.members.values():
            with av.open(io.BytesIO(data)) as container:
                assert [stream.type for stream in container.streams][-1] == "audio"
                heard.append(
                    [
                        (packet.pts, packet.duration, bytes(packet))
                        for packet in container.demux(audio=0)
                        if packet.size
                    ]
                )
        assert heard[0] == heard[1]
        shown = probe(made.main, SPECS["m30"], audio=made.members["m4a"])
        assert shown.audio_offset == pytest.approx(0, abs=0.0015)


@pytest.mark.parametrize("kind", ["wav", "flac", "m4a"])
@pytest.mark.parametrize(("code", "itag"), [("m24", 140), ("ntsc", 140), ("webm", 251)])
def test_sound_of_a_whole_video(code: str, itag: int, kind: str) -> None:
    spec = SPECS[code]
    made = sound_of(code, itag, None, None, kind)
    assert made.actual_start == 0
    assert made.actual_end == pytest.approx(spec.duration, abs=PACKET)


@pytest.mark.parametrize("kind", ["wav", "flac", "m4a"])
@pytest.mark.parametrize("itag", [140, 18, 251])
def test_sound_near_the_end(kind: str, itag: int) -> None:
    """A little beyond it: up to it; more: an outcome, as for the picture."""
    duration = SPECS["m30"].duration
    made = sound_of("m30", itag, duration - 1, duration + END_TOLERANCE - 0.1, kind)
    assert made.actual_end == pytest.approx(duration, abs=PACKET)
    (file,) = files("m30", itag)
    for start, end in ((-1.0, 1.5), (0.05, 0.5), (2.0, 3.0), (3600.0, 3604.0)):
        with pytest.raises(ClipError) as caught:
            cut_sound(file, duration + start, duration + end, kind, AS_IT_IS)
        assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE
        assert caught.value.detail


@pytest.mark.parametrize("kind", ["wav", "flac", "m4a"])
def test_file_without_sound(kind: str) -> None:
    with pytest.raises(ClipError) as caught:
        cut_sound(files("m24", 134)[0], 1.0, 2.0, kind, AS_IT_IS)
    assert caught.value.outcome is Outcome.NO_AUDIO


def test_same_sound_gives_the_same_bytes() -> None:
    (file,) = files("m30", 140)
    for kind in ("wav", "flac", "m4a"):
        once, again = (cut_sound(file, 1.5, 4.25, kind, AudioRate(22_050, 1)) for _ in range(2))
        assert once == again


def test_wav_is_as_plain_as_can_be() -> None:
    """Readers of a few lines look for the samples behind 44 bytes."""
    made = sound_of("m30", 140, 1.0, 1.5, "wav")
    with wave.open(io.BytesIO(made.main)) as read:
        assert (read.getnchannels(), read.getsampwidth(), read.getframerate()) == (2, 2, 44_100)
        assert made.main[44:] == read.readframes(read.getnframes())
    assert made.main[:4] + made.main[8:16] + made.main[36:40] == b"RIFFWAVEfmt data"


def gapped(path: Path, begin: float, end: float, source: Path) -> Path:
    """Copy the packets of a sound, but not those between two times (seconds)."""
    with av.open(str(source)) as given_file, av.open(str(path), "w", format="matroska") as made:
        sound = given_file.streams.audio[0]
        stream = made.add_stream_from_template(sound)
        for packet in given_file.demux(sound):
            # Matroska has no time before 0: what only primes the decoder is left out.
            time = -1 if packet.pts is None else packet.pts * packet.time_base
            if time >= 0 and not begin <= time < end:
                packet.stream = stream
                made.mux(packet)
    return path


@pytest.mark.parametrize("kind", ["wav", "flac"])
def test_gaps_in_the_sound_are_silent(kind: str, tmp_path: Path) -> None:
    """What is behind them stays where it was."""
    (file,) = files("m30", 140)
    path = gapped(tmp_path / "gap.mkv", 2.0, 3.0, file)
    whole = samples(cut_sound(file, 1.0, 5.0, kind, AudioRate(16_000, 1)).main)[0].astype(float)
    made = cut_sound(path, 1.0, 5.0, kind, AudioRate(16_000, 1))
    found = samples(made.main)[0]
    assert (made.actual_start, made.actual_end, len(found)) == (1.0, 5.0, 64_000)
    assert not found[16_800:31_200].any()
    # Matroska tells whole milliseconds: 16 samples.
    for part in (slice(0, 15_200), slice(33_000, 64_000)):
        off = [np.abs(np.roll(whole, shift) - found)[part] for shift in range(-16, 17)]
        assert min(float(np.median(each)) for each in off) < 1000
    # A clip that ends in it is as long as it should be; one inside has nothing to hear.
    assert samples(cut_sound(path, 1.0, 2.7, kind, AS_IT_IS).main).shape == (2, round(1.7 * 44_100))
    with pytest.raises(ClipError) as caught:
        cut_sound(path, 2.3, 2.7, kind, AS_IT_IS)
    assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE


def test_sound_that_begins_within_the_span(tmp_path: Path) -> None:
    """Samples are silent until then; a copy begins with it."""
    path = gapped(tmp_path / "late.mkv", -1.0, 3.0, files("m30", 140)[0])
    made = cut_sound(path, 2.5, 4.0, "wav", AS_IT_IS)
    assert (made.actual_start, made.actual_end) == (2.5, 4.0)
    found = samples(made.main)
    assert found.shape == (2, 66_150)
    assert not found[:, :21_000].any()
    assert np.abs(found[:, 24_000:]).max() > 5000
    for kind, start in (("m4a", 2.5), ("m4a", None), ("wav", None)):
        made = cut_sound(path, start, None if start is None else 4.0, kind, AS_IT_IS)
        assert made.actual_start == pytest.approx(3.0, abs=PACKET)
        shown = probe(made.main, SPECS["m30"])
        assert shown.audio_start == pytest.approx(made.actual_start, abs=0.002)
    for kind in ("m4a", "wav"):
        with pytest.raises(ClipError) as caught:
            cut_sound(path, 0.0, 1.5, kind, AS_IT_IS)
        assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE


def test_what_no_file_can_hold_is_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gapped(tmp_path / "gap.mkv", 2.0, 4.0, files("m30", 140)[0])
    monkeypatch.setattr(cut, "_MOST_SILENCE", 1)
    monkeypatch.setattr(cut, "_WAV_BYTES", 200_000)
    for start, end, outcome in (
        (1.0, 5.0, Outcome.CORRUPT),
        (5.0, 7.0, Outcome.CLIP_OUT_OF_RANGE),
    ):
        with pytest.raises(ClipError) as caught:
            cut_sound(path, start, end, "wav", AS_IT_IS)
        assert caught.value.outcome is outcome


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", ("libmp3lame",)),
        ("a.flac", ("flac",)),
        # Without a word on where the speakers stand, and of a rate that AAC does not have.
        ("a.wav", ("pcm_s16le", "-ar", "11111", "-ac", "2")),
        ("a.mkv", ("ac3", "-ac", "6")),
        ("a.ogg", ("libvorbis",)),
        # Its decoder keeps the last samples to the end, and gives them no time.
        ("a.wma", ("wmav2",)),
    ],
)
def test_sound_of_other_kinds(name: str, codec: tuple[str, ...], tmp_path: Path) -> None:
    path = encode(tmp_path / name, "-f", "lavfi", "-i", "sine=d=4", "-c:a", *codec)
    for kind in ("wav", "flac", "m4a"):
        made = cut_sound(path, 1.5, 2.75, kind, AS_IT_IS)
        assert made.actual_end == pytest.approx(2.75, abs=1e-3)
        ends = cut_sound(path, 3.5, 4.5, kind, AS_IT_IS).actual_end
        assert ends == pytest.approx(4.0, abs=0.1)
        if kind != "m4a":
            found = samples(made.main)
            assert found.shape == (made.channels, round(1.25 * made.sample_rate))
            assert np.abs(found).max() > 1000


@pytest.mark.parametrize("kind", ["wav", "m4a"])
def test_truncated_sound_is_corrupt(kind: str, tmp_path: Path) -> None:
    path = part_of(files("ntsc", 140)[0], 0.6, tmp_path)
    assert cut_sound(path, 1.0, 3.0, kind, AS_IT_IS).actual_end == pytest.approx(3.0, abs=PACKET)
    for start, end in ((15.0, 18.0), (None, None)):
        with pytest.raises(ClipError) as caught:
            cut_sound(path, start, end, kind, AS_IT_IS)
        assert caught.value.outcome is Outcome.CORRUPT


def test_ffmpeg_decodes_all_of_the_sound(tmp_path: Path) -> None:
    for kind in ("wav", "flac", "m4a"):
        path = tmp_path / f"clip.{kind}"
        path.write_bytes(cut_sound(files("m30", 140)[0], 6.1, 7.3, kind, AS_IT_IS).main)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-xerror", "-i", str(path)]
        command += ["-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# --- what comes out plays everywhere ------------------------------------------------------------


def clips() -> list[tuple[str, Cut]]:
    return [
        (f"{code}-{pair}", cut_low(files(code, *pair), start, start + 1.2))
        for code, pair in (case.values for case in CASES)
        for start in (6.1, 0.0)
    ]


def test_every_clip_decodes_without_a_word_in_the_log() -> None:
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        for name, made in clips():
            with av.logging.Capture(local=False) as log:
                for kind in ("video", "audio"):
                    with av.open(io.BytesIO(made.main)) as container:
                        frames = list(container.decode(**{kind: 0}))
                    assert frames, name
                    assert kind == "audio" or len(frames) == made.frames, name
            assert log == [], name
    finally:
        av.logging.set_level(level)


def decoded_frames(ffmpeg: str, data: bytes, folder: Path) -> int:
    """Decode all of a clip, refuse any error, and return how many pictures there are."""
    path = folder / "clip.mp4"
    path.write_bytes(data)
    command = [ffmpeg, "-v", "error", "-xerror", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-progress", "pipe:1", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout.rpartition("frame=")[2].split()[0])


def test_ffmpeg_decodes_every_frame(tmp_path: Path) -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    for name, made in clips()[::2]:
        assert decoded_frames(ffmpeg, made.main, tmp_path) == made.frames, name


@pytest.mark.debian
def test_the_older_ffmpeg_of_debian_reads_the_same(tmp_path: Path) -> None:
    """An independent build, years older: frames, their times, and the beginnings agree."""
    for name, made in clips()[::2]:
        assert decoded_frames("/usr/bin/ffmpeg", made.main, tmp_path) == made.frames, name
        starts = {}
        for kind in ("v", "a"):
            command = ["/usr/bin/ffprobe", "-v", "error", "-select_streams", kind]
            command += ["-show_entries", "frame=pts_time", "-of", "csv=p=0"]
            done = subprocess.run(
                [*command, str(tmp_path / "clip.mp4")],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            assert done.stderr == "", name
            times = [float(line.strip(",")) for line in done.stdout.split() if line.strip(",")]
            starts[kind] = times[0]
            length = made.actual_end - made.actual_start
            if kind == "v":
                assert len(times) == made.frames, name
                assert times[-1] + 1 / made.fps == pytest.approx(length, abs=0.002), name
            else:
                # The last packet of sound may stand out by its own length.
                assert length - 0.05 < times[-1] < length + 0.05, name
        assert starts["v"] == 0, name
        assert starts["a"] == pytest.approx(made.av_offset, abs=0.025), name


def first_channel(source: str | io.BytesIO) -> tuple[float, int, NDArray[np.float64]]:
    """Return when the sound begins (seconds), its rate, and its samples in -1 … 1."""
    with av.open(source) as container:
        frames = list(container.decode(audio=0))
    samples = [frame.to_ndarray()[0, :: 1 if frame.format.is_planar else 2] for frame in frames]
    return float(frames[0].time), frames[0].sample_rate, np.concatenate(samples).astype(float)


@pytest.mark.parametrize(
    ("code", "itag", "start", "error"),
    [
        ("m30", 251, 16.0, 0.2),
        ("ntsc", 251, 11.0, 0.2),
        ("m30", 140, 16.0, 0.01),
        ("m24", 139, 11.0, 0.01),
    ],
)
def test_sound_is_right_from_its_first_sample(
    code: str, itag: int, start: float, error: float
) -> None:
    """The decoder had what it needs before: no click at the beginning of a clip."""
    picture, sound = files(code, 134, itag)
    made = cut_low([picture, sound], start, start + 1)
    begins, rate, source = first_channel(str(sound))
    delay, _, heard = first_channel(io.BytesIO(made.main))
    heard = heard[: rate // 2]
    about = round((made.actual_start + delay - begins) * rate)
    # WebM tells times in milliseconds: find the sample.
    off = [
        np.abs(heard - source[about + shift :][: len(heard)])
        for shift in range(-rate // 1000, rate // 1000 + 1)
    ]
    best = min(off, key=np.median)
    assert best[rate // 10 :].max() < 0.01
    assert best.max() < error


# --- media that somebody else made --------------------------------------------------------------

FPS = 25


def encode(path: Path, *arguments: str) -> Path:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments, str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture(scope="module")
def open_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s whose keyframes are led by frames that need the group before."""
    picture = ("-f", "lavfi", "-i", f"testsrc=s=64x64:r={FPS}:d=6")
    sound = ("-f", "lavfi", "-i", "sine=d=6")
    x264 = "open-gop=1:keyint=24:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
    codecs = ("-c:v", "libx264", "-x264-params", x264, "-c:a", "aac")
    return encode(
        tmp_path_factory.mktemp("media") / "open.mp4", *picture, *sound, *codecs, "-shortest"
    )


def pictures(source: Path | bytes) -> list[tuple[int, bytes]]:
    """Return frame number and pixels of all pictures."""
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    with av.open(file) as container:
        return [
            (round(frame.time * FPS), frame.to_ndarray(format="gray").tobytes())
            for frame in container.decode(video=0)
        ]


def test_open_groups_of_pictures(open_gop: Path) -> None:
    """Frames that lead a keyframe are left out where it begins, and kept where it comes later."""
    with av.open(str(open_gop)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    keys = [packet.pts for packet in packets if packet.is_keyframe]
    assert any(
        later.pts < packet.pts
        for i, packet in enumerate(packets)
        if packet.is_keyframe
        for later in packets[i:]
    ), "no leading pictures"
    source = dict(pictures(open_gop))
    step = float(packets[0].time_base)
    for start, end in ((2.5, 3.5), (1.92, 2.88), (0.0, 1.0), (0.92, 1.0), (4.9, 6.0)):
        made = cut_low([open_gop], start, end)
        first = round(max(key for key in keys if key * step <= start + 1e-9) * step * FPS)
        shown = pictures(made.main)
        assert made.actual_start == pytest.approx(first / FPS)
        assert [number for number, _ in shown] == list(range(made.frames))
        assert made.actual_end == pytest.approx((first + made.frames) / FPS)
        assert end <= made.actual_end + 1e-9 < end + 5 / FPS
        assert [pixels for _, pixels in shown] == [source[first + i] for i in range(made.frames)]


def test_picture_that_begins_late(open_gop: Path, tmp_path: Path) -> None:
    """Before it there is nothing to cut; around its beginning the clip says where it begins."""
    arguments = ("-itsoffset", "3", "-i", str(open_gop), "-i", str(open_gop), "-c", "copy")
    late = encode(tmp_path / "late.mp4", *arguments, "-map", "0:v", "-map", "1:a")
    with pytest.raises(ClipError) as caught:
        cut_low([late], 0.0, 2.0)
    assert caught.value.outcome is Outcome.CLIP_OUT_OF_RANGE
    made = cut_low([late], 2.5, 3.5)
    assert made.actual_start == pytest.approx(3.0)
    assert made.frames == len(pictures(made.main))


def test_sound_that_begins_late_is_recorded(open_gop: Path, tmp_path: Path) -> None:
    arguments = ("-i", str(open_gop), "-itsoffset", "3", "-i", str(open_gop), "-c", "copy")
    late = encode(tmp_path / "late.mp4", *arguments, "-map", "0:v", "-map", "1:a")
    made = cut_low([late], 2.5, 4.0)
    assert made.av_offset == pytest.approx(3.0 - made.actual_start, abs=0.05)
    with av.open(io.BytesIO(made.main)) as container:
        assert next(container.decode(audio=0)).time == pytest.approx(made.av_offset, abs=0.03)
    with pytest.raises(ClipError) as caught:
        cut_low([late], 0.0, 1.5)
    assert caught.value.outcome is Outcome.NO_AUDIO


def test_file_without_picture_or_sound() -> None:
    sound, picture = files("m24", 140, 134)
    for given_files, outcome in (
        ([sound], Outcome.NO_VIDEO),
        ([picture], Outcome.NO_AUDIO),
        ([sound, picture], Outcome.NO_VIDEO),
    ):
        with pytest.raises(ClipError) as caught:
            cut_low(given_files, 1.0, 2.0)
        assert caught.value.outcome is outcome


def foreign_files() -> dict[str, bytes]:
    whole = master("prog").rendition(18).path.read_bytes()
    return {
        "empty": b"",
        "one byte": b"\0",
        "noise": random.Random(1).randbytes(100_000),
        "zeros": bytes(100_000),
        "html": b"<!doctype html><html><title>Sorry</title></html>" * 100,
        "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nNo film\n" * 100,
        "head": whole[:1000],
        "moov": whole[: whole.index(b"mdat") + 4],
        "unknown codec": whole.replace(b"avc1", b"zzz1"),
    }


@pytest.mark.parametrize("name", foreign_files())
def test_no_media(name: str, tmp_path: Path) -> None:
    path = tmp_path / "0.mp4"
    path.write_bytes(foreign_files()[name])
    with pytest.raises(ClipError) as caught:
        cut_low([path], 1.0, 2.0)
    assert caught.value.outcome is Outcome.CORRUPT
    assert caught.value.detail


@pytest.mark.parametrize("name", ["0.m3u8", "0.mp4", "0.ffconcat"])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_a_list_of_files_is_not_followed(name: str, kind: str, tmp_path: Path) -> None:
    """What a server sends must not put a file of this machine into the dataset."""
    private = tmp_path / "private.mp4"
    private.write_bytes(master("prog").rendition(18).path.read_bytes())
    lists = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:12\n#EXTINF:12.0,\nprivate.mp4\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile private.mp4\n",
    }
    path = tmp_path / name
    path.write_text(lists[kind])
    with pytest.raises(ClipError) as caught:
        cut_low([path], 0.0, 1.0)
    assert caught.value.outcome is Outcome.CORRUPT


# --- files that break off ------------------------------------------------------------------------


def part_of(path: Path, fraction: float, folder: Path) -> Path:
    data = path.read_bytes()
    part = folder / f"{fraction}-{path.name}"
    part.write_bytes(data[: int(len(data) * fraction)])
    return part


@pytest.mark.parametrize("fraction", [0.45, 0.6, 0.81])
@pytest.mark.parametrize(
    ("code", "pair", "broken"),
    [
        ("ntsc", (134, 140), (134,)),
        ("ntsc", (134, 140), (140,)),
        ("m24", (18,), (18,)),
        ("webm", (243, 251), (243,)),
        ("webm", (243, 251), (251,)),
        ("webm", (243, 251), (243, 251)),
    ],
)
def test_truncated(
    code: str, pair: tuple[int, ...], broken: tuple[int, ...], fraction: float, tmp_path: Path
) -> None:
    """What is not there is told as corrupt, and may be asked for again; what is there is right."""
    spec = SPECS[code]
    given_files = [
        part_of(path, fraction, tmp_path) if itag in broken else path
        for itag, path in zip(pair, files(code, *pair), strict=True)
    ]
    ends, outcomes = [], set()
    for number in range(6):
        end = 1.2 + number * (spec.duration - 1.3) / 5
        try:
            made = cut_low(given_files, end - 1.2, end)
        except ClipError as error:
            outcomes.add(error.outcome)
            continue
        ends.append(end)
        shown = probe(made.main, spec)
        assert shown.frames_contiguous
        assert shown.frames == made.frames
        assert made.actual_end >= end - END_TOLERANCE
        assert shown.audio_steady
        assert shown.audio_end is not None
        assert shown.audio_end > made.actual_end - END_TOLERANCE
    assert outcomes == {Outcome.CORRUPT}
    assert ends, "the beginning is whole"
    assert max(ends) < spec.duration * 0.95, "the end is missing"


MUTABLE = [("ntsc", 134), ("m24", 18), ("webm", 243)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_files_end_as_outcomes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a file holds, a clip is made or has an outcome: nothing else leaves."""
    code, itag = data.draw(st.sampled_from(MUTABLE))
    content = bytearray(files(code, itag)[0].read_bytes()[:150_000])
    reach = data.draw(st.sampled_from([64, 1500, len(content)]))
    changes = st.tuples(st.integers(0, reach - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(changes, min_size=1, max_size=30)):
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.media"
    path.write_bytes(content)
    try:
        made = cut_low([path, files("m30", 140)[0]], 0.5, 1.5)
    except ClipError as error:
        event(error.outcome)
    else:
        assert made.frames > 0
        assert made.actual_end > made.actual_start


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_sound_ends_as_an_outcome(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    code, itag = data.draw(st.sampled_from([("ntsc", 140), ("prog", 18), ("webm", 251)]))
    kind = data.draw(st.sampled_from(["wav", "flac", "m4a"]))
    start, end = data.draw(st.sampled_from([(0.5, 1.5), (None, None)]))
    content = bytearray(files(code, itag)[0].read_bytes()[:60_000])
    reach = data.draw(st.sampled_from([64, 1500, len(content)]))
    changes = st.tuples(st.integers(0, reach - 1), st.integers(0, 255))
    for place, value in data.draw(st.lists(changes, min_size=1, max_size=30)):
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.sound"
    path.write_bytes(content)
    try:
        made = cut_sound(path, start, end, kind, AS_IT_IS)
    except ClipError as error:
        event(error.outcome)
    else:
        assert made.actual_end > made.actual_start


# --- the end of a run of frames ------------------------------------------------------------------


@settings(deadline=None)
@given(
    order=st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True),
    end=st.integers(-45, 45),
)
def test_closed_length_is_the_shortest_closed_run(order: list[int], end: int) -> None:
    times = [min(order), *(time for time in order if time != min(order))]
    found = closed_length(np.array(times), end)

    def closed(count: int) -> bool:
        kept, rest = times[:count], times[count:]
        none_missing = all(a < b for a, b in itertools.product(kept, rest))
        return none_missing and all(time >= end for time in rest)

    assert closed(found)
    assert not any(closed(count) for count in range(1, found))
