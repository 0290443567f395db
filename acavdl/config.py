"""Settings of a run: frozen, with the reference's names and units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acavdl.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """How videos are looked up and fetched.

    Parameters
    ----------
    download_size
        Pixels of the shorter side: the smallest format that has at least these is taken.
    download_audio_rate
        Hz: the smallest audio rate that is at least this is taken.
    codecs
        Video codecs by preference among formats of one size.
    timeout
        Seconds of wall clock for each clip, its requests included; the clips of a video share the
        sum of theirs.
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
    codecs: tuple[str, ...] = ("avc1", "av01", "vp9")
    timeout: float = 60.0
    rate_limit: float | None = 300.0
    retries: int = 2
    ytdlp: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Storage:
    """How samples are stored: at most `number_sample_per_shard` clips in a shard."""

    number_sample_per_shard: int = 2000


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
    """

    processes_count: int | None = None
    thread_count: int = 16
    subjob_size: int = 1000


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    reading: Reading = field(default_factory=Reading)
    storage: Storage = field(default_factory=Storage)
    distribution: Distribution = field(default_factory=Distribution)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by their names."""
        processes = self.distribution.processes_count
        positive: dict[str, Any] = {
            "reading.yt_args.download_size": self.reading.download_size,
            "reading.yt_args.download_audio_rate": self.reading.download_audio_rate,
            "reading.timeout": self.reading.timeout,
            "reading.rate_limit": 1 if self.reading.rate_limit is None else self.reading.rate_limit,
            "storage.number_sample_per_shard": self.storage.number_sample_per_shard,
            "distribution.thread_count": self.distribution.thread_count,
            "distribution.subjob_size": self.distribution.subjob_size,
            "distribution.processes_count": 1 if processes is None else processes,
        }
        for name, value in positive.items():
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UsageError(f"{name} must be a number greater than 0, not {value!r}")
        if self.reading.retries < 0:
            raise UsageError(f"reading.retries must not be negative: {self.reading.retries}")

    def fingerprint(self) -> dict[str, Any]:
        """Return what changes the plan or the bytes of a sample; the rest may differ on resume."""
        return {
            "download_size": self.reading.download_size,
            "download_audio_rate": self.reading.download_audio_rate,
            "codecs": list(self.reading.codecs),
            "number_sample_per_shard": self.storage.number_sample_per_shard,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values, for the run's record.

        Options for yt-dlp may hold cookies or passwords: only their names are recorded.
        """
        values = dataclasses.asdict(self)
        values["reading"]["ytdlp"] = sorted(self.reading.ytdlp)
        return values
