"""What comes after a run: what failed, once more, whether all is whole, and what is to go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from distributed import Client, as_completed

from acavdl.checks import Checked, check_shard
from acavdl.cluster import local_client, process_count
from acavdl.config import Config
from acavdl.display import Mode, failures_table, say, write_out
from acavdl.driver import (
    ConfigLike,
    RunReport,
    job_of,
    make_shards,
    place_of,
    settings_of,
    tell_of,
)
from acavdl.errors import Outcome, Retry, ShardError, StorageError, UsageError
from acavdl.idlists import read_ids, video_ids
from acavdl.ledger import (
    Published,
    check_manifest,
    plan_of,
    published_of,
    read_manifest,
    shard_name,
    unpublish,
    write_plan,
)
from acavdl.planfile import Plan, ShardPlace, check_plan
from acavdl.planning import plan_again
from acavdl.removal import finish, remember, remove_from, removed_ids, shards_with
from acavdl.results import (
    TOMBSTONES,
    Failures,
    failed_rows,
    schema_of_table,
    table_of,
    to_retry,
    tombstones_of,
)
from acavdl.settings import changed, from_record
from acavdl.shard import Job
from acavdl.storage import Store, open_output
from acavdl.writer import schema_of

#: Outcomes that may end otherwise another time.
TRANSIENT = frozenset(o.value for o in Outcome if o.retry is not Retry.NEVER)


@dataclass(frozen=True)
class Folder:
    """A dataset that is there.

    Attributes
    ----------
    manifest
        What ``run.json`` holds.
    config
        The settings to go on with.
    """

    store: Store
    manifest: dict[str, Any]
    plan: Plan
    config: Config

    @property
    def digits(self) -> int:
        """Digits of shard numbers in file names, at least."""
        return self.config.storage.oom_shard_count

    @property
    def whole(self) -> bool:
        """Whether videos were wanted as a whole, or for their subtitles."""
        return not self.plan.seconds

    def published(self) -> dict[int, Published]:
        """Return the published shards."""
        return published_of(self.store, len(self.plan.sizes), self.digits)

    def job(self, tmp_dir: str | None = None) -> Job:
        """Return what the tasks that go on with it have in common."""
        source = self.manifest["source"]
        captions = source.get("caption_col"), source.get("caption_from")
        return job_of(self.store, self.config, captions, self.plan.extra, tmp_dir=tmp_dir)


def open_folder(
    output_folder: str, config: ConfigLike = None, settings: Mapping[str, Any] | None = None
) -> Folder:
    """Return the dataset in a folder.

    Parameters
    ----------
    config
        As for `acavdl.run`: what changes the plan or the bytes of samples must be as it was. None =
        the settings that the dataset was made with, but for options of yt-dlp and of the store,
        which are not recorded.
    settings
        What is set otherwise, by the names that a file has.

    Raises
    ------
    UsageError
        If there is none.
    PlanMismatchError
        If the settings are those of another one.
    StorageError
        If it can't be read, or its plan was changed.
    """
    given = settings_of(config).config
    store = Store(output_folder, given.storage.options)
    manifest = read_manifest(store)
    if manifest is None:
        raise UsageError(f"{store} holds no dataset of acavdl (no _acavdl/run.json)")
    if config is None:
        given = from_record(manifest["config"])
    given = changed(given, settings or {})
    check_manifest(store, manifest, given.fingerprint())
    plan = plan_of(manifest)
    check_plan(store, plan)
    return Folder(store, manifest, plan, given)


def _known(outcomes: Collection[str]) -> frozenset[str]:
    known = {outcome.value for outcome in Outcome} - {Outcome.OK.value}
    if strange := sorted(set(outcomes) - known):
        raise UsageError(f"no outcome of a failure: {', '.join(strange)} (see docs/outcomes.md)")
    return frozenset(outcomes)


# --- failures ----------------------------------------------------------------------------------


def failures(
    output_folder: str,
    *,
    outcomes: Collection[str] = (),
    export: str | None = None,
    tombstones: str | None = None,
    config: ConfigLike = None,
) -> Failures:
    """Return which clips failed, and how; a clip that was retried counts by its last outcome.

    Parameters
    ----------
    outcomes
        Only these; none = all.
    export
        A csv or parquet to write with a row for each of them: a table for `acavdl.run`.
    tombstones
        A csv or parquet to write with the videos that are dead for good, for ``tombstones`` of
        `acavdl.run`.
    config
        See `open_folder`.

    Raises
    ------
    AcavdlError
        If the dataset can't be read, or a file can't be written.
    """
    wanted = _known(outcomes)
    folder = open_folder(output_folder, config)
    done = folder.published()
    # With subtitles each row made of a video counts, else each clip of the plan once.
    clips = sum(found.count for found in done.values())
    clips -= sum(sum(part.sizes[n] for n in _among(part.shards(), done)) for part in _again(folder))
    found = Failures(str(folder.store), clips, len(folder.plan.sizes), len(done))
    buried: set[str] = set()
    with contextlib.ExitStack() as stack:
        columns = schema_of(folder.job().layout)
        schema = schema_of_table(columns, whole=folder.whole)
        write = stack.enter_context(_table_writer(export, schema))
        bury = stack.enter_context(_table_writer(tombstones, TOMBSTONES))
        for rows in failed_rows(folder.store, folder.plan, done, wanted, folder.digits):
            found.add(rows)
            if export is not None:
                write(table_of(rows, whole=folder.whole))
            if tombstones is not None:
                dead = tombstones_of(rows)
                fresh = [video not in buried for video in dead["video_id"].to_pylist()]
                buried.update(dead["video_id"].to_pylist())
                bury(dead.filter(pa.array(fresh, pa.bool_())))
    return found


def _again(folder: Folder) -> list[Any]:
    return [part for part in folder.plan.parts if part.again]


def _among(shards: range, done: Collection[int]) -> list[int]:
    """Return the places of those of `shards` that are in `done`."""
    return [place for place, shard in enumerate(shards) if shard in done]


@contextlib.contextmanager
def _table_writer(url: str | None, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends tables to a csv or a parquet, by the end of its name."""
    if url is None:
        yield lambda _: None
        return
    kind = PurePosixPath(url).suffix
    if kind not in (".csv", ".parquet"):
        raise UsageError(f"{url}: a table that is written ends in .csv or .parquet")
    make = pa.csv.CSVWriter if kind == ".csv" else pq.ParquetWriter
    with open_output(url) as file, make(file, schema) as writer:
        yield lambda table: writer.write_table(table.cast(schema))


