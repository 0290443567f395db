"""What a plan will take, before anything is asked of the site: a first estimate, with assumptions.

The constants were measured on the sandbox (docs/performance.md) and on 360p media of the usual
bitrates; what the site adds (challenges, waiting times) is not in them.
"""

from __future__ import annotations

from dataclasses import dataclass

from acavdl.config import Config
from acavdl.fetch import CHUNK_BYTES
from acavdl.planfile import Plan

#: Watch page and player answer, packed.
_EXTRACTION_REQUESTS = 2
_EXTRACTION_BYTES = 215_000
#: Bytes a second of H.264 by the shorter side in pixels, and of AAC at 128 kbit/s.
_PICTURE = {144: 12_000, 240: 30_000, 360: 63_000, 480: 110_000, 720: 220_000, 1080: 430_000}
_SOUND = 16_000
#: Seconds of a video that is fetched as a whole, for want of anything better.
_VIDEO_SECONDS = 300.0
#: Seconds of a fragment of picture, and of sound, on the site: a clip takes one more than it lasts,
#: in the middle. And bytes of a file's head.
_FRAGMENT, _SOUND_FRAGMENT = 5.3, 10.0
_HEAD_BYTES = 1_700
#: Seconds from the keyframe before to the start, in the middle; and JSON and tar of a sample.
_LEAD_IN = 2.6
_SAMPLE_BYTES = 4_000
_HOUR = 3600.0


@dataclass(frozen=True)
class Estimate:
    """Requests and bytes of a plan, and the seconds that the rate alone takes (None: no rate)."""

    requests: int
    bytes_fetched: int
    bytes_stored: int
    seconds: float | None
    assumptions: tuple[str, ...]


def estimate(plan: Plan, config: Config) -> Estimate:
    """Return what it takes to make all of `plan` from one egress address."""
    formats = config.output.encode_formats
    picture = _picture_rate(config.reading.download_size) if "video" in formats else 0
    rates = [rate for rate in (picture, _SOUND) if rate]
    whole = plan.seconds == 0
    lead_in = _LEAD_IN if picture and config.clipping.precision in ("low", "editlist") else 0
    shown = _VIDEO_SECONDS * plan.clips if whole else plan.seconds + lead_in * plan.clips
    rate = config.reading.rate_limit
    seconds = None if rate is None else max(0.0, (plan.videos - rate) / rate * _HOUR)
    stored = (picture + _SOUND if picture else 0) + _sound_rate(config)
    media = f"sound at {_SOUND * 8 / 1000:.0f} kbit/s"
    if picture:
        media = f"{config.reading.download_size}p at {picture * 8 / 1000:.0f} kbit/s, {media}"
    if whole or config.reading.fetch == "whole":
        requests = plan.videos * sum(-(-round(r * _VIDEO_SECONDS) // CHUNK_BYTES) for r in rates)
        fetched = sum(rates) * _VIDEO_SECONDS * plan.videos
        how = f"videos of {_VIDEO_SECONDS / 60:g} minutes, fetched as a whole"
    else:
        requests = len(rates) * (plan.videos + plan.clips)
        fetched = len(rates) * _HEAD_BYTES * plan.videos + sum(
            rate * (plan.seconds + fragment * plan.clips)
            for rate, fragment in ((picture, _FRAGMENT), (_SOUND, _SOUND_FRAGMENT))
        )
        how = f"fragments of {_FRAGMENT:g} s of picture and {_SOUND_FRAGMENT:g} s of sound"
    return Estimate(
        requests=_EXTRACTION_REQUESTS * plan.videos + requests,
        bytes_fetched=round(fetched + _EXTRACTION_BYTES * plan.videos),
        bytes_stored=round(shown * stored + _SAMPLE_BYTES * plan.clips),
        seconds=seconds,
        assumptions=(how, media, "all videos are there"),
    )


def _sound_rate(config: Config) -> float:
    """Return bytes a second of the sound's own member; flac packs 16-bit samples to some 60 %."""
    kind, audio = config.output.encode_formats.get("audio"), config.audio
    samples = 2 * (audio.sample_rate or 44_100) * (audio.n_audio_channels or 2)
    return {"m4a": _SOUND, "wav": samples, "flac": 0.6 * samples}.get(kind or "", 0)


def _picture_rate(size: int) -> int:
    return next((rate for pixels, rate in _PICTURE.items() if pixels >= size), _PICTURE[1080])
