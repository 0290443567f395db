"""Files of a dataset: whole or not there, whatever happens meanwhile."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from acavdl.errors import AcavdlError, StorageError, UsageError
from acavdl.storage import Store, input_files, input_size, open_input

#: Runs in another process, in the folder of its first argument.
PRELUDE = "import os, sys; from acavdl.storage import Store; store = Store(sys.argv[1])\n"


def start(code: str, folder: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, str(folder), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that can't be written to; root is stopped by nothing but the kernel's own."""
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir()
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
    else:
        yield Path("/proc/self")


# --- stage, commit, discard


def test_a_file_is_there_once_committed(store: Store, tmp_path: Path) -> None:
    with store.stage("a/b/c.bin") as staged:
        staged.write(b"one ")
        staged.write(memoryview(b"two"))
        assert staged.tell() == staged.size == 7
        assert not (tmp_path / "a/b/c.bin").exists()
        staged.commit()
        assert (tmp_path / "a/b/c.bin").read_bytes() == b"one two"
    assert staged.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert files(tmp_path) == ["a/b/c.bin"]
    assert store.read("a/b/c.bin") == b"one two"
    assert store.size("a/b/c.bin") == 7
    assert list(store.sizes("a/b")) == ["c.bin"]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_what_is_not_committed_leaves_nothing(
    store: Store, tmp_path: Path, error: type[BaseException] | None
) -> None:
    store.write("kept", b"old")

    def write() -> None:
        with store.stage("kept") as staged:
            staged.write(b"new" * 10**6)
            if error is not None:
                raise error

    if error is None:
        write()
    else:
        with pytest.raises(error):
            write()
    assert files(tmp_path) == ["kept"]
    assert store.read("kept") == b"old"


def test_an_error_after_the_commit_keeps_the_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="later"), store.stage("a") as staged:  # noqa: PT012
        staged.write(b"x")
        staged.commit()
        raise ValueError("later")
    assert files(tmp_path) == ["a"]


def test_other_libraries_write_to_a_staged_file(store: Store, tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000))})
    with store.stage("t.parquet") as staged:
        pq.write_table(table, staged)
        staged.commit()
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    assert staged.sha256 == hashlib.sha256((tmp_path / "t.parquet").read_bytes()).hexdigest()


def test_a_file_is_never_seen_in_part(store: Store, tmp_path: Path) -> None:
    """Another process replaces a file again and again; whoever looks sees one whole version."""
    size = 300_000
    code = f"""
for number in range(int(sys.argv[2])):
    with store.stage("a.tar") as staged:
        for _ in range(30):
            staged.write(bytes([number % 256]) * {size // 30})
        staged.commit()
"""
    process = start(code, tmp_path, 60)
    seen = set()
    while process.poll() is None:
        if store.size("a.tar") is not None:
            data = store.read("a.tar")
            assert len(data) == size
            assert len(set(data)) == 1
            seen.add(data[0])
        assert [name for name in sorted(store.sizes()) if not name.startswith(".")] in (
            [],
            ["a.tar"],
        )
    assert process.communicate()[1] == ""
    assert process.returncode == 0
    assert len(seen) > 1
    assert files(tmp_path) == ["a.tar"]


def test_a_killed_writer_leaves_no_file_but_a_staged_one(store: Store, tmp_path: Path) -> None:
    code = """
with store.stage("a.tar") as staged:
    staged.write(b"x" * 10**6)
    print("staged", flush=True)
    sys.stdin.read()
"""
    process = start(code, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "staged\n"
    (staged,) = sorted(store.sizes())
    # While it lives its file is its own.
    assert store.sweep() == []
    process.kill()
    process.communicate()
    assert sorted(store.sizes()) == [staged]
    assert store.size("a.tar") is None
    assert store.sweep() == [staged]
    assert files(tmp_path) == []


def test_two_writers_of_one_name(store: Store, tmp_path: Path) -> None:
    """Both get through, and the file is that of one of them (Dask may run a task twice)."""
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def write(byte: int) -> None:
        try:
            for _ in range(20):
                with store.stage("a.tar") as staged:
                    staged.write(bytes([byte]) * 100_000)
                    barrier.wait(20)
                    staged.commit()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=write, args=(byte,)) for byte in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    data = store.read("a.tar")
    assert len(data) == 100_000
    assert len(set(data)) == 1
    assert files(tmp_path) == ["a.tar"]


def test_a_discarded_double_does_not_touch_the_published_file(store: Store, tmp_path: Path) -> None:
    with store.stage("a") as late:
        late.write(b"late")
        store.write("a", b"first")
    assert store.read("a") == b"first"
    assert files(tmp_path) == ["a"]


def test_data_reach_the_disk_before_their_name_and_the_name_as_well(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, int | None]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        fsync(handle)
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), store.size("a")))

    monkeypatch.setattr(os, "fsync", watched)
    with store.stage("a") as staged:
        staged.write(b"xyz")
        (temporary,) = tmp_path.iterdir()
        staged.commit()
    assert synced == [(temporary, None), (tmp_path, 3)]


