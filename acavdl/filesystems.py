"""File systems that a dataset can lie on, behind one interface: local and shared ones, S3, others.

Nothing is ever visible half-written. A local file is staged under a temporary name in the same
folder, flushed to the disk, and renamed. On S3 the parts of a file are uploaded as they come, and
appear as an object when the upload is completed (AWS S3 API, CompleteMultipartUpload); those of a
file that checkpoints are made of are objects of their own till then, and put together by S3 itself
(UploadPartCopy). Elsewhere a file is spooled here, sent under a temporary name, and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, cast

import fsspec.core
import fsspec.implementations.local
import psutil

from acavdl.errors import StorageError, UsageError

logger = logging.getLogger(__name__)

#: ``.<name>.<host>.<pid>.<unique>.tmp``: who writes it stands in the name of a staged file.
_STAGED = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
#: What belongs to a shard: its files, those on their way to them, and its folder.
_SHARD_FILE = re.compile(r"\.?(\d{5,})(\.tar|\.parquet|_stats\.json|\.lock)(\..*\.tmp)?")
_SHARD_FOLDER = re.compile(r"(\d{5,})")
#: Where in ``_acavdl`` it stands what was taken out of a dataset: that outlives the dataset.
_REMOVED = "removed"
#: Seconds after which an upload that is not completed is nobody's any more.
_ABANDONED = 24 * 3600
#: Bytes of a part of an upload to S3: a tenth of the requests of s3fs's least (5 MB), and less CPU.
PART_BYTES = 16 << 20
#: Bytes of a part of a file that checkpoints are made of. S3 takes 10,000 parts, of 5 MiB or more.
KEPT_BYTES = 32 << 20
#: Bytes copied at a time.
_COPY_BYTES = 1 << 20
#: Seconds, and tries: with s3fs's and botocore's own, a silent server is waited for for an hour.
_S3_CONFIG = {
    "connect_timeout": 10,
    "read_timeout": 60,
    "retries": {"max_attempts": 3, "mode": "standard"},
}
_S3_TRIES = 3
#: A process's own memory, and what is read alone.
_NOT_SHARED = {"memory", "http", "https", "data", "github", "zip", "tar"}
#: What the libraries below fsspec (HTTP, S3, the Hugging Face hub) raise besides OSErrors.
_REMOTE_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("paramiko.ssh_exception", "SSHException"),
)


class Files(Protocol):
    """Files below one folder; names have slashes. All methods raise `StorageError`."""

    def path(self, name: str) -> str:
        """Return what other readers open `name` by, and people know it as."""

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it is not there."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files of a folder by their names in it; none without it."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it can seek."""

    def stage(self, name: str, kept: str | None = None) -> Staged:
        """Open a file that appears when it is committed.

        `kept` is where it lies till then, and stays after a checkpoint, if the file system can.
        """

    def kept_size(self, kept: str) -> int:
        """Return how many bytes a checkpoint, or what came after it, has kept under a name."""

    def read_kept(self, kept: str) -> Iterator[bytes]:
        """Yield what a checkpoint has kept, and maybe more."""

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of the block, as far as the file system can."""

    def create(self) -> None:
        """Make the folder, and see that it can be written."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def sweep(self) -> list[str]:
        """Remove what processes that are gone left half-written; return its names."""

    def shards(self) -> list[str]:
        """Return what has the names of shards, as files and folders."""

    def clear(self, shards: int) -> None:
        """Remove a dataset of so many shards; what is not ours is left alone."""


def files_at(url: str, options: Mapping[str, Any]) -> Files:
    """Return the files below a folder on any file system of fsspec.

    Parameters
    ----------
    url
        A path, or a URL that fsspec knows.
    options
        What fsspec gets: endpoint, profile, credentials.

    Raises
    ------
    UsageError
        For a URL that can't be used.
    """
    if not url or "::" in url:
        raise UsageError(f"output folder {url!r}: give the path or URL of a folder")
    scheme, separator, rest = url.partition("://")
    if separator and _holds_secret(rest.split("/")[0]):
        raise UsageError(
            f"output folder {scheme}://…: credentials do not belong into a URL, which ends up in "
            "files and logs; use storage.options or the environment"
        )
    given: dict[str, Any] = dict(options)
    if url.startswith(("s3://", "s3a://")):
        given["use_listings_cache"] = False
        given["config_kwargs"] = {**_S3_CONFIG, **given.get("config_kwargs", {})}
    try:
        filesystem, path = fsspec.core.url_to_fs(url, **given)
    except remote_errors(ValueError, ImportError, OSError, TypeError) as error:
        raise UsageError(f"output folder {url}: {_cause(error)}") from error
    if isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
        return LocalFiles(Path(path))
    if set(_protocols(filesystem)) & _NOT_SHARED:
        raise UsageError(f"output folder {url}: not a place that workers can write to together")
    return RemoteFiles(filesystem, path)


