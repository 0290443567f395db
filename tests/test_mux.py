"""The writer: what goes in comes out, for our own reader and for ffmpeg."""

from __future__ import annotations

import io
import subprocess
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from acavdl.media import LocalFile, Media, MemoryFile
from acavdl.mp4 import BrokenError, Samples, boxes
from acavdl.mux import Part, write_mp4
from acavdl.pick import choose_clips, track_of
from acavdl.remux import copy_clip, copy_sound, frames_part, sound_part
from acavdl.sandbox.media import DEMO_MASTERS, make_masters

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
PAIRS = [("m30", (134, 140)), ("ntsc", (134, 140)), ("m24", (18,)), ("m60", (134, 140))]


@cache
def path_of(code: str, itag: int) -> Path:
    return make_masters([SPECS[code]])[code].rendition(itag).path


def parts(code: str, pair: tuple[int, ...], precision: str) -> list[Part]:
    files = [Media(LocalFile(path_of(code, itag))) for itag in pair]
    span = Fraction(3210, 1000), Fraction(6540, 1000)
    (chosen,) = choose_clips(files[0], files[-1], [span], precision)
    assert not isinstance(chosen, Exception)
    frames = frames_part(chosen, files[0])
    return [frames, sound_part(chosen, files[-1], frames)]


def content(part: Part) -> list[bytes]:
    pairs = zip(part.samples.offset.tolist(), part.samples.size.tolist(), strict=True)
    return [bytes(part.read(start, start + size)) for start, size in pairs]


@pytest.mark.parametrize("precision", ["low", "editlist"])
@pytest.mark.parametrize(("code", "pair"), PAIRS)
def test_what_goes_in_comes_out(code: str, pair: tuple[int, ...], precision: str) -> None:
    given = parts(code, pair, precision)
    data = write_mp4(given)
    assert data == write_mp4(given)
    assert [box.kind for box in boxes(data)] == [b"ftyp", b"moov", b"mdat"]
    media = Media(MemoryFile(data))
    for part, track in zip(given, media.movie.tracks, strict=True):
        table, samples = track.table, part.samples
        # An edit list hides the end; what is left are the first of them.
        assert len(samples) - len(table) < 10
        kept = samples.taken(slice(len(table)))
        assert (table.pts + part.begin).tolist() == kept.pts.tolist()
        assert (np.diff(table.dts) == np.diff(kept.dts)).all()
        assert table.key.tolist() == kept.key.tolist()
        assert content(Part(track, table, media.read, 0, 1)) == content(part)[: len(table)]
        assert track.entry == part.track.entry
        assert track.header == part.track.header


@pytest.mark.parametrize("precision", ["low", "editlist"])
@pytest.mark.parametrize(("code", "pair"), PAIRS)
def test_ffmpeg_reads_it_without_a_complaint(
    code: str, pair: tuple[int, ...], precision: str, tmp_path: Path
) -> None:
    given = parts(code, pair, precision)
    path = tmp_path / "clip.mp4"
    path.write_bytes(write_mp4(given))
    program = imageio_ffmpeg.get_ffmpeg_exe()
    null = [program, "-v", "warning", "-nostdin", "-i", str(path), "-f", "null", "-"]
    done = subprocess.run(null, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    for number, part in enumerate(given):
        with av.open(str(path)) as container:
            packets = [bytes(p) for p in container.demux(container.streams[number]) if p.size]
        assert packets == content(part)


def test_data_lie_by_the_second() -> None:
    """So that a reader that goes from front to back has picture and sound of each."""
    frames, sound = (
        track.table for track in Media(MemoryFile(write_mp4(parts(*PAIRS[0], "low")))).movie.tracks
    )
    first = frames.offset[frames.dts - frames.dts[0] >= 15360][0]
    assert sound.offset[0] < first < sound.offset[-1]


def test_sound_that_begins_later_is_as_late_in_the_clip() -> None:
    frames, sound = parts("m30", (134, 140), "low")
    late = replace(sound, samples=sound.samples.taken(slice(30, None)))
    data = write_mp4([frames, late])
    track = track_of(Media(MemoryFile(data)), video=False)
    expected = int(late.samples.pts[0]) - sound.begin
    assert int(track.table.pts[0]) == pytest.approx(expected, abs=1)
    with av.open(io.BytesIO(data)) as container:
        packet = next(p for p in container.demux(audio=0) if p.size)
        assert packet.pts == pytest.approx(expected, abs=1)


def test_values_that_do_not_fit_are_refused() -> None:
    frames, _ = parts("m30", (134, 140), "low")
    samples = frames.samples
    huge = Samples(
        samples.offset,
        samples.size,
        samples.dts * (1 << 32),
        samples.pts * (1 << 32),
        samples.duration,
        samples.key,
    )
    with pytest.raises(OverflowError):
        write_mp4([replace(frames, samples=huge)])
    backwards = replace(samples, dts=samples.dts[::-1].copy())
    with pytest.raises(OverflowError):
        write_mp4([replace(frames, samples=backwards)])


def test_noise_in_place_of_frames_is_refused() -> None:
    files = [Media(LocalFile(path_of("m30", itag))) for itag in (134, 140)]
    (chosen,) = choose_clips(files[0], files[1], [(Fraction(3), Fraction(5))], "editlist")
    assert not isinstance(chosen, Exception)
    assert copy_clip(chosen, *files, sound_apart=False).frames == 60
    assert list(copy_sound(chosen, files[1]).members) == ["m4a"]
    noise = np.random.default_rng(1).bytes(1 << 22)
    files[0].read = lambda start, stop: noise[: stop - start]  # type: ignore[method-assign]
    with pytest.raises(BrokenError, match="frames that are none"):
        copy_clip(chosen, *files, sound_apart=False)
