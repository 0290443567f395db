from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acavdl.sandbox import media
from acavdl.sandbox.media import DEMO_MASTERS, MasterSpec, MediaError, make_masters
from acavdl.sandbox.virtual import boxes, find_box, parse_sidx

if TYPE_CHECKING:
    from pathlib import Path

    from acavdl.sandbox.media import Master, Rendition

TINY = MasterSpec(
    "tiny", 2.0, Fraction(10), (134, 140, 18), gop_seconds=0.5, width=64, height=360, b_frames=1
)


@pytest.fixture(scope="session")
def masters() -> dict[str, Master]:
    return make_masters(DEMO_MASTERS)


def renditions(masters: dict[str, Master]) -> list[tuple[MasterSpec, Rendition]]:
    return [(m.spec, r) for m in masters.values() for r in m.renditions]


def test_the_demo_has_what_matters() -> None:
    codes = [spec.code for spec in DEMO_MASTERS]
    assert len(set(codes)) == len(codes)
    assert all(2 <= len(c) <= 4 and c.isalnum() and c == c.lower() for c in codes)
    assert {spec.fps for spec in DEMO_MASTERS} >= {24, 25, 30, 60, Fraction(30_000, 1001)}
    assert any(spec.b_frames for spec in DEMO_MASTERS)
    assert not all(spec.b_frames for spec in DEMO_MASTERS)
    assert any(spec.height > spec.width for spec in DEMO_MASTERS)
    assert any(set(spec.itags) == {243, 251} for spec in DEMO_MASTERS)
    assert any(spec.itags == (18,) for spec in DEMO_MASTERS)
    assert sum(spec.virtual is not None for spec in DEMO_MASTERS) == 1


def test_files_are_what_their_rendition_says(masters: dict[str, Master]) -> None:
    for spec, rendition in renditions(masters):
        assert rendition.path.stat().st_size == rendition.size
        with av.open(rendition.path) as container:
            assert container.duration is not None
            assert container.duration / 1e6 == pytest.approx(rendition.duration, abs=0.05)
            for video in container.streams.video:
                size = rendition.width, rendition.height
                assert (video.codec_context.width, video.codec_context.height) == size
                assert float(video.average_rate or 0) == pytest.approx(float(spec.fps), rel=1e-3)
                assert ("vp9" in rendition.codecs) == (video.codec_context.name == "vp9")
            for audio in container.streams.audio:
                assert audio.codec_context.sample_rate == rendition.sample_rate
                assert audio.codec_context.channels == rendition.channels
            kinds = {stream.type for stream in container.streams}
        assert ("video" in kinds) == (rendition.width is not None)
        assert ("audio" in kinds) == (rendition.sample_rate is not None)


