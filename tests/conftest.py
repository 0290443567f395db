"""What several test modules need: the sandbox site, and datasets made against it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from acavdl.demo import environment
from acavdl.sandbox import Sandbox


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI (``ACAVDL_CI=1``) everything that a test needs is there: a skip is a failure."""
    report = yield
    if os.environ.get("ACAVDL_CI") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report


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
