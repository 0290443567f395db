"""Whether this machine reaches a Dask scheduler: the first thing that a job does on its node.

Run as ``python -m acavdl.reach ADDRESS``; a worker would wait for minutes and say less.
"""

from __future__ import annotations

import socket
import sys
from urllib.parse import urlsplit

#: Seconds that the scheduler gets to answer.
_PATIENCE = 15.0


def unreachable(address: str) -> str | None:
    """Return why `address` (``tcp://host:port``) can't be reached from here; None if it can."""
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname, parts.port), _PATIENCE).close()
    except OSError as error:
        return (
            f"{socket.gethostname()} does not reach the scheduler at {address} ({error}): set "
            "scheduler_options and interface in distribution.slurm to a network that both share"
        )
    return None


if __name__ == "__main__":
    sys.exit(unreachable(sys.argv[1]))
