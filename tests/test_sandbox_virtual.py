from __future__ import annotations

import io
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acavdl.sandbox.media import DEMO_MASTERS, make_masters
from acavdl.sandbox.probe import probe
from acavdl.sandbox.virtual import (
    Body,
    BoxError,
    boxes,
    file_body,
    find_box,
    parse_sidx,
    stretched_body,
    with_mehd,
)

if TYPE_CHECKING:
    from pathlib import Path

    from acavdl.sandbox.media import Master

CODES = ("h3", "m30", "m25", "ntsc")


@pytest.fixture(scope="session")
def masters() -> dict[str, Master]:
    return make_masters([spec for spec in DEMO_MASTERS if spec.code in CODES])


class Reader(io.RawIOBase):
    """A body as a file, as a client sees it that asks for ranges."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.body.size)[whence]
        return self.at

    def read(self, size: int = -1) -> bytes:
        stop = self.body.size if size < 0 else self.at + size
        data = b"".join(self.body.read(self.at, stop))
        self.at += len(data)
        return data


def whole(body: Body) -> bytes:
    return b"".join(body.read(0, body.size))


def test_a_real_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000  # more than one chunk
    path = tmp_path / "x"
    path.write_bytes(data)
    body = file_body(path)
    assert body.size == len(data)
    assert whole(body) == data
    assert b"".join(body.read(255, 257)) == data[255:257]
    assert b"".join(body.read(1 << 20, 10**9)) == data[1 << 20 :]
    assert list(body.read(5, 5)) == []


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("itag", [134, 140])
def test_index_and_times_continue(masters: dict[str, Master], code: str, itag: int) -> None:
    rendition = masters[code].rendition(itag)
    data = whole(stretched_body(rendition, 3.3 * rendition.duration))
    places = list(boxes(data))
    kinds = [box.kind for box in places]
    assert kinds[:3] == [b"ftyp", b"moov", b"sidx"]
    index = parse_sidx(data, places[2])
    moofs = [box for box in places if box.kind == b"moof"]
    assert len(moofs) == len(index.sizes)
    assert places[2].stop + sum(index.sizes) == len(data)
    numbers, times = [], []
    for moof in moofs:
        mfhd = find_box(data, "mfhd", moof.body, moof.stop)
        numbers.append(struct.unpack_from(">I", data, mfhd.body + 4)[0])
        tfdt = find_box(data, "traf/tfdt", moof.body, moof.stop)
        times.append(struct.unpack_from(">Q", data, tfdt.body + 4)[0])
    assert numbers == list(range(1, len(moofs) + 1))
    # all but the first duration is from decode time to decode time; an edit list shortens the first
    lead = times[1] - index.durations[0]
    assert lead in (0, 1024)
    assert times[1:] == [lead + sum(index.durations[:i]) for i in range(1, len(times))]
    seconds = sum(index.durations) / index.timescale
    assert 3.3 * rendition.duration - 0.03 <= seconds < 3.3 * rendition.duration + 11
    mehd = find_box(data, "moov/mvex/mehd")
    mvhd = find_box(data, "moov/mvhd")
    scale = struct.unpack_from(">I", data, mvhd.body + 12)[0]
    assert struct.unpack_from(">Q", data, mehd.body + 4)[0] / scale == pytest.approx(
        seconds, abs=1e-3
    )


def test_one_repetition_is_the_master(masters: dict[str, Master]) -> None:
    for itag in (134, 140):
        rendition = masters["h3"].rendition(itag)
        assert whole(stretched_body(rendition, rendition.duration)) == rendition.path.read_bytes()


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_a_slice(masters: dict[str, Master], data: st.DataObject) -> None:
    code = data.draw(st.sampled_from(["h3", "m30"]))
    itag = data.draw(st.sampled_from([134, 140]))
    body = stretched_body(masters[code].rendition(itag), 61.0)
    full = whole(body)
    assert len(full) == body.size
    # near the edges of boxes as well as anywhere
    edges = [edge for box in boxes(full) for edge in (box.start, box.body)]
    near = st.builds(lambda edge, by: max(edge + by, 0), st.sampled_from(edges), st.integers(-9, 9))
    start = data.draw(near | st.integers(0, body.size + 5))
    stop = data.draw(near | st.integers(0, body.size + 5))
    assert b"".join(body.read(start, stop)) == full[start:stop]


def test_three_hours_cost_nothing_until_they_are_read(masters: dict[str, Master]) -> None:
    spec = masters["h3"].spec
    assert spec.virtual is not None
    for itag in (134, 140):
        body = stretched_body(masters["h3"].rendition(itag), spec.virtual)
        start = body.size * 5 // 6
        pieces = list(body.read(start, start + 1_000_000))
        assert sum(map(len, pieces)) == 1_000_000
        assert any(isinstance(piece, memoryview) for piece in pieces)


def cut(video: Body, audio: Body, start: Fraction, length: int) -> bytes:
    """Copy `length` seconds from a keyframe at `start` out of both into an mp4."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as target:
        sources = [av.open(Reader(body), "r") for body in (video, audio)]
        inputs = [source.streams[0] for source in sources]
        outputs = [target.add_stream_from_template(stream) for stream in inputs]
        for source, stream, output in zip(sources, inputs, outputs, strict=True):
            assert stream.time_base is not None
            begin = int(start / stream.time_base)
            source.seek(begin, stream=stream)
            for packet in source.demux(stream):
                if packet.pts is None or packet.dts is None or packet.pts < begin:
                    continue
                if packet.pts >= begin + length / stream.time_base:
                    break
                packet.pts, packet.dts = packet.pts - begin, packet.dts - begin
                packet.stream = output
                target.mux(packet)
            source.close()
    return out.getvalue()


