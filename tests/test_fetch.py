"""Fetching a file: whatever the origin does, the bytes are all there, or the outcome is told."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import acavdl.fetch
from acavdl.budget import Budget
from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome
from acavdl.fetch import NoRangesError, RemoteFile, fetch_file
from acavdl.models import Stream
from acavdl.mp4 import Want
from acavdl.net import Network
from acavdl.resolve import Resolver
from acavdl.sandbox import Sandbox, video_id

MEDIA = random.Random(3).randbytes(300_000)
CHUNK = 100_000


class Origin(http.server.ThreadingHTTPServer):
    """Serves MEDIA by `answer`, which is told the request and its number; keeps what was asked."""

    daemon_threads = False
    answer: Callable[[Handler, int], None]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Clients that go away are what some tests are about."""

    def url(self, path: str = "/media") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: Origin

    def do_GET(self) -> None:
        number = len(self.server.asked)
        self.server.asked.append(self.headers["Range"])
        self.server.headers.append({k.lower(): v for k, v in self.headers.items()})
        with contextlib.suppress(OSError):
            type(self.server).answer(self, number)

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is not the place."""

    def span(self) -> tuple[int, int]:
        """Return which bytes of MEDIA are asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found is not None
        return int(found[1]), min(int(found[2]) + 1, len(MEDIA))

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send an answer; a header that is given replaces the usual one, an empty one none."""
        self.send_response(status)
        usual = {"Content_Type": "video/mp4", "Content_Length": str(len(body))}
        for name, value in {**usual, **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = "Content_Length" in headers

    def part(self, body: bytes | None = None, **headers: str) -> None:
        """Send the range asked for, as it should be unless told otherwise."""
        start, stop = self.span()
        told = {"Content_Range": f"bytes {start}-{stop - 1}/{len(MEDIA)}", **headers}
        self.reply(206, MEDIA[start:stop] if body is None else body, **told)

    def break_off(self, count: int) -> None:
        """Send a range, `count` bytes of it, then reset the connection."""
        start, stop = self.span()
        self.part(
            MEDIA[start : start + count],
            Content_Length=str(stop - start),
        )
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acavdl.fetch, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(acavdl.fetch, "_PIECE_BYTES", 8_192)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@contextlib.contextmanager
def origin(answer: Callable[[Handler, int], None]) -> Iterator[Origin]:
    server = type("_Origin", (Origin,), {"answer": staticmethod(answer)})()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def stream_of(url: str, size: int | None = len(MEDIA)) -> Stream:
    return Stream("18", url, "mp4", None, None, None, None, None, None, None, size)


def fetch(
    url: str, path: Path, size: int | None = len(MEDIA), retries: int = 2, **headers: str
) -> str:
    """Fetch the file, and return the digest of what stands in it."""
    with contextlib.closing(Network()) as network:
        count = fetch_file(network, stream_of(url, size), headers, path, retries)
    data = path.read_bytes()
    assert count == len(data)
    return digest(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def failure(answer: Callable[[Handler, int], None], path: Path, **options: int | None) -> ClipError:
    """Return the error that fetching from such an origin ends with."""
    options = {"size": len(MEDIA), "retries": 0, **options}
    with origin(answer) as server, pytest.raises(ClipError) as raised:
        fetch(server.url(), path, options["size"], options["retries"] or 0)
    return raised.value


# --- what ends well ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [len(MEDIA), None, 250_000, 400_000])
def test_file_comes_in_bounded_ranges(tmp_path: Path, size: int | None) -> None:
    """Whether the site told its size, or not, or wrongly: what the origin says counts."""
    with origin(lambda handler, _: handler.part()) as server:
        assert fetch(server.url(), tmp_path / "f", size) == digest(MEDIA)
    assert server.asked == ["bytes=0-99999", "bytes=100000-199999", "bytes=200000-299999"]


@pytest.mark.parametrize("length", [250_000, 300_000])
def test_origin_may_keep_the_size_to_itself(tmp_path: Path, length: int) -> None:
    def answer(handler: Handler, _: int) -> None:
        start, stop = handler.span()[0], min(handler.span()[1], length)
        if start >= length:
            handler.reply(416, Content_Range="bytes */*")
        else:
            handler.part(MEDIA[start:stop], Content_Range=f"bytes {start}-{stop - 1}/*")

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f", None) == digest(MEDIA[:length])


def test_retry_resumes_where_it_stopped(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        if number == 1:
            handler.break_off(40_000)
        else:
            handler.part()

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)
    first = int(str(server.asked[2]).partition("=")[2].partition("-")[0])
    # A reset may swallow what was under way, but not the range before.
    assert 100_000 <= first <= 140_000


def test_short_body_is_completed(tmp_path: Path) -> None:
    """A connection that is closed early, in order, keeps all that it sent."""

    def answer(handler: Handler, number: int) -> None:
        start, stop = handler.span()
        body = MEDIA[start : start + 81_920] if number == 0 else None
        handler.part(body, Content_Length=str(stop - start))

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)
    assert server.asked[1] == "bytes=81920-181919"


@pytest.mark.parametrize("size", [len(MEDIA), None])
def test_origin_may_ignore_ranges(tmp_path: Path, size: int | None) -> None:
    with origin(lambda handler, _: handler.reply(200, MEDIA)) as server:
        assert fetch(server.url(), tmp_path / "f", size) == digest(MEDIA)
    assert len(server.asked) == 1


def test_whole_file_in_the_middle_starts_afresh(tmp_path: Path) -> None:
    """Such as when another host, which ignores ranges, answers the second request."""

    def answer(handler: Handler, number: int) -> None:
        if number == 0:
            handler.part()
        else:
            handler.reply(200, MEDIA)

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)


def test_body_may_end_with_the_connection(tmp_path: Path) -> None:
    with origin(lambda handler, _: handler.reply(200, MEDIA, Content_Length="")) as server:
        assert fetch(server.url(), tmp_path / "f", None) == digest(MEDIA)


def test_surplus_bytes_are_not_kept(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        start, stop = handler.span()
        handler.part(MEDIA[start:stop] + b"surplus" if number == 0 else None)

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)


def test_server_error_is_tried_again(tmp_path: Path) -> None:
    def answer(handler: Handler, number: int) -> None:
        if number in (0, 2):
            handler.reply(503, b"later")
        else:
            handler.part()

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f", retries=2) == digest(MEDIA)


def test_existing_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"of an earlier attempt" * 50_000)
    with origin(lambda handler, _: handler.part()) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)


def test_budget_counts_what_came(tmp_path: Path) -> None:
    with origin(lambda handler, _: handler.part()) as server, Budget(60).scope() as budget:
        fetch(server.url(), tmp_path / "f")
    assert (budget.requests, budget.bytes_received) == (3, len(MEDIA))


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(
        st.sampled_from(["part", "short", "reset", "503", "wrong", "surplus", "whole"]), max_size=8
    )
)
def test_file_is_right_or_the_fetch_fails(
    tmp_path_factory: pytest.TempPathFactory, events: list[str]
) -> None:
    """Whatever comes, in whatever order: never a wrong file."""

    def answer(handler: Handler, number: int) -> None:
        start, stop = handler.span()
        match events[number] if number < len(events) else "part":
            case "short":
                handler.part(MEDIA[start : (start + stop) // 2], Content_Length=str(stop - start))
            case "reset":
                handler.break_off((stop - start) // 3)
            case "503":
                handler.reply(503)
            case "wrong":
                handler.part(MEDIA[: stop - start], Content_Range=f"bytes 0-{stop - start - 1}/9")
            case "surplus":
                handler.part(MEDIA[start:stop] + b"surplus")
            case "whole":
                handler.reply(200, MEDIA)
            case _:
                handler.part()

    with pytest.MonkeyPatch.context() as patch, origin(answer) as server:
        patch.setattr(acavdl.fetch, "CHUNK_BYTES", CHUNK)
        patch.setattr(acavdl.fetch, "back_off", lambda _: None)
        patch.setenv("NO_PROXY", "127.0.0.1")
        path = tmp_path_factory.mktemp("any") / "f"
        assert fetch(server.url(), path, retries=len(events)) == digest(MEDIA)


# --- redirects --------------------------------------------------------------------------------


def test_redirect_to_another_host_is_followed(tmp_path: Path) -> None:
    """For all ranges; and what is secret stays with the host it was given for."""
    with origin(lambda handler, _: handler.part()) as target:
        elsewhere = f"http://localhost:{target.server_port}/media"
        with origin(lambda handler, _: handler.reply(302, Location=elsewhere)) as server:
            data = fetch(
                server.url(), tmp_path / "f", Authorization="Basic eDp5", Cookie="a=b", Referer="r"
            )
    assert data == digest(MEDIA)
    assert len(target.asked) == 3
    assert all(headers["authorization"] == "Basic eDp5" for headers in server.headers)
    assert all(headers["referer"] == "r" for headers in target.headers)
    assert not any({"authorization", "cookie"} & set(headers) for headers in target.headers)


def test_relative_redirect_is_followed(tmp_path: Path) -> None:
    def answer(handler: Handler, _: int) -> None:
        if handler.path == "/media":
            handler.reply(307, Location="/other")
        else:
            handler.part()

    with origin(answer) as server:
        assert fetch(server.url(), tmp_path / "f") == digest(MEDIA)


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/media", "data:,x"])
def test_redirect_away_from_the_web_is_refused(tmp_path: Path, location: str) -> None:
    error = failure(lambda handler, _: handler.reply(302, Location=location), tmp_path / "f")
    assert error.outcome is Outcome.NETWORK
    assert (tmp_path / "f").read_bytes() == b""


def test_redirect_loop_is_bounded(tmp_path: Path) -> None:
    with (
        origin(lambda handler, _: handler.reply(302, Location="/media")) as server,
        pytest.raises(ClipError) as raised,
    ):
        fetch(server.url(), tmp_path / "f")
    assert raised.value.outcome is Outcome.NETWORK
    assert 1 < len(server.asked) < 20


# --- what fails -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "outcome", "requests"),
    [
        (403, Outcome.HTTP_403_MEDIA, 1),
        (404, Outcome.HTTP_404_MEDIA, 1),
        (410, Outcome.HTTP_404_MEDIA, 1),
        (429, Outcome.HTTP_429, 1),
        (416, Outcome.NETWORK, 1),
        (500, Outcome.HTTP_5XX, 2),
        (503, Outcome.HTTP_5XX, 2),
        (304, Outcome.NETWORK, 1),
    ],
)
def test_status(tmp_path: Path, status: int, outcome: Outcome, requests: int) -> None:
    """A refusal is final, a server's trouble is tried once more."""
    with (
        origin(lambda handler, _: handler.reply(status)) as server,
        pytest.raises(ClipError) as raised,
    ):
        fetch(server.url(), tmp_path / "f", retries=1)
    assert raised.value.outcome is outcome
    assert str(status) in raised.value.detail
    assert len(server.asked) == requests


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "TEXT/PLAIN"])
@pytest.mark.parametrize("status", [200, 206])
def test_page_in_place_of_media_is_refused(tmp_path: Path, kind: str, status: int) -> None:
    def answer(handler: Handler, _: int) -> None:
        page = b"<html>Sorry</html>"
        told = f"bytes 0-{len(page) - 1}/{len(page)}" if status == 206 else ""
        handler.reply(status, page, Content_Type=kind, Content_Range=told)

    error = failure(answer, tmp_path / "f")
    assert error.outcome is Outcome.CORRUPT
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.parametrize(
    "told", ["", "bytes 5-100004/300000", "bytes */300000", "items 0-9/10", "bytes 0-9/300000"]
)
def test_wrong_range_is_never_written(tmp_path: Path, told: str) -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.part(Content_Range=told)

    error = failure(answer, tmp_path / "f")
    assert error.outcome is Outcome.NETWORK
    assert (tmp_path / "f").read_bytes() == b""


