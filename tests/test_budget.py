"""Budgets that reach every socket and every child process, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
import urllib3.exceptions
from helpers import Peer, answers, peer

from acavdl.budget import Budget, BudgetExceededError, cancel_all
from acavdl.net import Network
from acavdl.sandbox import Fault, Sandbox, video_id

#: Seconds of a budget that is to be used up, and until which its work must have ended. A read
#: alone would give up after 20 s.
SHORT, SOON = 0.4, 8.0

pytestmark = pytest.mark.usefixtures("no_variables")


# --- ways never to end ------------------------------------------------------------------------


def never_answers(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    peer.fall_silent(sock)


def trickles_headers(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    peer.trickle(sock)


def trickles_body(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    peer.trickle(sock)


def trickles_chunks(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n")
    peer.trickle(sock)


def trickles_last_body(peer: Peer, sock: socket.socket) -> None:
    """http.client lets go of the socket as soon as it reads `Connection: close`."""
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nConnection: close\r\n\r\n")
    peer.trickle(sock)


def trickles_until_closed(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    peer.trickle(sock)


def stalls_in_body(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf")
    peer.fall_silent(sock)


def silent_handshake(peer: Peer, sock: socket.socket) -> None:
    peer.fall_silent(sock)


def trickles_handshake(peer: Peer, sock: socket.socket) -> None:
    sock.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xf0")
    peer.trickle(sock, b"\0")


def silent_tunnel(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    peer.fall_silent(sock)


def trickles_tunnel(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    peer.trickle(sock)


def tunnel_to_silence(peer: Peer, sock: socket.socket) -> None:
    peer.head(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    peer.fall_silent(sock)


DIRECT = (
    never_answers,
    trickles_headers,
    trickles_body,
    trickles_chunks,
    trickles_last_body,
    trickles_until_closed,
    stalls_in_body,
)
TLS = (silent_handshake, trickles_handshake)
TUNNEL = (silent_tunnel, trickles_tunnel, tunnel_to_silence)
ENDLESS = [
    *[pytest.param(serve, "http://127.0.0.1:{port}/", None, id=serve.__name__) for serve in DIRECT],
    *[pytest.param(serve, "https://127.0.0.1:{port}/", None, id=serve.__name__) for serve in TLS],
    *[
        pytest.param(serve, "https://media.invalid/", "http://127.0.0.1:{port}", id=serve.__name__)
        for serve in TUNNEL
    ],
    pytest.param(
        silent_handshake, "https://media.invalid/", "https://127.0.0.1:{port}", id="tls_proxy"
    ),
]


def read_all(network: Network, url: str) -> None:
    """Send a request and read the answer; an end by force shows as an error or an early end."""
    with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
        network.open("GET", url).read()


@pytest.mark.parametrize(("serve", "url", "proxy"), ENDLESS)
def test_budget_ends_whatever_blocks(
    serve: Callable[[Peer, socket.socket], None], url: str, proxy: str | None
) -> None:
    with peer(serve) as other, contextlib.closing(_network(proxy, other)) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope() as budget:
            read_all(network, url.format(port=other.port))
            assert budget.exceeded
        assert time.monotonic() - begun < SOON
        assert other.busy.is_set()


@pytest.mark.parametrize(("serve", "url", "proxy"), ENDLESS)
def test_cancel_all_ends_whatever_blocks(
    serve: Callable[[Peer, socket.socket], None], url: str, proxy: str | None
) -> None:
    with peer(serve) as other, contextlib.closing(_network(proxy, other)) as network:

        def work() -> None:
            with Budget(600).scope():
                read_all(network, url.format(port=other.port))

        thread = threading.Thread(target=work)
        thread.start()
        assert other.busy.wait(SOON)
        cancel_all()
        thread.join(SOON)
        assert not thread.is_alive()


def _network(proxy: str | None, other: Peer) -> Network:
    return Network(None if proxy is None else proxy.format(port=other.port))


@pytest.mark.parametrize("fault", [Fault.PLAYER_HANGS, Fault.PLAYER_TRICKLES])
def test_budget_ends_reading_inside_tls_through_a_proxy(online: Sandbox, fault: Fault) -> None:
    body = f'{{"videoId": "{video_id(1, fault=fault)}"}}'.encode()
    with contextlib.closing(Network(online.proxies[0])) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope(), contextlib.suppress(urllib3.exceptions.HTTPError):
            network.open("POST", "https://www.youtube.com/youtubei/v1/player", body=body).read()
        assert time.monotonic() - begun < SOON


# --- scopes ------------------------------------------------------------------------------------


def sleeps_on(seconds: float = 60) -> bool:
    """Start a child in this thread; return whether it was let live to its end."""
    return subprocess.run(["sleep", str(seconds)], check=False).returncode == 0


def test_budget_ends_a_child_process() -> None:
    begun = time.monotonic()
    with Budget(SHORT).scope():
        assert not sleeps_on()
        # What is started later than the first strike, too.
        assert not sleeps_on()
    assert time.monotonic() - begun < SOON


def test_budget_leaves_others_children_alone() -> None:
    """Those of another thread, and those that this thread starts before or after the scope."""
    started = threading.Event()
    over = threading.Event()
    spared: list[int | None] = []

    def other() -> None:
        with subprocess.Popen(["sleep", "60"]) as child:
            started.set()
            over.wait()
            spared.append(child.poll())
            child.kill()

    thread = threading.Thread(target=other)
    thread.start()
    assert started.wait(SOON)
    first = Budget(SHORT)
    with subprocess.Popen(["sleep", "60"]) as earlier, first.scope():
        assert not sleeps_on()
        assert earlier.poll() is None
        earlier.kill()
    with subprocess.Popen(["sleep", "60"]) as later:

        def clock() -> None:
            with Budget(2 * SHORT).scope():
                assert not sleeps_on()

        waiting = threading.Thread(target=clock)
        waiting.start()
        waiting.join(SOON)
        assert first.exceeded
        assert later.poll() is None
        later.kill()
    over.set()
    thread.join(SOON)
    assert spared == [None]


def test_work_within_the_budget_is_left_alone() -> None:
    with Budget(60).scope() as budget:
        assert sleeps_on(0.01)
        assert not budget.exceeded


def test_extended_budget_ends_later() -> None:
    with Budget(SHORT).scope() as budget:
        budget.extend(60)
        assert sleeps_on(2 * SHORT)


def test_budget_goes_on_running_between_its_scopes() -> None:
    budget = Budget(SHORT)
    with budget.scope():
        assert sleeps_on(0)
    with budget.scope():
        assert not sleeps_on()
    with budget.scope():
        assert not sleeps_on()


def test_no_request_begins_after_the_end() -> None:
    with peer(never_answers) as other, contextlib.closing(Network()) as network:
        with Budget(0).scope() as budget, pytest.raises(BudgetExceededError):
            network.open("GET", f"http://127.0.0.1:{other.port}/")
        assert budget.requests == 0
        assert not other.busy.is_set()


def test_inner_budget_ends_with_the_outer_one() -> None:
    with peer(never_answers) as other, contextlib.closing(Network()) as network:
        begun = time.monotonic()
        with Budget(SHORT).scope() as outer:
            with Budget(60).scope():
                read_all(network, f"http://127.0.0.1:{other.port}/")
            assert Budget.current() is outer
        assert time.monotonic() - begun < SOON
        assert Budget.current() is None


def test_end_of_an_inner_budget_leaves_the_outer_ones_connection() -> None:
    with peer(answers) as other, contextlib.closing(Network()) as network:
        url = f"http://127.0.0.1:{other.port}/"
        with Budget(60).scope() as outer:
            answer = network.open("GET", url)
            with Budget(SHORT).scope():
                assert not sleeps_on()
            assert len(answer.read()) > 3
            assert outer.requests == 1


def test_pooled_connection_outlives_the_budget_that_opened_it() -> None:
    """The first budget ends while a second one waits for an answer on the same connection."""
    used, asked = threading.Event(), threading.Event()
    bodies: list[bytes] = []
    struck: list[bool] = []

    def first(url: str, network: Network) -> None:
        with Budget(SHORT).scope():
            bodies.append(network.open("GET", url).read())
            used.set()
            asked.wait(SOON)
            struck.append(not sleeps_on())

    def second(url: str, network: Network) -> None:
        with Budget(60).scope():
            answer = network.open("GET", url)
            asked.set()
            bodies.append(answer.read())

    with peer(answers) as other, contextlib.closing(Network()) as network:
        arguments = (f"http://127.0.0.1:{other.port}/", network)
        one = threading.Thread(target=first, args=arguments)
        one.start()
        assert used.wait(SOON)
        two = threading.Thread(target=second, args=arguments)
        two.start()
        one.join(SOON)
        assert struck == [True]
        other.busy.set()
        two.join(SOON)
        assert len(bodies) == 2
        assert bodies[0] == bodies[1]


def test_cancelled_work_can_begin_nothing_new() -> None:
    with peer(answers) as other, contextlib.closing(Network()) as network:
        begun = time.monotonic()
        with Budget(600).scope() as budget:
            cancel_all()
            assert budget.exceeded
            assert not sleeps_on()
            with pytest.raises(BudgetExceededError):
                network.open("GET", f"http://127.0.0.1:{other.port}/")
            budget.extend(600)
            assert not sleeps_on()
        assert time.monotonic() - begun < SOON
    with Budget(600).scope():
        assert sleeps_on(0.01)


def test_budget_of_centuries_does_no_harm_to_others() -> None:
    with Budget(1e12).scope(), contextlib.closing(Network()):
        test_budget_ends_a_child_process()


def test_a_block_within_a_budget_has_its_own_end() -> None:
    """Its connections are shut down; those of the next block are not, before the budget's end."""

    class Counted:
        count = 0

        def shut_down(self, _: Budget) -> None:
            self.count += 1

    connection = Counted()
    with Budget(60).scope() as budget:
        budget.use(connection)
        with budget.within(30) as too_slow:
            assert not too_slow()
        with budget.within(0.1) as too_slow:
            until = time.monotonic() + 10
            while not connection.count:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert too_slow()
        assert not budget.exceeded
        struck = connection.count
        with budget.within(30):
            time.sleep(1.2)
        assert connection.count == struck
