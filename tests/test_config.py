"""Settings: wrong ones are named, and the folder remembers those that matter, and no secrets."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import orjson
import pytest

from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.errors import UsageError

BASE = Config()
BAD = [0, -1, float("nan"), float("inf"), "12", None]


def changed(section: str, **values: Any) -> Config:
    return dataclasses.replace(
        BASE, **{section: dataclasses.replace(getattr(BASE, section), **values)}
    )


@pytest.mark.parametrize(
    ("section", "name", "told"),
    [
        ("reading", "download_size", "reading.yt_args.download_size"),
        ("reading", "download_audio_rate", "reading.yt_args.download_audio_rate"),
        ("reading", "timeout", "reading.timeout"),
        ("reading", "rate_limit", "reading.rate_limit"),
        ("storage", "number_sample_per_shard", "storage.number_sample_per_shard"),
        ("distribution", "thread_count", "distribution.thread_count"),
        ("distribution", "subjob_size", "distribution.subjob_size"),
        ("distribution", "processes_count", "distribution.processes_count"),
    ],
)
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_must_be_positive(section: str, name: str, told: str, value: Any) -> None:
    if value is None and name in ("processes_count", "rate_limit"):
        assert getattr(getattr(changed(section, **{name: None}), section), name) is None
        return
    with pytest.raises(UsageError) as raised:
        changed(section, **{name: value})
    assert told in str(raised.value)
    assert repr(value) in str(raised.value)


def test_retries() -> None:
    assert changed("reading", retries=0).reading.retries == 0
    with pytest.raises(UsageError, match=r"reading\.retries.*-1"):
        changed("reading", retries=-1)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("reading", {"download_size": 720}),
        ("reading", {"download_audio_rate": 48000}),
        ("reading", {"codecs": ("vp9", "avc1")}),
        ("storage", {"number_sample_per_shard": 100}),
    ],
)
def test_what_changes_samples_or_shards_changes_the_fingerprint(
    section: str, values: dict[str, Any]
) -> None:
    assert changed(section, **values).fingerprint() != BASE.fingerprint()


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("reading", {"timeout": 5.0}),
        ("reading", {"retries": 9}),
        ("reading", {"rate_limit": None}),
        ("reading", {"ytdlp": {"proxy": "http://localhost:1"}}),
        ("distribution", {"processes_count": 3}),
        ("distribution", {"thread_count": 3}),
        ("distribution", {"subjob_size": 3}),
    ],
)
def test_what_changes_neither_may_change_between_runs(section: str, values: dict[str, Any]) -> None:
    assert changed(section, **values).fingerprint() == BASE.fingerprint()


def test_every_setting_is_known_to_matter_or_not() -> None:
    """A new setting has to be given its place in one of the two tests above."""
    names = {
        (section.name, setting.name)
        for section in dataclasses.fields(Config)
        for setting in dataclasses.fields(getattr(BASE, section.name))
    }
    assert names == {
        *(("reading", name) for name in ("download_size", "download_audio_rate", "codecs")),
        *(("reading", name) for name in ("timeout", "retries", "ytdlp", "rate_limit")),
        ("storage", "number_sample_per_shard"),
        *(("distribution", name) for name in ("processes_count", "thread_count", "subjob_size")),
    }


def test_the_fingerprint_survives_json() -> None:
    assert orjson.loads(orjson.dumps(BASE.fingerprint())) == BASE.fingerprint()


def test_no_secret_is_recorded() -> None:
    secrets = {
        "cookiefile": "/home/me/SECRET-cookies.txt",
        "password": "SECRET-word",
        "http_headers": {"Authorization": "Bearer SECRET"},
        "proxy": "http://me:SECRET@proxy",
    }
    config = Config(Reading(ytdlp=secrets))
    recorded = orjson.dumps({"config": config.as_dict(), "fingerprint": config.fingerprint()})
    assert b"SECRET" not in recorded
    for name in secrets:
        assert name.encode() in recorded


def test_the_other_settings_are_recorded() -> None:
    config = Config(Reading(timeout=7.5), Storage(11), Distribution(thread_count=13))
    recorded = orjson.loads(orjson.dumps(config.as_dict()))
    assert recorded["reading"]["timeout"] == 7.5
    assert recorded["storage"]["number_sample_per_shard"] == 11
    assert recorded["distribution"]["thread_count"] == 13


def test_a_configuration_travels_and_is_frozen() -> None:
    config = Config(Reading(ytdlp={"a": 1}))
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.reading.timeout = 1  # type: ignore[misc]