# --- sweep


def test_sweep_leaves_what_is_not_certainly_dead(store: Store, tmp_path: Path) -> None:
    process = start("", tmp_path)
    process.communicate(timeout=30)
    with store.stage("mine") as mine:
        (own,) = sorted(store.sizes())
        _, _, _, _rest = own.split(".", 3) if own.count(".") > 5 else ("", "", "", own)
        host, pid = own.split(".")[2:4]
        assert pid == str(os.getpid())
        dead = [
            f"{folder}.{name}.{host}.{process.pid}.0123abcd.tmp"
            for folder, name in (("", "00000.tar"), ("_acavdl/", "run.json"))
        ] + [f"_acavdl/plan/.part-00000.parquet.{host}.{process.pid}.0123abcd.tmp"]
        others = [
            f".00000.tar.another-host.{process.pid}.0123abcd.tmp",
            f".00000.tar.{host}.1.0123abcd.tmp",
            f"00000.tar.{host}.{process.pid}.0123abcd.tmp",
            f".00000.tar.{host}.{process.pid}.0123abcd.tmp.bak",
            f".{host}.{process.pid}.tmp",
            ".hidden.tmp",
            "00000.tar",
            f"elsewhere/.a.{host}.{process.pid}.0123abcd.tmp",
        ]
        for name in dead + others:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
        assert sorted(store.sweep()) == sorted(Path(name).name for name in dead)
        assert files(tmp_path) == sorted([*others, own])
        mine.commit()
    assert store.sweep() == []


def test_sweep_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert Store(str(tmp_path / "none")).sweep() == []


# --- what goes wrong


def test_a_folder_that_cannot_be_written_is_told(unwritable: Path) -> None:
    with pytest.raises(UsageError, match="cannot write to") as raised:
        Store(str(unwritable / "out")).create()
    assert str(unwritable / "out") in str(raised.value)
    with pytest.raises(StorageError, match="cannot write to"):
        Store(str(unwritable / "out")).write("a", b"x")


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    store = Store(str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"cannot write to .*out: "):
        store.create()
    with pytest.raises(StorageError, match=r"cannot read .*a: Not a directory"):
        store.size("a")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails in the same places."""
    code = """