def _holds_secret(place: str) -> bool:
    """Whether the place in a URL has a password, or the beginning of one: some hold slashes.

    A name alone may stand before the host: SFTP's user, Azure's container.
    """
    user, _, host = place.rpartition("@")
    return ":" in user or not re.fullmatch(r"[^:]*(:\d+)?|\[.*\](:\d+)?", host)


class Staged(io.RawIOBase):
    """A file on its way: written once from the front, hashed on the fly.

    Attributes
    ----------
    size : int
        Bytes written so far.
    """

    def __init__(self, shown: str) -> None:
        super().__init__()
        self.size = 0
        self._shown = shown
        self._sha256 = hashlib.sha256()
        self._committed = False
        self._kept = False

    @property
    def sha256(self) -> str:
        """Hash of what was written, as hex."""
        return self._sha256.hexdigest()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Append `data`."""
        self._sha256.update(data)
        self.size += len(data)
        with told("write", self._shown):
            self._append(data)
        return len(data)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self.size

    @property
    def keeps(self) -> bool:
        """Whether there can be checkpoints."""
        return False

    def checkpoint(self) -> None:
        """Make what was written so far durable, and keep it.

        It then lies under the name that `Files.stage` got as `kept`, and is not discarded.
        """
        with told("write", self._shown):
            self._keep()
        self._kept = True

    def commit(self) -> None:
        """Put the file in its place (also over an older one): durable, in one step."""
        with told("write", self._shown):
            self._publish()
        self._committed = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Discard the file unless it was committed or kept; that must not hide why it was not."""
        if self._kept and not self._committed:
            with contextlib.suppress(OSError):
                self._let_go()
        elif not self._committed:
            with contextlib.suppress(StorageError), told("discard", self._shown):
                self._discard()
        super().__exit__(kind, error, trace)

    def _append(self, data: bytes | memoryview) -> None:
        raise NotImplementedError

    def _publish(self) -> None:
        raise NotImplementedError

    def _discard(self) -> None:
        raise NotImplementedError

    def _keep(self) -> None:
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close what is kept."""


# --- local and shared file systems -------------------------------------------------------------


class LocalFiles:
    """A folder of this machine, or one that it shares with others."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> str:  # noqa: D102
        return str(self._root / name) if name else str(self._root)

    def size(self, name: str) -> int | None:  # noqa: D102
        with told("read", self.path(name)):
            try:
                return (self._root / name).stat().st_size
            except FileNotFoundError:
                return None

    def sizes(self, folder: str) -> dict[str, int]:  # noqa: D102
        with told("read", self.path(folder)):
            try:
                entries = [e for e in os.scandir(self._root / folder) if e.is_file()]
                return {entry.name: entry.stat().st_size for entry in entries}
            except FileNotFoundError:
                return {}

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        with told("read", self.path(name)):
            return (self._root / name).open("rb")

    def stage(self, name: str, kept: str | None = None) -> Staged:  # noqa: D102
        target = self._root / name
        unique = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with told("write to", str(target.parent)):
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{unique}.tmp")
            return _LocalStaged(target, temporary, None if kept is None else self._root / kept)

    def kept_size(self, kept: str) -> int:  # noqa: D102
        return self.size(kept) or 0

    def read_kept(self, kept: str) -> Iterator[bytes]:  # noqa: D102
        with self.open(kept) as file, told("read", self.path(kept)):
            while data := file.read(_COPY_BYTES):
                yield data

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep others out by ``flock``, on all hosts that honour it.

        The file system lets go of the lock when its holder dies. Where there is none, the block
        runs without.
        """
        path = self._root / f".{name}.lock"
        with _locked(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def create(self) -> None:  # noqa: D102
        with self.stage("probe"):
            pass

    def remove(self, name: str) -> None:  # noqa: D102
        with told("remove", self.path(name)):
            (self._root / name).unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        """Remove staged files of processes of this host that are gone."""
        swept = []
        ours = self._root / "_acavdl"
        folders = (self._root, ours, *ours.glob("*"), *ours.glob("open/*"))
        with told("remove leftovers in", str(self._root)):
            for folder in (*folders, *(path for path in self._shards() if path.is_dir())):
                for path in folder.glob(".*.tmp") if folder.is_dir() else ():
                    found = _STAGED.fullmatch(path.name)
                    if found and found["host"] == _host() and not _alive(int(found["pid"])):
                        path.unlink(missing_ok=True)
                        swept.append(path.name)
        return swept

    def _shards(self) -> Iterator[Path]:
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if not path.is_symlink() and _shard_of(path.name, folder=path.is_dir()) is not None:
                yield path

    def shards(self) -> list[str]:  # noqa: D102
        with told("read", str(self._root)):
            return sorted(path.name for path in self._shards())

    def clear(self, shards: int) -> None:  # noqa: D102
        with told("remove files of", str(self._root)):
            for path in sorted(self._shards(), key=lambda path: _order(path.name)):
                if (_shard_of(path.name, folder=path.is_dir()) or 0) >= shards:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            # Last of all what says whose it is: till then, what is left is the old dataset's.
            folder = self._root / "_acavdl"
            for path in sorted(folder.rglob("*") if folder.is_dir() else (), reverse=True):
                kept = path == folder / "run.json" or path.parent.name == _REMOVED
                if path.is_file() and not kept:
                    path.unlink()
            (folder / "run.json").unlink(missing_ok=True)


def _shard_of(name: str, *, folder: bool) -> int | None:
    """Return the number of the shard that a file or folder is of, by its name; None: of none."""
    found = (_SHARD_FOLDER if folder else _SHARD_FILE).fullmatch(name)
    return int(found[1]) if found else None


def _order(name: str) -> tuple[bool, str]:
    """Stats go first: without them, the rest counts as not there."""
    return not name.endswith("_stats.json"), name


class _LocalStaged(Staged):
    def __init__(self, target: Path, temporary: Path, kept: Path | None) -> None:
        super().__init__(str(target))
        self._target = target
        self._place = kept
        self._temporary = temporary
        self._file = temporary.open("xb")

    def _append(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def _publish(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._target)
        _sync_folder(self._target.parent)

    def _discard(self) -> None:
        # On a full disk closing fails as well: the file must not be kept for that.
        with contextlib.suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    @property
    def keeps(self) -> bool:
        return self._place is not None

    def _keep(self) -> None:
        if self._place is None:
            raise ValueError(f"{self._target} has no place to be kept in")
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._temporary != self._place:
            # Out of the way of what removes the leftovers of processes that are gone.
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.replace(self._place)
            self._temporary = self._place
            _sync_folder(self._place.parent)

    def _let_go(self) -> None:
        self._file.close()


def _locked(path: Path) -> BinaryIO:
    """Return the file at `path`, open and locked."""
    while True:
        with told("write to", str(path.parent)):
            file = path.open("ab")
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it before has removed it, and another one may stand there by now.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; file systems that can't sync a folder don't need it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not fetched by its parent does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- S3 and the rest of fsspec -----------------------------------------------------------------


class RemoteFiles:
    """A folder on a file system of fsspec, such as S3."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._is_s3 = "s3" in _protocols(filesystem)
        if self._is_s3:
            filesystem.retries = _S3_TRIES

    def path(self, name: str) -> str:  # noqa: D102
        return str(self._fs.unstrip_protocol(self._at(name)))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def size(self, name: str) -> int | None:  # noqa: D102
        with told("read", self.path(name)):
            try:
                found = self._fs.info(self._at(name))
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

    def sizes(self, folder: str) -> dict[str, int]:  # noqa: D102
        with told("read", self.path(folder)):
            try:
                found = self._fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
        files = (entry for entry in found if entry["type"] == "file")
        return {str(entry["name"]).rpartition("/")[2]: int(entry["size"]) for entry in files}

    def open(self, name: str) -> BinaryIO:  # noqa: D102
        with told("read", self.path(name)):
            return cast("BinaryIO", _Told(self._fs.open(self._at(name), "rb"), self.path(name)))

    def stage(self, name: str, kept: str | None = None) -> Staged:  # noqa: D102
        with told("write to", self.path(name)):
            if self._is_s3 and kept is not None:
                return _S3Kept(self._fs, self._at(name), self._at(kept), self.path(name))
            if self._is_s3:
                return _S3Staged(self._fs, self._at(name), self.path(name))
            return _SentStaged(self._fs, self._at(name), self.path(name))

    def kept_size(self, kept: str) -> int:  # noqa: D102
        return sum(size for _, size in self._kept(kept))

    def read_kept(self, kept: str) -> Iterator[bytes]:  # noqa: D102
        for name, _ in self._kept(kept):
            with told("read", self.path(name)):
                yield self._fs.cat_file(self._at(name))

    def _kept(self, kept: str) -> list[tuple[str, int]]:
        """Return the parts that are kept, in order, with their sizes."""
        folder, _, base = kept.rpartition("/")
        found = sorted(self.sizes(folder).items())
        return [(f"{folder}/{n}", size) for n, size in found if n.startswith(f"{base}.")]

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing: there are no locks. Whoever publishes last is right (see the ledger)."""
        return contextlib.nullcontext()

    def create(self) -> None:  # noqa: D102
        probe = f"_acavdl/.probe-{uuid.uuid4().hex[:8]}"
        with self.stage(probe) as staged:
            staged.write(b"acavdl")
            staged.commit()
        self.remove(probe)

    def remove(self, name: str) -> None:  # noqa: D102
        with told("remove", self.path(name)), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def sweep(self) -> list[str]:
        """End uploads to S3 that nobody completed: their parts are kept, and paid, for ever.

        Those of the last day may be another run's.
        """
        if not self._is_s3:
            return []
        bucket, _, prefix = self._root.partition("/")
        prefix = f"{prefix}/" if prefix else ""
        swept = []
        try:
            with told("end old uploads to", self.path("")):
                for upload in self._uploads(bucket, prefix):
                    name = upload["Key"][len(prefix) :]
                    age = time.time() - upload["Initiated"].timestamp()
                    if age > _ABANDONED and _number_in(name) is not None:
                        self._fs.call_s3(
                            "abort_multipart_upload",
                            Bucket=bucket,
                            Key=upload["Key"],
                            UploadId=upload["UploadId"],
                        )
                        swept.append(name)
        except StorageError as error:
            # Not every role may; it is for the bill alone.
            logger.warning("%s", error)
        return swept

    def _uploads(self, bucket: str, prefix: str) -> Iterator[Mapping[str, Any]]:
        where: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
        while True:
            found = self._fs.call_s3("list_multipart_uploads", **where)
            yield from found.get("Uploads") or ()
            if not found.get("IsTruncated"):
                return
            where["KeyMarker"] = found["NextKeyMarker"]
            where["UploadIdMarker"] = found["NextUploadIdMarker"]

    def _names(self) -> list[str]:
        return [name[len(self._root) + 1 :] for name in self._fs.find(self._root)]

    def shards(self) -> list[str]:  # noqa: D102
        with told("read", self.path("")):
            found = {
                name.partition("/")[0] for name in self._names() if _number_in(name) is not None
            }
            return sorted(found)

    def clear(self, shards: int) -> None:  # noqa: D102
        with told("remove files of", self.path("")):
            names = self._names()
            known = [
                name
                for name in names
                if name.startswith("_acavdl/") and not name.startswith(f"_acavdl/{_REMOVED}/")
            ]
            ours = [name for name in names if (n := _number_in(name)) is not None and n < shards]
            stats = [name for name in ours if name.endswith("_stats.json")]
            # Last of all what says whose it is: till then, what is left is the old dataset's.
            last = [name for name in known if name == "_acavdl/run.json"]
            rest = [name for name in (*ours, *known) if name not in {*stats, *last}]
            for some in (stats, rest, last):
                if some:
                    self._fs.rm([self._at(name) for name in some])


def belongs(name: str) -> bool:
    """Whether a file is a dataset's own, by its path in the dataset."""
    return name.startswith("_acavdl/") or _number_in(name) is not None


