"""Parts of files: what is read of them is what the samples of clips need, and little else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acavdl.media import LocalFile, Media, MemoryFile, merged
from acavdl.mp4 import BrokenError, Samples, Track, UnsupportedError, Want
from acavdl.sandbox.media import DEMO_MASTERS, make_masters

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
FILES = [("m30", 134), ("m30", 140), ("m25", 134), ("ntsc", 134), ("ntsc", 140), ("m24", 18)]


@cache
def path_of(code: str, itag: int) -> Path:
    return make_masters([SPECS[code]])[code].rendition(itag).path


class Counted(LocalFile):
    """A file that keeps what was loaded, and gives nothing else; what is there costs nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.loads: list[list[Want]] = []
        self.released = 0

    def load(self, wants: Sequence[Want]) -> None:
        missing = [want for want in wants if not self._has(want.start, min(want.stop, self.size))]
        if missing:
            self.loads.append(missing)

    def release(self) -> None:
        self.released += len(self.loads)
        self.loads.clear()

    def _has(self, start: int, stop: int) -> bool:
        there = merged((want for wants in self.loads for want in wants), gap=0)
        return any(want.start <= start and stop <= want.stop for want in there)

    def read(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        assert self._has(start, stop)
        return super().read(start, stop)


def opened(code: str, itag: int, guess: int = 4096) -> tuple[Counted, Media, Track]:
    file = Counted(path_of(code, itag))
    media = Media(file, guess)
    return file, media, media.movie.tracks[0]


def content(media: Media, samples: Samples) -> list[bytes]:
    pairs = zip(samples.offset.tolist(), samples.size.tolist(), strict=True)
    return [bytes(media.read(start, start + size)) for start, size in pairs]


@pytest.mark.parametrize(("code", "itag"), FILES)
def test_a_span_has_its_samples_and_their_bytes(code: str, itag: int) -> None:
    chance = random.Random(itag)
    whole = Media(LocalFile(path_of(code, itag)))
    for _ in range(8):
        file, media, track = opened(code, itag, 1 << 17 if itag == 18 else 4096)
        start = Fraction(chance.randint(0, 15_000), 1000)
        end = start + Fraction(chance.randint(1, 4000), 1000)
        media.load_spans(track, [(start, end)])
        found = media.samples(track, start, end)
        media.load_samples([found])
        begin, stop = start * track.timescale, end * track.timescale
        assert found.key[0]
        assert int(found.pts[0]) <= begin
        assert int((found.pts + found.duration).max()) >= stop
        assert content(media, found) == content(whole, found)
        # The head, and one run of fragments or samples.
        assert [len(wants) for wants in file.loads] == [1, 1]
        assert all(0 <= w.start < w.stop <= file.size for wants in file.loads[1:] for w in wants)
        if itag in (134, 140):
            assert sum(w.stop - w.start for w in file.loads[1]) < file.size


def test_clips_of_a_video_share_what_is_read() -> None:
    file, media, track = opened("m25", 134)
    spans = [(Fraction(s), Fraction(s + 2)) for s in (4, 5, 6)]
    media.load_spans(track, spans)
    for span in spans:
        media.load_samples([media.samples(track, *span)])
    assert len(file.loads) == 2
    media.load_spans(track, spans)
    assert len(file.loads) == 2
    media.release()
    assert file.loads == []
    media.load_spans(track, spans)
    media.load_samples([media.samples(track, *span) for span in spans])
    assert len(file.loads) == 1


def test_a_guess_that_is_too_small_costs_one_more_read() -> None:
    for guess in (8, 100, 800):
        file, media, _ = opened("m30", 134, guess)
        assert 2 <= len(file.loads) <= 6
        assert media.movie.fragments is not None


@pytest.mark.parametrize("data", [b"", b"\x1aE\xdf\xa3" * 100, b"<html>" * 100, bytes(500)])
def test_what_is_no_mp4_is_told(data: bytes) -> None:
    with pytest.raises((UnsupportedError, BrokenError)):
        Media(MemoryFile(data))


def test_a_file_that_ends_too_early_is_told() -> None:
    data = path_of("m30", 134).read_bytes()
    for length in (10, 500, 900):
        with pytest.raises(BrokenError):
            Media(MemoryFile(data[:length]), 4096)


def test_duration_is_that_of_the_head() -> None:
    for code, itag in FILES:
        _, media, track = opened(code, itag, 1 << 17)
        assert float(media.duration(track)) == pytest.approx(SPECS[code].duration, abs=0.06)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12), st.integers(0, 50)
)
def test_merged_ranges_cover_all_and_lie_apart(ranges: list[tuple[int, int]], gap: int) -> None:
    wants = [Want(start, start + length) for start, length in ranges]
    found = merged(wants, gap)
    for want in wants:
        assert any(each.start <= want.start and want.stop <= each.stop for each in found)
    for one, other in itertools.pairwise(found):
        assert other.start > one.stop + gap
    assert {each.start for each in found} <= {want.start for want in wants}
    assert {each.stop for each in found} <= {want.stop for want in wants}
