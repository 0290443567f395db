"""Files of a dataset: the only place that knows of file systems.

Nothing is ever visible half-written: a file is staged under a temporary name in the same folder,
flushed to the disk, and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import fsspec.core
import fsspec.implementations.local
import psutil

from acavdl.errors import StorageError, UsageError

#: ``.<name>.<host>.<pid>.<unique>.tmp``: who writes it stands in the name of a staged file.
_STAGED = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")


class Store:
    """A folder of a dataset.

    Parameters
    ----------
    url
        A path or ``file://`` URL.

    Raises
    ------
    UsageError
        For a kind of storage that can't be published to atomically yet.
    """

    def __init__(self, url: str) -> None:
        if not url or "::" in url:
            raise UsageError(f"output folder {url!r}: give the path of a folder")
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError, OSError) as error:
            raise UsageError(f"output folder {url}: {error}") from error
        if not isinstance(filesystem, fsspec.implementations.local.LocalFileSystem):
            raise UsageError(f"output folder {url}: only local and shared file systems so far")
        self.root = Path(path)

    def __str__(self) -> str:
        """Return the folder's path."""
        return str(self.root)

    def create(self) -> None:
        """Make the folder, and see that it can be written.

        Raises
        ------
        UsageError
            If it can't.
        """
        try:
            with self.stage("probe"):
                pass
        except StorageError as error:
            raise UsageError(str(error)) from error

    def path(self, name: str) -> str:
        """Return what other readers (pyarrow, webdataset) open `name` by."""
        return str(self.root / name)

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it is not there.

        Raises
        ------
        StorageError
            If the file system doesn't tell.
        """
        with _told("read", self.root / name):
            try:
                return (self.root / name).stat().st_size
            except FileNotFoundError:
                return None

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files in a folder, sorted; none if it is not there."""
        try:
            return sorted(entry.name for entry in os.scandir(self.root / folder))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        StorageError
            If it can't be read.
        """
        with _told("read", self.root / name):
            return (self.root / name).read_bytes()

    def sha256(self, name: str) -> str:
        """Return the hash of a file's content, as hex.

        Raises
        ------
        StorageError
            If it can't be read.
        """
        path = self.root / name
        with _told("read", path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep other processes out of the block, on all hosts that honour ``flock``.

        The file system lets go of the lock when its holder dies. Where there is none, the block
        runs without.
        """
        path = self.root / f".{name}.lock"
        with _locked(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Publish a small file in one step.

        Raises
        ------
        StorageError
            If it can't be written.
        """
        with self.stage(name) as staged:
            staged.write(data)
            staged.commit()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Staged]:
        """Open a file that appears under `name` when it is committed, and else never.

        Raises
        ------
        StorageError
            If it can't be opened, written or committed.
        """
        target = self.root / name
        unique = f"{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with _told("write to", target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            opened = Staged(target, target.with_name(f".{target.name}.{unique}.tmp"))
        with opened as staged:
            yield staged

    def sweep(self) -> list[str]:
        """Remove staged files of processes of this host that are gone; return their names."""
        swept = []
        for folder in (self.root, self.root / "_acavdl", self.root / "_acavdl" / "plan"):
            for path in folder.glob(".*.tmp") if folder.is_dir() else ():
                found = _STAGED.fullmatch(path.name)
                if found and found["host"] == _host() and not _alive(int(found["pid"])):
                    path.unlink(missing_ok=True)
                    swept.append(path.name)
        return swept


class Staged(io.RawIOBase):
    """A file on its way: written once from the front, hashed on the fly.

    Attributes
    ----------
    size : int
        Bytes written so far.
    """

    def __init__(self, target: Path, temporary: Path) -> None:
        super().__init__()
        self.target = target
        self.size = 0
        self._temporary = temporary
        self._file = temporary.open("xb")
        self._sha256 = hashlib.sha256()
        self._committed = False

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
        with _told("write", self.target):
            return self._file.write(data)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self.size

    def commit(self) -> None:
        """Put the file in its place: flushed to the disk, then renamed (also over an older one)."""
        with _told("write", self.target):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._temporary.replace(self.target)
        _sync_folder(self.target.parent)
        self._committed = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Discard the file unless it was committed."""
        if not self._committed:
            # On a full disk closing fails as well: it must neither keep the file nor hide why.
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
        super().__exit__(kind, error, trace)


@contextlib.contextmanager
def _told(action: str, path: Path) -> Iterator[None]:
    """Turn errors of the file system into ours, with what was tried and on what."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {action} {path}: {error.strerror or error}") from error


def _locked(path: Path) -> BinaryIO:
    """Return the file at `path`, open and locked."""
    while True:
        with _told("write to", path.parent):
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