def _number_in(name: str) -> int | None:
    """Return the number of the shard that a file is of, by its path in the dataset."""
    first, inside, _ = name.partition("/")
    return _shard_of(first, folder=bool(inside))


class _S3Staged(Staged):
    """A file that is put as a whole, or in parts where it is larger than one.

    To put it again, because the answer was lost, is the same; an upload in parts is over then.
    """

    def __init__(self, filesystem: Any, path: str, shown: str) -> None:
        super().__init__(shown)
        self._fs, self._path = filesystem, path
        self._buffer = bytearray()
        self._file: Any = None

    def _append(self, data: bytes | memoryview) -> None:
        if self._file is not None:
            self._file.write(data)
            return
        self._buffer += data
        if len(self._buffer) >= PART_BYTES:
            self._file = self._fs.open(self._path, "wb", autocommit=False, block_size=PART_BYTES)
            self._file.write(self._buffer)
            self._buffer = bytearray()

    def _publish(self) -> None:
        if self._file is None:
            self._fs.pipe_file(self._path, bytes(self._buffer))
            return
        # Closing uploads the last part; only then there is something to complete.
        self._file.close()
        self._file.commit()

    def _discard(self) -> None:
        if self._file is None:
            return
        try:
            self._file.discard()
        finally:
            # Else s3fs would upload the rest when the file is collected.
            self._file.closed = True