def test_whole_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """A connection closed early is an end like any other where no length was announced."""
    error = failure(
        lambda handler, _: handler.reply(200, MEDIA[:1000], Content_Length=""), tmp_path / "f"
    )
    assert error.outcome is Outcome.NETWORK
    assert "1000 of 300000" in error.detail


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ClipError) as raised:
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "f", retries=1)
    assert raised.value.outcome is Outcome.NETWORK
    assert "after 2 tries" in raised.value.detail


@pytest.mark.parametrize("length", [str(len(MEDIA)), ""])
def test_end_of_the_budget_is_a_timeout(tmp_path: Path, length: str) -> None:
    """Also where the length is unknown, so that the end by force looks like the file's own."""

    def answer(handler: Handler, _: int) -> None:
        handler.reply(200, MEDIA[:49_152], Content_Length=length)
        handler.wfile.flush()
        handler.server.over.wait()

    begun = time.monotonic()
    with Budget(0.5).scope():
        error = failure(answer, tmp_path / "f", size=None, retries=5)
    assert error.outcome is Outcome.TIMEOUT
    assert time.monotonic() - begun < 8


def test_retries_end_with_the_budget(tmp_path: Path) -> None:
    begun = time.monotonic()
    with Budget(0.5).scope():
        error = failure(lambda handler, _: handler.reply(503), tmp_path / "f", retries=50)
    assert error.outcome is Outcome.TIMEOUT
    assert "503" in error.detail
    assert time.monotonic() - begun < 8


