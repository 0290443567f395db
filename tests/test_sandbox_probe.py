from __future__ import annotations

import io
import subprocess
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import imageio_ffmpeg
import numpy as np
import pytest

from acavdl.sandbox import media
from acavdl.sandbox.media import DEMO_MASTERS, Timeline, make_masters
from acavdl.sandbox.probe import ProbeError, probe

if TYPE_CHECKING:
    from pathlib import Path

    from acavdl.sandbox.media import Master

MS = 1e-3


@pytest.fixture(scope="session")
def masters() -> dict[str, Master]:
    return make_masters(DEMO_MASTERS)


def run(*arguments: object) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=60)


def remux(
    master: Master, start: Fraction, stop: Fraction, *, sound_later: Fraction = Fraction(0)
) -> bytes:
    """Copy [start, stop) of the progressive file, from keyframe to keyframe."""
    taking = False
    out = io.BytesIO()
    with (
        av.open(master.rendition(18).path) as source,
        av.open(out, "w", format="mp4", options={"movie_timescale": "90000"}) as target,
    ):
        outputs = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.pts is None or packet.dts is None or packet.time_base is None:
                continue
            sound = packet.stream.type == "audio"
            within = start <= packet.pts * packet.time_base < stop
            if not sound and packet.is_keyframe:
                taking = within
            if not (within if sound else taking):
                continue
            shift = round((sound_later * sound - start) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = outputs[packet.stream.index]
            target.mux(packet)
    return out.getvalue()


def test_an_uncut_master_begins_at_zero(masters: dict[str, Master]) -> None:
    for master in masters.values():
        spec = master.spec
        for rendition in master.renditions:
            found = probe(rendition.path, master)
            if found.has_video:
                assert found.frame_numbers == tuple(range(spec.frames))
                assert found.frames_contiguous
                assert found.fps == pytest.approx(float(spec.fps), rel=1e-3)
                late = spec.timeline is Timeline.NONE and spec.b_frames > 0
                assert found.first_frame_time == pytest.approx(late / float(spec.fps))
                assert (found.width, found.height) == (rendition.width, rendition.height)
            if found.has_audio:
                assert found.audio_start == pytest.approx(0, abs=0.05 * MS)
                assert found.audio_start_time == pytest.approx(0, abs=0.6 * MS)
                assert found.audio_end == pytest.approx(rendition.duration, abs=0.05)
                assert found.audio_steady
                assert found.sample_rate == rendition.sample_rate
            if found.has_video and found.has_audio:
                assert found.audio_offset == pytest.approx(0, abs=0.05 * MS)


def test_picture_and_sound_apart(masters: dict[str, Master]) -> None:
    pair = [masters["m30"].rendition(itag).path for itag in (133, 139)]
    found = probe(pair[0], masters["m30"], audio=pair[1])
    assert found.audio_offset == pytest.approx(0, abs=0.05 * MS)
    # players show B-frames with negative offsets late by one frame
    pair = [masters["ntsc"].rendition(itag).path for itag in (134, 140)]
    found = probe(pair[0], masters["ntsc"], audio=pair[1].read_bytes())
    assert found.audio_offset == pytest.approx(1001 / 30_000, abs=0.05 * MS)


@pytest.mark.parametrize("later", [Fraction(0), Fraction(40, 1000), Fraction(-25, 1000)])
def test_a_shift_is_told(masters: dict[str, Master], later: Fraction) -> None:
    clip = remux(masters["m30"], Fraction(10), Fraction(20), sound_later=later)
    found = probe(clip, masters["m30"])
    assert (found.first_frame, found.last_frame) == (300, 599)
    assert found.frames_contiguous
    assert found.audio_steady
    assert found.audio_offset == pytest.approx(-float(later), abs=0.2 * MS)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("copy.mp4", ["-c", "copy"]),
        ("again.mp4", ["-c:v", "libx264", "-c:a", "aac"]),
        ("poor.mp4", ["-c:v", "libx264", "-crf", "42", "-c:a", "aac", "-ac", "1", "-b:a", "32k"]),
        ("small.mp4", ["-c:v", "libx264", "-vf", "scale=256:144", "-c:a", "aac", "-ar", "16000"]),
        ("square.mp4", ["-c:v", "libx264", "-vf", "scale=224:224", "-c:a", "libmp3lame"]),
        ("crop.mp4", ["-c:v", "libx264", "-vf", "crop=360:360", "-c:a", "libopus"]),
        ("bars.mkv", ["-c:v", "libx264", "-vf", "pad=640:640:0:140", "-c:a", "pcm_s16le"]),
        ("vp9.mp4", ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-c:a", "libopus"]),
        ("vp9.webm", ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-c:a", "libopus"]),
        ("rgb.mkv", ["-c:v", "ffv1", "-pix_fmt", "gbrp", "-c:a", "flac"]),
    ],
)
def test_cuts_of_ffmpeg(
    masters: dict[str, Master], tmp_path: Path, name: str, arguments: list[str]
) -> None:
    fast = ["-preset", "ultrafast"] if "libx264" in arguments else ["-deadline", "realtime"]
    fast = fast if {"libx264", "libvpx-vp9"} & {*arguments} else []
    path = tmp_path / name
    source = masters["m30"].rendition(18).path
    run("-ss", "21.71", "-i", source, "-t", "3", *arguments, *fast, path)
    found = probe(path, masters["m30"])
    assert found.first_frame == 652  # 21.7333 s: the first frame that begins at or after 21.71 s
    # copying leaves holes among the last B-frames
    assert found.frames_contiguous or name == "copy.mp4"
    assert found.frame_numbers[:80] == tuple(range(652, 732))
    assert found.audio_start == pytest.approx(21.71, abs=1 * MS)
    assert found.audio_steady


@pytest.mark.parametrize("seconds", [0.12, 0.3, 1.0])
def test_short_sound(masters: dict[str, Master], tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "x.wav"
    for start in (0.0, 7.77, 39.0):
        run("-ss", start, "-i", masters["m30"].rendition(18).path, "-t", seconds, path)
        found = probe(path, masters["m30"])
        assert found.audio_start == pytest.approx(start, abs=0.2 * MS)
        assert not found.has_video
        assert found.audio_offset is None
        assert found.first_frame is None


def test_the_clicks_agree(masters: dict[str, Master], tmp_path: Path) -> None:
    """The clicks are not used by the probe, so they tell whether it is right."""
    path = tmp_path / "x.wav"
    run("-ss", "12.345", "-i", masters["m25"].rendition(18).path, "-t", "4", "-ac", "1", path)
    with av.open(path) as container:
        parts = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
    sound = np.concatenate(parts).astype(np.float64)
    sound /= np.abs(sound).max()
    click = np.arange(800) / 44_100
    click = np.exp(-click / 0.002) * np.sin(2 * np.pi * media.CLICK_HZ * click)
    spectrum = np.fft.rfft(sound)
    spectrum[: round(4500 * len(sound) / 44_100)] = 0
    matched = np.correlate(np.fft.irfft(spectrum, len(sound)), click, "valid")
    first = int(np.argmax(matched[:44_100])) / 44_100
    found = probe(path, masters["m25"])
    assert found.audio_start is not None
    assert found.audio_start + first == pytest.approx(13.0, abs=0.05 * MS)


def test_a_seam_in_the_sound_is_told(masters: dict[str, Master], tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    drop = "aselect='not(between(t,5,5.05))',asetpts=N/SR/TB"
    run("-i", masters["m30"].rendition(140).path, "-t", "10", "-af", drop, path)
    found = probe(path, masters["m30"])
    assert not found.audio_steady
    assert found.audio_wander == pytest.approx(0.05, abs=0.03)
    assert found.audio_start == pytest.approx(0, abs=1 * MS)
    assert found.audio_end is not None
    assert found.audio_end - found.duration == pytest.approx(0.05, abs=0.025)


def test_missing_and_foreign_frames(masters: dict[str, Master], tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    fast = ["-c:v", "libx264", "-preset", "ultrafast", "-an"]
    select = "select='lt(n,10)+gt(n,12)',setpts=N/30/TB"
    source = masters["m30"].rendition(134).path
    run("-i", source, "-t", "1", "-vf", select, *fast, path)
    found = probe(path, masters["m30"])
    assert found.frame_numbers[:12] == (*range(10), 13, 14)
    assert not found.frames_contiguous
    foreign = probe(path, masters["m25"].spec)
    assert foreign.frames == found.frames
    assert foreign.first_frame is None
    assert not foreign.frames_contiguous


def test_silence_and_plain_pictures(masters: dict[str, Master], tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    inputs = ["-f", "lavfi", "-i", "anullsrc", "-f", "lavfi", "-i", "color=red:s=640x360"]
    run(*inputs, "-t", "1", "-c:v", "libx264", "-preset", "ultrafast", path)
    found = probe(path, masters["m30"])
    assert found.has_video
    assert found.has_audio
    assert found.first_frame is None
    assert found.audio_start is None
    assert found.audio_offset is None
    assert not found.audio_steady


def test_what_is_no_media(masters: dict[str, Master], tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read"):
        probe(b"<html>" * 100, masters["m30"])
    with pytest.raises(ProbeError, match="cannot read"):
        probe(tmp_path / "absent.mp4", masters["m30"])
