"""HTTP for everyone: pools, trust, proxies, and budgets that reach every socket and child.

One :class:`Network` per process holds one TLS context and the kept-alive connections; the
extractor's requests and our own go through it. A :class:`Budget` bounds a piece of work by the
wall clock. Threads can't be killed, so when a budget is used up a watchdog shuts down the
connections and kills the child processes of its thread; what blocks on them then returns.
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

from acavdl.errors import UsageError

logger = logging.getLogger(__name__)

#: Seconds without a byte before a connection counts as stalled; the budget may be shorter.
SOCKET_TIMEOUT = 20.0
#: Seconds between two strikes at work that goes on after its budget.
_STRIKE_INTERVAL = 0.5
#: Connections kept open per host, and hosts remembered: media hosts are many.
_POOL_SIZE, _POOLS = 16, 64


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
        Budget._local.budget = self
        self._thread_id = threading.get_native_id()
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
        """Charge one request on `connection`; raise if the time is up."""
        if self.exceeded:
            raise BudgetExceededError("the time for this clip is used up")
        self.requests += 1
        with self._lock:
            self._connections.add(connection)

    def cancel(self) -> None:
        """End the work now."""
        self._cancelled = True
        self.strike()

    def strike(self) -> None:
        """Shut down the connections in use and kill the child processes of the thread."""
        with self._lock:
            if self._thread_id is None:
                return
            for connection in self._connections:
                connection.shut_down(self)
            for pid in _children_of_thread(self._thread_id):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _children_of_thread(thread_id: int) -> list[int]:
    """Return the processes that a thread of this process started (Linux; elsewhere none)."""
    try:
        listing = Path(f"/proc/self/task/{thread_id}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in listing.split()]


class _Watchdog:
    """One daemon thread that strikes at budgets which are used up and still in scope."""

    def __init__(self) -> None:
        self._active: dict[int, Budget] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, budget: Budget) -> None:
        with self._wake:
            self._active[id(budget)] = budget
            heapq.heappush(self._heap, (budget.deadline, next(self._order), id(budget)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()
            self._wake.notify()

    def forget(self, budget: Budget) -> None:
        with self._wake:
            self._active.pop(id(budget), None)

    def cancel_all(self) -> None:
        with self._wake:
            budgets = list(self._active.values())
        for budget in budgets:
            budget.cancel()

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
                    _, _, key = heapq.heappop(self._heap)
                    budget = self._active.get(key)
                    if budget is None:
                        continue
                    again = now + _STRIKE_INTERVAL if budget.exceeded else budget.deadline
                    heapq.heappush(self._heap, (again, next(self._order), key))
                    if budget.exceeded:
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

    def connect(self) -> None:
        self._budget = Budget.current()
        super().connect()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._budget = Budget.current()
        if self._budget is not None:
            self._budget.use(self)
        super().request(*args, **kwargs)

    def shut_down(self, budget: Budget) -> None:
        """End what blocks on this connection, if it still works for `budget`."""
        sock = self.sock
        if self._budget is budget and sock is not None:
            # The base class's method: SSLSocket.shutdown would pull the TLS object from under
            # the thread that reads from it.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


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
        for url in {proxy, *(self._environment.get(key) for key in ("http", "https", "all"))}:
            if url:
                self._manager(url)

    def proxy_for(self, url: str) -> str | None:
        """Return the proxy that a request for `url` takes; None = a direct connection."""
        if self._proxy is not None:
            return self._proxy or None
        parts = urllib.parse.urlsplit(url)
        proxy = self._environment.get(parts.scheme) or self._environment.get("all")
        if proxy and _bypassed(parts.hostname or "", self._environment):
            return None
        return proxy

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
            if budget.exceeded:
                raise BudgetExceededError("the time for this clip is used up")
            timeout = min(timeout, budget.remaining)
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
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # The URL may hold a password: name its scheme alone.
            raise UsageError(
                f"a proxy of the kind {parts.scheme!r} is not supported: give an http:// or "
                "https:// proxy in HTTPS_PROXY"
            )
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


def _bypassed(host: str, proxies: Mapping[str, str]) -> bool:
    """Whether ``NO_PROXY`` excludes `host` (suffixes, ``*``, as the standard library reads it)."""
    return bool(urllib.request.proxy_bypass_environment(host, dict(proxies)))  # type: ignore[attr-defined]