def test_full_disk_is_no_failure_of_the_network(tmp_path: Path) -> None:
    with (
        origin(lambda handler, _: handler.part()) as server,
        pytest.raises(OSError, match="No space left"),
    ):
        fetch(server.url(), Path("/dev/full"))
    assert len(server.asked) == 1


# --- a file too large to fetch ----------------------------------------------------------------


def test_three_hours_are_asked_for_in_ranges(online: Sandbox, tmp_path: Path) -> None:
    """The first bytes of a virtual video of three hours, until the time is up."""
    path = tmp_path / "f"
    hours = next(spec for spec in online.masters.values() if spec.spec.virtual is not None)
    with contextlib.closing(Network()) as network:
        with contextlib.closing(Resolver(network, Reading())) as resolver:
            name = video_id(1, master=hours.spec.code)
            source = resolver.resolve(f"https://www.youtube.com/watch?v={name}")
        stream = source.streams[0]
        assert stream.size is not None
        assert stream.size > 100 * CHUNK
        whole = replace(stream, size=None)
        with Budget(0.6).scope() as budget, pytest.raises(ClipError) as raised:
            fetch_file(network, whole, source.headers, path, 0)
    assert raised.value.outcome is Outcome.TIMEOUT
    assert budget.requests > 3
    # Each range follows the one before: nothing is missing, and nothing comes twice.
    assert path.stat().st_size <= budget.bytes_received <= budget.requests * CHUNK
    assert path.read_bytes()[4:8] == b"ftyp"