def tell_failures(found: Failures, *, as_json: bool = False) -> int:
    """Say what failed, on stdout; return the exit code."""
    write_out(orjson.dumps(found.as_dict()).decode() if as_json else failures_table(found))
    return 0


# --- retry -------------------------------------------------------------------------------------


def retry(
    output_folder: str,
    *,
    outcomes: Collection[str] = (),
    config: ConfigLike = None,
    settings: Mapping[str, Any] | None = None,
    client: Client | None = None,
    tmp_dir: str | None = None,
    progress: Mode = "auto",
) -> RunReport:
    """Ask once more for clips that failed: they become new shards, and what is missing is made.

    Taken are clips of published shards, by their last outcome; what stands in a shard that is still
    to be made is not taken twice. So it can be called again, after weeks as well. What is there
    stays as it is, and no shard gets another number.

    Parameters
    ----------
    outcomes
        Outcomes to retry; none = those that may end otherwise another time (``retry`` is ``now`` or
        ``later``).
    config, settings
        See `open_folder`.
    client, progress
        As for `acavdl.run`.
    tmp_dir
        Local folder for media on their way; None = the system's.

    Raises
    ------
    AcavdlError
        For what keeps it from beginning; failures of clips are data.
    """
    wanted = _known(outcomes) or TRANSIENT
    folder = open_folder(output_folder, config, settings)
    tell = tell_of(progress)
    if config is None and folder.manifest["config"]["reading"].get("ytdlp"):
        names = ", ".join(folder.manifest["config"]["reading"]["ytdlp"])
        tell(f"The run had options for yt-dlp ({names}), which are not recorded: see --config.")
    plan = plan_retry(folder, wanted)
    first, count = len(folder.plan.sizes), len(plan.sizes) - len(folder.plan.sizes)
    shards = f", shards {first} to {first + count - 1}" if count else ""
    taken = sum(plan.sizes[first:])
    tell(f"{taken:,} clips are asked for once more{shards}.")
    return make_shards(folder.job(tmp_dir), plan, client=client, progress=progress)


