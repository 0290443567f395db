"""Settings: frozen, with the reference's names and units; from options, YAML and mappings alike.

`KEYS` lists all that a file may set: the loader, ``acavdl init`` and the messages go by it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from acavdl.errors import UsageError
from acavdl.spans import UNITS, Strategy

#: The file that is read where no other is named.
CONFIG_FILE = "acavdl.yaml"
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
    retries: int = 2
    ytdlp: Mapping[str, Any] = field(default_factory=dict)


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
    options: Mapping[str, Any] = field(default_factory=dict)


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
    max_shard_retry
        How often a shard that failed (storage, a bug) is tried again within a run.
    """

    processes_count: int | None = None
    thread_count: int = 16
    subjob_size: int = 1000
    max_shard_retry: int = 1


@dataclass(frozen=True)
class Clipping:
    """What becomes of a span: the reference's ``ClippingSubsampler``.

    Parameters
    ----------
    precision
        ``low``: a stream copy from the keyframe at or before the start.
    min_length, max_length
        Seconds; a longer span is split (`max_length_strategy` ``all``) or shortened (``first``),
        what is shorter is left out. None = any length.
    """

    precision: Literal["low"] = "low"
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

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by their names."""
        for key in KEYS:
            if key.section == "call":
                continue
            value = getattr(getattr(self, key.section), key.field)
            if value is not None or key.name not in _NULLABLE:
                _parsed(key, value)
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

        Options for yt-dlp and the store may hold cookies or passwords: only their names are
        recorded.
        """
        values = dataclasses.asdict(self)
        values["reading"]["ytdlp"] = sorted(self.reading.ytdlp)
        values["storage"]["options"] = sorted(self.storage.options)
        return values


