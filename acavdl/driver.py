"""The driver: plan, hand the shards to Dask, follow them, say how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import tempfile
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask.dataframe as dd
import pandas as pd
from distributed import Client, Future, futures_of, get_client

from acavdl import governor
from acavdl.breaker import Terms, shards_open, shares
from acavdl.cluster import local_client, process_count
from acavdl.config import Config, IncrementalMode, TableOptions, Tracking
from acavdl.display import Display, Mode, planned, refused, say, summary
from acavdl.errors import AcavdlError, HeldBackError, Outcome, ShardError, UsageError
from acavdl.estimate import Estimate, estimate
from acavdl.ledger import published_of, read_rows
from acavdl.models import ShardReport
from acavdl.net import Network
from acavdl.planfile import Plan, ShardPlace, clips_of, empty_shard, read_shard
from acavdl.planning import Made
from acavdl.prepare import Prepared, prepare
from acavdl.progress import TOPIC, RollUp, ShardProgress, Snapshot
from acavdl.resolve import is_youtube
from acavdl.settings import Settings, from_arguments, from_mapping, load, load_sampler
from acavdl.shard import REPORT, Job, process_shard, report_of
from acavdl.storage import Store
from acavdl.tracking import Tracker
from acavdl.writer import schema_of

logger = logging.getLogger(__name__)

#: The breaker's numbers; rate and patience are settings.
TERMS = Terms()
#: Seconds between two looks at the egresses, at most.
_LOOK = 1.0
#: Seconds for a task's one row to come; whoever has it may be dead.
_FETCH = 3.0
#: Seconds for a worker to begin anew.
_RESTART = 60.0

#: What `config` may be: settings, the path of a YAML file, or what one holds.
ConfigLike = Config | Settings | str | os.PathLike[str] | Mapping[str, Any] | None


@dataclass(frozen=True)
class PlanReport:
    """A plan in its folder.

    Attributes
    ----------
    plan
        Clips, videos and shards.
    estimate
        What making all of it takes.
    job
        What the tasks that make it have in common.
    made
        What became of the table's rows; None if the plan was there.
    """

    output_folder: str
    plan: Plan
    estimate: Estimate
    job: Job
    made: Made | None = None


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Attributes
    ----------
    snapshot
        All clips of the plan, those of earlier runs included.
    failed_shards
        Cause of failure (storage, a bug) by shard; they are made by the next run.
    made
        What became of the table's rows; None if the plan was there.
    left
        Shards that `reading.sampler` left for another run.
    held_back
        Whether the site held all egresses back for too long: the same call goes on another time.
    """

    output_folder: str
    snapshot: Snapshot
    failed_shards: Mapping[int, str] = field(default_factory=dict)
    made: Made | None = None
    left: int = 0
    held_back: bool = False

    @property
    def successes(self) -> int:
        """Clips in the tars."""
        return self.snapshot.counts.get(Outcome.OK, 0)


def plan(
    url_list: str | None = None,
    output_folder: str | None = None,
    *,
    config: ConfigLike = None,
    progress: Mode = "auto",
    **arguments: Any,
) -> PlanReport:
    """Plan the dataset of a clip table: which clip stands in which shard; nothing is fetched.

    Parameters
    ----------
    url_list, output_folder, config, **arguments
        As for `run`.
    progress
        ``quiet``: nothing is said.

    Raises
    ------
    AcavdlError
        For a table that can't be used, or a folder that holds something else.
    """
    call = _call(config, url_list=url_list, output_folder=output_folder, **arguments)
    prepared = _prepare(call, call.store, progress)
    return PlanReport(
        str(call.store),
        prepared.plan,
        estimate(prepared.plan, call.config),
        _job(call, prepared, call.store, call.tmp_dir),
        prepared.made,
    )


def download(plan: PlanReport, client: Client | None = None) -> Any:
    """Return the clips of a plan as a lazy Dask dataframe: computing it makes the shards.

    A partition is a shard: what its parquet says, a row per clip. A shard that is published is read
    and not made again, so that computing, persisting or slicing the frame does the work once.

    Parameters
    ----------
    plan
        What `acavdl.plan` returned.
    client
        A Dask client whose workers do the work; None = the current one.

    Returns
    -------
    dask.dataframe.DataFrame
        The columns of `acavdl.writer`'s parquet.

    Raises
    ------
    UsageError
        Without a client.
    """
    if client is None:
        try:
            client = get_client()
        except ValueError as error:
            raise UsageError(
                "acavdl.download works on a Dask client: begin with distributed.Client()"
            ) from error
    job = replace(plan.job, run=_run_id(), hands_back=False)
    _install_governor(client, job.config)
    places = [_place(plan.plan, shard) for shard in range(len(plan.plan.sizes))]
    frame = dd.from_map(_clips_of_shard, places, job=job, meta=empty_shard())
    empty = schema_of(job.layout).empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    return frame.map_partitions(_results_of_shard, job, meta=empty)


