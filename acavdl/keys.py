"""The settings by the names that files have for them: what each may be, and what it means.

All of them stand in `KEYS`: loader, ``acavdl init``, command line and messages go by it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from dask.utils import parse_bytes

from acavdl.errors import UsageError
from acavdl.spans import UNITS


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
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
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


def _bytes(value: Any) -> int:
    try:
        number = parse_bytes(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or number < 1:
        raise ValueError("bytes: a number, or a text like 500GB")
    return int(number)


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
        "tombstones",
        "call",
        "tombstones",
        _text,
        "A list of dead videos (csv, txt, parquet, …), which are not asked for.",
    ),
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
    Key("max_hours", "limits", "hours", _positive, "The run ends in order after so long."),
    Key(
        "max_bytes", "limits", "bytes", _bytes, "The run ends in order when it has fetched so much."
    ),
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
    Key(
        "reading.egress",
        "reading",
        "egress",
        _one_of("node", "cluster"),
        "Whose address the rate counts for: node, or cluster (one NAT for all).",
    ),
    Key(
        "reading.give_up_after",
        "reading",
        "give_up_after",
        _positive,
        "Seconds of refusal at all addresses after which the run ends (exit code 6).",
    ),
    Key(
        "reading.fetch",
        "reading",
        "fetch",
        _one_of("ranges", "whole"),
        "ranges: the bytes that clips need; whole: whole files.",
    ),
    Key(
        "reading.extraction",
        "reading",
        "extraction",
        _one_of("full", "light"),
        "full: all metadata; light: fewer pages of the site, and less metadata.",
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
    Key(
        "distribution.slice",
        "distribution",
        "slice",
        _positive,
        "Seconds that a task works on a shard before another one goes on, anywhere.",
    ),
    Key(
        "distribution.checkpoint",
        "distribution",
        "checkpoint",
        _count,
        "Clips of an open shard between two checkpoints.",
    ),
    Key(
        "distribution.slurm",
        "distribution",
        "slurm",
        _options,
        "What dask_jobqueue.SLURMCluster takes: queue, account, walltime, cores, memory, …",
    ),
    Key(
        f"{_ARGS}.precision",
        "clipping",
        "precision",
        _one_of("low", "editlist", "keyframe_adjusted", "exact"),
        "How a clip is cut; see the documentation.",
    ),
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
BY_NAME = {key.name: key for key in KEYS}
#: Settings that may be null, which means none or no limit; elsewhere null is the default.
NULLABLE = (
    "reading.rate_limit",
    "reading.sampler",
    f"{_YT}.yt_metadata_args.writesubtitles",
    "distribution.processes_count",
    "max_hours",
    "max_bytes",
    f"{_ARGS}.max_length",
    "subsampling.AudioRateSubsampler.args.sample_rate",
    "subsampling.AudioRateSubsampler.args.n_audio_channels",
)


def parsed(key: Key, value: Any) -> Any:
    """Return the value of a setting.

    Raises
    ------
    UsageError
        That names the setting and what was expected.
    """
    try:
        return key.parse(value)
    except ValueError as error:
        raise UsageError(f"{key.name} must be {error}, not {value!r}") from error