def test_adaptive_files_are_laid_out_as_youtube_does(masters: dict[str, Master]) -> None:
    checked = 0
    for spec, rendition in renditions(masters):
        if rendition.init_range is None or rendition.index_range is None:
            continue
        data = rendition.path.read_bytes()
        first, *rest = boxes(data)
        kinds = [box.kind for box in (first, *rest)]
        assert kinds[:3] == [b"ftyp", b"moov", b"sidx"]
        assert kinds[3:] == [b"moof", b"mdat"] * ((len(kinds) - 3) // 2)
        sidx = find_box(data, "sidx")
        assert rendition.init_range == (0, sidx.start - 1)
        assert rendition.index_range == (sidx.start, sidx.stop - 1)
        index = parse_sidx(data, sidx)
        assert sidx.stop + sum(index.sizes) == len(data)
        starts = [box.start for box in rest if box.kind == b"moof"]
        assert starts == [sidx.stop + sum(index.sizes[:i]) for i in range(len(index.sizes))]
        if rendition.fps is not None:
            frames = [float(d / index.timescale * spec.fps) for d in index.durations]
            want = np.diff([*media.keyframes(spec), spec.frames])
            assert frames == pytest.approx(list(want), abs=1e-6)
        checked += 1
    assert checked > 10


def test_progressive_files_have_their_index_in_front(masters: dict[str, Master]) -> None:
    for _, rendition in renditions(masters):
        if rendition.itag == 18:
            kinds = [box.kind for box in boxes(rendition.path.read_bytes())]
            assert kinds.index(b"moov") < kinds.index(b"mdat")


def test_irregular_groups_of_pictures() -> None:
    spec = next(spec for spec in DEMO_MASTERS if spec.irregular)
    lengths = np.diff([*media.keyframes(spec), spec.frames])
    assert len(set(lengths)) >= 4
    assert lengths.sum() == spec.frames


def test_making_again_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_masters([TINY], tmp_path)["tiny"]
    assert [r.itag for r in made.renditions] == list(TINY.itags)
    assert made.rendition(18).codecs.endswith("mp4a.40.2")
    with pytest.raises(KeyError):
        made.rendition(243)

    def fail(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(media, "_make", fail)
    assert make_masters([TINY], tmp_path) == {"tiny": made}
    assert [path.name for path in tmp_path.iterdir()] == [made.renditions[0].path.parent.name]


def test_bytes_repeat(tmp_path: Path) -> None:
    one = make_masters([TINY], tmp_path / "one")["tiny"]
    two = make_masters([TINY], tmp_path / "two")["tiny"]
    for a, b in zip(one.renditions, two.renditions, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()


def test_a_damaged_master_is_made_again(tmp_path: Path) -> None:
    made = make_masters([TINY], tmp_path)["tiny"]
    path = made.rendition(140).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert make_masters([TINY], tmp_path)["tiny"] == made
    assert path.read_bytes() == whole


def test_two_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def make() -> dict[str, Master]:
        together.wait()
        return make_masters([TINY], tmp_path)

    with ThreadPoolExecutor(2) as pool:
        one, two = (future.result() for future in [pool.submit(make), pool.submit(make)])
    assert one == two
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_of_ffmpeg_is_told(tmp_path: Path) -> None:
    odd = MasterSpec("odd", 1.0, Fraction(10), (134,), width=0, height=0)
    with pytest.raises(MediaError, match="ffmpeg ended with code"):
        media._run(["-i", str(tmp_path / "absent.mp4"), str(tmp_path / "x.mp4")])
    with pytest.raises((MediaError, ValueError, ZeroDivisionError)):
        make_masters([odd], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_ffmpeg_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "TIMEOUT", 0.2)
    endless = ["-re", "-f", "lavfi", "-i", "testsrc", "-f", "null", "-"]
    with pytest.raises(MediaError, match="longer than"):
        media._run(endless)
    with pytest.raises(MediaError, match="longer than"):
        media._run(endless, (np.zeros(1 << 16, np.uint8) for _ in range(1000)))


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="twice"):
        make_masters([TINY, TINY])
    with pytest.raises(ValueError, match="unknown itags"):
        make_masters([MasterSpec("new", 1.0, Fraction(10), (999,))])


def test_a_virtual_master_must_repeat_in_step(tmp_path: Path) -> None:
    uneven = MasterSpec("off", 1.0, Fraction(10), (134, 140), width=64, virtual=60.0)
    with pytest.raises(MediaError, match="must last the same"):
        make_masters([uneven], tmp_path)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACAVDL_CACHE", str(tmp_path))
    assert media.cache_dir() == tmp_path
    monkeypatch.delenv("ACAVDL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert media.cache_dir() == tmp_path / "acavdl" / "sandbox"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert media.cache_dir() == tmp_path / ".cache" / "acavdl" / "sandbox"


@given(st.integers(0, 2**20 - 1), st.integers(0, 255))
def test_codes_read_back(number: int, owner: int) -> None:
    cells = np.where(media.frame_code(number, owner), 220.0, 40.0)
    assert media.read_code(cells) == (number, owner)


@given(st.integers(0, 2**20 - 1), st.integers(0, 255), st.integers(0, 39))
def test_a_wrong_cell_is_noticed(number: int, owner: int, cell: int) -> None:
    code = media.frame_code(number, owner)
    code.ravel()[cell] ^= True
    assert media.read_code(np.where(code, 220.0, 40.0)) is None


def test_a_frame_number_has_20_bits() -> None:
    with pytest.raises(ValueError, match="20 bits"):
        media.frame_code(2**20, 0)


def test_tags_tell_the_demo_masters_apart() -> None:
    assert len({media.tag(spec) for spec in DEMO_MASTERS}) == len(DEMO_MASTERS)


def test_sound_has_a_click_each_second_and_rises() -> None:
    spec = DEMO_MASTERS[0]
    rate = 44_100
    times = np.arange(0, 5 * rate) / rate
    spectrum = np.fft.rfft(media.sound(spec, times))
    spectrum[: 5000 * 5] = 0  # Hz times seconds
    loud = np.abs(np.fft.irfft(spectrum)) > 0.25
    seconds = np.flatnonzero(loud) / rate
    assert {round(second) for second in seconds} == {0, 1, 2, 3, 4}
    assert np.all(np.abs(seconds - np.round(seconds)) < 0.003)
    assert media.sound(spec, np.array([-0.5])) == [0.0]


def test_import_is_light() -> None:
    code = "import sys, acavdl.sandbox.media; print('av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
