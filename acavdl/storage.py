"""Files of a dataset, and of the tables that it is made of."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import fsspec.core
import fsspec.implementations.local

from acavdl.errors import StorageError, UsageError
from acavdl.filesystems import Staged, belongs, files_at, remote_errors, told

#: The first bytes of what gzip packs (RFC 1952).
_GZIP = b"\x1f\x8b"
#: Bytes that are read ahead of a table's file.
_BUFFER = 1 << 20


def input_files(url: str, endings: Sequence[str]) -> list[str]:
    """Return the files that the name of a table stands for, sorted.

    Parameters
    ----------
    url
        A file, a folder (with what lies in its folders), or a glob, on any file system of fsspec.
    endings
        Of a folder, files that end in one of these count; names that begin with ``_`` or ``.`` are
        not data (as Spark and Dask have it).

    Raises
    ------
    UsageError
        If there is none, or the place can't be read.
    """
    if not url:
        raise UsageError("a table has no name: give a file, a folder or a pattern of files")
    with _input_told(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        local = isinstance(filesystem, fsspec.implementations.local.LocalFileSystem)
        # Over HTTP a folder's page is a file as well.
        if not url.endswith("/") and filesystem.isfile(path):
            return [path if local else url]
        if filesystem.isdir(path):
            root = path if path.endswith("/") else path + "/"
            found = [
                name
                for name in filesystem.find(root)
                if name.lower().endswith(tuple(f".{ending}" for ending in endings))
                and not any(p[:1] in ("_", ".") for p in name.removeprefix(root).split("/"))
            ]
            if not found:
                raise UsageError(f"{url} has no file that ends in .{', .'.join(endings)}")
        elif any(mark in path for mark in "*?["):
            # As in a shell, what is hidden has to be named.
            unwanted = "" if path.rpartition("/")[2].startswith(".") else "."
            found = [
                name
                for name in filesystem.glob(path)
                if filesystem.isfile(name) and name.rpartition("/")[2][:1] != unwanted
            ]
            if not found:
                raise UsageError(f"no file is like {url}")
        else:
            raise UsageError(f"{url} is not a file, a folder or a pattern of files")
        return sorted(found if local else (_whole_url(filesystem, name, url) for name in found))


def _whole_url(filesystem: fsspec.AbstractFileSystem, name: str, url: str) -> str:
    """Return the URL of a file found at `url`, of an archive with where that lies."""
    first, chain, rest = url.partition("::")
    full = str(filesystem.unstrip_protocol(name))
    return full + chain + rest if "://" in first else full


@contextlib.contextmanager
def open_input(url: str, *, unpack: bool = True) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a file of a table for reading; one packed by gzip is unpacked, unless told not to.

    That it is packed is told by its first bytes: some servers unpack what they send, and names say
    what they like.

    Raises
    ------
    UsageError
        If it can't be opened, or can't be read in the block.
    """
    # fsspec raises ValueErrors about servers that know no ranges.
    remote: tuple[type[Exception], ...] = (ValueError,) if url.startswith("http") else ()
    with contextlib.ExitStack() as stack:
        with _input_told(url):
            file = stack.enter_context(fsspec.open(url, "rb"))
        with _input_told(url, (OSError, EOFError, zlib.error, *remote)):
            buffered = stack.enter_context(io.BufferedReader(file, _BUFFER))
            packed = unpack and buffered.peek(2)[:2] == _GZIP
            yield stack.enter_context(gzip.GzipFile(fileobj=buffered)) if packed else buffered