# --- what a file may hold ----------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A setting as a file has it.

    `name` is its dotted path there, `section` and `field` where it stands in `Config` (section
    ``call``: an argument of the call), `parse` returns its value or raises ValueError with what
    was expected.
    """

    name: str
    section: str
    field: str
    parse: Callable[[Any], Any]
    text: str


def _number(value: Any, least: float, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number")
    if kind is int and value != int(value):
        raise ValueError("a whole number")
    if value < least or (value == 0 and least == 0 and kind is float):
        raise ValueError("a number greater than 0" if least >= 0 else "a number")
    return kind(value)


def _count(value: Any) -> int:
    return int(_number(value, 1, int))


def _within(least: int, most: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return parse


def _positive(value: Any) -> float:
    return float(_number(value, 0, float))


def _not_negative(value: Any) -> float:
    if not isinstance(value, bool) and value in (0, 0.0):
        return 0.0
    return _positive(value)


def _tries(value: Any) -> int:
    if not isinstance(value, bool) and value == 0:
        return 0
    return _count(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of texts")
    return tuple(dict.fromkeys(item.strip() for item in value))


def _options(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a mapping")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(" or ".join(choices))
        return str(value)

    return parse


def _output_format(value: Any) -> str:
    if value in ("parquet", "tfrecord"):
        raise ValueError(
            "webdataset or files (webdataset's own tools read its shards: a loop over "
            "webdataset.WebDataset writes any other format)"
        )
    return _one_of("webdataset", "files")(value)


def _encode_formats(value: Any) -> Mapping[str, str]:
    known = {"video": ("mp4",), "audio": ("m4a", "flac", "wav")}
    if isinstance(value, str):
        # As options of the command line have it.
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            value = None
    if (
        not isinstance(value, Mapping)
        or not value
        or any(name not in known or kind not in known[name] for name, kind in value.items())
        or (len(value) == 2 and value["audio"] != "m4a")
    ):
        raise ValueError(
            "{video: mp4}, {video: mp4, audio: m4a}, or {audio: m4a}, {audio: flac}, {audio: wav}"
        )
    return dict(value)


def _subtitles(value: Any) -> str | None:
    # The reference takes true for the first language that there is.
    if value in (False, None):
        return None
    return _one_of("first", "all")("first" if value is True else value)


def _unlimited(value: Any) -> float | None:
    return None if value == 999999.0 else _positive(value)


_ARGS = "subsampling.ClippingSubsampler.args"
_YT = "reading.yt_args"
INPUT_FORMATS = ("csv", "tsv", "tsv.gz", "json", "jsonl", "parquet", "txt")

KEYS: tuple[Key, ...] = (
    Key("url_list", "call", "url_list", _text, "The table: a file, folder, glob or URL."),
    Key("output_folder", "call", "output_folder", _text, "Where the shards go."),
    Key(
        "input_format",
        "call",
        "input_format",
        _one_of(*INPUT_FORMATS),
        "Format of the table; default: as its name ends.",
    ),
    Key("preset", "call", "preset", _text, "Layout of the table, where its columns don't tell."),
    Key("url_col", "call", "url_col", _text, "Column with video ids or links."),
    Key("clip_col", "call", "clip_col", _text, "Column with lists of [start, end]."),
    Key("start_col", "call", "start_col", _text, "Column with starts."),
    Key("end_col", "call", "end_col", _text, "Column with ends."),
    Key("time_unit", "call", "time_unit", _one_of(*UNITS), "Unit of times: s, ms or us."),
    Key("caption_col", "call", "caption_col", _text, "Column with captions."),
    Key(
        "caption_from",
        "call",
        "caption_from",
        _one_of("title", "description"),
        "Caption from the site in place of a column: title or description.",
    ),
    Key(
        "save_additional_columns",
        "call",
        "save_additional_columns",
        _texts,
        "Columns that go into each sample's JSON.",
    ),
    Key(
        "unique_videos",
        "call",
        "unique_videos",
        _flag,
        "One clip of each video, the one with the smallest start.",
    ),
    Key("limit", "call", "limit", _count, "So many clips at most (a random sample of videos)."),
    Key("allow_local", "call", "allow_local", _flag, "Take paths of this machine for videos."),
    Key("whole_videos", "call", "whole_videos", _flag, "Whole videos, whatever spans there are."),
    Key(
        "incremental_mode",
        "call",
        "incremental_mode",
        _one_of("incremental", "extend", "overwrite"),
        "incremental: go on; extend: new rows become new shards; overwrite.",
    ),
    Key("tmp_dir", "call", "tmp_dir", _text, "Local folder for media on their way."),
    Key("output_format", "output", "output_format", _output_format, "webdataset or files."),
    Key(
        "encode_formats",
        "output",
        "encode_formats",
        _encode_formats,
        "Members of a sample: {video: mp4}, {video: mp4, audio: m4a}, {audio: m4a | flac | wav}.",
    ),
    Key("enable_wandb", "tracking", "enable_wandb", _flag, "Log to Weights & Biases."),
    Key("wandb_project", "tracking", "wandb_project", _text, "Its project there."),
    Key(
        "max_shard_retry",
        "distribution",
        "max_shard_retry",
        _tries,
        "Tries again of a shard that failed (storage, a bug).",
    ),
    Key(
        f"{_YT}.download_size",
        "reading",
        "download_size",
        _count,
        "Least pixels of the shorter side.",
    ),
    Key(
        f"{_YT}.download_audio_rate",
        "reading",
        "download_audio_rate",
        _count,
        "Least Hz of the sound.",
    ),
    Key(
        f"{_YT}.yt_metadata_args.get_info",
        "reading",
        "get_info",
        _flag,
        "The site's metadata in each sample's JSON.",
    ),
    Key(
        f"{_YT}.yt_metadata_args.writesubtitles",
        "reading",
        "writesubtitles",
        _subtitles,
        "Subtitles in the JSON: first (of the languages) or all.",
    ),
    Key(
        f"{_YT}.yt_metadata_args.subtitleslangs",
        "reading",
        "subtitleslangs",
        _texts,
        "Languages of the subtitles, by preference.",
    ),
    Key(
        f"{_YT}.yt_metadata_args.writeautomaticsub",
        "reading",
        "writeautomaticsub",
        _flag,
        "Take those of speech recognition where there are no others.",
    ),
    Key("reading.codecs", "reading", "codecs", _texts, "Video codecs by preference."),
    Key("reading.timeout", "reading", "timeout", _positive, "Seconds of wall clock per clip."),
    Key(
        "reading.sampler",
        "reading",
        "sampler",
        _text,
        "Dotted path of a function: missing shards -> those to make.",
    ),
    Key(
        "reading.rate_limit",
        "reading",
        "rate_limit",
        _positive,
        "Videos an hour asked of YouTube from each address; null = no limit.",
    ),
    Key("reading.retries", "reading", "retries", _tries, "Tries again after what may pass."),
    Key("reading.ytdlp", "reading", "ytdlp", _options, "Options handed to yt-dlp."),
    Key(
        "storage.number_sample_per_shard",
        "storage",
        "number_sample_per_shard",
        _count,
        "Clips in a shard, at most.",
    ),
    Key(
        "storage.captions_are_subtitles",
        "storage",
        "captions_are_subtitles",
        _flag,
        "Each line of a video's subtitles becomes a clip.",
    ),
    Key(
        "storage.oom_shard_count",
        "storage",
        "oom_shard_count",
        _within(5, 9),
        "Digits of shard numbers: 5 or more.",
    ),
    Key(
        "storage.options",
        "storage",
        "options",
        _options,
        "What fsspec gets for the output folder: endpoint_url, profile, …; never recorded.",
    ),
    Key(
        "distribution.processes_count",
        "distribution",
        "processes_count",
        _count,
        "Worker processes on this machine; default and most: one per core.",
    ),
    Key(
        "distribution.thread_count",
        "distribution",
        "thread_count",
        _count,
        "Videos in flight in each process.",
    ),
    Key(
        "distribution.subjob_size",
        "distribution",
        "subjob_size",
        _count,
        "Shards handed to Dask at a time.",
    ),
    Key(f"{_ARGS}.precision", "clipping", "precision", _one_of("low"), "How a clip is cut."),
    Key(f"{_ARGS}.min_length", "clipping", "min_length", _not_negative, "Least seconds of a clip."),
    Key(f"{_ARGS}.max_length", "clipping", "max_length", _unlimited, "Most seconds of a clip."),
    Key(
        f"{_ARGS}.max_length_strategy",
        "clipping",
        "max_length_strategy",
        _one_of("all", "first"),
        "Longer spans: all pieces, or the first.",
    ),
    Key(
        "subsampling.AudioRateSubsampler.args.sample_rate",
        "audio",
        "sample_rate",
        _within(1, 655_350),
        "Hz that flac and wav are resampled to; null = as they are.",
    ),
    Key(
        "subsampling.AudioRateSubsampler.args.n_audio_channels",
        "audio",
        "n_audio_channels",
        _within(1, 8),
        "Channels of flac and wav; null = as they are.",
    ),
)
_BY_NAME = {key.name: key for key in KEYS}
#: Settings that may be null, which means none or no limit; elsewhere null is the default.
_NULLABLE = (
    "reading.rate_limit",
    "reading.sampler",
    f"{_YT}.yt_metadata_args.writesubtitles",
    "distribution.processes_count",
    f"{_ARGS}.max_length",
    "subsampling.AudioRateSubsampler.args.sample_rate",
    "subsampling.AudioRateSubsampler.args.n_audio_channels",
)

#: Arguments of which one stands in place of the others.
_ALTERNATIVES = (
    ("caption_col", "caption_from"),
    ("clip_col", "start_col", "end_col", "whole_videos"),
)
#: What the reference knows and acavdl does not do: said by name rather than ignored.
_NOT_SUPPORTED = {
    "reading.dataloader_args": "acavdl reads tables, not datasets",
    "distribution.distributor_args": "the cluster is Dask's",
    "subsampling": "of the subsamplers there are ClippingSubsampler and AudioRateSubsampler",
    f"{_YT}.yt_metadata_args": "get_info and subtitles are what it knows",
    _YT: "sizes and metadata; options for yt-dlp go under reading.ytdlp",
    "stage": "acavdl downloads; the other stages are the reference's",
}
_SECTIONS = ("subsampling", "reading", "storage", "distribution")
_SECTION_TYPES: dict[str, Callable[..., Any]] = {
    "reading": Reading,
    "storage": Storage,
    "distribution": Distribution,
    "clipping": Clipping,
    "audio": AudioRate,
    "output": Output,
    "tracking": Tracking,
}
_DISTRIBUTORS = ("pyspark", "multiprocessing", "slurm")


@dataclass(frozen=True)
class Settings:
    """What a file or mapping says: arguments of the call, the settings, and what to tell the user.

    `notes` are lines about what was accepted and is done in another way.
    """

    call: Mapping[str, Any]
    config: Config
    notes: tuple[str, ...] = ()


def load(path: str | None) -> Settings:
    """Read a YAML file; without a path, ``acavdl.yaml`` if there is one.

    Raises
    ------
    UsageError
        That names the file, the key and what was expected.
    """
    if path is None and not Path(CONFIG_FILE).is_file():
        return Settings({}, Config())
    file = Path(path or CONFIG_FILE)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return from_mapping({} if tree is None else tree)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def from_mapping(tree: Any) -> Settings:
    """Return the settings of a nested mapping, as a YAML file has it.

    Raises
    ------
    UsageError
        That names the key: unknown (with the nearest known one), not supported, or of a wrong kind.
    """
    if not isinstance(tree, Mapping):
        raise UsageError("settings are a mapping of sections: reading, storage, distribution")
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, value in _leaves(tree):
        if name == "distribution.distributor":
            notes.append(_distributor(value))
            continue
        key = _BY_NAME.get(name)
        if key is None:
            raise UsageError(_unknown(name))
        if value is None and key.name not in _NULLABLE:
            continue
        parsed = None if value is None else _parsed(key, value)
        found.setdefault(key.section, {})[key.field] = parsed
    return Settings(
        found.get("call", {}),
        Config(**{name: kind(**found.get(name, {})) for name, kind in _SECTION_TYPES.items()}),
        tuple(notes),
    )


def from_arguments(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return `settings` with what the arguments of a call say; None is what is not given.

    Raises
    ------
    TypeError
        For an argument that there is not.
    UsageError
        For a value of a wrong kind.
    """
    call, config = dict(settings.call), settings.config
    for names in _ALTERNATIVES:
        # Captions or spans of the call are in place of those of the file.
        if any(given.get(name) for name in names):
            call = {name: value for name, value in call.items() if name not in names}
    for name, value in given.items():
        key = _BY_NAME.get(name)
        if key is None or "." in key.name:
            known = ", ".join(key.name for key in KEYS if "." not in key.name)
            raise TypeError(f"unexpected argument {name!r}; there are: {known}")
        if value is None or value in ((), []):
            continue
        if key.section == "call":
            call[name] = _parsed(key, value)
        else:
            config = changed(config, {name: value})
    return Settings(call, config, settings.notes)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Return `config` with settings replaced, by their dotted names."""
    for name, value in values.items():
        key = _BY_NAME[name]
        parsed = None if value is None else _parsed(key, value)
        section = dataclasses.replace(getattr(config, key.section), **{key.field: parsed})
        config = dataclasses.replace(config, **{key.section: section})
    return config


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for part, value in tree.items():
        name = f"{prefix}{part}"
        inner = any(known.startswith(f"{name}.") for known in _BY_NAME)
        if inner and isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif inner and value is None:
            continue
        elif inner:
            raise UsageError(f"{name} must be a mapping, not {value!r}")
        else:
            yield name, value


def _parsed(key: Key, value: Any) -> Any:
    try:
        return key.parse(value)
    except ValueError as error:
        raise UsageError(f"{key.name} must be {error}, not {value!r}") from error


def _unknown(name: str) -> str:
    lasts = {known.rsplit(".", 1)[-1]: known for known in _BY_NAME}
    last = name.rsplit(".", 1)[-1]
    if last in lasts:
        return f"unknown key {name}; the nearest is {lasts[last]}"
    for prefix, reason in _NOT_SUPPORTED.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return f"{name} is not supported ({reason})"
    near = difflib.get_close_matches(name, _BY_NAME, 1, 0.75) or [
        lasts[known] for known in difflib.get_close_matches(last, lasts, 1, 0.75)
    ]
    if near:
        return f"unknown key {name}; the nearest is {near[0]}"
    return f"unknown key {name}; the sections are: {', '.join(_SECTIONS)}"


def _distributor(value: Any) -> str:
    if value not in _DISTRIBUTORS:
        raise UsageError(
            f"distribution.distributor must be {' or '.join(_DISTRIBUTORS)}, not {value!r}"
        )
    return f"distributor {value}: Dask does that work here"


def example(values: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """Return a YAML file with all settings and what they mean.

    Parameters
    ----------
    values
        What is set, by dotted names; the others stand in comments, with their defaults.
    remarks
        Further lines of comment before a setting.
    """
    lines = [
        "# Settings of a dataset, for the commands of acavdl in this folder. What is commented out",
        "# shows the default. Options of the command line win.",
    ]
    begun: list[str] = []
    for key in KEYS:
        *sections, name = key.name.split(".")
        same = [a == b for a, b in zip(sections, begun, strict=False)]
        common = (*same, False).index(False)
        if not sections or common < len(sections):
            lines.append("")
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(common, len(sections))]
        begun = sections
        indent = "  " * len(sections)
        comments = [key.text, *remarks.get(key.name, "").splitlines()]
        lines += [f"{indent}# {text}" for text in comments]
        mark = "" if key.name in values else "# "
        value = values[key.name] if key.name in values else _default(key)
        lines.append(f"{indent}{mark}{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _default(key: Key) -> Any:
    owner: Any = TableOptions("") if key.section == "call" else getattr(Config(), key.section)
    value = getattr(owner, key.field, None)
    if key.name == "incremental_mode":
        return "incremental"
    return list(value) if isinstance(value, tuple) else value


def load_sampler(path: str) -> Callable[[list[int]], list[int]]:
    """Return the function that `reading.sampler` names.

    Raises
    ------
    UsageError
        If there is none.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"reading.sampler: {path} can't be imported ({error})") from error
    if not callable(found):
        raise UsageError(f"reading.sampler: {path} is not a function")
    sampler: Callable[[list[int]], list[int]] = found
    return sampler