# --- parts of a file ---------------------------------------------------------------------------


@contextlib.contextmanager
def remote(server: Origin, retries: int = 2) -> Iterator[RemoteFile]:
    with contextlib.closing(Network()) as network:
        yield RemoteFile(network, stream_of(server.url(), None), {"X-Own": "yes"}, retries)


def test_parts_are_fetched_once_and_read_across_their_borders() -> None:
    with origin(lambda handler, _: handler.part()) as server, remote(server) as file:
        assert file.size is None
        file.load([Want(0, 1000)])
        assert file.size == len(MEDIA)
        file.load([Want(500, 1500), Want(5000, 6000)])
        file.load([Want(0, 1500), Want(5500, 5600)])
        assert server.asked == ["bytes=0-999", "bytes=1000-1499", "bytes=5000-5999"]
        assert all(headers["x-own"] == "yes" for headers in server.headers)
        for start, stop in ((0, 1500), (999, 1001), (5000, 6000), (5999, 6000)):
            assert bytes(file.read(start, stop)) == MEDIA[start:stop]
        # What is not there is not made up.
        assert bytes(file.read(1400, 1600)) == MEDIA[1400:1500]
        assert bytes(file.read(2000, 3000)) == b""
        file.release()
        assert bytes(file.read(0, 10)) == b""


