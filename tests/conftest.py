"""What several test modules need: the sandbox site, and datasets made against it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from acavdl.demo import environment
from acavdl.sandbox import Sandbox


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
