"""Settings: wrong ones are named, and the folder remembers those that matter, and no secrets."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acavdl.config import Clipping, Config, Distribution, Reading, Storage, TableOptions
from acavdl.errors import UsageError
from acavdl.keys import KEYS
from acavdl.settings import example, from_mapping, load, load_sampler

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
        ("reading", {"extraction": "light"}),
        ("reading", {"get_info": False}),
        ("reading", {"writesubtitles": "all"}),
        ("reading", {"subtitleslangs": ("de",)}),
        ("reading", {"writeautomaticsub": True}),
        ("storage", {"number_sample_per_shard": 100}),
        ("storage", {"captions_are_subtitles": True}),
        ("clipping", {"min_length": 1.0}),
        ("clipping", {"max_length": 10.0}),
        ("clipping", {"max_length_strategy": "first"}),
        ("storage", {"oom_shard_count": 6}),
        ("output", {"output_format": "files"}),
        ("output", {"encode_formats": {"audio": "m4a"}}),
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
        ("reading", {"fetch": "whole"}),
        ("reading", {"sampler": "some.function"}),
        ("reading", {"egress": "cluster"}),
        ("reading", {"rate_limit": None}),
        ("reading", {"ytdlp": {"proxy": "http://localhost:1"}}),
        ("distribution", {"processes_count": 3}),
        ("distribution", {"thread_count": 3}),
        ("distribution", {"subjob_size": 3}),
        ("distribution", {"slice": 3.0}),
        ("distribution", {"checkpoint": 3}),
        ("distribution", {"max_shard_retry": 3}),
        ("storage", {"options": {"profile": "x"}}),
        ("tracking", {"enable_wandb": True, "wandb_project": "p"}),
    ],
)
def test_what_changes_neither_may_change_between_runs(section: str, values: dict[str, Any]) -> None:
    assert changed(section, **values).fingerprint() == BASE.fingerprint()


def test_every_setting_is_known_to_matter_or_not() -> None:
    """A new setting is in the fingerprint, or has its place here."""
    names = {
        (section.name, setting.name)
        for section in dataclasses.fields(Config)
        for setting in dataclasses.fields(getattr(BASE, section.name))
    }
    matters = {name for name, _ in BASE.fingerprint().items()}
    assert {name for _, name in names} - matters == {
        *("timeout", "retries", "sampler", "ytdlp", "rate_limit", "egress", "fetch"),
        *("give_up_after", "slice", "checkpoint"),
        *("processes_count", "thread_count", "subjob_size", "max_shard_retry", "options"),
        *("enable_wandb", "wandb_project", "hours", "bytes", "slurm"),
    }


def test_every_setting_has_a_key_in_files() -> None:
    known = {(key.section, key.field) for key in KEYS}
    for section in dataclasses.fields(Config):
        for setting in dataclasses.fields(getattr(BASE, section.name)):
            assert (section.name, setting.name) in known
    for setting in dataclasses.fields(TableOptions):
        assert ("call", setting.name) in known


def test_the_fingerprint_survives_json() -> None:
    assert orjson.loads(orjson.dumps(BASE.fingerprint())) == BASE.fingerprint()


def test_no_secret_is_recorded() -> None:
    secrets = {
        "cookiefile": "/home/me/SECRET-cookies.txt",
        "password": "SECRET-word",
        "http_headers": {"Authorization": "Bearer SECRET"},
        "proxy": "http://me:SECRET@proxy",
    }
    config = Config(Reading(ytdlp=secrets), Storage(options=secrets))
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


# --- files

REFERENCE = """
subsampling: {}
reading:
    yt_args:
        download_size: 360
        download_audio_rate: 44100
        yt_metadata_args:
            get_info: True
    timeout: 60
    sampler: null
storage:
    number_sample_per_shard: 2000
    captions_are_subtitles: False
distribution:
    processes_count: 96
    thread_count: 48
    subjob_size: 10000
    distributor: "pyspark"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text)
    return str(path)


def test_the_recipe_of_the_reference_is_valid_as_it_is(tmp_path: Path) -> None:
    settings = load(written(tmp_path, REFERENCE))
    assert settings.call == {}
    assert settings.config == Config(
        Reading(timeout=60.0), Storage(2000), Distribution(96, 48, 10000)
    )
    assert settings.notes == ("distributor pyspark: Dask does that work here",)