def test_a_large_part_comes_in_bounded_ranges_and_ends_with_the_file() -> None:
    with origin(lambda handler, _: handler.part()) as server, remote(server) as file:
        file.load([Want(0, 10 * len(MEDIA))])
        assert bytes(file.read(0, len(MEDIA))) == MEDIA
        assert (
            server.asked
            == [
                *("bytes=0-99999", "bytes=100000-199999", "bytes=200000-299999"),
                "bytes=300000-399999",
            ][: len(server.asked)]
        )
        assert file.size == len(MEDIA)


def test_a_part_goes_on_where_it_broke_off() -> None:
    def answer(handler: Handler, number: int) -> None:
        if number == 0:
            handler.break_off(30_000)
        else:
            handler.part()

    with origin(answer) as server, remote(server) as file:
        file.load([Want(1000, 90_000)])
        assert bytes(file.read(1000, 90_000)) == MEDIA[1000:90_000]
        begins = [int((asked or "").split("=")[1].split("-")[0]) for asked in server.asked]
        assert begins[0] == 1000
        assert 1000 < begins[1] <= 31_000


def test_an_origin_without_ranges_is_told() -> None:
    def answer(handler: Handler, _: int) -> None:
        handler.reply(200, MEDIA)

    with (
        origin(answer) as server,
        remote(server) as file,
        pytest.raises(NoRangesError),
    ):
        file.load([Want(0, 1000)])


def test_no_more_is_held_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acavdl.fetch, "MOST_HELD", 10_000)
    with origin(lambda handler, _: handler.part()) as server, remote(server) as file:
        file.load([Want(0, 6000)])
        file.load([Want(1000, 5000)])
        with pytest.raises(NoRangesError):
            file.load([Want(0, 5000), Want(8000, 13_000)])
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (403, Outcome.HTTP_403_MEDIA),
        (404, Outcome.HTTP_404_MEDIA),
        (429, Outcome.HTTP_429),
        (503, Outcome.HTTP_5XX),
    ],
)
def test_a_refused_part_has_its_outcome(status: int, outcome: Outcome) -> None:
    with (
        origin(lambda handler, _: handler.reply(status)) as server,
        remote(server, retries=0) as file,
        pytest.raises(ClipError) as raised,
    ):
        file.load([Want(0, 1000)])
    assert raised.value.outcome is outcome


@pytest.mark.parametrize("lie", ["bytes 5-999/300000", "bytes 0-5000/300000", "none", ""])
def test_an_answer_that_is_not_the_part_asked_for(lie: str) -> None:
    with (
        origin(lambda handler, _: handler.part(Content_Range=lie)) as server,
        remote(server, retries=0) as file,
        pytest.raises(ClipError) as raised,
    ):
        file.load([Want(0, 1000)])
    assert raised.value.outcome is Outcome.NETWORK


@pytest.mark.parametrize("length", ["whole", "unknown"])
def test_a_trickle_is_given_up_for_another_connection(
    tmp_path: Path, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the budget ends; also where its end looks like that of the file."""
    monkeypatch.setattr(acavdl.fetch, "_WINDOW", 0.5)

    def answer(handler: Handler, number: int) -> None:
        if number != 1:
            handler.part()
            return
        start, stop = handler.span()
        handler.part(MEDIA[start : start + 9_000], Content_Length=str(stop - start))
        handler.wfile.flush()
        while not handler.server.over.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    def drip(handler: Handler, number: int) -> None:
        if number == 0:
            handler.reply(200, MEDIA[:9_000], Content_Length="")
            while not handler.server.over.wait(0.05):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        handler.reply(200, MEDIA)

    with origin(answer if length == "whole" else drip) as server, Budget(60).scope() as budget:
        size = len(MEDIA) if length == "whole" else None
        assert fetch(server.url(), tmp_path / "f", size) == digest(MEDIA)
        assert budget.remaining > 30


def test_a_trickle_that_goes_on_is_a_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acavdl.fetch, "_WINDOW", 0.3)

    def answer(handler: Handler, _: int) -> None:
        handler.reply(200, b"", Content_Length=str(len(MEDIA)))
        while not handler.server.over.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()

    with Budget(60).scope():
        error = failure(answer, tmp_path / "f", retries=1)
    assert error.outcome is Outcome.TIMEOUT
    assert "kB/s (after 2 tries)" in error.detail
