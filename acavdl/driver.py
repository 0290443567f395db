"""The driver: plan, hand the shards to Dask, follow them, say how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any, Literal

import dask.dataframe as dd
import pandas as pd
from distributed import Client, Future, futures_of, get_client

from acavdl import governor, shard
from acavdl.breaker import Terms, shards_open, shares
from acavdl.cluster import PATIENCE, Workers, local_client, process_count
from acavdl.config import CaptionFrom, Config, IncrementalMode, TableOptions, Tracking
from acavdl.display import Display, Mode, planned, refused, say, summary
from acavdl.ending import Ending, ask_to_end
from acavdl.errors import (
    INTERRUPTED,
    AcavdlError,
    ClusterError,
    HeldBackError,
    Outcome,
    ShardError,
    UsageError,
)
from acavdl.estimate import Estimate, estimate
from acavdl.ledger import published_of, read_rows
from acavdl.models import ShardReport
from acavdl.net import Network
from acavdl.nodes import JobShape, allocation_workers, job_shape, slurm_workers
from acavdl.planfile import Plan, ShardPlace, clips_of, empty_shard, read_shard
from acavdl.planning import Made
from acavdl.prepare import Prepared, prepare
from acavdl.progress import TOPIC, RollUp, ShardProgress, Snapshot
from acavdl.removal import finish
from acavdl.resolve import is_youtube
from acavdl.settings import Settings, from_arguments, from_mapping, load, load_sampler
from acavdl.shard import REPORT, Job, process_shard, report_of
from acavdl.slurm import check_commands, check_script
from acavdl.storage import Store
from acavdl.tracking import Tracker
from acavdl.writer import schema_of

logger = logging.getLogger(__name__)

#: The breaker's numbers; rate and patience are settings.
TERMS = Terms()
#: Seconds between two looks at egresses and whether a run is to end, at most.
_LOOK = 0.5
#: Seconds that workers get to save what they have.
_PATIENCE = 30.0
#: Seconds for a task's one row to come; whoever has it may be dead.
_FETCH = 3.0
#: Seconds for a worker to begin anew.
_RESTART = 60.0

#: How many nodes of Slurm: jobs to submit, or those of the job that this process runs in.
Nodes = int | Literal["allocation"]
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
class DryRun:
    """What a run on Slurm would submit.

    Attributes
    ----------
    shards
        Shards that are to be made.
    nodes, processes
        Jobs, and worker processes in each.
    script
        A job's script.
    """

    shards: int
    nodes: int
    processes: int
    script: str


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
    ended
        Why the run has ended before all was made (`max_hours`, `max_bytes`, ``acavdl stop``).
    held_back
        Whether the site held all egresses back for too long: the same call goes on another time.
    """

    output_folder: str
    snapshot: Snapshot
    failed_shards: Mapping[int, str] = field(default_factory=dict)
    made: Made | None = None
    left: int = 0
    ended: str | None = None
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
    places = [place_of(plan.plan, shard) for shard in range(len(plan.plan.sizes))]
    frame = dd.from_map(_clips_of_shard, places, job=job, meta=empty_shard())
    empty = schema_of(job.layout).empty_table().to_pandas(types_mapper=pd.ArrowDtype)
    return frame.map_partitions(_results_of_shard, job, meta=empty)


def _results_of_shard(clips: pd.DataFrame, job: Job) -> pd.DataFrame:
    report = report_of(process_shard(clips, job))
    while report.state == "partial":
        shard.check_going_on()
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
    nodes: Nodes | None = None,
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
        A Dask client to use; None = workers of its own for the time of the run.
    nodes
        Those workers are jobs of Slurm, on so many nodes (`distribution.slurm` says what they ask
        for); ``allocation``: they are on the nodes of the job that this process runs in; None =
        processes on this machine.
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
    tell = tell_of(progress)
    if client is None:
        # What is wrong with certificates or proxies is better said now than by each worker.
        Network(config.reading.ytdlp.get("proxy")).close()
    shape = None if client or nodes is None else _job_shape(call, nodes, tell)
    prepared = _prepare(call, store, progress)
    job = _job(call, prepared, store, call.tmp_dir)
    return make_shards(
        job,
        prepared.plan,
        prepared.made,
        client=client,
        shape=shape,
        nodes=nodes,
        progress=progress,
    )


