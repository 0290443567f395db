"""What a decoder returns of clips of each precision: read from the pixels and from the sound."""

from __future__ import annotations

import math
import random
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from barcodes import heard_from, numbers, shown_at

from acavdl.cut import CutForm, cut_chosen, cut_files
from acavdl.decode import Decoder
from acavdl.errors import Outcome, SampleError, UsageError
from acavdl.media import LocalFile, Media
from acavdl.models import Clip, ClipResult
from acavdl.pick import Chosen, choose_clips
from acavdl.sandbox.media import DEMO_MASTERS, Master, make_masters
from acavdl.writer import members_of

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
#: Of each: a span that begins between two frames, far behind a keyframe.
CLIPS = {
    "m30": ((134, 140), 8.017, 12.017),
    "ntsc": ((134, 140), 8.517, 12.517),
    "m24": ((18,), 7.61, 11.61),
    "webm": ((243, 251), 3.217, 6.217),
}
EXACT = ("low", "editlist", "exact")


@cache
def master(code: str) -> Master:
    return make_masters([SPECS[code]])[code]


@cache
def sample_of(
    code: str,
    precision: str,
    start: float | None = None,
    end: float | None = None,
    itags: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    """Cut a clip as the pipeline does; return its sample as webdataset does."""
    if itags is None:
        itags, first, last = CLIPS[code]
        start, end = (first, last) if start is None else (start, end)
    paths = [master(code).rendition(itag).path for itag in itags]
    form = CutForm({"video": "mp4"}, precision=precision)
    if 251 in itags or start is None or end is None:
        made = cut_files(paths, start, end, form)
    else:
        media = [Media(LocalFile(path)) for path in paths]
        span = (Fraction(str(start)), Fraction(str(end)))
        (chosen,) = choose_clips(media[0], media[-1], [span], precision)
        assert isinstance(chosen, Chosen)
        made = cut_chosen(chosen, media[0], media[-1], form)
    first_ms, last_ms = (None if t is None else round(t * 1000) for t in (start, end))
    clip = Clip(code, f"https://example.org/{code}", first_ms, last_ms, 0, 0, "A caption")
    members = members_of(ClipResult(clip, Outcome.OK, None, made))
    return {"__key__": clip.key, "__url__": "00000.tar", **members}


@pytest.mark.parametrize("code", CLIPS)
def test_the_same_frames_and_sound_whatever_the_precision(code: str) -> None:
    spec, (_, start, end) = SPECS[code], CLIPS[code]
    expected = list(range(shown_at(spec, start), shown_at(spec, end)))
    for precision in EXACT:
        found = Decoder()(sample_of(code, precision))
        assert numbers(spec, found["video"]) == expected, precision
        times = np.array(expected) / float(spec.fps) - start
        assert found["video_times"] == pytest.approx(times, abs=1e-3), precision
        assert found["video_times"][0] <= 0 < found["video_times"][1]
        assert found["video"].dtype == np.uint8
        assert found["video_valid"].tolist() == [0, len(expected)]
        # Sound to the sample (WebM stamps in whole milliseconds).
        first, last = heard_from(spec, found)
        exact = 0.0015 if code == "webm" else 0.5 / found["audio_rate"] + 2e-5
        assert first == pytest.approx(start + found["audio_start"], abs=exact), precision
        assert found["audio_start"] == 0
        assert last == pytest.approx(end, abs=2e-3 if precision == "low" else 1.1 / spec.fps)
        assert found["audio"].dtype == np.float32
        assert found["audio_valid"].tolist() == [0, found["audio"].shape[1]]
        assert (found["start"], found["end"]) == (start, end)
        assert found["caption"] == "A caption"


@pytest.mark.parametrize("fps", [7.5, 30.0, 60.0])
def test_a_rate_takes_the_nearest_frames_of_the_span(fps: float) -> None:
    spec, (_, start, end) = SPECS["m30"], CLIPS["m30"]
    own = np.arange(shown_at(spec, start), shown_at(spec, end))
    grid = start + np.arange(round((end - start) * fps)) / fps
    expected = [int(own[np.argmin(np.abs(own / 30 - time).round(6))]) for time in grid]
    for precision in EXACT:
        found = Decoder(fps=fps, audio=False)(sample_of("m30", precision))
        assert numbers(spec, found["video"]) == expected
        assert found["video_times"] + start == pytest.approx(np.array(expected) / 30, abs=1e-4)
        assert "audio" not in found


@pytest.mark.parametrize("pad", [False, True])
def test_a_clip_shorter_than_its_request_says_where_it_is(pad: bool) -> None:
    """Between keyframes 5 s apart: what comes before the first and behind the last is not there."""
    spec = SPECS["m30"]
    sample = sample_of("m30", "keyframe_adjusted", 8.5, 21.0)
    decoder = Decoder(fps=10, audio_rate=16_000, audio_channels=1, pad=pad)
    found = decoder(sample)
    cut = found["json"]["cut"]
    lead, tail = cut["actual_start"] - 8.5, 21.0 - cut["actual_end"]
    assert min(lead, tail) > 0.5
    (first, stop), (heard, silent) = found["video_valid"], found["audio_valid"]
    shown = found["video"][first:stop]
    times = np.array(numbers(spec, shown)) / 30 - 8.5
    assert times == pytest.approx(found["video_times"][first:stop], abs=1e-4)
    assert len(shown) == pytest.approx((12.5 - lead - tail) * 10, abs=2)
    if pad:
        assert found["video"].shape == (125, 360, 640, 3)
        assert np.isnan(found["video_times"][:first]).all()
        assert np.isnan(found["video_times"][stop:]).all()
        assert not found["video"][:first].any()
        assert not found["video"][stop:].any()
        assert found["audio"].shape == (1, 200_000)
        assert heard / 16_000 == pytest.approx(lead, abs=1e-4)
        assert not found["audio"][:, :heard].any()
        assert not found["audio"][:, silent:].any()
        assert found["audio_start"] == 0
    else:
        assert first == heard == 0
        assert found["audio_start"] == pytest.approx(lead, abs=1e-4)
    sounding = {**found, "audio": found["audio"][:, heard:silent]}
    begin, end = heard_from(spec, sounding)
    assert begin == pytest.approx(cut["actual_start"], abs=1e-4)
    assert end == pytest.approx(cut["actual_end"], abs=0.05)


@pytest.mark.parametrize("rate", [16_000, 22_050, 48_000])
@pytest.mark.parametrize("code", ["m30", "webm"])
def test_sound_at_another_rate_stands_at_the_same_time(code: str, rate: int) -> None:
    _, start, end = CLIPS[code]
    found = Decoder(video=False, audio_rate=rate, audio_channels=1)(sample_of(code, "low"))
    assert found["audio"].shape == (1, round((end - start) * rate))
    first, last = heard_from(SPECS[code], found)
    exact = 0.0015 if code == "webm" else 5e-5
    assert first == pytest.approx(start, abs=exact)
    assert last == pytest.approx(end, abs=exact + 1e-4)
    # Loud from the first sample to the last.
    for part in (found["audio"][0, :400], found["audio"][0, -400:]):
        assert np.abs(part).max() > 0.05


def test_a_resampler_hears_what_comes_before() -> None:
    """So the first samples are those of a span that begins earlier."""
    _, start, end = CLIPS["m30"]
    decoder = Decoder(video=False, audio_rate=16_000, audio_channels=1)
    earlier = decoder(sample_of("m30", "low", start - 1, end))["audio"]
    later = decoder(sample_of("m30", "low"))["audio"]
    assert later.shape[1] == earlier.shape[1] - 16_000
    assert later == pytest.approx(earlier[:, 16_000:], abs=1e-4)


def random_spans() -> list[tuple[str, tuple[int, ...], int, int]]:
    """Of all kinds of media: spans in milliseconds; some begin right on a frame or at an end."""
    chance = random.Random(5)
    pairs = ((134, 140), (18,), (134, 139), (134, 251), (243, 251))
    found = []
    for spec in DEMO_MASTERS[:-1]:
        for pair in pairs:
            if set(pair) <= set(spec.itags):
                length = chance.choice([500, 1000, 1234])
                latest = int(spec.duration * 1000) - length
                frame = chance.randrange(int(latest / 1000 * spec.fps))
                starts = [chance.randint(0, latest), math.ceil(1000 * frame / spec.fps), 0, latest]
                found.append((spec.code, pair, chance.choice(starts), length))
    return found


@pytest.mark.parametrize(("code", "pair", "start", "length"), random_spans())
def test_random_spans(code: str, pair: tuple[int, ...], start: int, length: int) -> None:
    spec, begin, end = SPECS[code], Fraction(start, 1000), Fraction(start + length, 1000)

    def time(frame: int) -> Fraction:
        seconds = frame / spec.fps
        return Fraction(round(seconds * 1000), 1000) if 243 in pair else seconds

    frames = range(round(spec.duration * spec.fps))
    first = max(frame for frame in frames if time(frame) <= begin)
    last = max(frame for frame in frames if time(frame + 1) <= end)
    for precision in ("low", "editlist"):
        found = Decoder()(sample_of(code, precision, start / 1000, (start + length) / 1000, pair))
        assert numbers(spec, found["video"]) == list(range(first, last + 1)), precision
        heard = heard_from(spec, found)[0]
        exact = 0.0016 if 251 in pair else 0.5 / found["audio_rate"] + 3e-5
        assert heard == pytest.approx(start / 1000 + found["audio_start"], abs=exact), precision
        assert found["audio_start"] < 0.001


def test_a_whole_video() -> None:
    spec = SPECS["prog"]
    found = Decoder()(sample_of("prog", "low", None, None, (18,)))
    assert numbers(spec, found["video"]) == list(range(spec.frames))
    assert (found["start"], found["end"]) == (0, pytest.approx(spec.duration, abs=1e-3))
    assert found["audio"].shape[1] == round(found["end"] * found["audio_rate"])
    assert heard_from(spec, found)[0] == pytest.approx(0, abs=5e-5)


def test_pictures_are_turned_as_ffmpeg_turns_them(tmp_path: Path) -> None:
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    pictures = ["-f", "lavfi", "-i", "testsrc=d=1:r=30:s=320x240"]
    ffmpeg(*pictures, "-pix_fmt", "yuv420p", str(plain))
    for angle, shape in (("90", (320, 240)), ("180", (240, 320)), ("270", (320, 240))):
        ffmpeg("-display_rotation", angle, "-i", str(plain), "-c", "copy", str(turned))
        raw = ffmpeg("-i", str(turned), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        expected = np.frombuffer(raw, np.uint8).reshape(30, *shape, 3)
        cut = {"start": 0.0, "end": 1.0, "actual_start": 0.0, "actual_end": 1.0}
        sample = {"mp4": turned.read_bytes(), "json": {"cut": cut}}
        found = Decoder(audio=False)(sample)["video"]
        assert found.shape == expected.shape
        # Rounding differs where chroma is scaled before it is turned, or after.
        assert np.abs(found.astype(int) - expected).mean() < 3
        assert Decoder(audio=False, size=(32, 24))(sample)["video"].shape == (30, 32, 24, 3)


def ffmpeg(*arguments: str) -> bytes:
    program = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"]
    return subprocess.run([*program, *arguments], check=True, capture_output=True).stdout


def test_sizes() -> None:
    sample = sample_of("m30", "low")
    for size, shape in (
        (None, (360, 640)),
        (180, (180, 320)),
        ((128, 128), (128, 128)),
        ((90, 50), (90, 50)),
    ):
        found = Decoder(fps=2, size=size, audio=False)(sample)  # type: ignore[arg-type]
        assert found["video"].shape == (8, *shape, 3)
    assert numbers(SPECS["m30"], Decoder(fps=2, size=180, audio=False)(sample)["video"])


def test_what_can_not_be_is_told_at_once() -> None:
    for wrong, words in (
        ({"fps": 0}, "fps"),
        ({"size": (1, 2, 3)}, "size"),
        ({"audio_channels": 6}, "audio_channels"),
        ({"video": False, "audio": False}, "one of both"),
        ({"pad": True}, "needs fps"),
    ):
        with pytest.raises(UsageError, match=words):
            Decoder(**wrong)  # type: ignore[arg-type]


def test_a_damaged_sample_is_told_with_its_shard_and_key() -> None:
    sample = sample_of("m30", "low")
    media = sample["mp4"]
    damaged = media[: len(media) // 2] + b"\x00" * (len(media) - len(media) // 2)
    for wrong in (damaged, media[:1000], media[: len(media) // 2], b""):
        with pytest.raises(SampleError, match=rf"00000\.tar: sample {sample['__key__']} can't"):
            Decoder()({**sample, "mp4": wrong})
    with pytest.raises(SampleError, match="KeyError"):
        Decoder()({"__key__": "a", "mp4": media})