def test_a_clip_after_two_and_a_half_hours(masters: dict[str, Master]) -> None:
    master = masters["h3"]
    bodies = [stretched_body(master.rendition(itag), 10_800.0) for itag in (134, 140)]
    # fragments of the picture and AAC frames begin together every 10.24 s
    start = 879 * Fraction("10.24")
    found = probe(cut(bodies[0], bodies[1], start, 12), master, near=float(start))
    assert found.first_frame == start * 25
    assert found.frames == 300
    assert found.frames_contiguous
    assert found.audio_offset == pytest.approx(0, abs=5e-4)
    assert found.audio_start == pytest.approx(float(start), abs=5e-4)
    assert found.audio_steady
    once = probe(cut(bodies[0], bodies[1], start, 4), master)
    assert once.first_frame == start * 25 % master.spec.frames
    assert once.audio_offset == pytest.approx(0, abs=5e-4)


@pytest.mark.parametrize("code", ["m30", "ntsc"])
def test_players_seek(masters: dict[str, Master], code: str) -> None:
    for itag in (134, 140):
        body = stretched_body(masters[code].rendition(itag), 10_800.0)
        with av.open(Reader(body), "r") as container:
            assert container.duration is not None
            assert container.duration / 1e6 == pytest.approx(10_800, abs=11)
            stream = container.streams[0]
            assert stream.time_base is not None
            container.seek(int(9000 / stream.time_base), stream=stream)
            frame = next(container.decode(stream))
            assert isinstance(frame, av.VideoFrame | av.AudioFrame)
            assert frame.time is not None
            assert 8994.9 <= frame.time <= 9000


def test_what_cannot_be_stretched(masters: dict[str, Master]) -> None:
    with pytest.raises(BoxError, match="not an adaptive mp4"):
        stretched_body(masters["m30"].rendition(18), 100)
    with pytest.raises(BoxError, match="not an adaptive mp4"):
        stretched_body(masters["m30"].rendition(251), 100)
    with pytest.raises(ValueError, match="duration of 0"):
        stretched_body(masters["m30"].rendition(134), 0)
    with pytest.raises(ValueError, match="one sidx"):
        stretched_body(masters["m30"].rendition(134), 1e6)


def test_broken_boxes() -> None:
    with pytest.raises(BoxError, match="no room"):
        list(boxes(b"\0\0\0\10free\0\0"))
    with pytest.raises(BoxError, match="size of 4 bytes"):
        list(boxes(b"\0\0\0\4free"))
    with pytest.raises(BoxError, match="no box"):
        find_box(b"\0\0\0\10free", "moov")
    long = struct.pack(">I4sQ", 1, b"mdat", 17) + b"x"
    assert [(box.body, box.stop) for box in boxes(long)] == [(16, 17)]
    rest = struct.pack(">I4s", 0, b"mdat") + b"xyz"
    assert [box.stop for box in boxes(rest)] == [11]


def test_mehd_replaces_mehd(masters: dict[str, Master]) -> None:
    data = masters["m30"].rendition(134).path.read_bytes()
    moov = find_box(data, "moov")
    once = with_mehd(data[moov.start : moov.stop], Fraction(7))
    twice = with_mehd(once, Fraction(40))
    assert twice == data[moov.start : moov.stop]
    assert len(once) == len(twice)
