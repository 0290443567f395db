"""The demo: the whole line against the sandbox, on this machine, without a network."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from acavdl.config import Config, Reading, Storage
from acavdl.display import Mode, say
from acavdl.driver import run, tell
from acavdl.sandbox import DEMO_MASTERS, Fault, Sandbox, video_id

_VIDEOS_PER_MASTER = 4
_CLIP_SECONDS = 5.0
_FAULTS = (
    Fault.PRIVATE,
    Fault.REMOVED_UPLOADER,
    Fault.GEO_BLOCKED,
    Fault.AGE_GATED,
    Fault.BOT_CHECK,
    Fault.MEDIA_NOISE,
)


def run_demo(folder: str, progress: Mode) -> int:
    """Make a table, run it, say where things are; return the exit code."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    table, dataset = root / "clips.csv", root / "dataset"
    write_table(table)
    say("Starting the sandbox site (its media are made at the first start) …")
    with Sandbox() as site, environment(site.environ()):
        say(f"Clip table {table} → shards in {dataset}")
        report = run(
            str(table),
            str(dataset),
            config=Config(
                # The rate is for the site: the sandbox has none.
                Reading(timeout=20.0, rate_limit=None),
                Storage(number_sample_per_shard=24),
            ),
            progress=progress,
        )
    code = tell(report)
    say(
        "",
        "Look at it:",
        f"  tar tf {dataset}/00000.tar | head",
        f"  tar xf {dataset}/00000.tar -C /tmp   # and open an .mp4",
        f"  cat {dataset}/00000_stats.json",
    )
    return code


def write_table(path: Path) -> None:
    """Write a clip table: some clips of each of the sandbox's videos, and some that fail."""
    rows = [
        (video_id(number, master=spec.code), start, start + _CLIP_SECONDS)
        for spec in DEMO_MASTERS
        if spec.virtual is None
        for number in range(_VIDEOS_PER_MASTER)
        for start in (0.5 + number, 3.25)
    ]
    rows += [(video_id(1, fault=fault), 2.0, 2.0 + _CLIP_SECONDS) for fault in _FAULTS]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("videoID", "start", "end"))
        writer.writerows(rows)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process (worker processes inherit them) for the time of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