def _results_of_shard(clips: pd.DataFrame, job: Job) -> pd.DataFrame:
    report = report_of(process_shard(clips, job))
    while report.state == "partial":
        if report.held_back:
            raise HeldBackError("the site refuses this address; compute the frame another time")
        report = report_of(process_shard(clips, job))
    return read_rows(job.store, report.shard, job.config.storage.oom_shard_count)


def run(
    url_list: str | None = None,
    output_folder: str | None = None,
    *,
    config: ConfigLike = None,
    client: Client | None = None,
    progress: Mode = "auto",
    **arguments: Any,
) -> RunReport:
    """Make the dataset of a clip table, or what is missing of it.

    Parameters
    ----------
    url_list
        A file, a folder or a glob, on any file system of fsspec: csv, tsv, json, jsonl, parquet or
        txt (whole videos), in one of the known layouts or with columns named below.
    output_folder
        Where the shards go: a path or a URL. A folder that holds part of the same dataset is
        completed.
    config
        Settings: a `Config`, the path of a YAML file, or a mapping as the file holds it; what it
        says of the call's arguments holds where they are not given. None = the defaults.
    client
        A Dask client to use; None = workers on this machine for the time of the run.
    progress
        ``auto``, ``plain``, ``json`` or ``quiet``.
    **arguments
        The fields of `acavdl.config.TableOptions` (``url_col``, ``clip_col``, ``caption_col``, …),
        and ``incremental_mode`` (``incremental``; ``extend``: what a larger table has besides
        becomes new shards; ``overwrite``: what is there is removed), ``tmp_dir`` (local folder for
        media on their way), ``output_format``, ``encode_formats``, ``enable_wandb``,
        ``wandb_project``, ``max_shard_retry``.

    Raises
    ------
    AcavdlError
        For what keeps the run from beginning; failures of clips are data.
    """
    call = _call(config, url_list=url_list, output_folder=output_folder, **arguments)
    config, store = call.config, call.store
    if client is None:
        # What is wrong with certificates or proxies is better said now than by each worker.
        Network(config.reading.ytdlp.get("proxy")).close()
    prepared = _prepare(call, store, progress)
    plan, tmp_dir = prepared.plan, call.tmp_dir
    done = published_of(store, len(plan.sizes), config.storage.oom_shard_count)
    missing = [shard for shard in range(len(plan.sizes)) if shard not in done]
    chosen = _sampled(missing, config.reading.sampler)
    with contextlib.ExitStack() as stack:
        cores = process_count(config.distribution.processes_count)
        if chosen and client is None:
            # Ours to remove, whatever becomes of the workers that use it.
            tmp_dir = stack.enter_context(_scratch(tmp_dir))
            client = stack.enter_context(local_client(min(cores, len(chosen))))
        elif client is not None:
            cores = sum(client.nthreads().values())
        roll_up = RollUp(plan.sizes, cores)
        for shard, found in done.items():
            roll_up.add_published(shard, found.counts)
        stack.enter_context(Display(roll_up.snapshot, progress))
        tracker = stack.enter_context(
            Tracker(
                config.tracking if chosen else Tracking(),
                roll_up.snapshot,
                output_folder=str(store),
                config=config.as_dict(),
                tell=(lambda _: None) if progress in ("quiet", "json") else say,
            )
        )
        failed: dict[int, str] = {}
        held_back = False
        if chosen and client is not None:
            job = _job(call, prepared, store, tmp_dir)
            _install_governor(client, config)
            places = [_place(plan, shard) for shard in chosen]
            most = shards_open(config.reading.rate_limit, _asked_for(places[0], job))
            failed, held_back = _work_off(client, places, job, roll_up, tracker, most=most)
    left = len(missing) - len(chosen)
    return RunReport(
        str(store), roll_up.snapshot(), failed, prepared.made, left, held_back=held_back
    )


@dataclass(frozen=True)
class _Call:
    """The arguments of a call, those of its settings included."""

    table: TableOptions
    output_folder: str
    config: Config
    incremental_mode: IncrementalMode
    tmp_dir: str | None

    @property
    def store(self) -> Store:
        """The output folder."""
        return Store(self.output_folder, self.config.storage.options)