class _S3Kept(Staged):
    """A file whose parts are objects ``<kept>.NNNNN`` until it is published.

    Parts of an upload that is not completed can't be read by anybody; objects can.
    """

    def __init__(self, filesystem: Any, path: str, kept: str, shown: str) -> None:
        super().__init__(shown)
        self._fs = filesystem
        self._bucket, _, self._key = path.partition("/")
        self._place = kept
        self._buffer = bytearray()
        self._parts: list[str] = []

    @property
    def keeps(self) -> bool:
        return True

    def _append(self, data: bytes | memoryview) -> None:
        self._buffer += data
        while len(self._buffer) >= KEPT_BYTES:
            self._put(bytes(self._buffer[:KEPT_BYTES]))
            self._parts.append(self._next)
            del self._buffer[:KEPT_BYTES]

    @property
    def _next(self) -> str:
        """Where the part lies that is not full yet."""
        return f"{self._place}.{len(self._parts):05d}"

    def _put(self, data: bytes) -> None:
        self._fs.pipe_file(self._next, data)

    def _keep(self) -> None:
        if self._buffer:
            self._put(bytes(self._buffer))

    def _publish(self) -> None:
        if not self._parts:
            self._fs.pipe_file(f"{self._bucket}/{self._key}", bytes(self._buffer))
        else:
            self._compose()
        self._remove()

    def _compose(self) -> None:
        """Have S3 put the parts together; it copies them, none comes here."""
        place = {"Bucket": self._bucket, "Key": self._key}
        upload = self._fs.call_s3("create_multipart_upload", **place)
        place["UploadId"] = upload["UploadId"]
        try:
            etags = []
            for number, part in enumerate(self._parts, start=1):
                bucket, _, key = part.partition("/")
                made = self._fs.call_s3(
                    "upload_part_copy",
                    PartNumber=number,
                    CopySource={"Bucket": bucket, "Key": key},
                    **place,
                )
                etags.append(made["CopyPartResult"]["ETag"])
            if self._buffer:
                made = self._fs.call_s3(
                    "upload_part", PartNumber=len(etags) + 1, Body=bytes(self._buffer), **place
                )
                etags.append(made["ETag"])
            listed = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
            self._fs.call_s3(
                "complete_multipart_upload", MultipartUpload={"Parts": listed}, **place
            )
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.call_s3("abort_multipart_upload", **place)
            raise
        self._fs.invalidate_cache(f"{self._bucket}/{self._key}")

    def _remove(self) -> None:
        """Remove the parts: a failure leaves them for the end of the shard."""
        with contextlib.suppress(*remote_errors(OSError)):
            for part in [*self._parts, *([self._next] if self._kept else [])]:
                self._fs.rm_file(part)

    def _discard(self) -> None:
        self._remove()


