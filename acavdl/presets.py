"""Known layouts of clip tables, as data: to add one, add an entry.

A layout is recognised by its columns; one without a header has to be named. Where the columns are
like those of no layout, the usual names of `VIDEO`, `START` and so on are looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What a layout's columns hold.

    Parameters
    ----------
    name
        What ``--preset`` says.
    about
        One line for people.
    columns
        All its columns in their order; those of a table without header get these names.
    video
        Column with ids or links.
    clips
        Column with lists of spans; or `start` and `end` are set, or none of them (whole videos).
    start, end
        Columns with times; without `end`, clips are `length` seconds long.
    caption
        Column with captions, which are then taken without being asked for.
    captions_listed
        Whether a caption cell lists one caption for each clip.
    unit
        What the numbers of a time are: ``s``, ``ms`` or ``us``; clocks (``H:MM:SS.mmm``) are
        always understood.
    header
        Whether files begin with the names of the columns.
    """

    name: str
    about: str
    columns: tuple[str, ...]
    video: str
    clips: str | None = None
    start: str | None = None
    end: str | None = None
    length: float | None = None
    caption: str | None = None
    captions_listed: bool = False
    unit: str = "s"
    header: bool = True

    @property
    def required(self) -> frozenset[str]:
        """The columns that it can't do without, and is recognised by."""
        needed = (self.video, self.clips, self.start, self.end, self.caption)
        return frozenset(name for name in needed if name is not None)


PRESETS: tuple[Preset, ...] = (
    Preset(
        "acav100m",
        "ACAV100M as its site has it: videoID, start, end in seconds",
        ("videoID", "start", "end"),
        video="videoID",
        start="start",
        end="end",
    ),
    Preset(
        "acav100m-pipeline",
        "ACAV100M as its pipeline writes it: no header, [start, end] comes fourth",
        ("shard", "filename", "youtube_id", "segment"),
        video="youtube_id",
        clips="segment",
        header=False,
    ),
    Preset(
        "acav100m-prepared",
        "ACAV100M as prepared for video2dataset: video_link, clips, title, …",
        ("video_link", "clips", "title", "description", "videoID", "start", "end"),
        video="video_link",
        clips="clips",
    ),
    Preset(
        "audioset",
        "AudioSet's segments: three lines of comment, the last one with the names",
        ("YTID", "start_seconds", "end_seconds", "positive_labels"),
        video="YTID",
        start="start_seconds",
        end="end_seconds",
    ),
    Preset(
        "vggsound",
        "VGGSound: no header, clips of 10 s",
        ("youtube_id", "start", "label", "split"),
        video="youtube_id",
        start="start",
        length=10,
        header=False,
    ),
    Preset(
        "audiocaps",
        "AudioCaps: clips of 10 s with a caption, or five",
        ("audiocap_id", "youtube_id", "start_time", "caption"),
        video="youtube_id",
        start="start_time",
        length=10,
        caption="caption",
    ),
    Preset(
        "musiccaps",
        "MusicCaps: ytid, start_s, end_s, caption, …",
        (
            *("ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption"),
            *("author_id", "is_balanced_subset", "is_audioset_eval"),
        ),
        video="ytid",
        start="start_s",
        end="end_s",
        caption="caption",
    ),
    Preset(
        "kinetics",
        "Kinetics-400, -600, -700: label, youtube_id, time_start, time_end, split",
        ("label", "youtube_id", "time_start", "time_end", "split", "is_cc"),
        video="youtube_id",
        start="time_start",
        end="time_end",
    ),
    Preset(
        "hd-vila-100m",
        "HD-VILA-100M: json lines, a video with its clips each",
        ("video_id", "url", "clip"),
        video="url",
        clips="clip",
    ),
    Preset(
        "panda-70m",
        "Panda-70M: a video each, with lists of timestamps, captions and scores",
        (
            *("videoID", "url", "timestamp", "caption", "matching_score"),
            *("desirable_filtering", "shot_boundary_detection"),
        ),
        video="url",
        clips="timestamp",
        caption="caption",
        captions_listed=True,
    ),
    Preset(
        "internvid",
        "InternVid: json lines, a clip each",
        (
            *("YoutubeID", "Start_timestamp", "End_timestamp", "Caption"),
            *("Aesthetic_Score", "UMT_Score"),
        ),
        video="YoutubeID",
        start="Start_timestamp",
        end="End_timestamp",
        caption="Caption",
    ),
    Preset(
        "videocc",
        "VideoCC: no header, times in microseconds",
        ("url", "start", "end", "caption"),
        video="url",
        start="start",
        end="end",
        caption="caption",
        unit="us",
        header=False,
    ),
    Preset(
        "avspeech",
        "AVSpeech: no header; id, start, end, x, y of the face",
        ("youtube_id", "start", "end", "x", "y"),
        video="youtube_id",
        start="start",
        end="end",
        header=False,
    ),
)
BY_NAME = {preset.name: preset for preset in PRESETS}

#: The usual names, where no layout fits; the first that a table has is taken for the video.
VIDEO = (
    *("videoID", "video_id", "youtube_id", "YoutubeID", "YTID", "ytid", "yt_id", "video_link"),
    *("url", "link", "videoLoc", "video_url", "youtube_url", "video", "id"),
)
CLIPS = ("clips", "clip", "timestamp", "timestamps", "segments", "segment")
START = (
    *("start", "start_time", "start_seconds", "start_sec", "start_s", "time_start"),
    *("start_timestamp", "Start_timestamp"),
)
END = (
    *("end", "end_time", "end_seconds", "end_sec", "end_s", "time_end"),
    *("end_timestamp", "End_timestamp"),
)


def recognise(names: Sequence[str]) -> list[Preset]:
    """Return the layouts that a table with these columns has: one, none, or those in question.

    A layout that has all columns of another one among its own is the likelier of the two.
    """
    fitting = [p for p in PRESETS if p.header and p.required <= set(names)]
    return [
        preset
        for preset in fitting
        if not any(
            set(preset.columns) < set(other.columns) or preset.required < other.required
            for other in fitting
        )
    ]


def headerless(width: int) -> list[Preset]:
    """Return the layouts without a header that have so many columns."""
    return [preset for preset in PRESETS if not preset.header and len(preset.columns) == width]
