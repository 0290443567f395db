"""The driver: plan, hand the shards to Dask, follow them, say how it ended."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.dataframe as dd
import pandas as pd
from distributed import Client, as_completed, futures_of

from acavdl import governor
from acavdl.cluster import local_client, process_count
from acavdl.config import Config
from acavdl.display import Display, Mode, say, summary
from acavdl.errors import AcavdlError, Outcome, ShardError, UsageError
from acavdl.ledger import check_manifest, plan_of, published, read_manifest, write_manifest
from acavdl.models import ShardReport
from acavdl.net import Network
from acavdl.plan import SCHEMA, Plan, check_plan, number_clips, read_shard, write_plan
from acavdl.progress import TOPIC, RollUp, ShardProgress, Snapshot
from acavdl.shard import REPORT, Job, process_shard, report_of
from acavdl.storage import Store
from acavdl.tables import Rejected, read_table, table_digest

logger = logging.getLogger(__name__)

_CLIP_TYPES = {
    "video_id": "object",
    "url": "object",
    "start_ms": "int64",
    "end_ms": "int64",
    "caption": "object",
    "shard": "int32",
    "row": "int32",
}


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes
    ----------
    snapshot
        All clips of the plan, those of earlier runs included.
    failed_shards
        Cause of failure (storage, a bug) by shard; they are made by the next run.
    rejected
        Rows of the table that could not be used (only when the plan was made by this run).
    duplicates
        Rows left out because an earlier one asks for the same span of the same video.
    resumed
        Whether the folder held the plan already.
    """

    output_folder: str
    snapshot: Snapshot
    failed_shards: Mapping[int, str] = field(default_factory=dict)
    rejected: Sequence[Rejected] = ()
    duplicates: int = 0
    resumed: bool = False

    @property
    def successes(self) -> int:
        """Clips in the tars."""
        return self.snapshot.counts.get(Outcome.OK, 0)


def run(
    url_list: str,
    output_folder: str,
    *,
    config: Config | None = None,
    url_col: str | None = None,
    clip_col: str | None = None,
    caption_col: str | None = None,
    tmp_dir: str | None = None,
    client: Client | None = None,
    progress: Mode = "auto",
) -> RunReport:
    """Make the dataset of a clip table, or what is missing of it.

    Parameters
    ----------
    url_list
        A csv or parquet file with ``videoID, start, end`` (seconds), or a link and ``clips``.
    output_folder
        Where the shards go; a folder that holds part of the same dataset is completed.
    config
        Settings; None = the defaults.
    url_col, clip_col, caption_col
        Names of columns, where they are not the usual ones.
    tmp_dir
        Local folder for media on their way; None = the system's.
    client
        A Dask client to use; None = workers on this machine for the time of the run.
    progress
        ``auto``, ``plain``, ``json`` or ``quiet``.

    Raises
    ------
    AcavdlError
        For what keeps the run from beginning; failures of clips are data.
    """
    config = config or Config()
    store = Store(output_folder)
    if client is None:
        # What is wrong with certificates or proxies is better said now than by each worker.
        Network(config.reading.ytdlp.get("proxy")).close()
    columns = {"url_col": url_col, "clip_col": clip_col, "caption_col": caption_col}
    prepared = prepare(store, url_list, columns, config)
    plan = prepared.plan
    done = {
        shard: found
        for shard in range(len(plan.sizes))
        if (found := published(store, shard)) is not None
    }
    missing = [shard for shard in range(len(plan.sizes)) if shard not in done]
    with contextlib.ExitStack() as stack:
        cores = process_count(config.distribution.processes_count)
        if missing and client is None:
            # Ours to remove, whatever becomes of the workers that use it.
            tmp_dir = stack.enter_context(_scratch(tmp_dir))
            client = stack.enter_context(local_client(min(cores, len(missing))))
        elif client is not None:
            cores = sum(client.nthreads().values())
        roll_up = RollUp(plan.sizes, cores)
        for shard, found in done.items():
            roll_up.add_published(shard, found.counts)
        stack.enter_context(Display(roll_up.snapshot, progress))
        failed: dict[int, str] = {}
        if missing and client is not None:
            job = Job(str(store), config, captions=caption_col is not None, tmp_dir=tmp_dir)
            governor.install(client, config.reading.rate_limit)
            failed = _work_off(client, missing, job, roll_up)
    return RunReport(
        str(store),
        roll_up.snapshot(),
        failed,
        prepared.rejected,
        prepared.duplicates,
        prepared.resumed,
    )