def _call(config: ConfigLike, **given: Any) -> _Call:
    settings = from_arguments(settings_of(config), given)
    call = dict(settings.call)
    for name in ("url_list", "output_folder"):
        if not call.get(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{name} is missing: give {option}, or set it in acavdl.yaml")
    if settings.config.reading.rate_limit is None:
        logger.warning("no limit on the rate: the site may block this address")
    output_folder = call.pop("output_folder")
    mode: IncrementalMode = call.pop("incremental_mode", "incremental")
    tmp_dir = call.pop("tmp_dir", None)
    return _Call(TableOptions(**call), output_folder, settings.config, mode, tmp_dir)


def settings_of(config: ConfigLike) -> Settings:
    """Return the settings that `config` stands for."""
    if config is None:
        return Settings({}, Config())
    if isinstance(config, Settings):
        return config
    if isinstance(config, Config):
        return Settings({}, config)
    if isinstance(config, str | os.PathLike):
        return load(os.fspath(config))
    return from_mapping(config)


def _prepare(call: _Call, store: Store, progress: Mode) -> Prepared:
    return prepare(
        store,
        call.table,
        call.config,
        mode=call.incremental_mode,
        tmp_dir=call.tmp_dir,
        tell=(lambda _: None) if progress in ("quiet", "json") else say,
    )


def _job(call: _Call, prepared: Prepared, store: Store, tmp_dir: str | None) -> Job:
    captions = (
        prepared.columns.caption is not None
        or call.table.caption_from is not None
        or call.config.storage.captions_are_subtitles
    )
    return Job(
        str(store),
        call.config,
        captions=captions,
        caption_from=call.table.caption_from,
        extra=prepared.plan.extra,
        tmp_dir=tmp_dir,
        run=_run_id(),
    )


def _run_id() -> str:
    """Return what makes the keys of this run's tasks unlike those of others on the same client."""
    return uuid.uuid4().hex[:12]


def _sampled(missing: list[int], sampler: str | None) -> list[int]:
    """Return the shards that this run makes: those that `reading.sampler` picks, in its order."""
    if sampler is None:
        return missing
    returned = load_sampler(sampler)(list(missing))
    if not isinstance(returned, Iterable) or isinstance(returned, str):
        raise UsageError(f"reading.sampler: {sampler} returned {returned!r}, which is no list")
    chosen = list(dict.fromkeys(returned))
    strange = sorted(set(chosen) - set(missing), key=str)
    if strange:
        raise UsageError(f"reading.sampler: {sampler} returned {strange[:5]}, which is not missing")
    return chosen


def _asked_for(place: ShardPlace, job: Job) -> int:
    """Return how many videos of a shard the rate is for; in the others it is much the same."""
    clips = clips_of(read_shard(place, job.store), job.extra)
    return len({clip.video_id for clip in clips if is_youtube(clip.url)})


def _place(plan: Plan, shard: int) -> ShardPlace:
    return ShardPlace(shard, *plan.place(shard))


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
    say(
        *summary(
            report.snapshot, report.output_folder, report.failed_shards, report.made, report.left
        )
    )
    if report.held_back:
        say(refused(report.snapshot))
        return HeldBackError.exit_code
    return ShardError.exit_code if report.failed_shards else 0


def tell_plan(report: PlanReport) -> int:
    """Say what a plan holds and what it takes; return the exit code."""
    say(planned(report.plan, report.estimate, report.made, report.output_folder))
    return 0


def shard_frame(shards: Sequence[ShardPlace], job: Job) -> Any:
    """Return the lazy Dask dataframe of these shards: a partition each, a report each.

    ``from_map`` keeps a partition a shard (``read_parquet`` would merge small ones).
    """
    frame = dd.from_map(_clips_of_shard, shards, job=job, meta=empty_shard())
    if frame.npartitions != len(shards):
        raise AcavdlError(f"{len(shards)} shards became {frame.npartitions} partitions of Dask")
    return frame.map_partitions(process_shard, job, meta=REPORT)


def _clips_of_shard(place: ShardPlace, job: Job) -> pd.DataFrame:
    return read_shard(place, job.store)


def _work_off(
    client: Client,
    shards: Sequence[ShardPlace],
    job: Job,
    roll_up: RollUp,
    tracker: Tracker,
    *,
    most: int | None,
) -> tuple[dict[int, str], bool]:
    """Have the shards made, each behind an egress that is open.

    Parameters
    ----------
    most
        Shards that may be open behind an egress; None = any number.

    Returns
    -------
    dict of int to str, bool
        Causes of failure by shard, and whether the site held all egresses back for too long.
    """
    failed: dict[int, str] = {}
    waiting = deque(shards)
    running: dict[Future[Any], tuple[ShardPlace, tuple[str, ...]]] = {}
    ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    with _progress_from(client, roll_up):
        while waiting or running:
            look = governor.look(client)
            roll_up.egresses(look.egresses)
            if look.over and not running:
                return failed, True
            room = 0 if look.over else job.config.distribution.subjob_size - len(running)
            behind = [workers for _, workers in running.values()]
            for workers, count in shares(look.egresses, behind, most, min(room, len(waiting))):
                places = [waiting.popleft() for _ in range(count)]
                for future, place in _submit(client, places, job, workers).items():
                    running[future] = (place, workers)
                    future.add_done_callback(ended.put)
            for future in list(_ended(ended)):
                try:
                    report = _report_of(future)
                except TimeoutError:
                    # The worker died with it: the task will run again, and end again.
                    future.add_done_callback(ended.put)
                    continue
                place, _ = running.pop(future)
                if report is not None:
                    _take(report, roll_up)
                    _restart(client, report.worn_out)
                    if report.state == "partial":
                        # Before those that are not begun: its checkpoint is of use.
                        waiting.appendleft(replace(place, slice=place.slice + 1))
                    else:
                        tracker.shard_finished(report)
                else:
                    error = future.exception() if future.status == "error" else None
                    cause = f"{type(error).__name__}: {error}" if error else str(future.status)
                    roll_up.drop(place.shard)
                    if error and place.attempt < job.config.distribution.max_shard_retry:
                        logger.warning("shard %05d is tried again: %s", place.shard, cause)
                        waiting.appendleft(replace(place, attempt=place.attempt + 1))
                    else:
                        failed[place.shard] = cause
                        logger.error("shard %05d failed: %s", place.shard, cause)
                future.release()
    return failed, False


def _report_of(future: Future[Any]) -> ShardReport | None:
    """Return what a task has brought; None if it failed.

    Raises
    ------
    TimeoutError
        If it can't be had now.
    """
    if future.status in ("lost", "pending"):
        raise TimeoutError
    return report_of(future.result(_FETCH)) if future.status == "finished" else None


def _restart(client: Client, worker: str) -> None:
    """Have a worker begin anew whose threads hang, if there is one: its shard is in checkpoints."""
    if not worker:
        return
    logger.warning("many threads of %s hang: it begins anew", worker)
    try:
        client.restart_workers([worker], timeout=_RESTART, raise_for_error=False)
    except ValueError:
        # Nobody is there who could start another process, or it is gone already.
        logger.warning("worker %s can't be started again", worker)


def _ended(ended: queue.SimpleQueue[Future[Any]]) -> Iterator[Future[Any]]:
    """Yield the tasks that have ended, after at most `_LOOK` seconds without any."""
    with contextlib.suppress(queue.Empty):
        yield ended.get(timeout=_LOOK)
        while True:
            yield ended.get_nowait()


def _submit(
    client: Client, places: Sequence[ShardPlace], job: Job, workers: Sequence[str]
) -> dict[Future[Any], ShardPlace]:
    # Where all of these are gone, any other will do.
    frame = client.persist(
        shard_frame(places, job), workers=list(workers), allow_other_workers=True
    )
    return dict(zip(futures_of(frame), places, strict=True))


def _install_governor(client: Client, config: Config) -> None:
    reading = config.reading
    terms = replace(TERMS, per_hour=reading.rate_limit, give_up_after=reading.give_up_after)
    governor.install(client, terms, cluster=reading.egress == "cluster")


def _take(report: ShardReport, roll_up: RollUp) -> None:
    progress = ShardProgress(
        report.shard, report.host, Counter(report.counts), report.bytes_fetched
    )
    roll_up.update(progress, finished=report.state != "partial")


@contextlib.contextmanager
def _progress_from(client: Client, roll_up: RollUp) -> Iterator[None]:
    """Feed the roll-up with what workers log while their shards are open."""

    def take(event: tuple[float, Mapping[str, Any]]) -> None:
        roll_up.update(ShardProgress.from_message(event[1]))

    client.subscribe_topic(TOPIC, take)
    try:
        yield
    finally:
        client.unsubscribe_topic(TOPIC)
