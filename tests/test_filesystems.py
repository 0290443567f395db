"""Folders on S3 and other file systems of fsspec: whole files or none, whatever happens."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
import s3
from s3 import Faults, fault_proxy

from acavdl import filesystems
from acavdl.errors import StorageError, UsageError
from acavdl.filesystems import PART_BYTES, RemoteFiles
from acavdl.storage import Store

LARGE = os.urandom(PART_BYTES) + b"end" * 1_000_000


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Store]:
    """One contract for all kinds of file systems."""
    if request.param == "local":
        yield Store(str(tmp_path / "out"))
    elif request.param == "s3":
        yield Store(f"s3://{request.getfixturevalue('bucket')}/some/where")
    else:
        # Any file system of fsspec that is no S3; this one is refused by its URL.
        made = Store(str(tmp_path))
        made._files = RemoteFiles(fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}")
        yield made


# --- the contract


def test_a_file_appears_when_it_is_committed(store: Store) -> None:
    store.create()
    before = None
    for data in (b"", b"abc", LARGE):
        with store.stage("folder/a.bin") as staged:
            for begin in range(0, len(data), 1 << 20):
                staged.write(data[begin : begin + (1 << 20)])
            assert staged.tell() == staged.size == len(data)
            assert store.size("folder/a.bin") == before
            staged.commit()
        before = len(data)
        assert store.size("folder/a.bin") == len(data)
        assert store.read("folder/a.bin") == data
        assert store.sha256("folder/a.bin") == staged.sha256


@pytest.mark.parametrize("size", [0, 3, PART_BYTES + 5])
def test_what_is_not_committed_never_appears(store: Store, size: int) -> None:
    with store.stage("a.bin") as staged:
        staged.write(LARGE[:size])
    with contextlib.suppress(KeyError), store.stage("a.bin") as staged:
        staged.write(LARGE[:size])
        raise KeyError
    assert store.size("a.bin") is None
    assert store.sizes() == {}


def test_a_listing_has_the_files_of_a_folder(store: Store) -> None:
    assert store.sizes() == store.sizes("nowhere") == {}
    for name in ("a", "b/c", "b/d/e", ".hidden"):
        store.write(name, b"12345")
    assert store.sizes() == {"a": 5, ".hidden": 5}
    assert store.sizes("b") == {"c": 5}
    assert store.size("b") is None or store.size("b/c") == 5


def test_a_file_can_be_read_from_the_middle(store: Store) -> None:
    store.write("a", LARGE)
    with store.open("a") as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"end"
        file.seek(7)
        assert file.read(5) == LARGE[7:12]
        assert file.tell() == 12


def test_a_file_that_is_not_there_is_told(store: Store) -> None:
    assert store.size("none") is None
    with pytest.raises(StorageError, match=r"cannot read .*none"):
        store.read("none")


def test_the_folder_is_made_and_nothing_is_left_of_the_probe(store: Store) -> None:
    store.create()
    assert store.sizes() == store.sizes("_acavdl") == {}


def test_a_dataset_is_cleared_and_the_rest_left(store: Store) -> None:
    ours = (
        *("00000.tar", "00000.parquet", "00000_stats.json", "00006.tar"),
        *("_acavdl/run.json", "_acavdl/plan/part-00000.parquet", "00001/key.mp4"),
    )
    theirs = (
        *("notes.txt", "1.tar", "00000.txt", "video/00000.tar", "00000.tar.gz"),
        *("00007.tar", "20240131/thesis.tex"),
    )
    for name in (*ours, *theirs):
        store.write(name, b"x")
    assert store.shards() == sorted(
        {name.split("/")[0] for name in ours if not name.startswith("_")}
        | {"00007.tar", "20240131"}
    )
    store.clear(7)
    assert [name for name in ours if store.size(name) is not None] == []
    assert [name for name in theirs if store.size(name) is None] == []
    store.clear(7)


def test_a_file_is_removed(store: Store) -> None:
    store.write("a/b", b"1")
    for _ in range(2):
        store.remove("a/b")
        assert store.size("a/b") is None


def test_a_store_travels(store: Store) -> None:
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again.read("a") == b"1"
    assert str(again) == str(store)


# --- S3 alone


def test_uploads_that_nobody_completed_are_ended(bucket: str) -> None:
    store = Store(f"s3://{bucket}/out")
    mine = store.stage("00000.tar")
    mine.write(LARGE)
    other = Store(f"s3://{bucket}/out2").stage("00000.tar")
    other.write(LARGE)
    foreign = store.stage("notes.bin")
    foreign.write(LARGE)
    assert store.sweep() == ["00000.tar"]
    assert store.sweep() == []
    with pytest.raises(StorageError, match=r"cannot write s3://.*/out/00000.tar"):
        mine.commit()
    assert store.size("00000.tar") is None
    for staged in (mine, other, foreign):
        staged.__exit__(None, None, None)


def test_a_process_that_dies_leaves_no_half_object(bucket: str) -> None:
    code = (
        "import os, sys; from acavdl.storage import Store\n"
        "store = Store(sys.argv[1]); staged = store.stage('00000.tar')\n"
        f"staged.write(os.urandom({PART_BYTES + 1})); print('now', flush=True)\n"
        "sys.stdin.read()\n"
    )
    line = [sys.executable, "-c", code, f"s3://{bucket}/out"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.kill()
    store = Store(f"s3://{bucket}/out")
    assert store.sizes() == {}
    assert store.sweep() == ["00000.tar"]


@pytest.mark.parametrize(
    "options",
    [
        {"endpoint_url": "ENDPOINT"},
        {"client_kwargs": {"endpoint_url": "ENDPOINT"}},
        {"key": "other", "secret": "word", "endpoint_url": "ENDPOINT"},
    ],
)
def test_options_are_handed_on(
    bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(inner) for name, inner in value.items()}
        return s3_endpoint if value == "ENDPOINT" else value

    store = Store(f"s3://{bucket}/out", filled(options))
    store.write("a", b"1")
    assert store.read("a") == b"1"


def test_a_profile_of_the_user(
    bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nendpoint_url = {s3_endpoint}\naws_access_key_id = {s3.KEY}\n"
        f"aws_secret_access_key = {s3.SECRET}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = Store(f"s3://{bucket}/out", {"profile": "lab"})
    store.write("a", b"1")
    assert store.size("a") == 1


# --- what can't be used


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "give the path or URL"),
        ("zip://a::s3://b/c", "give the path or URL"),
        ("nosuch://a/b", "nosuch"),
        ("sftp://me:hunter2@host/a", "credentials do not belong into a URL"),
        ("s3://key:hunter2@bucket/a", "credentials do not belong into a URL"),
        ("s3://AKIA:hun/ter2@bucket/a", "credentials do not belong into a URL"),
    ],
)
def test_urls_that_cannot_be_used(url: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        Store(url)
    assert told in str(raised.value)
    assert "ter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("place", "secret"),
    [
        *(("bucket", False), ("host:22", False), ("me@host:22", False), ("[::1]:80", False)),
        ("container@account.dfs.core.windows.net", False),
        *(("me:word@host", True), ("AKIA:sec", True), ("me:w@rd@host", True), ("host:x", True)),
    ],
)
def test_what_looks_like_a_password_in_a_url(place: str, secret: bool) -> None:
    assert filesystems._holds_secret(place) == secret


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*s3://none-of-it/out.*not exist"):
        Store("s3://none-of-it/out").create()


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UsageError, match=r"cannot write .*redentials"):
        Store(f"s3://{bucket}/out", {"client_kwargs": {"region_name": "eu-west-1"}}).create()


def test_a_server_that_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "_S3_TRIES", 1)
    with pytest.raises(UsageError, match=r"cannot write .*127\.0\.0\.1:9"):
        Store(f"s3://{bucket}/out", {"endpoint_url": "http://127.0.0.1:9"}).create()


# --- a server that misbehaves

HUNG = {"read_timeout": 0.6, "connect_timeout": 1, "retries": {"max_attempts": 2}}


def through(bucket: str, proxy: str) -> Store:
    return Store(f"s3://{bucket}/out", {"endpoint_url": proxy, "config_kwargs": HUNG})


def every(number: int, fault: str) -> Callable[[str, str, int], str | None]:
    return lambda _method, _path, count: fault if count % number == 0 else None


@pytest.mark.parametrize("fault", ["503", "reset", "lost", "hang", "slow"])
def test_what_passes_is_survived(bucket: str, s3_endpoint: str, fault: str) -> None:
    """Every third request goes wrong: all files are there in the end, and are what was written."""
    faults = Faults(every(3, fault))
    with fault_proxy(s3_endpoint, faults) as proxy:
        store = through(bucket, proxy)
        # One that holds nothing among them.
        small = {str(number): str(number).encode() * number for number in range(9)}
        for name, data in small.items():
            store.write(name, data)
        with store.stage("large") as staged:
            staged.write(LARGE)
            staged.commit()
    assert faults.done[fault] >= 3
    plain = Store(f"s3://{bucket}/out")
    assert plain.sha256("large") == staged.sha256
    assert {name: plain.read(name) for name in small} == small


@pytest.mark.parametrize("fault", ["503", "reset", "hang"])
def test_what_does_not_pass_is_told_and_leaves_nothing(
    bucket: str, s3_endpoint: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no moment anybody sees half an object.

    (Names, not sizes: the server itself lists an object of no bytes while it takes one in.)
    """
    monkeypatch.setattr(filesystems, "_S3_TRIES", 2)
    seen: set[str] = set()
    over = threading.Event()
    plain = fsspec.filesystem("s3", endpoint_url=s3_endpoint, use_listings_cache=False)

    def watch() -> None:
        while not over.wait(0.05):
            found = plain.call_s3("list_objects_v2", Bucket=bucket)
            seen.update(entry["Key"] for entry in found.get("Contents", ()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    faults = Faults(lambda method, path, _: fault if "00000.tar" in path else None)
    try:
        with fault_proxy(s3_endpoint, faults) as proxy:
            store = through(bucket, proxy)
            for data in (b"small", LARGE):
                with pytest.raises(StorageError, match=r"cannot write .*s3://.*00000.tar"):
                    store.write("00000.tar", data)
            store.write("other", b"123")
    finally:
        over.set()
        watcher.join()
    assert seen <= {"out/other"}
    assert list(plain.find(f"{bucket}/out")) == [f"{bucket}/out/other"]