@contextlib.contextmanager
def _scratch(parent: str | None) -> Iterator[str]:
    """Make a folder for media on their way, and remove it with all that workers left in it."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="acavdl-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise UsageError(f"cannot write to --tmp-dir {parent}: {error.strerror}") from error
    with folder as name:
        yield name


def tell(report: RunReport) -> int:
    """Say how the run ended, and return the exit code: clip failures are data, lost shards not."""
    for row in report.rejected[:5]:
        say(f"row {row.row} of the table is not used: {row.reason} ({row.value})")
    if report.duplicates:
        say(f"{report.duplicates:,} clips stand in the table more than once: the first one counts")
    say(*summary(report.snapshot, report.output_folder, report.failed_shards, len(report.rejected)))
    return ShardError.exit_code if report.failed_shards else 0


@dataclass(frozen=True)
class Prepared:
    """A plan, and what was learnt when it was made (nothing, if it was there)."""

    plan: Plan
    rejected: tuple[Rejected, ...] = ()
    duplicates: int = 0
    resumed: bool = False


def prepare(
    store: Store, url_list: str, columns: Mapping[str, str | None], config: Config
) -> Prepared:
    """Return the folder's plan, made now if it is new.

    Raises
    ------
    AcavdlError
        For a table that can't be used, or a folder that holds something else.
    """
    source = {"table_sha256": table_digest(url_list), **columns}
    store.create()
    store.sweep()
    manifest = read_manifest(store)
    if manifest is not None:
        check_manifest(store, manifest, {**source, **config.fingerprint()})
        plan = plan_of(manifest)
        check_plan(store, plan)
        return Prepared(plan, resumed=True)
    table = read_table(url_list, **columns)
    numbered = number_clips(table.clips, config.storage.number_sample_per_shard)
    plan = write_plan(store, numbered)
    write_manifest(store, plan, {"url_list": url_list, **source}, config)
    return Prepared(plan, table.rejected, duplicates=len(table.clips) - plan.clips)


def shard_frame(shards: Sequence[int], job: Job) -> Any:
    """Return the lazy Dask dataframe of these shards: a partition each, a report each.

    ``from_map`` keeps a partition a shard (``read_parquet`` would merge small ones).
    """
    clips = pd.DataFrame({name: pd.Series(dtype=_CLIP_TYPES[name]) for name in SCHEMA.names})
    frame = dd.from_map(read_shard, shards, output_folder=job.output_folder, meta=clips)
    if frame.npartitions != len(shards):
        raise AcavdlError(f"{len(shards)} shards became {frame.npartitions} partitions of Dask")
    return frame.map_partitions(process_shard, job, meta=REPORT)


def _work_off(client: Client, shards: Sequence[int], job: Job, roll_up: RollUp) -> dict[int, str]:
    """Have the shards made, `subjob_size` at a time; return causes of failure by shard."""
    failed: dict[int, str] = {}
    size = job.config.distribution.subjob_size
    with _progress_from(client, roll_up):
        for begin in range(0, len(shards), size):
            batch = shards[begin : begin + size]
            futures = futures_of(client.persist(shard_frame(batch, job)))
            numbers = {future.key: shard for future, shard in zip(futures, batch, strict=True)}
            for future in as_completed(futures, raise_errors=False):
                shard = numbers[future.key]
                if future.status == "finished":
                    _take(report_of(future.result()), roll_up)
                else:
                    error = future.exception() if future.status == "error" else None
                    roll_up.drop(shard)
                    failed[shard] = f"{type(error).__name__}: {error}" if error else future.status
                    logger.error("shard %05d failed: %s", shard, failed[shard])
                future.release()
    return failed


def _take(report: ShardReport, roll_up: RollUp) -> None:
    progress = ShardProgress(
        report.shard, report.host, Counter(report.counts), report.bytes_fetched
    )
    roll_up.update(progress, finished=True)


@contextlib.contextmanager
def _progress_from(client: Client, roll_up: RollUp) -> Iterator[None]:
    """Feed the roll-up with what workers log while their shards are open."""

    def take(event: tuple[float, Mapping[str, Any]]) -> None:
        roll_up.update(ShardProgress.from_message(event[1]))

    def hold_back(event: tuple[float, Mapping[str, Any]]) -> None:
        roll_up.hold_back(event[1]["egress"], event[1]["seconds"])

    handlers = {TOPIC: take, governor.TOPIC: hold_back}
    for topic, handler in handlers.items():
        client.subscribe_topic(topic, handler)
    try:
        yield
    finally:
        for topic in handlers:
            client.unsubscribe_topic(topic)
