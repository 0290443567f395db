"""What a folder says of itself: whose plan it holds, and what of it is finished."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import orjson
import pytest

from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.errors import PlanMismatchError, StorageError
from acavdl.ledger import (
    FORMAT_VERSION,
    MANIFEST,
    Published,
    check_manifest,
    plan_of,
    published,
    read_manifest,
    shard_name,
    write_manifest,
)
from acavdl.planfile import Part, Plan
from acavdl.storage import Store

PLAN = Plan(
    (Part("a.parquet", 0, (3, 3), "01", 7), Part("b.parquet", 2, (1,), "23", 8)),
    5,
    12.5,
    {"label": "string"},
    {"bad_id": 2},
)
SOURCE = {"url_list": "clips.csv", "url_col": None, "clip_col": None, "caption_col": "title"}
CONFIG = Config(Reading(ytdlp={"password": "SECRET"}), Storage(3))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def expected(config: Config = CONFIG, **source: Any) -> dict[str, Any]:
    return {**SOURCE, **source, **config.fingerprint()}


# --- the manifest


def test_a_new_folder_has_none(store: Store) -> None:
    assert read_manifest(store) is None


def test_the_manifest_comes_back(store: Store) -> None:
    write_manifest(store, PLAN, SOURCE, CONFIG)
    manifest = read_manifest(store)
    assert manifest is not None
    assert plan_of(manifest) == PLAN
    check_manifest(store, manifest, expected())
    assert b"SECRET" not in store.read(MANIFEST)


def test_other_speed_is_no_other_plan(store: Store) -> None:
    write_manifest(store, PLAN, SOURCE, CONFIG)
    faster = Config(Reading(timeout=5, retries=7), Storage(3), Distribution(2, 3, 4))
    check_manifest(store, read_manifest(store) or {}, expected(faster))


@pytest.mark.parametrize(
    ("differing", "told"),
    [
        ({"url_list": "other.csv"}, ["url_list", "'clips.csv' there", "'other.csv' now"]),
        ({"caption_col": None}, ["caption_col", "'title' there", "None now"]),
        ({"url_col": "link"}, ["url_col", "None there", "'link' now"]),
        (
            {"config": Config(Reading(download_size=720), Storage(9))},
            ["download_size: 360 there, 720 now", "number_sample_per_shard: 3 there, 9 now"],
        ),
        (
            {"config": Config(Reading(codecs=("vp9",)), Storage(3))},
            ["codecs", "'avc1'", "['vp9'] now"],
        ),
    ],
)
def test_what_differs_is_named_with_both_values(
    store: Store, differing: dict[str, Any], told: list[str]
) -> None:
    write_manifest(store, PLAN, SOURCE, CONFIG)
    with pytest.raises(PlanMismatchError) as raised:
        check_manifest(store, read_manifest(store) or {}, expected(**differing))
    for part in (*told, str(store)):
        assert part in str(raised.value)
    # What is the same isn't named.
    assert "download_audio_rate" not in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"format_version": 2}',
        b'{"format_version": 2, "plan": null, "source": {}, "fingerprint": {}}',
        b'{"format_version": 2, "plan": {"digest": "", "videos": 1}, "source": {}}',
        b'{"format_version": 2, "plan": {"digest": "", "videos": 1, "parts": [1]}, "source": 3}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_manifest_is_told(store: Store, data: bytes) -> None:
    store.write(MANIFEST, data)
    with pytest.raises(StorageError, match="is damaged") as raised:
        read_manifest(store)
    assert store.path(MANIFEST) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_manifest_that_ends_early_is_told(store: Store) -> None:
    write_manifest(store, PLAN, SOURCE, CONFIG)
    data = store.read(MANIFEST)
    for size in range(0, len(data), 40):
        store.write(MANIFEST, data[:size])
        with pytest.raises(StorageError, match="is damaged"):
            read_manifest(store)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_is_told(store: Store, version: Any) -> None:
    # Of another format nothing but its number is known.
    store.write(MANIFEST, orjson.dumps({"format_version": version, "anything": 1}))
    with pytest.raises(PlanMismatchError, match=f"format {version};.*format {FORMAT_VERSION}"):
        read_manifest(store)


def test_a_manifest_that_cannot_be_read_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot read"):
        read_manifest(store)


# --- published shards


def publish(store: Store, shard: int = 2, **stats: Any) -> None:
    name = shard_name(shard)
    store.write(f"{name}.tar", b"t" * 1024)
    store.write(f"{name}.parquet", b"p" * 100)
    files = {"tar": {"bytes": 1024}, "parquet": {"bytes": 100}}
    whole = {"count": 7, "outcomes": {"ok": 5, "private": 2}, "files": files, **stats}
    store.write(f"{name}_stats.json", orjson.dumps(whole))


def test_a_published_shard_is_known(store: Store) -> None:
    publish(store)
    assert published(store, 2) == Published(2, 7, {"ok": 5, "private": 2})
    assert published(store, 1) is None
    assert published(store, 20) is None


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("change", ["missing", "empty", "shorter", "longer", "folder"])
def test_a_shard_with_other_files_is_not_published(
    store: Store, tmp_path: Path, kind: str, change: str
) -> None:
    publish(store)
    path = tmp_path / f"00002.{kind}"
    data = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes({"empty": b"", "shorter": data[:-1], "longer": data + b"x"}[change])
    assert published(store, 2) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\x00" * 50,
        b"\xff",
        b'{"files": {}}',
        b'{"files": {"tar": 1, "parquet": 2}}',
        b'{"files": {"tar": null}}',
        b'{"files": []}',
        b'{"files": {"tar": {"bytes": 1024}, "parquet": {"bytes": 100}}}',
    ],
)
def test_a_shard_with_damaged_stats_is_not_published(store: Store, data: bytes) -> None:
    publish(store)
    store.write("00002_stats.json", data)
    assert published(store, 2) is None


def test_a_shard_without_stats_is_not_published(store: Store, tmp_path: Path) -> None:
    publish(store)
    (tmp_path / "00002_stats.json").unlink()
    assert published(store, 2) is None


def test_names_of_shards_sort_by_number() -> None:
    assert shard_name(0) == "00000"
    assert shard_name(99_999) == "99999"
    assert shard_name(123_456) == "123456"


def test_a_plan_is_remembered_whatever_its_size(store: Store) -> None:
    large = dataclasses.replace(PLAN, parts=(Part("a", 0, (2000,) * 50_000, "0", 9),))
    write_manifest(store, large, SOURCE, CONFIG)
    assert plan_of(read_manifest(store) or {}) == large


def test_stats_that_cannot_be_read_for_now_are_not_absent(store: Store, tmp_path: Path) -> None:
    """A shard that a failing disk hides must not be made again over the good one."""
    (tmp_path / f"{shard_name(0)}_stats.json").mkdir()
    with pytest.raises(StorageError, match="00000_stats"):
        published(store, 0)
