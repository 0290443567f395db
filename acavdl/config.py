"""Settings: frozen, with the reference's names and units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from acavdl.errors import UsageError
from acavdl.keys import KEYS, NULLABLE, parsed
from acavdl.spans import Strategy

IncrementalMode = Literal["incremental", "extend", "overwrite"]
CaptionFrom = Literal["title", "description"]
Subtitles = Literal["first", "all"]


@dataclass(frozen=True)
class TableOptions:
    """Which table, what stands where in it, and which part of it is wanted.

    Parameters
    ----------
    url_list
        A file, a folder, a glob, or a URL of any of them.
    input_format
        ``csv, tsv, tsv.gz, json, jsonl, parquet`` or ``txt``; None = as the name ends.
    preset
        Name of a known layout; None = recognised by the columns.
    url_col, clip_col, start_col, end_col, caption_col
        Names of columns, where the layout is not a known one.
    time_unit
        What the numbers of a time are: ``s``, ``ms`` or ``us``; None = as the layout says.
    save_additional_columns
        Columns that go into each sample's JSON.
    caption_from
        Field of the extraction that captions are taken from, in place of a column.
    unique_videos
        Keep one clip of each video, the one with the smallest start.
    limit
        Keep the first so many clips of the plan's order (a random sample of the videos).
    allow_local
        Whether paths of this machine may stand in the table.
    whole_videos
        Take the videos alone, whatever spans the table has.
    tombstones
        A list of videos that are known to be dead: they are not planned.
    """

    url_list: str
    input_format: str | None = None
    preset: str | None = None
    url_col: str | None = None
    clip_col: str | None = None
    start_col: str | None = None
    end_col: str | None = None
    caption_col: str | None = None
    time_unit: str | None = None
    save_additional_columns: tuple[str, ...] = ()
    caption_from: CaptionFrom | None = None
    unique_videos: bool = False
    limit: int | None = None
    allow_local: bool = False
    whole_videos: bool = False
    tombstones: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.caption_col is not None and self.caption_from is not None:
            raise UsageError("captions come from --caption-col or from --caption-from, not both")
        if self.clip_col is not None and (self.start_col or self.end_col):
            raise UsageError("spans come from --clip-col or from --start-col and --end-col")
        if self.whole_videos and (self.clip_col or self.start_col or self.end_col):
            raise UsageError("--whole-videos goes without --clip-col, --start-col and --end-col")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit must be a number greater than 0, not {self.limit}")


@dataclass(frozen=True)
class Reading:
    """How videos are looked up and fetched.

    Parameters
    ----------
    download_size
        Pixels of the shorter side: the smallest format that has at least these is taken.
    download_audio_rate
        Hz: the smallest audio rate that is at least this is taken.
    get_info
        Whether the site's metadata go into each sample's JSON.
    writesubtitles
        Subtitles for each sample's JSON: the ``first`` of `subtitleslangs` that there is, or
        ``all``; None = none.
    subtitleslangs, writeautomaticsub
        Languages, and whether those of speech recognition will do where there are no others.
    codecs
        Video codecs by preference among formats of one size.
    timeout
        Seconds of wall clock for each clip, its requests included; the clips of a video share the
        sum of theirs.
    sampler
        Dotted path of a function from the list of missing shards to those that this run makes.
    rate_limit
        Videos an hour that each egress address may ask YouTube for, with a burst of one hour's
        worth; None = no limit.
    egress
        Whose address it is: each ``node`` has one of its own, or the ``cluster`` has one for all.
    give_up_after
        Seconds for which the site may refuse all addresses before the run ends, to be gone on with
        another time.
    fetch
        ``ranges``: the parts of media files that clips need, where those can be told; ``whole``:
        whole files. The samples are the same.
    extraction
        ``full``: all metadata; ``light``: fewer pages, and less of them (docs/extraction.md).
    retries
        How often a transient failure (reset, 5xx, short body) is tried again within `timeout`.
    ytdlp
        Options handed to yt-dlp as they are.
    """

    download_size: int = 360
    download_audio_rate: int = 44100
    get_info: bool = True
    writesubtitles: Subtitles | None = None
    subtitleslangs: tuple[str, ...] = ("en",)
    writeautomaticsub: bool = False
    codecs: tuple[str, ...] = ("avc1", "av01", "vp9")
    timeout: float = 60.0
    sampler: str | None = None
    rate_limit: float | None = 300.0
    egress: Literal["node", "cluster"] = "node"
    give_up_after: float = 21_600.0
    fetch: Literal["ranges", "whole"] = "ranges"
    extraction: Literal["full", "light"] = "full"
    retries: int = 2
    ytdlp: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Storage:
    """How samples are stored.

    Parameters
    ----------
    number_sample_per_shard
        At most so many clips in a shard; videos, where the table has no spans.
    captions_are_subtitles
        Each line of a video's subtitles becomes a clip, with the line as its caption.
    oom_shard_count
        Digits of shard numbers in file names, at least.
    options
        What fsspec gets for the output folder: endpoint, profile, …; never recorded.
    """

    number_sample_per_shard: int = 2000
    captions_are_subtitles: bool = False
    oom_shard_count: int = 5
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Output:
    """What samples are made of.

    Parameters
    ----------
    output_format
        ``webdataset`` (tar shards) or ``files`` (a folder for each shard).
    encode_formats
        Members of a sample: ``{"video": "mp4"}`` is an mp4 with picture and sound;
        ``{"video": "mp4", "audio": "m4a"}`` has the sound in a file of its own besides;
        ``{"audio": "m4a"}`` (or ``flac``, ``wav``) is sound alone, and no picture is fetched.
    """

    output_format: Literal["webdataset", "files"] = "webdataset"
    encode_formats: Mapping[str, str] = field(default_factory=lambda: {"video": "mp4"})


@dataclass(frozen=True)
class AudioRate:
    """What sound is resampled to: the reference's ``AudioRateSubsampler``; flac and wav alone.

    Parameters
    ----------
    sample_rate
        Hz; None = as it is.
    n_audio_channels
        Channels; None = as they are.
    """

    sample_rate: int | None = None
    n_audio_channels: int | None = None


@dataclass(frozen=True)
class Tracking:
    """Whether the run is logged to Weights & Biases, and under which project."""

    enable_wandb: bool = False
    wandb_project: str = "acavdl"


@dataclass(frozen=True)
class Limits:
    """When a run ends in order though there is more to make; the next one goes on.

    Parameters
    ----------
    hours
        Hours of work.
    bytes
        Bytes fetched.
    """

    hours: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Distribution:
    """How work is spread.

    Parameters
    ----------
    processes_count
        Worker processes on this machine; None = one per core, and never more than that.
    thread_count
        Videos in flight in each process.
    subjob_size
        Shards handed to Dask at a time.
    slice
        Seconds that a task works on a shard, where there can be checkpoints: it then begins no
        other video, finishes those in flight, and another task goes on, anywhere.
    checkpoint
        Clips between two checkpoints of an open shard: as many are lost with a worker, at most.
    max_shard_retry
        How often a shard that failed (storage, a bug) is tried again within a run.
    slurm
        What `dask_jobqueue.SLURMCluster` takes: ``queue``, ``account``, ``walltime``, ``cores``,
        ``memory``, …; what is left out is the user's ``jobqueue.yaml``'s.
    """

    processes_count: int | None = None
    thread_count: int = 24
    subjob_size: int = 1000
    slice: float = 1200.0
    checkpoint: int = 64
    max_shard_retry: int = 1
    slurm: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Clipping:
    """What becomes of a span: the reference's ``ClippingSubsampler``.

    Parameters
    ----------
    precision
        ``low``: a copy from the keyframe at or before the start. ``editlist``: the same copy, with
        an edit list that shows the span alone. ``keyframe_adjusted``: a copy from the first
        keyframe in the span to the last. ``exact``: the span's frames, encoded anew.
    min_length, max_length
        Seconds; a longer span is split (`max_length_strategy` ``all``) or shortened (``first``),
        what is shorter is left out. None = any length.
    """

    precision: Literal["low", "editlist", "keyframe_adjusted", "exact"] = "low"
    min_length: float = 0.0
    max_length: float | None = None
    max_length_strategy: Strategy = "all"

    def limits(self) -> dict[str, Any]:
        """Return the arguments for `acavdl.spans.split_span`."""
        return {
            "min_length_ms": round(self.min_length * 1000),
            "max_length_ms": None if self.max_length is None else round(self.max_length * 1000),
            "strategy": self.max_length_strategy,
        }


@dataclass(frozen=True)
class Config:
    """All settings of a run that do not stand in the call."""

    reading: Reading = field(default_factory=Reading)
    storage: Storage = field(default_factory=Storage)
    distribution: Distribution = field(default_factory=Distribution)
    clipping: Clipping = field(default_factory=Clipping)
    audio: AudioRate = field(default_factory=AudioRate)
    output: Output = field(default_factory=Output)
    tracking: Tracking = field(default_factory=Tracking)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by their names."""
        for key in KEYS:
            if key.section == "call":
                continue
            value = getattr(getattr(self, key.section), key.field)
            if value is not None or key.name not in NULLABLE:
                parsed(key, value)
        clipping = self.clipping
        # A piece of a millisecond is the least there is.
        if clipping.max_length is not None and clipping.max_length < max(
            clipping.min_length, 0.001
        ):
            raise UsageError(
                f"max_length ({clipping.max_length:g} s) is below min_length "
                f"({clipping.min_length:g} s) or a millisecond: no clip could be that long"
            )
        resampled = self.audio != AudioRate()
        if resampled and self.output.encode_formats.get("audio") not in ("flac", "wav"):
            raise UsageError(
                "AudioRateSubsampler makes flac or wav: set encode_formats to {audio: flac}, say"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes the plan or the bytes of a sample; the rest may differ on resume."""
        return {
            "download_size": self.reading.download_size,
            "download_audio_rate": self.reading.download_audio_rate,
            "get_info": self.reading.get_info,
            "writesubtitles": self.reading.writesubtitles,
            "subtitleslangs": list(self.reading.subtitleslangs),
            "writeautomaticsub": self.reading.writeautomaticsub,
            "codecs": list(self.reading.codecs),
            "extraction": self.reading.extraction,
            "number_sample_per_shard": self.storage.number_sample_per_shard,
            "captions_are_subtitles": self.storage.captions_are_subtitles,
            "oom_shard_count": self.storage.oom_shard_count,
            **dataclasses.asdict(self.clipping),
            **dataclasses.asdict(self.audio),
            "output_format": self.output.output_format,
            "encode_formats": dict(self.output.encode_formats),
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values, for the run's record.

        Options for yt-dlp, the store and Slurm may hold cookies or passwords: only their names
        are recorded.
        """
        values = dataclasses.asdict(self)
        values["reading"]["ytdlp"] = sorted(self.reading.ytdlp)
        values["storage"]["options"] = sorted(self.storage.options)
        values["distribution"]["slurm"] = sorted(self.distribution.slurm)
        return values