def make_shards(
    job: Job,
    plan: Plan,
    made: Made | None = None,
    *,
    client: Client | None = None,
    shape: JobShape | None = None,
    nodes: Nodes | None = None,
    progress: Mode = "auto",
) -> RunReport:
    """Make what is missing of a plan, and say how far it is meanwhile.

    Parameters
    ----------
    job
        What the tasks have in common.
    made
        What became of the table's rows, for the report.
    client, nodes, progress
        As for `run`.
    shape
        The job of each of the nodes.
    """
    tell = tell_of(progress)
    config, store, tmp_dir = job.config, job.store, job.tmp_dir
    finish(store)
    done = published_of(store, len(plan.sizes), config.storage.oom_shard_count)
    missing, chosen = _to_make(plan, done, config.reading.sampler)
    with contextlib.ExitStack() as stack:
        workers: Workers | None = None
        cores = process_count(config.distribution.processes_count)
        if client is not None:
            workers = Workers(client, sum(client.nthreads().values()))
        elif chosen and shape:
            shape = _paced(shape, plan, chosen, job)
            on_nodes = (
                allocation_workers(shape, tell)
                if nodes == "allocation"
                else slurm_workers(shape, nodes or 1, len(chosen), tell)
            )
            workers = stack.enter_context(on_nodes)
            # Each job has a folder of its own on its node.
            tmp_dir = None
        elif chosen:
            # Ours to remove, whatever becomes of the workers that use it.
            tmp_dir = stack.enter_context(_scratch(tmp_dir))
            client = stack.enter_context(local_client(min(cores, len(chosen))))
            workers = Workers(client, cores, patience=PATIENCE)
        roll_up = RollUp(plan.sizes, workers.cores if workers else cores, again=plan.again)
        for shard, found in done.items():
            roll_up.add_published(shard, found.counts)
        stack.enter_context(Display(roll_up.snapshot, progress))
        tracker = stack.enter_context(
            Tracker(
                config.tracking if chosen else Tracking(),
                roll_up.snapshot,
                output_folder=str(store),
                config=config.as_dict(),
                tell=tell,
            )
        )
        failed: Mapping[int, str] = {}
        ended: str | None = None
        held_back = False
        if chosen and workers is not None:
            job = replace(job, tmp_dir=tmp_dir, run=_run_id())
            _install_governor(workers.client, config)
            places = [place_of(plan, shard) for shard in chosen]
            ending = Ending(store, config.limits, lambda: roll_up.snapshot().bytes_fetched)
            most = _most_open(plan, chosen, job)
            working = _Working(workers, job, roll_up, tracker, most=most)
            with ending.watched():
                working.work_off(places, ending)
            failed, ended, held_back = working.failed, ending.reason, working.held_back
    left = len(missing) - len(chosen)
    return RunReport(str(store), roll_up.snapshot(), failed, made, left, ended, held_back)


def dry_run(
    url_list: str | None = None,
    output_folder: str | None = None,
    *,
    nodes: int,
    config: ConfigLike = None,
    progress: Mode = "auto",
    **arguments: Any,
) -> DryRun:
    """Do all that `run` does on `nodes` of Slurm before it submits jobs: plan and check.

    Raises
    ------
    AcavdlError
        For what would keep the run from beginning.
    """
    call = _call(config, url_list=url_list, output_folder=output_folder, **arguments)
    shape = _job_shape(call, nodes, tell_of(progress))
    prepared = _prepare(call, call.store, progress)
    plan, storage = prepared.plan, call.config.storage
    done = published_of(call.store, len(plan.sizes), storage.oom_shard_count)
    _, chosen = _to_make(plan, done, call.config.reading.sampler)
    if chosen:
        shape = _paced(shape, plan, chosen, _job(call, prepared, call.store, call.tmp_dir))
    count = shape.nodes_for(len(chosen), nodes)
    return DryRun(len(chosen), count, shape.processes, shape.script())


def job_script(config: ConfigLike = None, tmp_dir: str | None = None) -> str:
    """Return the script that `run` submits for each node, but for the scheduler's address.

    Raises
    ------
    UsageError
        For options in `distribution.slurm` that there are not.
    ClusterError
        If cores or memory are not set and Slurm does not tell them.
    """
    settings = settings_of(config)
    tmp_dir = tmp_dir or settings.call.get("tmp_dir")
    return job_shape(settings.config.distribution.slurm, tmp_dir).script()


def _job_shape(call: _Call, nodes: Nodes, tell: Callable[[str], None]) -> JobShape:
    """Return the job of each node, which Slurm would take; the output folder can be written."""
    check_commands()
    options = call.config.distribution.slurm
    if nodes == "allocation":
        shape = job_shape({"queue": os.environ.get("SLURM_JOB_PARTITION"), **options}, call.tmp_dir)
    else:
        shape = job_shape(options, call.tmp_dir)
        check_script(shape.script())
    try:
        call.store.create()
    except UsageError as error:
        raise ClusterError(str(error)) from error
    if call.config.distribution.processes_count is not None:
        tell("distribution.processes_count is for one machine: a node has a process for each core")
    return shape


