"""The first estimate: what it says follows from the plan and the rate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acavdl.config import AudioRate, Config, Output, Reading
from acavdl.estimate import Estimate, estimate
from acavdl.planfile import Part, Plan

PLAN = Plan((Part("a", 0, (1000, 200), "", 1),), videos=900, seconds=12_000.0)


def config(**reading: object) -> Config:
    return Config(Reading(**reading))  # type: ignore[arg-type]


def test_time_is_what_the_rate_allows_behind_the_burst() -> None:
    assert estimate(PLAN, config(rate_limit=300.0)).seconds == 2 * 3600
    assert estimate(PLAN, config(rate_limit=900.0)).seconds == 0
    assert estimate(PLAN, config(rate_limit=None)).seconds is None
    # The subset that the reference took, at a guest's rate: 23 years from one address.
    acav = estimate(replace(PLAN, videos=60_000_000), config())
    assert acav.seconds == pytest.approx(60e6 / 300 * 3600, rel=1e-4)


def test_what_moves_grows_with_videos_and_what_is_stored_with_the_spans() -> None:
    whole = config(fetch="whole")
    one = estimate(PLAN, whole)
    two = estimate(replace(PLAN, videos=1800), whole)
    assert two.requests == 2 * one.requests
    assert two.bytes_fetched == 2 * one.bytes_fetched
    assert two.bytes_stored == one.bytes_stored
    longer = estimate(replace(PLAN, seconds=24_000.0), whole)
    assert longer.bytes_fetched == one.bytes_fetched
    assert 1.5 < longer.bytes_stored / one.bytes_stored < 2
    # A clip of 10 s and its lead-in: about a megabyte.
    assert 0.8e6 < one.bytes_stored / PLAN.clips < 1.2e6
    assert all(one.assumptions)


def test_parts_take_what_clips_last_and_not_what_videos_do() -> None:
    whole, parts = (estimate(PLAN, config(fetch=fetch)) for fetch in ("whole", "ranges"))
    assert parts.bytes_fetched < whole.bytes_fetched / 10
    assert parts.bytes_stored == whole.bytes_stored
    # An extraction, and of picture and sound a head and, for each clip, a range.
    assert parts.requests == 2 * PLAN.videos + 2 * (PLAN.videos + PLAN.clips)
    # The sandbox's videos at 360p take 1.15 MB for a clip of 10 s, and 0.2 MB for the extraction.
    assert 1.2e6 < parts.bytes_fetched / PLAN.clips < 1.7e6
    longer = estimate(replace(PLAN, seconds=24_000.0), config())
    assert 1.3 < longer.bytes_fetched / parts.bytes_fetched < 2


def test_larger_pictures_take_more() -> None:
    sizes = [144, 240, 360, 480, 720, 1080, 2160]
    fetched = [estimate(PLAN, config(download_size=size)).bytes_fetched for size in sizes]
    assert fetched == sorted(fetched)
    assert len(set(fetched)) == len(sizes) - 1


def test_whole_videos_are_stored_whole() -> None:
    whole = Plan((Part("a", 0, (900,), "", 1),), videos=900)
    found = estimate(whole, config())
    assert found.bytes_stored == pytest.approx(found.bytes_fetched, rel=0.02)


def test_sound_alone_takes_less() -> None:
    def of(formats: dict[str, str], audio: AudioRate | None = None) -> Estimate:
        return estimate(
            PLAN, Config(output=Output(encode_formats=formats), audio=audio or AudioRate())
        )

    both, apart, m4a = (
        of({"video": "mp4"}),
        of({"video": "mp4", "audio": "m4a"}),
        of({"audio": "m4a"}),
    )
    wav, flac = of({"audio": "wav"}), of({"audio": "flac"})
    speech = of({"audio": "wav"}, AudioRate(16_000, 1))
    assert both.bytes_fetched == apart.bytes_fetched > 2.5 * m4a.bytes_fetched
    assert m4a.bytes_fetched == wav.bytes_fetched
    assert m4a.requests < both.requests
    assert m4a.bytes_stored < speech.bytes_stored < flac.bytes_stored < wav.bytes_stored
    assert both.bytes_stored < apart.bytes_stored
    # Ten seconds of 16 kHz mono are 320 kB.
    assert speech.bytes_stored / PLAN.clips == pytest.approx(320_000 + 4_000, rel=0.01)
    assert "p at" not in " ".join(m4a.assumptions)
