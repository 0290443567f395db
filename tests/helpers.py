"""What the tests share that is no fixture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from acavdl.config import Config, Distribution, Reading, Storage

#: Where the fault needs a deadline to end, it is this one (seconds per clip).
TIMEOUT = 8.0

QUICK = Config(
    Reading(timeout=TIMEOUT, retries=1, rate_limit=None),
    Storage(number_sample_per_shard=40),
    Distribution(processes_count=2, thread_count=16),
)


def write_csv(
    path: Path,
    rows: Sequence[tuple[object, ...]],
    header: Sequence[str] = ("videoID", "start", "end"),
) -> Path:
    """Write a clip table."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
