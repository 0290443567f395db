"""Media over HTTP: whole files and parts of files, in bounded ranges, with retries and budgets."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import urllib3
import urllib3.exceptions

from acavdl.budget import Budget, back_off
from acavdl.errors import ClipError, Outcome
from acavdl.models import Stream
from acavdl.mp4 import Want
from acavdl.net import Network

#: Larger ranges are throttled by the site (yt-dlp's own downloader asks for as much).
CHUNK_BYTES = 10 << 20
#: Read at once, and seconds for that: 13 kB/s are the least rate that is not given up, for another
#: connection.
_PIECE_BYTES, _WINDOW = 1 << 18, 20.0
_MAX_REDIRECTS = 5
#: Bytes of a file that are held in memory, at most; whole files go to the disk.
MOST_HELD = 64 << 20
#: Headers that are for the host alone that they were given for.
_SECRETS = ("authorization", "cookie")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _TransientError(Exception):
    """Worth another try: the outcome is what it becomes when tries or time run out."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


class NoRangesError(Exception):
    """Parts of the file are not to be had, or too large: it is to be fetched as a whole."""


def fetch_file(
    network: Network, stream: Stream, headers: Mapping[str, str], path: Path, retries: int
) -> int:
    """Fetch all of `stream` into the file at `path`; return its size in bytes.

    What arrived before a failure is kept: a retry asks for the rest.

    Raises
    ------
    ClipError
        With the outcome; ``timeout`` when the thread's budget ends first.
    """
    with path.open("wb") as file:
        _persist(lambda: _fetch_rest(network, stream, headers, file), retries)
        return file.tell()


class RemoteFile:
    """A file behind a URL, of which parts are fetched and kept in memory.

    Parameters
    ----------
    retries
        Tries again, for each part, after what may pass.

    Attributes
    ----------
    size : int or None
        Bytes of the whole file, once the origin has told.
    """

    def __init__(
        self, network: Network, stream: Stream, headers: Mapping[str, str], retries: int
    ) -> None:
        self._network = network
        self._stream = stream
        self._headers = headers
        self._retries = retries
        self.size: int | None = None
        #: Parts by their beginnings; none overlaps another.
        self._parts: dict[int, bytes] = {}

    def load(self, wants: Sequence[Want]) -> None:
        """Fetch what is missing of some ranges, as far as the file goes.

        Raises
        ------
        ClipError
            As `fetch_file` does.
        NoRangesError
            If the origin sends the whole file instead, or more would be held in memory than fits.
        """
        held = sum(map(len, self._parts.values()))
        missing = sum(stop - start for want in wants for start, stop in self._missing(want))
        if held + missing > MOST_HELD:
            raise NoRangesError
        for want in wants:
            for start, stop in self._missing(want):
                part = io.BytesIO()
                attempt = functools.partial(
                    _fetch_part, self._network, self._stream, self._headers, Want(start, stop), part
                )
                size = _persist(attempt, self._retries)
                self.size = self.size if size is None else size
                if part.tell():
                    self._parts[start] = part.getvalue()

    def release(self) -> None:
        """Forget what was loaded."""
        self._parts.clear()

    def _missing(self, want: Want) -> Iterator[tuple[int, int]]:
        at = want.start
        stop = want.stop if self.size is None else min(want.stop, self.size)
        for start in sorted(self._parts):
            if start >= stop:
                break
            if start > at:
                yield at, start
            at = max(at, start + len(self._parts[start]))
        if at < stop:
            yield at, stop

    def read(self, start: int, stop: int) -> bytes | memoryview:
        """Return bytes that were loaded; fewer where they are not there."""
        pieces = []
        for begin in sorted(self._parts):
            data = self._parts[begin]
            if begin <= start < min(stop, begin + len(data)):
                pieces.append(memoryview(data)[start - begin : stop - begin])
                start += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


_Result = TypeVar("_Result")


def _persist(attempt: Callable[[], _Result], retries: int) -> _Result:
    """Try again, at most `retries` times, while failures may pass and there is time."""
    tries = 0
    while True:
        try:
            return attempt()
        except _TransientError as error:
            tries += 1
            failed = ClipError(error.outcome, f"{error.detail} (after {tries} tries)")
        if tries <= retries:
            back_off(tries)
        if _budget_exceeded():
            raise ClipError(Outcome.TIMEOUT, f"timed out: {failed.detail}")
        if tries > retries:
            raise failed


def _fetch_part(
    network: Network, stream: Stream, headers: Mapping[str, str], want: Want, part: BinaryIO
) -> int | None:
    """Fetch what `part` lacks of a range; return the size of the file, if it is told."""
    url, total = stream.url, cast("int | None", None)
    while (start := want.start + part.tell()) < want.stop and not (total and start >= total):
        stop = min(start + CHUNK_BYTES, want.stop)
        wanted = {**headers, "Range": f"bytes={start}-{stop - 1}"}
        answer, url = _open(network, url, stream.url, wanted)
        try:
            if answer.status == 416:
                # The file does not go so far.
                return total
            if answer.status not in (200, 206):
                raise _status_error(answer.status, answer.reason)
            _refuse_page(answer)
            if answer.status == 200:
                raise NoRangesError
            end, total = _stop_and_total(answer, start)
            if end > stop:
                raise _TransientError(Outcome.NETWORK, "the answer is not the range asked for")
            _copy(answer, part, end - start)
            if end < stop and total in (None, end):
                # The file ends here.
                return total
        finally:
            _finish(answer)
    return total


