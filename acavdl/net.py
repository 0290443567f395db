"""HTTP for everyone: connections, trust and proxies, all within budgets.

One :class:`Network` holds one TLS context and the kept-alive connections; the extractor's requests
and our own go through it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import ssl
import threading
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import certifi
import urllib3
import urllib3.connection
import urllib3.exceptions
from urllib3.util import Timeout, make_headers
from urllib3.util.ssltransport import SSLTransport

from acavdl.budget import Budget, BudgetExceededError
from acavdl.errors import UsageError

logger = logging.getLogger(__name__)

#: Seconds without a byte before a connection counts as stalled; the budget may be shorter.
SOCKET_TIMEOUT = 20.0
#: Connections kept open per host (one for each thread, at most), and hosts remembered: media hosts
#: are many.
_POOL_SIZE, _POOLS = 256, 64


#: An address whose target needs no quoting (:rfc:`3986`): its beginning, and the target.
_CLEAN = re.compile(r"(https://[^/?#]+)(/[A-Za-z0-9._~!$&'()*+,;=:@/?%-]*)")


class _Targets(threading.local):
    """What the next request of this thread asks for, past urllib3's quoting.

    It goes over each character of an address six times, which takes longer than all else that it
    does for a request: media addresses have a thousand characters, and nothing to quote.
    """

    target: str | None = None

    def take(self) -> str | None:
        target, self.target = self.target, None
        return target


_targets = _Targets()


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

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        budget = self._join_budget()
        if budget is not None:
            budget.requests += 1
        super().request(method, _targets.take() or url, *args, **kwargs)

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
        manager = self._manager(self.proxy_for(url))
        url, _targets.target = _shortened(url)
        try:
            return manager.urlopen(
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
        finally:
            _targets.target = None

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


def _shortened(url: str) -> tuple[str, str | None]:
    """Return an address without what is asked for, and that; None where it has to be quoted."""
    # Over plain HTTP a proxy is asked by the whole address. Dots may have to be resolved.
    found = _CLEAN.fullmatch(url)
    return (url, None) if found is None or "/." in url else (f"{found[1]}/", found[2])


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