def tell_of(progress: Mode) -> Callable[[str], None]:
    """Return what lines for the user go through; nobody reads them with ``quiet`` and ``json``."""
    return (lambda _: None) if progress in ("quiet", "json") else say


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
        tell=tell_of(progress),
    )


def _job(call: _Call, prepared: Prepared, store: Store, tmp_dir: str | None) -> Job:
    captions = prepared.columns.caption, call.table.caption_from
    return job_of(store, call.config, captions, prepared.plan.extra, tmp_dir=tmp_dir)


def job_of(
    store: Store,
    config: Config,
    captions: tuple[str | None, CaptionFrom | None],
    extra: Mapping[str, str],
    *,
    tmp_dir: str | None,
) -> Job:
    """Return what the tasks of a run have in common.

    Parameters
    ----------
    captions
        The column with captions, and what of the site is one in its place.
    extra, tmp_dir
        See `Job`.
    """
    column, of_site = captions
    return Job(
        str(store),
        config,
        captions=any((column, of_site, config.storage.captions_are_subtitles)),
        caption_from=of_site,
        extra=extra,
        tmp_dir=tmp_dir,
        run=_run_id(),
    )


def _run_id() -> str:
    """Return what makes the keys of this run's tasks unlike those of others on the same client."""
    return uuid.uuid4().hex[:12]


def _to_make(plan: Plan, done: Collection[int], sampler: str | None) -> tuple[list[int], list[int]]:
    """Return the shards that are missing, and those of them that this run makes."""
    missing = [shard for shard in range(len(plan.sizes)) if shard not in done]
    return missing, _sampled(missing, sampler)


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


def _paced(shape: JobShape, plan: Plan, chosen: Sequence[int], job: Job) -> JobShape:
    """Return the job of a node, which makes no more shards at once than its address allows.

    Fewer nodes would keep all shards busy by their cores, but each node is an address with a rate.
    """
    most = _most_open(plan, chosen, job) if job.config.reading.egress == "node" else None
    return shape if most is None else replace(shape, at_once=most)


def _most_open(plan: Plan, chosen: Sequence[int], job: Job) -> int | None:
    """Return how many shards may be open behind an egress; None = any number."""
    return shards_open(job.config.reading.rate_limit, _asked_for(place_of(plan, chosen[0]), job))


def _asked_for(place: ShardPlace, job: Job) -> int:
    """Return how many videos of a shard the rate is for; in the others it is much the same."""
    clips = clips_of(read_shard(place, job.store), job.extra)
    return len({clip.video_id for clip in clips if is_youtube(clip.url)})


def place_of(plan: Plan, shard: int) -> ShardPlace:
    """Return where a plan has a shard."""
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
    if report.ended is not None:
        say(f"ended before its end: {report.ended}. The same command goes on")
        return INTERRUPTED
    return ShardError.exit_code if report.failed_shards else 0


def tell_stop(output_folder: str, config: ConfigLike = None) -> int:
    """Ask the run that works on a folder to end in order; say whether it does, return the code.

    Raises
    ------
    AcavdlError
        If there is no dataset, or the store can't be written.
    """
    store = Store(output_folder, settings_of(config).config.storage.options)
    if store.size("_acavdl/run.json") is None:
        raise UsageError(f"there is no dataset in {store}")
    if ask_to_end(store):
        say(f"the run in {store} saves its open shards and ends; the same command goes on")
        return 0
    say(f"no run has answered within a minute: none seems to be at work in {store}")
    return 1


def tell_plan(report: PlanReport) -> int:
    """Say what a plan holds and what it takes; return the exit code."""
    say(planned(report.plan, report.estimate, report.made, report.output_folder))
    return 0


def tell_dry_run(report: DryRun) -> int:
    """Say what a run would submit; return the exit code."""
    say(
        f"{report.shards:,} shards to make: {report.nodes} jobs of {report.processes} processes, "
        "which Slurm would take; nothing is submitted. Each of them:",
        "",
        report.script,
    )
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