def _fetch_rest(
    network: Network, stream: Stream, headers: Mapping[str, str], file: BinaryIO
) -> None:
    """Fetch what is missing behind the end of `file`, range by range."""
    total = stream.size
    url = stream.url
    while total is None or file.tell() < total:
        start = file.tell()
        stop = start + CHUNK_BYTES if total is None else min(start + CHUNK_BYTES, total)
        wanted = {**headers, "Range": f"bytes={start}-{stop - 1}"}
        answer, url = _open(network, url, stream.url, wanted)
        try:
            if answer.status == 416 and start > 0 and total is None:
                # The origin doesn't tell the size: this is how it says that there is no more.
                return
            if answer.status not in (200, 206):
                raise _status_error(answer.status, answer.reason)
            _refuse_page(answer)
            if answer.status == 200:
                # The origin ignores ranges: the answer is the whole file, from its beginning.
                file.seek(0)
                file.truncate()
                _copy(answer, file, total)
                return
            stop, told = _stop_and_total(answer, start)
            total = total if told is None else told
            _copy(answer, file, stop - start)
        finally:
            _finish(answer)


def _open(
    network: Network, url: str, home: str, headers: Mapping[str, str]
) -> tuple[urllib3.BaseHTTPResponse, str]:
    """Send a request and follow redirects; return the answer and its URL.

    Credentials go to the host of `home` alone.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        secrets = () if _origin(url) == _origin(home) else _SECRETS
        sent = {name: value for name, value in headers.items() if name.lower() not in secrets}
        try:
            answer = network.open("GET", url, {**sent, "Accept-Encoding": "identity"})
        except urllib3.exceptions.HTTPError as error:
            raise _network_error(error) from error
        location = answer.headers.get("Location")
        if not (300 <= answer.status < 400 and location):
            return answer, url
        _finish(answer)
        url = urllib.parse.urljoin(url, location)
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            break
    raise ClipError(Outcome.NETWORK, "redirected too often, or away from the web")


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _status_error(status: int, reason: str | None) -> ClipError | _TransientError:
    detail = f"HTTP Error {status} on a media URL: {reason}"
    if status == 403:
        return ClipError(Outcome.HTTP_403_MEDIA, detail)
    if status in (404, 410):
        return ClipError(Outcome.HTTP_404_MEDIA, detail)
    if status == 429:
        return ClipError(Outcome.HTTP_429, detail)
    if status >= 500:
        return _TransientError(Outcome.HTTP_5XX, detail)
    return ClipError(Outcome.NETWORK, detail)


def _network_error(error: Exception) -> ClipError | _TransientError:
    text = f"{type(error).__name__}: {error}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ClipError(Outcome.TLS, text)
    # A refused connection is a timeout to urllib3, by inheritance alone.
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)
    timed_out = isinstance(error, urllib3.exceptions.TimeoutError) and not refused
    return _TransientError(Outcome.TIMEOUT if timed_out else Outcome.NETWORK, text)


def _stop_and_total(answer: urllib3.BaseHTTPResponse, start: int) -> tuple[int, int | None]:
    """Return where a range ends and the file's size, if told (:rfc:`9110` section 14.4)."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is not None and int(found[1]) == start <= int(found[2]):
        stop, total = int(found[2]) + 1, None if found[3] == "*" else int(found[3])
        if total is None or stop <= total:
            return stop, total
    raise _TransientError(Outcome.NETWORK, "the answer is not the range asked for")


def _refuse_page(answer: urllib3.BaseHTTPResponse) -> None:
    """A page with status 200 in place of media is an answer, but not the file."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/"):
        raise ClipError(Outcome.CORRUPT, f"a {kind} page in place of media")


def _copy(answer: urllib3.BaseHTTPResponse, file: BinaryIO, expected: int | None) -> None:
    """Append the body to `file`; a body that is shorter than announced is transient."""
    budget = Budget.current()
    begin, received = file.tell(), 0
    for piece in _pieces(answer):
        # Outside the reading: a full disk is no failure of the network.
        file.write(piece)
        received += len(piece)
        if budget is not None:
            budget.bytes_received += len(piece)
        if _budget_exceeded():
            break
    if _budget_exceeded():
        # A body of unknown length that is cut off by the end of the time looks complete.
        raise _TransientError(Outcome.TIMEOUT, f"{received} bytes read")
    if expected is not None and received != expected:
        if received > expected:
            # Nobody knows what the surplus is, or where: none of it is kept.
            file.seek(begin)
            file.truncate()
        raise _TransientError(Outcome.NETWORK, f"{received} of {expected} bytes came")


def _pieces(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    while piece := _piece(answer):
        yield piece


def _never() -> bool:
    return False


def _piece(answer: urllib3.BaseHTTPResponse) -> bytes:
    budget = Budget.current()
    with contextlib.nullcontext(_never) if budget is None else budget.within(_WINDOW) as too_slow:
        try:
            piece: bytes = answer.read(_PIECE_BYTES)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            if not too_slow():
                raise _network_error(error) from error
        else:
            # What was cut off may look like the end of a body.
            if not too_slow():
                return piece
    rate = _PIECE_BYTES / _WINDOW / 1000
    raise _TransientError(Outcome.TIMEOUT, f"media came at less than {rate:.0f} kB/s")


def _finish(answer: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back if the body was read to its end, else close it."""
    if answer.length_remaining == 0:
        # Even an empty body has to be read: http.client takes no other request before.
        answer.drain_conn()
        answer.release_conn()
    else:
        answer.close()


def _budget_exceeded() -> bool:
    budget = Budget.current()
    return budget is not None and budget.exceeded