import resource
from acavdl.errors import StorageError
store.write("small", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
for name, size in (("small", 100_001), ("large", 10**7)):
    try:
        store.write(name, b"x" * size)
    except StorageError as error:
        print(error)
try:
    with store.stage("pieces") as staged:
        for _ in range(101_000):
            staged.write(b"x")
        staged.commit()
except StorageError as error:
    print(error)
"""
    process = start(code, tmp_path)
    out, err = process.communicate(timeout=60)
    assert err == ""
    told = [
        f"cannot write {tmp_path / name}: File too large" for name in ("small", "large", "pieces")
    ]
    assert out.splitlines() == told
    assert files(tmp_path) == ["small"]
    assert (tmp_path / "small").read_bytes() == b"old"


def test_a_full_disk_is_told_through_pyarrow(tmp_path: Path) -> None:
    code = """
import random, resource
import pyarrow as pa, pyarrow.parquet as pq
from acavdl.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
table = pa.table({"a": [random.random() for _ in range(10**5)]})
try:
    with store.stage("t.parquet") as staged:
        with pq.ParquetWriter(staged, table.schema) as writer:
            writer.write_table(table)
        staged.commit()
except StorageError as error:
    print(error)
"""
    out, err = start(code, tmp_path).communicate(timeout=60)
    assert err == ""
    assert out == f"cannot write {tmp_path / 't.parquet'}: File too large\n"
    assert files(tmp_path) == []


def test_a_folder_in_the_place_of_a_file_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*a: Is a directory"):
        store.write("a", b"x")
    with pytest.raises(StorageError, match=r"cannot read .*a: Is a directory"):
        store.read("a")
    assert files(tmp_path) == []


def test_what_is_not_there(store: Store) -> None:
    assert store.size("none") is None
    assert store.size("none/none") is None
    assert store.sizes("none") == {}
    with pytest.raises(StorageError, match=r"cannot read .*none: No such file"):
        store.read("none")


# --- names of folders


def test_a_folder_is_made_and_nothing_left_in_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "a" / "b ü %20"))
    store.create()
    store.create()
    assert (tmp_path / "a" / "b ü %20").is_dir()
    assert sorted(store.sizes()) == []


def test_file_urls(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/out")
    store.write("a", b"x")
    assert (tmp_path / "out" / "a").read_bytes() == b"x"
    assert str(store) == str(tmp_path / "out")


def test_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers may stand elsewhere: what they are told is absolute."""
    monkeypatch.chdir(tmp_path)
    assert str(Store("out")) == str(tmp_path / "out")


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/out",
        "memory://out",
        "https://example.com/out",
        "nonsense://out",
        "simplecache::file:///out",
        "zip://a::file:///no/such/file.zip",
    ],
)
def test_other_storage_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(AcavdlError) as raised:
        Store(url)
    assert isinstance(raised.value, UsageError)
    assert url in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lock_keeps_others_out_also_while_it_is_removed(tmp_path: Path) -> None:
    store, count = Store(str(tmp_path)), tmp_path / "count"
    count.write_text("0")

    def add() -> None:
        for _ in range(25):
            with store.lock("00000"):
                value = int(count.read_text())
                time.sleep(0.0005)
                count.write_text(str(value + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_lock_of_a_process_that_died_is_free(tmp_path: Path) -> None:
    script = (
        "import os, sys; from acavdl.storage import Store\n"
        "with Store(sys.argv[1]).lock('00000'): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60)
    assert (tmp_path / ".00000.lock").exists()
    with Store(str(tmp_path)).lock("00000"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["", "a::b", "zip://x.zip::file:///y"])
def test_folder_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="give the path or URL of a folder"):
        Store(url)


# --- files of a table


def test_a_file_a_folder_and_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.csv", "a.csv.gz", "deep/c.CSV", "_x.csv", ".y.csv", "_z/d.csv", "e.txt"):
        path = tmp_path / "t" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    folder, endings = tmp_path / "t", ("csv", "csv.gz")
    found = [str(folder / name) for name in ("a.csv.gz", "b.csv", "deep/c.CSV")]
    for url in (str(folder), f"{folder}/", f"file://{folder}"):
        assert input_files(url, endings) == found
    assert input_files(f"{folder}/*.csv*", endings) == [
        str(folder / name) for name in ("_x.csv", "a.csv.gz", "b.csv")
    ]
    assert input_files(f"{folder}/.*.csv", endings) == [str(folder / ".y.csv")]
    # A file that is named counts whatever its name is.
    assert input_files(str(folder / "_x.csv"), endings) == [str(folder / "_x.csv")]
    assert input_files(f"file://{folder}/e.txt", endings) == [str(folder / "e.txt")]
    monkeypatch.chdir(folder)
    assert input_files("b.csv", endings) == [str(folder / "b.csv")]


def test_a_folder_whose_own_name_is_hidden(tmp_path: Path) -> None:
    path = tmp_path / "_tables" / ".now" / "a.csv"
    path.parent.mkdir(parents=True)
    path.write_text("x")
    assert input_files(str(path.parent), ("csv",)) == [str(path)]


def test_files_elsewhere_are_named_by_urls_that_open_them() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/storage-test/a.csv": b"one", "/storage-test/b.csv": b"two"})
    try:
        for url in ("memory://storage-test", "memory://storage-test/*.csv"):
            contents = []
            for name in input_files(url, ("csv",)):
                assert input_size(name) == 3
                with open_input(name) as file:
                    contents.append(file.read())
            assert contents == [b"one", b"two"]
    finally:
        memory.rm("/storage-test", recursive=True)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "a table has no name"),
        ("/no/such/file.csv", "is not a file, a folder or a pattern"),
        ("/no/such/*.csv", "no file is like"),
        ("nonsense://x.csv", "Protocol not known"),
        ("http://[", "cannot read"),
        ("http://127.0.0.1:1/x.csv", "cannot read"),
        ("zip://a.csv::file:///no/such.zip", "cannot read"),
        ("memory://storage-test/no.csv", "is not a file"),
        ("a\0b.csv", ""),
    ],
)
def test_places_that_cannot_be_read(url: str, message: str, no_variables: None) -> None:
    with pytest.raises(UsageError) as raised:
        input_files(url, ("csv",))
    assert message in str(raised.value)
    assert url in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_packed_is_unpacked_by_its_first_bytes(tmp_path: Path) -> None:
    data = gzip.compress(b"first") + gzip.compress(b" second")
    for name in ("a.csv.gz", "a.csv"):
        (tmp_path / name).write_bytes(data)
        with open_input(str(tmp_path / name)) as file:
            assert file.read() == b"first second"
        with open_input(str(tmp_path / name), unpack=False) as file:
            assert file.read() == data
    for plain in (b"", b"\x1f", b"plain"):
        (tmp_path / "b.csv.gz").write_bytes(plain)
        with open_input(str(tmp_path / "b.csv.gz")) as file:
            assert file.read() == plain


def test_what_goes_wrong_with_an_open_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(range(256)) * 99)[:-9])
    message = f"cannot read {path}: Compressed file ended"
    with pytest.raises(UsageError, match=message), open_input(str(path)) as file:
        file.read()
    with pytest.raises(UsageError, match="No such file"), open_input(str(tmp_path / "none")):
        pass
    with pytest.raises(UsageError, match="Is a directory"), open_input(str(tmp_path)):
        pass
    # Other errors stay what they are.
    with pytest.raises(ZeroDivisionError), open_input(str(path)):
        raise ZeroDivisionError
