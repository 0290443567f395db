"""The data that flows down the line: frozen, small, picklable."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acavdl.errors import Outcome

#: Top-level keys of each sample's JSON, which additional columns may not be named like.
RESERVED_KEYS = (
    *("key", "url", "caption", "captions", "status", "error_message", "clips"),
    *("yt_meta_dict", "cut"),
)
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}", re.ASCII)


def is_youtube_id(text: str) -> bool:
    """Whether `text` is a video id: 11 characters of ``[A-Za-z0-9_-]``."""
    return _YOUTUBE_ID.fullmatch(text) is not None


def youtube_url(video_id: str) -> str:
    """Return what is given to the extractor for YouTube's id."""
    return f"https://www.youtube.com/watch?v={video_id}"


def name_of(video_id: str, url: str) -> str:
    """Return what stands for the video in keys: its id, or ``u`` + 16 hex of sha256(URL).

    Keys become file names inside a tar, so nothing else of a table may reach them.
    """
    if is_youtube_id(video_id):
        return video_id
    return "u" + hashlib.sha256(url.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Clip:
    """One planned clip: the span ``[start, end)`` of a video, or all of it.

    Parameters
    ----------
    video_id
        YouTube's id, or a name derived from the URL.
    url
        What is given to the extractor.
    start_ms, end_ms
        The span in milliseconds of the video's presentation; both None: the whole video.
    shard, row
        Absolute number of the shard, and the place in it.
    caption
        Text of the caption column; None without one.
    captions
        All captions that the table has for this clip, `caption` first; None without a caption
        column.
    extra
        The additional columns, by name.
    """

    video_id: str
    url: str
    start_ms: int | None
    end_ms: int | None
    shard: int
    row: int
    caption: str | None = None
    captions: tuple[str, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def start(self) -> float | None:
        """Requested start in seconds; None = the whole video."""
        return None if self.start_ms is None else self.start_ms / 1000

    @property
    def end(self) -> float | None:
        """Requested end in seconds (exclusive); None = the whole video."""
        return None if self.end_ms is None else self.end_ms / 1000

    @property
    def key(self) -> str:
        """Name of the sample: ``<videoID>_<start ms>_<end ms>``, 9 digits each, or ``…_full``."""
        name = name_of(self.video_id, self.url)
        if self.start_ms is None or self.end_ms is None:
            return f"{name}_full"
        return f"{name}_{self.start_ms:09d}_{self.end_ms:09d}"


@dataclass(frozen=True)
class Line:
    """A line of subtitles: shown in ``[start_ms, end_ms)``, milliseconds of the presentation."""

    start_ms: int
    end_ms: int
    text: str


@dataclass(frozen=True)
class Stream:
    """One media file of a video that can be fetched: picture, sound or both.

    `size` is in bytes (None: unknown), `sample_rate` in Hz, `bitrate` in kbit/s. `path` is where it
    lies, if it is a file of this machine; what a site says never gets there.
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
    path: str | None = None


@dataclass(frozen=True)
class Source:
    """What one extraction found out about a video.

    `streams` holds one stream with picture and sound, or a picture and a sound stream, in
    that order. `available_at` is in seconds since the epoch (None: at once), `duration` in
    seconds as the site says it (often rounded to whole ones). `counts` holds views, likes and the
    like: they change by the hour. `subtitles` holds the lines of each language that was asked for
    and that there is, by preference; None if none was asked for.
    """

    streams: tuple[Stream, ...]
    headers: Mapping[str, str]
    available_at: float | None
    duration: float | None
    info: Mapping[str, Any]
    counts: Mapping[str, int | None] = field(default_factory=dict)
    subtitles: Mapping[str, tuple[Line, ...]] | None = None


@dataclass(frozen=True)
class Cut:
    """A finished clip: the media members of its sample, and the truth about them.

    `members` holds the content by extension, the main one first: the mp4, or the sound where that
    is all. `actual_start` and `actual_end` are seconds on the source's presentation timeline: the
    time of the first shown frame, and the end of the last one; of the sound where that is all.
    `audio_codec`, `sample_rate` (Hz) and `channels` are those of the members, `source_audio_codec`
    is what the sound was before. `av_offset` is in seconds: how much later than the picture the
    sound starts in the file (0 = together). What is the picture's is None without one.
    """

    members: Mapping[str, bytes]
    actual_start: float
    actual_end: float
    audio_codec: str
    source_audio_codec: str
    sample_rate: int
    channels: int
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    video_codec: str | None = None
    av_offset: float | None = None

    @property
    def main(self) -> bytes:
        """Content of the main member."""
        return next(iter(self.members.values()))

    @functools.cached_property
    def hashes(self) -> tuple[str, ...]:
        """The sha256 of each member: it stands in the JSON and in the parquet."""
        return tuple(hashlib.sha256(data).hexdigest() for data in self.members.values())


@dataclass(frozen=True)
class ClipResult:
    """How one planned clip ended; `cut` is None unless `outcome` is OK.

    `seconds` maps a stage to wall seconds, and ``<stage>_cpu`` to those of CPU. `bytes_fetched` and
    `requests` count what the video cost (on the first of its clips; 0 on the others, so that sums
    are right). `info` and `subtitles` are None where they are not wanted.
    """

    clip: Clip
    outcome: Outcome
    detail: str | None
    cut: Cut | None = None
    info: Mapping[str, Any] | None = None
    counts: Mapping[str, int | None] = field(default_factory=dict)
    subtitles: Mapping[str, tuple[Line, ...]] | None = None
    format_id: str | None = None
    video_duration: float | None = None
    bytes_fetched: int = 0
    requests: int = 0
    attempts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardReport:
    """What one shard task tells the driver; the truth itself is on disk.

    `state` is ``done`` (published by this task), ``present`` (found published) or ``partial`` (its
    slice was over, or it was held back: another task goes on). `clips` are the
    rows of its parquet: more than were planned where subtitles become clips. `counts` maps
    outcomes to clips; `bytes_fetched` and `bytes_stored` are bytes, `seconds` wall seconds;
    `held_back` tells whether the site keeps its egress from going on; `worn_out`
    is the address of a worker that is to begin anew: many of its threads hang.
    """

    shard: int
    state: str
    clips: int
    counts: Mapping[str, int]
    bytes_fetched: int
    bytes_stored: int
    seconds: float
    host: str
    held_back: bool = False
    worn_out: str = ""