@contextlib.contextmanager
def open_output(url: str) -> Iterator[BinaryIO]:
    """Open a file that the user asked for, on any file system of fsspec, for writing.

    Raises
    ------
    UsageError
        If it can't be opened, or can't be written in the block.
    """
    try:
        with fsspec.open(url, "wb") as file:
            yield file
    except remote_errors(OSError, ImportError, ValueError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UsageError(f"cannot write {shown(url)}: {cause}") from error


def input_size(url: str) -> int:
    """Return the size of a file of a table in bytes.

    Raises
    ------
    UsageError
        If its place doesn't tell.
    """
    with _input_told(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        return int(filesystem.size(path) or 0)


@contextlib.contextmanager
def _input_told(
    url: str, kinds: tuple[type[Exception], ...] = (OSError, ImportError, ValueError)
) -> Iterator[None]:
    """Turn what goes wrong with a table's place into one line."""
    try:
        yield
    except remote_errors(*kinds) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        cause = str(cause or type(error).__name__).replace(url, shown(url))
        raise UsageError(f"cannot read {shown(url)}: {cause}") from error


def shown(url: str) -> str:
    """Return a URL as it may stand in files and logs: without user, password and query."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place, slash, path = rest.partition("/")
    path, mark, _ = path.partition("?")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}{'?…' if mark else ''}"


class Store:
    """A folder of a dataset, on any file system of fsspec.

    Parameters
    ----------
    url
        A path or URL.
    options
        What fsspec gets: endpoint, profile, credentials. Never shown or recorded.

    Raises
    ------
    UsageError
        For a URL that can't be used.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._files = files_at(url, options or {})

    def __str__(self) -> str:
        """Return the folder's path or URL."""
        return self.path("")

    def create(self) -> None:
        """Make the folder, and see that it can be written.

        Raises
        ------
        UsageError
            If it can't.
        """
        try:
            self._files.create()
        except StorageError as error:
            raise UsageError(str(error)) from error

    def path(self, name: str) -> str:
        """Return what other readers (webdataset, fsspec) open `name` by."""
        return self._files.path(name)

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes; None if it is not there.

        Raises
        ------
        StorageError
            If the file system doesn't tell.
        """
        return self._files.size(name)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the sizes of the files of a folder, by their names in it: one listing.

        Raises
        ------
        StorageError
            If the file system doesn't tell.
        """
        return self._files.sizes(folder)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; it can seek.

        Raises
        ------
        StorageError
            If it can't be opened, or read later on.
        """
        return self._files.open(name)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        StorageError
            If it can't be read.
        """
        with self.open(name) as file, told("read", self.path(name)):
            return file.read()

    def sha256(self, name: str) -> str:
        """Return the hash of a file's content, as hex.

        Raises
        ------
        StorageError
            If it can't be read.
        """
        with self.open(name) as file, told("read", self.path(name)):
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    def lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Keep other processes out of the block, where the file system has locks.

        Raises
        ------
        StorageError
            If the folder can't be written.
        """
        return self._files.lock(name)

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

    def stage(self, name: str, kept: str | None = None) -> Staged:
        """Open a file that appears under `name` when it is committed, and else never.

        To be used in a ``with``: at its end, what is not committed is discarded, unless there was a
        checkpoint: then it stays under the name `kept`.

        Raises
        ------
        StorageError
            If it can't be opened, written or committed.
        """
        return self._files.stage(name, kept)

    def kept_size(self, kept: str) -> int:
        """Return how many bytes there are of what `stage` got as `kept`.

        Raises
        ------
        StorageError
            If the file system doesn't tell.
        """
        return self._files.kept_size(kept)

    def copy_kept(self, kept: str, size: int, target: Staged) -> None:
        """Write the first `size` bytes of what a checkpoint has kept to another file on its way.

        Raises
        ------
        StorageError
            If it can't be read, or ends before.
        """
        for data in self._files.read_kept(kept):
            target.write(memoryview(data)[:size])
            size -= min(size, len(data))
            if not size:
                return
        raise StorageError(f"{self.path(kept)} is {size} bytes short")

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises
        ------
        StorageError
            If it can't be removed.
        """
        self._files.remove(name)

    def owns(self, url: str) -> bool:
        """Whether a file is one of the dataset's own, by its path or URL."""
        root = f"{self.path('')}/"
        return url.startswith(root) and belongs(url[len(root) :])

    def shards(self) -> list[str]:
        """Return the files and folders that have the names of shards.

        Raises
        ------
        StorageError
            If the file system doesn't tell.
        """
        return self._files.shards()

    def clear(self, shards: int) -> None:
        """Remove a dataset of so many shards, and its ``_acavdl``; other files are left alone.

        Raises
        ------
        StorageError
            If one can't be removed.
        """
        self._files.clear(shards)

    def sweep(self) -> list[str]:
        """Remove what processes that are gone left half-written; return its names.

        Raises
        ------
        StorageError
            If the store doesn't tell.
        """
        return self._files.sweep()