def plan_retry(folder: Folder, outcomes: Set[str]) -> Plan:
    """Add clips that ended in one of these ways to the plan of a dataset; return it."""
    storage = folder.config.storage
    taken = to_retry(
        folder.store,
        folder.plan,
        folder.published(),
        outcomes,
        whole_only=storage.captions_are_subtitles,
        digits=folder.digits,
    )
    if taken.empty:
        return folder.plan
    plan = plan_again(folder.store, folder.plan, taken, storage.number_sample_per_shard)
    write_plan(folder.store, folder.manifest, plan)
    return plan


# --- verify ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes
    ----------
    shards, missing
        Shards that were read, and those of the plan that are not published.
    clips, bytes
        What was read.
    broken
        What is wrong, by shard.
    unread
        Why a shard could not be read: nothing is known of it.
    repaired
        Shards that are to be made anew by the next run, or were mended.
    """

    output_folder: str
    shards: int
    missing: int
    clips: int
    bytes: int
    broken: Mapping[int, Sequence[str]]
    unread: Mapping[int, str]
    repaired: Sequence[int] = ()

    @property
    def whole(self) -> bool:
        """Whether all that was read is as it should be."""
        return not self.broken and not self.unread


def verify(
    output_folder: str,
    *,
    decode: int = 0,
    repair: bool = False,
    config: ConfigLike = None,
    settings: Mapping[str, Any] | None = None,
    client: Client | None = None,
    progress: Mode = "auto",
) -> VerifyReport:
    """Read each published shard, and compare it with its stats, its parquet and the plan.

    Parameters
    ----------
    decode
        Samples of each shard that are decoded.
    repair
        Whether shards that are broken are taken back, so that the next run makes them anew. (One
        that only has samples of videos that were removed loses those.)
    config, settings
        See `open_folder`.
    client
        A Dask client whose workers read; None = workers on this machine.
    progress
        ``quiet``: nothing is said.

    Raises
    ------
    AcavdlError
        If there is no dataset.
    """
    folder = open_folder(output_folder, config, settings)
    tell = tell_of(progress)
    store, plan, job = folder.store, folder.plan, folder.job()
    if repair:
        store.sweep()
        finish(store)
    for part in plan.parts:
        if store.sha256(part.name) != part.sha256:
            raise StorageError(f"the plan's {store.path(part.name)} was changed: put it back")
    sizes = store.sizes()
    names = {n: f"{shard_name(n, folder.digits)}_stats.json" for n in range(len(plan.sizes))}
    there = [n for n, name in names.items() if name in sizes]
    done: list[Checked] = []
    with contextlib.ExitStack() as stack:
        if client is None and there:
            cores = process_count(folder.config.distribution.processes_count)
            client = stack.enter_context(local_client(min(cores, len(there))))
        for found in _checked([place_of(plan, n) for n in there], job, decode, client):
            done.append(found)
            if found.problems:
                tell(_line(found))
            elif len(done) % _TOLD_EVERY == 0:
                tell(f"{len(done):,} of {len(there):,} shards are read")
    broken = {found.shard: found.problems for found in done if found.problems and not found.unread}
    mended = [found for found in done if found.shard in broken] if repair else []
    for found in mended:
        if found.removed:
            remove_from(store, found.shard, removed_ids(store), folder.digits)
        else:
            unpublish(store, found.shard, folder.digits)
    return VerifyReport(
        str(store),
        len(there),
        len(plan.sizes) - len(there),
        sum(found.clips for found in done),
        sum(found.bytes for found in done),
        broken,
        {found.shard: found.problems[0] for found in done if found.unread},
        sorted(found.shard for found in mended),
    )


#: Shards after which a line says how far it is, and problems of a shard that its line has.
_TOLD_EVERY, _PROBLEMS_TOLD = 100, 3


def _line(found: Checked) -> str:
    state = "could not be read" if found.unread else "is broken"
    more = len(found.problems) - _PROBLEMS_TOLD
    texts = [*found.problems[:_PROBLEMS_TOLD], *([f"and {more} more"] if more > 0 else [])]
    return f"shard {found.shard:05d} {state}: {'; '.join(texts)}"


def _checked(
    places: Sequence[ShardPlace], job: Job, decode: int, client: Client | None
) -> Iterator[Checked]:
    """Have the shards read, `subjob_size` at a time; yield what was found as it comes."""
    size = job.config.distribution.subjob_size
    for begin in range(0, len(places), size):
        if client is not None:
            some = places[begin : begin + size]
            futures = client.map(check_shard, some, job=job, decode=decode, pure=False)
            for future in as_completed(futures):
                yield future.result()
                future.release()


def tell_verify(report: VerifyReport) -> int:
    """Say what was found; return the exit code: 1 if a shard is not whole."""
    missing = f", {report.missing:,} are still to be made" if report.missing else ""
    say(
        f"{report.shards:,} shards of {report.output_folder} were read, "
        f"{report.clips:,} clips, {report.bytes / 1e9:,.2f} GB{missing}: "
        f"{len(report.broken):,} are broken, {len(report.unread):,} could not be read"
    )
    if report.repaired:
        listed = ", ".join(f"{shard:05d}" for shard in report.repaired[:10])
        more = " …" if len(report.repaired) > 10 else ""
        say(f"taken back: {listed}{more}; the next `acavdl run` or `retry` makes them anew")
    elif report.broken:
        say("--repair takes them back, so that the next run makes them anew")
    return 0 if report.whole else ShardError.exit_code


# --- remove ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoveReport:
    """What was taken out of a dataset.

    Attributes
    ----------
    videos
        Videos that are kept out of it by now.
    clips
        Clips that were taken out by this call, and the shards that had them.
    failed
        Cause by shard that could not be rewritten: to be called again.
    """

    output_folder: str
    videos: int
    clips: int
    shards: int
    failed: Mapping[int, str]


def remove(
    output_folder: str,
    ids: Iterable[str] = (),
    *,
    ids_file: str | None = None,
    config: ConfigLike = None,
) -> RemoveReport:
    """Take all samples of videos out of a dataset, and keep them out of it.

    They are written down first; then the shards that have them are rewritten, one after the other,
    each in one step. After it was broken off, call it again, with the same ids, or without any for
    all that were ever given.

    Parameters
    ----------
    ids
        Ids or links of videos.
    ids_file
        A list of more: txt, csv, parquet, … (see `acavdl.idlists.read_ids`).
    config
        See `open_folder`.

    Raises
    ------
    AcavdlError
        If there is no dataset, or an id is none; what keeps single shards from being rewritten is
        in the report.
    """
    wanted = video_ids(ids)
    if ids_file is not None:
        wanted |= frozenset(read_ids(ids_file).to_pylist())
    folder = open_folder(output_folder, config)
    store = folder.store
    store.sweep()
    remember(store, wanted)
    removed = removed_ids(store)
    if not removed:
        raise UsageError("no video is named: give --ids or --ids-file")
    finish(store)
    concerned = wanted or removed
    clips, shards, failed = 0, 0, {}
    for shard in shards_with(store, folder.plan, concerned):
        try:
            changed = remove_from(store, shard, removed, folder.digits)
        except StorageError as error:
            failed[shard] = str(error)
        else:
            clips, shards = clips + changed, shards + (changed > 0)
    return RemoveReport(str(store), len(removed), clips, shards, failed)


def tell_remove(report: RemoveReport) -> int:
    """Say what was removed; return the exit code: 1 if a shard still has what is to go."""
    for shard, cause in sorted(report.failed.items()):
        say(f"shard {shard:05d} is not done: {cause}")
    say(
        f"{report.clips:,} clips were taken out of {report.shards:,} shards of "
        f"{report.output_folder}; {report.videos:,} videos are kept out of it"
    )
    return ShardError.exit_code if report.failed else 0
