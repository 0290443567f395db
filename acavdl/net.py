"""HTTP for everyone: pools, trust, proxies, and budgets that reach every socket and child.

One :class:`Network` per process holds one TLS context and the kept-alive connections; the
extractor's requests and our own go through it. A :class:`Budget` bounds a piece of work by the
wall clock. Threads can't be killed, so when a budget is used up a watchdog shuts down the
connections and kills the child processes begun in its scope; what blocks on them then returns.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import signal
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import certifi
import urllib3
import urllib3.connection
import urllib3.exceptions
from urllib3.util import Timeout, make_headers
from urllib3.util.ssltransport import SSLTransport

from acavdl.errors import UsageError

logger = logging.getLogger(__name__)

#: Seconds without a byte before a connection counts as stalled; the budget may be shorter.
SOCKET_TIMEOUT = 20.0
#: Seconds between two strikes at work that goes on after its budget.
_STRIKE_INTERVAL = 0.5
#: Connections kept open per host (one for each thread, at most), and hosts remembered: media hosts
#: are many.
_POOL_SIZE, _POOLS = 256, 64


class BudgetExceededError(urllib3.exceptions.HTTPError):
    """No request is begun after the end of a budget."""


class Budget:
    """A bound on the wall clock of one piece of work in one thread, and what it used.

    Parameters
    ----------
    seconds
        How long the work may take.

    Attributes
    ----------
    requests : int
        HTTP requests sent inside the scope.
    bytes_received : int
        Bytes of bodies, as they came over the wire.
    """

    _local = threading.local()

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.requests = 0
        self.bytes_received = 0
        self._cancelled = False
        self._connections: set[_Watched] = set()
        self._thread_id: int | None = None
        self._spared: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    @classmethod
    def current(cls) -> Budget | None:
        """Return the budget whose scope this thread is in."""
        return getattr(cls._local, "budget", None)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return 0.0 if self._cancelled else max(0.0, self.deadline - time.monotonic())

    @property
    def exceeded(self) -> bool:
        """Whether the time is up (or the work was cancelled)."""
        return self.remaining <= 0.0

    def extend(self, seconds: float) -> None:
        """Add time that the work did not use (waiting that the site asked for, say)."""
        self.deadline += seconds

    @contextlib.contextmanager
    def scope(self) -> Iterator[Budget]:
        """Make this the budget of the calling thread, and have the watchdog look after it."""
        outer = Budget.current()
        if outer is not None:
            self.deadline = min(self.deadline, outer.deadline)
        Budget._local.budget = self
        thread_id = threading.get_native_id()
        with self._lock:
            self._spared = _children_of_thread(thread_id)
            self._thread_id = thread_id
        _watchdog.watch(self)
        try:
            yield self
        finally:
            Budget._local.budget = outer
            _watchdog.forget(self)
            with self._lock:
                self._thread_id = None
                self._connections.clear()

    def use(self, connection: _Watched) -> None:
        """Have `connection` shut down when the time is up; raise if that is now."""
        if self.exceeded:
            raise BudgetExceededError("the time for this clip is used up")
        with self._lock:
            self._connections.add(connection)

    def cancel(self) -> None:
        """End the work now, and what it may yet begin."""
        self._cancelled = True
        self.strike()
        _watchdog.strike_from_now(self)

    def strike(self) -> None:
        """Shut down the connections in use and kill what the thread started in the scope."""
        with self._lock:
            if self._thread_id is None:
                return
            for connection in self._connections:
                connection.shut_down(self)
            for pid in _children_of_thread(self._thread_id) - self._spared:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _children_of_thread(thread_id: int) -> frozenset[int]:
    """Return the processes that a thread of this process started (Linux; elsewhere none)."""
    try:
        listing = Path(f"/proc/self/task/{thread_id}/children").read_text()
    except OSError:
        return frozenset()
    return frozenset(int(pid) for pid in listing.split())


class _Watchdog:
    """One daemon thread that strikes at budgets which are used up and still in scope."""

    def __init__(self) -> None:
        self._active: set[Budget] = set()
        self._heap: list[tuple[float, int, Budget]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, budget: Budget) -> None:
        with self._wake:
            self._active.add(budget)
            self._push(0.0 if budget.exceeded else budget.deadline, budget)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def forget(self, budget: Budget) -> None:
        with self._wake:
            self._active.discard(budget)

    def strike_from_now(self, budget: Budget) -> None:
        with self._wake:
            self._push(0.0, budget)

    def cancel_all(self) -> None:
        with self._wake:
            budgets = list(self._active)
        for budget in budgets:
            budget.cancel()

    def _push(self, moment: float, budget: Budget) -> None:
        heapq.heappush(self._heap, (moment, next(self._order), budget))
        self._wake.notify()

    def _run(self) -> None:
        while True:
            budget = self._next_exceeded()
            budget.strike()

    def _next_exceeded(self) -> Budget:
        """Wait for the next budget that is over; it stays watched until its scope ends."""
        with self._wake:
            while True:
                now = time.monotonic()
                if self._heap and self._heap[0][0] <= now:
                    _, _, budget = heapq.heappop(self._heap)
                    if budget not in self._active:
                        continue
                    exceeded = budget.exceeded
                    self._push(now + _STRIKE_INTERVAL if exceeded else budget.deadline, budget)
                    if exceeded:
                        return budget
                else:
                    self._wake.wait(self._heap[0][0] - now if self._heap else None)


_watchdog = _Watchdog()


def cancel_all() -> None:
    """End all work in budgets of this process now: its sockets and child processes with it."""
    _watchdog.cancel_all()


class _Watched(urllib3.connection.HTTPConnection):
    """A connection that knows the budget it is used under."""

    _budget: Budget | None = None
    #: What a strike shuts down. Not `sock`, which http.client forgets as soon as it knows that an
    #: answer is the connection's last, though the body is yet to be read.
    _line: socket.socket | None = None

    def connect(self) -> None:
        self._join_budget()
        try:
            super().connect()
        finally:
            opening, self._line = self._line, _plain_socket(self.sock)
            if opening is not None:
                opening.close()

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        # A TLS handshake takes the descriptor away from `sock`: a second one can be shut down.
        self._line = sock.dup()
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        budget = self._join_budget()
        if budget is not None:
            budget.requests += 1
        super().request(*args, **kwargs)

    def shut_down(self, budget: Budget) -> None:
        """End what blocks on this connection, if it still works for `budget`."""
        line = self._line
        if self._budget is budget and line is not None:
            # The base class's method: SSLSocket.shutdown would pull the TLS object from under
            # the thread that reads from it.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(line, socket.SHUT_RDWR)

    def _join_budget(self) -> Budget | None:
        self._budget = Budget.current()
        if self._budget is not None:
            self._budget.use(self)
        return self._budget


def _plain_socket(sock: Any) -> socket.socket | None:
    """Return the socket below `sock` (TLS inside the TLS of a proxy is no socket itself)."""
    plain: socket.socket | None = sock.socket if isinstance(sock, SSLTransport) else sock
    return plain


class _HTTPSConnection(_Watched, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Watched


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


_POOL_CLASSES = {"http": _HTTPPool, "https": _HTTPSPool}


def trust_bundle(environ: Mapping[str, str] = os.environ) -> tuple[str | None, str | None]:
    """Return (file, folder) of the certificates to trust.

    ``SSL_CERT_FILE``/``SSL_CERT_DIR`` (OpenSSL's) win over ``REQUESTS_CA_BUNDLE`` and
    ``CURL_CA_BUNDLE`` (a file or a folder); without them it is certifi's file.

    Raises
    ------
    UsageError
        If a variable names something that is not there.
    """
    for names in (("SSL_CERT_FILE", "SSL_CERT_DIR"), ("REQUESTS_CA_BUNDLE",), ("CURL_CA_BUNDLE",)):
        found = [(name, environ[name]) for name in names if environ.get(name)]
        for name, value in found:
            if not Path(value).exists():
                raise UsageError(f"{name} names {value}, which does not exist")
        if found:
            files = [value for _, value in found if Path(value).is_file()]
            folders = [value for _, value in found if Path(value).is_dir()]
            return next(iter(files), None), next(iter(folders), None)
    return certifi.where(), None


def tls_context() -> ssl.SSLContext:
    """Return a verifying client context for the trusted certificates (see `trust_bundle`).

    Raises
    ------
    UsageError
        If the certificates cannot be read.
    """
    file, folder = trust_bundle()
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"cannot read the certificates in {file or folder}: {error}") from error


class Network:
    """The process's way out: one TLS context, kept-alive connections, the proxies of the user.

    Parameters
    ----------
    proxy
        URL of a proxy for everything (overrides the environment, as yt-dlp's option does);
        None = ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY`` and ``NO_PROXY``.

    Raises
    ------
    UsageError
        For a proxy that can't be used, or certificates that can't be read.
    """

    def __init__(self, proxy: str | None = None) -> None:
        self._context = tls_context()
        self._environment = urllib.request.getproxies()
        self._proxy = proxy
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        for scheme in ("http", "https"):
            # A proxy that can't be used is told at once, not by each clip.
            self._manager(self._proxy_of(scheme))

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy that a request for `url` takes; None = a direct connection."""
        parts = urllib.parse.urlsplit(url)
        if self._proxy is None and _bypassed(parts.hostname or "", self._environment):
            return None
        return self._proxy_of(parts.scheme)

    def _proxy_of(self, scheme: str) -> str | None:
        if self._proxy is not None:
            return self._proxy or None
        return self._environment.get(scheme) or self._environment.get("all")

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float = SOCKET_TIMEOUT,
    ) -> urllib3.BaseHTTPResponse:
        """Send one request; follow nothing, retry nothing, read nothing of the body yet.

        Parameters
        ----------
        timeout
            Seconds that connecting, and each read, may take; less where the budget ends sooner.

        Raises
        ------
        urllib3.exceptions.HTTPError
            Whatever keeps an answer from coming.
        """
        budget = Budget.current()
        if budget is not None:
            timeout = min(timeout, budget.remaining)
            if timeout <= 0:
                raise BudgetExceededError("the time for this clip is used up")
        return self._manager(self.proxy_for(url)).urlopen(
            method,
            url,
            headers=dict(headers or {}),
            body=body,
            timeout=Timeout(connect=timeout, read=timeout),
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
        )

    def close(self) -> None:
        """Close the kept-alive connections."""
        for manager in self._managers.values():
            # Forgetting the pools alone leaves those open that an answer still refers to.
            for key in manager.pools.keys():  # noqa: SIM118 (it can't be iterated over)
                manager.pools[key].close()
            manager.clear()

    def _manager(self, proxy: str | None) -> urllib3.PoolManager:
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = _pool_manager(proxy, self._context)
            return self._managers[proxy]


def _pool_manager(proxy: str | None, context: ssl.SSLContext) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "num_pools": _POOLS,
        "maxsize": _POOL_SIZE,
        "ssl_context": context,
    }
    manager: urllib3.PoolManager
    if proxy is None:
        manager = urllib3.PoolManager(**options)
    else:
        parts = _proxy_parts(proxy if "://" in proxy else f"http://{proxy}")
        credentials = None
        if parts.username is not None:
            user = urllib.parse.unquote(parts.username)
            credentials = f"{user}:{urllib.parse.unquote(parts.password or '')}"
        manager = urllib3.ProxyManager(
            urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])),
            proxy_headers=make_headers(proxy_basic_auth=credentials),
            proxy_ssl_context=context,
            **options,
        )
    manager.pool_classes_by_scheme = dict(_POOL_CLASSES)
    return manager


def _proxy_parts(proxy: str) -> urllib.parse.SplitResult:
    """Return the parts of a proxy's URL; it may hold a password, so an error hides the rest."""
    scheme = proxy.partition("://")[0]
    if scheme not in ("http", "https"):
        raise UsageError(
            f"a proxy of the kind {scheme!r} is not supported: give an http:// or https:// proxy "
            "in HTTPS_PROXY"
        )
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(proxy)
        # Reading the port is what checks it.
        if parts.hostname and parts.port != 0:
            return parts
    raise UsageError(
        f"the URL of the proxy can't be read: write {scheme}://user:password@host:port, special "
        "characters of user and password as %XX"
    )


def _bypassed(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether ``NO_PROXY`` excludes `host` (suffixes, ``*``, as the standard library reads it)."""
    return bool(urllib.request.proxy_bypass_environment(host, dict(proxies)))  # type: ignore[attr-defined]