class _SentStaged(Staged):
    def __init__(self, filesystem: Any, path: str, shown: str) -> None:
        super().__init__(shown)
        self._fs = filesystem
        self._path = path
        self._spool = tempfile.NamedTemporaryFile(prefix="acavdl-")  # noqa: SIM115

    def _append(self, data: bytes | memoryview) -> None:
        self._spool.write(data)

    def _publish(self) -> None:
        self._spool.flush()
        folder, _, name = self._path.rpartition("/")
        temporary = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            self._fs.put_file(self._spool.name, temporary)
            if self._fs.exists(self._path):
                # Some can't rename over a file.
                self._fs.rm_file(self._path)
            self._fs.mv(temporary, self._path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(temporary)
            raise
        finally:
            self._spool.close()

    def _discard(self) -> None:
        self._spool.close()


class _Told(io.RawIOBase):
    """A file of fsspec whose errors are ours."""

    def __init__(self, file: Any, shown: str) -> None:
        super().__init__()
        self._file = file
        self._shown = shown

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        with told("read", self._shown):
            return cast("bytes", self._file.read(size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()


def _protocols(filesystem: Any) -> tuple[str, ...]:
    known = filesystem.protocol
    return (known,) if isinstance(known, str) else tuple(known)


# --- errors ------------------------------------------------------------------------------------


@contextlib.contextmanager
def told(action: str, shown: str) -> Iterator[None]:
    """Turn errors of a file system into ours, with what was tried and on what."""
    try:
        yield
    except remote_errors(OSError) as error:
        raise StorageError(f"cannot {action} {shown}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    cause = getattr(error, "strerror", None) or " ".join(str(error).split())
    return cause or type(error).__name__


def remote_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Return `others`, and the errors of libraries in use below fsspec that are no OSErrors."""
    found = ((sys.modules.get(module), name) for module, name in _REMOTE_ERRORS)
    return (*others, *(getattr(module, name) for module, name in found if module is not None))