class _Working:
    """The shards of a run on their way through Dask.

    Parameters
    ----------
    most
        Shards that may be open behind an egress; None = any number.

    Attributes
    ----------
    failed
        Cause of failure by shard.
    held_back
        Whether the site held all egresses back for too long.
    """

    def __init__(
        self, workers: Workers, job: Job, roll_up: RollUp, tracker: Tracker, *, most: int | None
    ) -> None:
        self._workers, self._client, self._job = workers, workers.client, job
        self._roll_up, self._tracker, self._most = roll_up, tracker, most
        self._waiting: deque[ShardPlace] = deque()
        self._running: dict[Future[Any], tuple[ShardPlace, tuple[str, ...]]] = {}
        self._over: SimpleQueue[Future[Any]] = SimpleQueue()
        self._seen_at = time.monotonic()
        self.failed: dict[int, str] = {}
        self.held_back = False

    def work_off(self, shards: Sequence[ShardPlace], ending: Ending) -> None:
        """Have the shards made, each behind an egress that is open, while there is time."""
        self._waiting.extend(shards)
        with _progress_from(self._client, self._roll_up):
            try:
                while (self._waiting or self._running) and ending.reason is None:
                    self._hand_out()
                    if self.held_back:
                        return
                    self._take_those_over()
                    self._workers.need(len(self._running) + len(self._waiting))
                    self._workers.check()
            except KeyboardInterrupt:
                self._end("interrupted")
                raise
            if ending.reason is not None:
                self._end(ending.reason)

    def _hand_out(self) -> None:
        look = governor.look(self._client)
        self._check_workers(there=any(each.workers for each in look.egresses))
        self._roll_up.egresses(look.egresses)
        self.held_back = look.over and not self._running
        if look.over:
            return
        room = self._job.config.distribution.subjob_size - len(self._running)
        behind = [workers for _, workers in self._running.values()]
        room = min(room, len(self._waiting))
        for workers, count in shares(look.egresses, behind, self._most, room):
            self._submit([self._waiting.popleft() for _ in range(count)], workers)

    def _check_workers(self, *, there: bool) -> None:
        """See that there are workers, or have been a while ago: Dask would wait for ever."""
        now, patience = time.monotonic(), self._workers.patience
        if there:
            self._seen_at = now
        elif patience is not None and now - self._seen_at > patience:
            raise ClusterError(
                f"there has been no worker process for {patience:.0f} s: they end as soon as they "
                "start. What is made is kept"
            )

    def _submit(self, places: Sequence[ShardPlace], workers: tuple[str, ...]) -> None:
        # Where all of these are gone, any other will do.
        frame = self._client.persist(
            shard_frame(places, self._job), workers=list(workers), allow_other_workers=True
        )
        for future, place in zip(futures_of(frame), places, strict=True):
            self._running[future] = (place, workers)
            future.add_done_callback(self._over.put)

    def _take_those_over(self) -> None:
        """Take the tasks that have ended, after at most `_LOOK` seconds without any."""
        with contextlib.suppress(Empty):
            self._take(self._over.get(timeout=_LOOK))
            while True:
                self._take(self._over.get_nowait())

    def _take(self, future: Future[Any]) -> None:
        if future not in self._running:
            # It was given up.
            return
        try:
            report = _report_of(future)
        except TimeoutError:
            # The worker died with it: the task will run again, and end again.
            future.add_done_callback(self._over.put)
            return
        place, _ = self._running.pop(future)
        if report is None:
            self._note_failure(future, place)
        else:
            self._note(report, place)
        future.release()

    def _note(self, report: ShardReport, place: ShardPlace) -> None:
        _take(report, self._roll_up)
        _restart(self._client, report.worn_out)
        if report.state == "partial":
            # Before those that are not begun: its checkpoint is of use.
            self._waiting.appendleft(replace(place, slice=place.slice + 1))
        else:
            self._tracker.shard_finished(report)

    def _note_failure(self, future: Future[Any], place: ShardPlace) -> None:
        error = future.exception() if future.status == "error" else None
        cause = f"{type(error).__name__}: {error}" if error else str(future.status)
        self._roll_up.drop(place.shard)
        if error and place.attempt < self._job.config.distribution.max_shard_retry:
            logger.warning("shard %05d is tried again: %s", place.shard, cause)
            self._waiting.appendleft(replace(place, attempt=place.attempt + 1))
        else:
            self.failed[place.shard] = cause
            logger.error("shard %05d failed: %s", place.shard, cause)

    def _end(self, reason: str) -> None:
        """Have open shards saved; what has not begun never does."""
        logger.warning("%s: open shards are saved (Ctrl-C ends at once)", reason)
        at_work = {key for keys in self._client.processing().values() for key in keys}
        given_up = [future for future in self._running if future.key not in at_work]
        for future in given_up:
            self._running.pop(future)
        self._client.cancel(given_up)
        self._tell_workers(shard.stop)
        end = time.monotonic() + _PATIENCE
        while self._running and time.monotonic() < end:
            self._take_those_over()
        # They may be the user's own, who goes on with them.
        self._tell_workers(shard.go_on)

    def _tell_workers(self, what: Callable[[], None]) -> None:
        """Call a function in all worker processes, not held up by those that hang or are gone."""
        calling = threading.Thread(
            target=self._client.run, args=(what,), kwargs={"on_error": "ignore"}, daemon=True
        )
        calling.start()
        calling.join(_LOOK)


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