def test_the_call_may_stand_in_the_file(tmp_path: Path) -> None:
    text = (
        "url_list: clips.csv\noutput_folder: out\nsave_additional_columns: [a, b]\n"
        "limit: 5\nunique_videos: true\nreading:\n  rate_limit: null\n  ytdlp: {proxy: x}\n"
        "subsampling:\n  ClippingSubsampler:\n    args:\n      min_length: 2.5\n"
        "      max_length: 999999.0\n"
    )
    settings = load(written(tmp_path, text))
    assert settings.call == {
        "url_list": "clips.csv",
        "output_folder": "out",
        "save_additional_columns": ("a", "b"),
        "limit": 5,
        "unique_videos": True,
    }
    assert settings.config == Config(
        Reading(rate_limit=None, ytdlp={"proxy": "x"}), clipping=Clipping(min_length=2.5)
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "reading:\nstorage: {}\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert load(written(tmp_path, text)).config == BASE


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reading: {timout: 3}", "unknown key reading.timout; the nearest is reading.timeout"),
        ("url_lst: x", "unknown key url_lst; the nearest is url_list"),
        ("timeout: 3", "unknown key timeout; the nearest is reading.timeout"),
        (
            "reading: {yt_args: {get_info: true}}",
            "unknown key reading.yt_args.get_info; the nearest is "
            "reading.yt_args.yt_metadata_args.get_info",
        ),
        ("reading: {yt_args: {proxy: x}}", "reading.yt_args.proxy is not supported (sizes"),
        ("zzz: 1", "unknown key zzz; the sections are: subsampling, reading,"),
        ("reading: 3", "reading must be a mapping, not 3"),
        ("[1, 2]", "settings are a mapping"),
        ("reading: {timeout: soon}", "reading.timeout must be a number, not 'soon'"),
        ("reading: {timeout: true}", "reading.timeout must be a number, not True"),
        ("reading: {timeout: .nan}", "reading.timeout must be a number, not nan"),
        ("storage: {number_sample_per_shard: 1.5}", "must be a whole number, not 1.5"),
        ("limit: 0", "limit must be a number greater than 0, not 0"),
        ("unique_videos: 1", "unique_videos must be true or false, not 1"),
        ("incremental_mode: append", "must be incremental or extend or overwrite, not 'append'"),
        ("subsampling: {FrameSubsampler: {args: {}}}", "subsampling.FrameSubsampler is not supp"),
        (
            "subsampling: {ClippingSubsampler: {args: {precision: rough}}}",
            "precision must be low or editlist or keyframe_adjusted or exact, not 'rough'",
        ),
        ("output_format: parquet", "output_format must be webdataset or files (webdataset's own"),
        ("output_format: dummy", "must be webdataset or files, not 'dummy'"),
        ("encode_formats: {video: avi}", "encode_formats must be {video: mp4}, {video: mp4, "),
        ("encode_formats: {video: mp4, audio: flac}", "encode_formats must be"),
        (
            "subsampling: {AudioRateSubsampler: {args: {sample_rate: 16000}}}",
            "AudioRateSubsampler makes flac or wav",
        ),
        ("distribution: {distributor: ray}", "must be pyspark or multiprocessing or slurm"),
        ("distribution: {distributor_args: {}}", "distributor_args is not supported"),
        ("reading: {dataloader_args: {}}", "dataloader_args is not supported (acavdl reads tables"),
        ("stage: subset", "stage is not supported"),
        ("reading: {extraction: lite}", "reading.extraction must be full or light, not 'lite'"),
        ("reading: {fetch: parts}", "reading.fetch must be ranges or whole, not 'parts'"),
        ("distribution: {slurm: x}", "distribution.slurm must be a mapping, not 'x'"),
        ("max_bytes: 3 stones", "max_bytes must be bytes: a number, or a text like 500GB"),
        ("a: [", "is no YAML"),
        ("a: \x00", "is no YAML"),
        ("&a [*a]", "settings are a mapping"),
    ],
)
def test_a_wrong_file_is_told_by_its_key(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        load(path)
    assert told in str(raised.value)
    assert path in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.yaml: No such file"):
        load(str(tmp_path / "none.yaml"))


def test_the_file_of_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None).config == BASE
    Path("acavdl.yaml").write_text("reading: {timeout: 7}")
    assert load(None).config.reading.timeout == 7.0


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([part for key in KEYS for part in key.name.split(".")])
                | st.text(max_size=4),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_mapping_gives_settings_or_one_line(tree: Any) -> None:
    with contextlib.suppress(UsageError):
        orjson.dumps(from_mapping(tree).config.fingerprint())


def test_an_example_says_what_is_set_and_changes_nothing_else(tmp_path: Path) -> None:
    values = {"url_list": "a: 'b'.csv", "output_folder": "out", "reading.timeout": 5.0}
    text = example(values, {"url_list": "Its columns: x\nand y"})
    settings = load(written(tmp_path, text))
    assert settings.call == {"url_list": "a: 'b'.csv", "output_folder": "out"}
    assert settings.config == Config(Reading(timeout=5.0))
    assert "# Its columns: x\n# and y\n" in text
    assert max(map(len, text.splitlines())) <= 100
    # Each commented setting may be switched on as it stands.
    for key in KEYS:
        name = key.name.split(".")[-1]
        lines = [line for line in text.splitlines() if line.lstrip(" #").startswith(f"{name}: ")]
        assert len(lines) == 1
        if "# " in lines[0]:
            load(written(tmp_path, text.replace(lines[0], lines[0].replace("# ", "", 1))))


def test_samplers() -> None:
    assert load_sampler("builtins.sorted")([2, 1]) == [1, 2]
    for wrong in ("nowhere.to.be", "math.pi", "sorted", "math.none", ""):
        with pytest.raises(UsageError, match=r"reading\.sampler"):
            load_sampler(wrong)


@pytest.mark.parametrize(
    "values",
    [
        {"caption_col": "a", "caption_from": "title"},
        {"clip_col": "a", "start_col": "b"},
        {"limit": 0},
    ],
)
def test_options_that_contradict_themselves(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TableOptions("t.csv", **values)


def test_lengths_that_contradict_themselves() -> None:
    with pytest.raises(UsageError, match=r"max_length \(1 s\) is below min_length \(2 s\)"):
        Config(clipping=Clipping(min_length=2, max_length=1))
    with pytest.raises(UsageError, match="max_length"):
        Config(clipping=Clipping(max_length=0.0001))
    limits = Clipping(min_length=0.5, max_length=10).limits()
    assert limits == {"min_length_ms": 500, "max_length_ms": 10_000, "strategy": "all"}
