"""What several test modules need: the sandbox site, and datasets made against it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import fsspec
import pytest
import s3
from distributed import Client, LocalCluster

from acavdl.demo import environment
from acavdl.sandbox import Sandbox

VARIABLES = (
    *("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("https_proxy", "http_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """The sandbox site, for the whole session."""
    with Sandbox() as site:
        yield site


@pytest.fixture
def online(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The sandbox site, and this process's environment set to reach it."""
    with environment(sandbox.environ()):
        yield sandbox


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of an S3 server, for the whole session."""
    with s3.s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket, and this process's environment set to reach it."""
    for name, value in s3.environ(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3", endpoint_url=s3_endpoint, skip_instance_cache=True).mkdir(name)
    return name


@pytest.fixture
def client() -> Iterator[Client]:
    """As in a notebook: workers in this process."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no certificates from the machine's environment."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
