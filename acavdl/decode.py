"""From the members of a sample to pictures and sound of exactly the span that was asked for.

What a clip shows is told by its JSON (``cut``): the first frame stands at the time 0 of the file
and at ``actual_start`` of the video. So a time `t` of the video is ``t - actual_start`` in the
file, whatever the precision of the cut.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import av
import av.error
import numpy as np
import orjson
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from acavdl.errors import SampleError, UsageError

#: Members that hold what is decoded; the first that a sample has.
_MEDIA = ("mp4", "m4a", "flac", "wav")
#: Seconds by which two times may differ and count as the same: less than any two times that do
#: differ, which are whole milliseconds and ticks of a track.
_SAME = 1e-6
#: Seconds by which decoded sound may be off its stamp before that counts as a gap (see `cut`).
_GAP = 0.01
#: PyAV 16 converts with one thread; its successors take as many as there are cores unless told.
_ONE_THREAD = {} if int(av.__version__.partition(".")[0]) < 17 else {"threads": 1}
#: Seconds of sound that a resampler is given beyond both ends: more than its filter reaches.
_REACH = 0.05


@dataclass(frozen=True)
class Decoder:
    """Decodes a sample: called with its members, returns its pictures and sound as arrays.

    It is a stage for ``.map`` of webdataset and of others: pickles, and keeps no state.

    Parameters
    ----------
    fps
        Frames per second: for each ``k / fps`` from the requested start on, the frame nearest to
        it. None = the frames of the clip, each once.
    size
        Pixels of the shorter side, or height and width; None = as in the clip.
    video, audio
        What is decoded.
    audio_rate
        Samples per second; None = as in the clip.
    audio_channels
        1 or 2, mixed as ffmpeg does; None = as in the clip.
    pad
        Whether what a clip lacks of its request is filled, with black and with silence, so that
        requests of equal length give arrays of equal shape; needs `fps`, where there are pictures.

    Raises
    ------
    UsageError
        For values that can't be.
    """

    fps: float | None = None
    size: int | tuple[int, int] | None = None
    video: bool = True
    audio: bool = True
    audio_rate: int | None = None
    audio_channels: int | None = None
    pad: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        problems = {
            "fps: a number above 0": self.fps is not None and not 0 < self.fps < math.inf,
            "size: pixels of the shorter side, or (height, width)": self.size is not None
            and (len(sides) not in (1, 2) or min(sides) < 1),
            "audio_rate: samples per second": self.audio_rate is not None and self.audio_rate < 1,
            "audio_channels: 1 or 2": self.audio_channels not in (None, 1, 2),
            "video or audio: one of both is needed": not (self.video or self.audio),
            "pad: needs fps": self.pad and self.video and self.fps is None,
        }
        for problem, wrong in problems.items():
            if wrong:
                raise UsageError(problem)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return a decoded sample.

        Parameters
        ----------
        sample
            The members by extension: bytes; ``json`` may be unpacked.

        Returns
        -------
        dict
            ``video``: uint8 [frames, height, width, 3], RGB; ``video_times``: float64 [frames],
            seconds from the requested start at which each of these frames is shown, NaN where it is
            padding; ``video_valid``: int64 [2], which frames are no padding, as a slice.
            ``audio``: float32 [channels, samples], -1 to 1; ``audio_start``: seconds from the
            requested start to the first sample; ``audio_rate``: samples per second;
            ``audio_valid``: as for the video. ``start``, ``end``: the requested span, seconds of
            the video. ``json``, ``caption``, and the names that begin with ``__``, as they are.

        Raises
        ------
        SampleError
            If the sample can't be decoded; it names the sample and its shard.
        """
        try:
            facts = sample["json"]
            facts = facts if isinstance(facts, Mapping) else orjson.loads(facts)
            media = next((sample[name] for name in _MEDIA if name in sample), None)
            if media is None:
                raise ValueError(f"it has no {', '.join(_MEDIA)}")
            decoded = self._decoded(media, facts["cut"])
        except (KeyError, TypeError, ValueError, av.error.FFmpegError) as error:
            raise SampleError(
                f"{sample.get('__url__', 'a shard')}: sample {sample.get('__key__', '?')} can't be "
                f"decoded: {type(error).__name__}: {error}"
            ) from error
        names = {name: value for name, value in sample.items() if name.startswith("__")}
        return {**names, **decoded, "caption": facts.get("caption"), "json": facts}

    def _decoded(self, media: bytes, cut: Mapping[str, Any]) -> dict[str, Any]:
        shown = cut["actual_start"], cut["actual_end"]
        start, end = shown if cut["start"] is None else (cut["start"], cut["end"])
        # The request on the timeline of the file.
        begin, length = start - shown[0], end - start
        found: dict[str, Any] = {"start": start, "end": end}
        with av.open(io.BytesIO(media), "r") as container:
            picture = next(iter(container.streams.video), None) if self.video else None
            sound = next(iter(container.streams.audio), None) if self.audio else None
            if (self.video and picture is None) or (self.audio and sound is None):
                raise ValueError(f"no {'sound' if picture else 'picture'} in it")
            streams = [stream for stream in (picture, sound) if stream is not None]
            packets = [packet for packet in container.demux(streams) if packet.size]
            if picture is not None:
                own = [packet for packet in packets if packet.stream is picture]
                found |= self._pictures(picture, own, begin, length, shown[1] - shown[0])
            if sound is not None:
                own = [packet for packet in packets if packet.stream is sound]
                found |= self._sound(sound, own, begin, length)
        return found

    def _pictures(
        self, stream: Any, packets: Sequence[Any], begin: float, length: float, stop: float
    ) -> dict[str, Any]:
        """Return the frames of a span; `stop` is when the last one of the file ends, seconds."""
        pts = np.array(sorted(p.pts for p in packets if not p.is_discard and p.pts is not None))
        times = pts * float(stream.time_base) - begin
        ends = np.append(times[1:], stop - begin)
        # The frame that is shown at the start, and the last one that is over at the end: the same
        # ones as those of `editlist` and `exact`, whatever else the clip has.
        first = max(0, int(np.searchsorted(times, _SAME, "right")) - 1)
        last = max(first, int(np.searchsorted(ends, length + _SAME, "right")) - 1)
        before, count = 0, last - first + 1
        places = np.arange(first, last + 1)
        if self.fps is not None:
            count = max(1, math.ceil(length * self.fps - _SAME))
            wanted = np.arange(count) / self.fps
            step = (ends[last] - times[first]) / (last - first + 1)
            there = np.flatnonzero(
                (wanted > times[first] - step) & (wanted < ends[last] + step - _SAME)
            )
            places = first + _nearest(times[first : last + 1], wanted[there])
            before = int(there[0]) if len(there) else 0
        total, before = (count, before) if self.pad else (len(places), 0)
        valid = slice(before, before + len(places))
        shown_at = np.full(total, np.nan)
        shown_at[valid] = times[places]
        return {
            "video": self._filled(stream, packets, pts[places].tolist(), total, before),
            "video_times": shown_at,
            "video_valid": np.array([valid.start, valid.stop]),
        }

    def _filled(
        self, stream: Any, packets: Sequence[Any], pts: Sequence[int], total: int, before: int
    ) -> NDArray[np.uint8]:
        """Return `total` pictures; those with the given times, in order, stand behind `before`."""
        places = {
            time: [before + place for place, _ in group]
            for time, group in itertools.groupby(enumerate(pts), key=lambda pair: pair[1])
        }
        reformatter = VideoReformatter()
        pictures: NDArray[np.uint8] | None = None
        missing = set(places)
        for frame in _frames(stream, packets):
            if frame.pts not in missing:
                continue
            if frame.is_corrupt:
                raise ValueError(f"the frame at {frame.time} s is damaged")
            picture = self._picture(frame, reformatter)
            if pictures is None:
                # Only padding has to be black.
                make = np.empty if total == len(pts) else np.zeros
                pictures = make((total, *picture.shape), np.uint8)
            elif picture.shape != pictures.shape[1:]:
                raise ValueError(f"the frame at {frame.time} s is of another size: set a size")
            pictures[places[frame.pts]] = picture
            missing.remove(frame.pts)
            if not missing:
                break
        if missing or pictures is None:
            raise ValueError(f"{len(missing)} of {len(places)} frames are not there")
        return pictures

    def _picture(self, frame: Any, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        """Return a frame of the wanted size, turned as its file says."""
        turns = round(frame.rotation / 90) % 4
        height, width = frame.height, frame.width
        if isinstance(self.size, int):
            shorter = min(height, width)
            height, width = (max(1, round(side * self.size / shorter)) for side in (height, width))
        elif self.size is not None:
            height, width = self.size if turns % 2 == 0 else self.size[::-1]
        made = reformatter.reformat(
            frame, width=width, height=height, format="rgb24", **_ONE_THREAD
        )
        plane: Any = made.planes[0]
        pixels = np.frombuffer(plane, np.uint8).reshape(height, -1)
        return np.rot90(pixels[:, : 3 * width].reshape(height, width, 3), turns)

    def _sound(
        self, stream: Any, packets: Sequence[Any], begin: float, length: float
    ) -> dict[str, Any]:
        """Return the sound of a span, counted by the sample."""
        pieces, rate, layout = _heard(stream, packets, begin + length + _REACH)
        made = self.audio_rate or rate
        count = round(length * made)
        # A resampler is given what comes before, as far as there is some: whole samples of both.
        grid = rate // math.gcd(rate, made)
        first = round(begin * rate)
        lead = 0
        if made != rate:
            lead = min(math.ceil(_REACH * rate / grid), max(0, first - pieces[0][0]) // grid)
        reach = lead * grid + round(length * rate) + round(_REACH * rate)
        whole, valid = _laid(pieces, first - lead * grid, reach)
        resampled = _mixed(whole, rate, layout, made, self.audio_channels)
        skipped = lead * grid * made // rate
        stop = min(math.floor(valid[1] * made / rate + _SAME), resampled.shape[1]) - skipped
        start = max(0, math.ceil(valid[0] * made / rate - _SAME) - skipped)
        start, stop = min(start, count), min(max(stop, 0), count)
        samples = resampled[:, skipped : skipped + count]
        if self.pad:
            samples = np.pad(samples, ((0, 0), (0, count - samples.shape[1])))
            samples[:, :start] = samples[:, stop:] = 0
        else:
            samples = samples[:, start:stop]
        return {
            "audio": np.ascontiguousarray(samples),
            "audio_start": 0.0 if self.pad else start / made,
            "audio_rate": made,
            "audio_valid": np.array([start, stop]) if self.pad else np.array([0, stop - start]),
        }


def _nearest(times: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the places of the times nearest to the wanted ones; the earlier of two."""
    after = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(len(wanted), np.intp)
    earlier = wanted - times[after - 1] <= times[after] - wanted + _SAME
    return np.where(earlier, after - 1, after)


def _frames(stream: Any, packets: Sequence[Any]) -> Iterator[Any]:
    """Yield decoded frames: of all packets, and what the decoder has held back."""
    # A process has a loader for each core, so that more threads would only wait for each other.
    stream.thread_count = 1
    for packet in packets:
        yield from packet.decode()
    yield from stream.decode(None)


def _heard(
    stream: Any, packets: Sequence[Any], stop: float
) -> tuple[list[tuple[int, NDArray[np.float32]]], int, str]:
    """Return pieces of decoded sound and where they lie in the file, in samples; rate and layout.

    What follows on what came before is put right behind it: stamps are rounded.
    """
    resampler = av.AudioResampler(format="fltp")
    pieces: list[tuple[int, NDArray[np.float32]]] = []
    expected, rate, layout = 0, 0, ""
    for frame in _frames(stream, packets):
        rate, layout = frame.sample_rate, frame.layout.name
        place = round(frame.time * rate)
        if pieces and abs(place - expected) <= _GAP * rate:
            place = expected
        for made in resampler.resample(frame):
            pieces.append((place, cast("NDArray[np.float32]", made.to_ndarray())))
            place += made.samples
        expected = place
        if expected > stop * rate:
            break
    if not pieces:
        raise ValueError("no sound can be decoded")
    return pieces, rate, layout


def _laid(
    pieces: Sequence[tuple[int, NDArray[np.float32]]], origin: int, count: int
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Return `count` samples from `origin` on, silent in gaps, and which of them there are."""
    end = pieces[-1][0] + pieces[-1][1].shape[1] - origin
    whole = np.zeros((len(pieces[0][1]), min(count, max(end, 0))), np.float32)
    for place, samples in pieces:
        start = place - origin
        lost = max(0, -start)
        part = samples[:, lost : max(lost, whole.shape[1] - start)]
        whole[:, start + lost : start + lost + part.shape[1]] = part
    return whole, (min(max(0, pieces[0][0] - origin), whole.shape[1]), whole.shape[1])


def _mixed(
    samples: NDArray[np.float32], rate: int, layout: str, made: int, channels: int | None
) -> NDArray[np.float32]:
    """Return sound at another rate, or with another number of channels; the same if neither is."""
    if made == rate and channels in (None, len(samples)):
        return samples
    if not samples.shape[1]:
        return np.zeros((channels or len(samples), 0), np.float32)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
    frame.sample_rate = rate
    wanted = layout if channels is None else "mono" if channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=wanted, rate=made)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray() for part in parts], axis=1)
