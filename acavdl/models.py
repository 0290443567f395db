"""The data that flows down the line: frozen, small, picklable."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acavdl.errors import Outcome

_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}", re.ASCII)


def is_youtube_id(text: str) -> bool:
    """Whether `text` is a video id: 11 characters of ``[A-Za-z0-9_-]``."""
    return _YOUTUBE_ID.fullmatch(text) is not None


def name_of(video_id: str, url: str) -> str:
    """Return what stands for the video in keys: its id, or ``u`` + 16 hex of sha256(URL).

    Keys become file names inside a tar, so nothing else of a table may reach them.
    """
    if is_youtube_id(video_id):
        return video_id
    return "u" + hashlib.sha256(url.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Clip:
    """One planned clip: the span ``[start, end)`` of a video.

    Parameters
    ----------
    video_id
        YouTube's id, or a name derived from the URL.
    url
        What is given to the extractor.
    start_ms, end_ms
        The span in milliseconds of the video's presentation.
    shard, row
        Absolute number of the shard, and the place in it.
    caption
        Text of the caption column; None without one.
    """

    video_id: str
    url: str
    start_ms: int
    end_ms: int
    shard: int
    row: int
    caption: str | None = None

    @property
    def start(self) -> float:
        """Requested start in seconds."""
        return self.start_ms / 1000

    @property
    def end(self) -> float:
        """Requested end in seconds (exclusive)."""
        return self.end_ms / 1000

    @property
    def key(self) -> str:
        """Name of the sample: ``<videoID>_<start ms, 9 digits>_<end ms, 9 digits>``."""
        return f"{name_of(self.video_id, self.url)}_{self.start_ms:09d}_{self.end_ms:09d}"


@dataclass(frozen=True)
class Stream:
    """One media file of a video that can be fetched: picture, sound or both.

    `size` is in bytes (None: unknown), `sample_rate` in Hz, `bitrate` in kbit/s.
    """

    format_id: str
    url: str
    container: str
    video_codec: str | None
    audio_codec: str | None
    width: int | None
    height: int | None
    fps: float | None
    sample_rate: int | None
    bitrate: float | None
    size: int | None


@dataclass(frozen=True)
class Source:
    """What one extraction found out about a video.

    `streams` holds one stream with picture and sound, or a picture and a sound stream, in
    that order. `available_at` is in seconds since the epoch (None: at once), `duration` in
    seconds as the site says it (often rounded to whole ones). `counts` holds views, likes and the
    like: they change by the hour.
    """

    streams: tuple[Stream, ...]
    headers: Mapping[str, str]
    available_at: float | None
    duration: float | None
    info: Mapping[str, Any]
    counts: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Cut:
    """A finished clip: the bytes of one mp4, and the truth about it.

    `actual_start` and `actual_end` are seconds on the source's presentation timeline: the time
    of the first shown frame, and the end of the last one. `av_offset` is in seconds: how much
    later than the picture the sound starts in the file (0 = together).
    """

    data: bytes
    actual_start: float
    actual_end: float
    frames: int
    fps: float
    width: int
    height: int
    video_codec: str
    audio_codec: str
    sample_rate: int
    channels: int
    av_offset: float


@dataclass(frozen=True)
class ClipResult:
    """How one planned clip ended; `cut` is None unless `outcome` is OK.

    `seconds` maps a stage to wall seconds, `bytes_fetched` and `requests` count what the video
    cost (on the first of its clips; 0 on the others, so that sums are right).
    """

    clip: Clip
    outcome: Outcome
    detail: str | None
    cut: Cut | None = None
    info: Mapping[str, Any] | None = None
    counts: Mapping[str, int | None] = field(default_factory=dict)
    format_id: str | None = None
    video_duration: float | None = None
    bytes_fetched: int = 0
    requests: int = 0
    attempts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardReport:
    """What one shard task tells the driver; the truth itself is on disk.

    `state` is ``done`` (published by this task) or ``present`` (found published). `counts` maps
    outcomes to clips; `bytes_fetched` and `bytes_stored` are bytes, `seconds` wall seconds.
    """

    shard: int
    state: str
    clips: int
    counts: Mapping[str, int]
    bytes_fetched: int
    bytes_stored: int
    seconds: float
    host: str
