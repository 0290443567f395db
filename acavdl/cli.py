"""The command line: options and exit codes, no logic."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

import acavdl

# What a command needs is imported when it runs: `acavdl --help` answers at once.


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(acavdl.__version__, prog_name="acavdl")
@click.option("-v", "--verbose", count=True, help="Log more (-v: progress, -vv: all).")
def main(verbose: int) -> None:
    """Turn tables of video clips into WebDataset shards."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    # Dask's own chatter (it sets its loggers to INFO when imported) is for -v and -vv.
    chatter = (logging.CRITICAL, logging.WARNING, logging.INFO)[min(verbose, 2)]
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", logging.getLevelName(chatter))


def _ends_cleanly(command: Callable[..., int]) -> Callable[..., None]:
    """Turn what a command raises into a line and an exit code: no traceback for a mistake."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from acavdl.errors import INTERRUPTED, AcavdlError

        # `kill`, scancel and a closed terminal end a run in order, as Ctrl-C does.
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.default_int_handler)
        try:
            code = command(*args, **kwargs)
        except AcavdlError as error:
            click.echo(f"acavdl: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            again = shlex.join(["acavdl", *_going_on(sys.argv[1:])])
            click.echo(
                f"\nacavdl: interrupted. Finished shards are kept; go on with:\n  {again}", err=True
            )
            sys.exit(INTERRUPTED)
        sys.exit(code)

    return wrapped


def _going_on(arguments: list[str]) -> list[str]:
    """Return the arguments that go on with a run: what begins anew is left out."""
    kept = [text for text in arguments if text not in ("--yes", "--incremental-mode=overwrite")]
    places = [i for i, text in enumerate(kept[:-1]) if text == "--incremental-mode"]
    for place in reversed(places):
        if kept[place + 1] == "overwrite":
            del kept[place : place + 2]
    return kept


_PROGRESS = click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "quiet"]),
    default="auto",
    show_default=True,
    help="How to show what is going on (on stderr).",
)


_Command = Callable[..., Any]


def _options(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_RATE = click.option(
    "--rate-limit",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Videos an hour asked of YouTube from this address, after a burst of as many; "
    "default: 300; 0 = no limit.",
)
_TABLE = _options(
    click.option(
        "--config", metavar="FILE", help="Settings in YAML; default: ./acavdl.yaml, if it is there."
    ),
    click.option(
        "--url-list",
        metavar="TABLE",
        help="Clip table: csv, tsv, json, jsonl, parquet or txt; file, folder, glob or URL.",
    ),
    click.option("--output-folder", metavar="OUT", help="Where the shards go."),
    click.option("--input-format", metavar="FORMAT", help="Default: as the table's name ends."),
    click.option("--preset", metavar="NAME", help="Layout of the table (see `acavdl presets`)."),
    click.option("--url-col", metavar="NAME", help="Column with video ids or links."),
    click.option("--clip-col", metavar="NAME", help="Column with lists of [start, end]."),
    click.option("--start-col", metavar="NAME", help="Column with starts."),
    click.option("--end-col", metavar="NAME", help="Column with ends."),
    click.option("--time-unit", metavar="UNIT", help="Of times that are numbers: s, ms or us."),
    click.option("--caption-col", metavar="NAME", help="Column with captions."),
    click.option(
        "--caption-from",
        type=click.Choice(["title", "description"]),
        help="Captions from the site in place of a column.",
    ),
    click.option(
        "--save-additional-columns",
        metavar="NAMES",
        multiple=True,
        help="Columns for each sample's JSON (repeatable, or a comma list).",
    ),
    click.option(
        "--unique-videos", is_flag=True, default=None, help="One clip of each video: the first."
    ),
    click.option("--limit", type=int, metavar="N", help="N clips at most, of videos at random."),
    click.option(
        "--allow-local", is_flag=True, default=None, help="Take paths of this machine for videos."
    ),
    click.option(
        "--whole-videos", is_flag=True, default=None, help="Whatever spans the table has."
    ),
    click.option(
        "--tombstones", metavar="LIST", help="Videos that are dead: not asked for (csv, txt, …)."
    ),
    click.option("--output-format", metavar="FORMAT", help="webdataset (default) or files."),
    click.option(
        "--encode-formats",
        metavar="MEMBERS",
        help='"{video: mp4}" (default), "{video: mp4, audio: m4a}", "{audio: m4a}" (flac, wav).',
    ),
    click.option("--number-sample-per-shard", type=int, metavar="N", help="Default: 2000."),
    click.option(
        "--download-size",
        type=int,
        metavar="PIXELS",
        help="Least pixels of the shorter side; default: 360.",
    ),
    click.option(
        "--download-audio-rate", type=int, metavar="HZ", help="Least Hz of the sound; 44100."
    ),
    _RATE,
    click.option(
        "--incremental-mode",
        type=click.Choice(["incremental", "extend", "overwrite"]),
        help="Of a folder that holds a dataset: go on (default), add what a larger table has "
        "besides, or begin anew.",
    ),
    click.option("--yes", is_flag=True, help="Overwrite without asking."),
    click.option("--tmp-dir", metavar="DIR", help="Local folder for what is on its way."),
)

#: Options of the command line that are settings, by the names that a file has for them.
_SETTINGS = {
    "number_sample_per_shard": "storage.number_sample_per_shard",
    "download_size": "reading.yt_args.download_size",
    "download_audio_rate": "reading.yt_args.download_audio_rate",
    "rate_limit": "reading.rate_limit",
    "timeout": "reading.timeout",
    "processes_count": "distribution.processes_count",
    "thread_count": "distribution.thread_count",
}


def _call_of(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `acavdl.run` for the options of the command line."""
    from acavdl.settings import Settings, changed, load

    settings = load(options.pop("config"))
    for note in settings.notes:
        click.echo(f"acavdl: {note}", err=True)
    names = options.pop("save_additional_columns")
    options["save_additional_columns"] = [c for name in names for c in name.split(",")]
    config = changed(settings.config, _settings_in(options))
    if slurm := options.pop("slurm", None):
        merged = {**config.distribution.slurm, **slurm}
        config = changed(config, {"distribution.slurm": merged})
    sure = options.pop("yes")
    mode = options["incremental_mode"] or settings.call.get("incremental_mode")
    if mode == "overwrite" and not sure:
        folder = options["output_folder"] or settings.call.get("output_folder")
        _ask_before_overwriting(folder, config.storage.options)
    return {**options, "config": Settings(settings.call, config)}


def _settings_in(options: dict[str, Any]) -> dict[str, Any]:
    """Take the settings out of the options of the command line; return them by their names."""
    given = {name: value for name in _SETTINGS if (value := options.pop(name, None)) is not None}
    if given.get("rate_limit") == 0:
        given["rate_limit"] = None
    return {_SETTINGS[name]: value for name, value in given.items()}


def _ask_before_overwriting(folder: str | None, options: Mapping[str, Any]) -> None:
    from acavdl.errors import UsageError
    from acavdl.ledger import MANIFEST
    from acavdl.storage import Store

    if folder is None or Store(folder, options).size(MANIFEST) is None:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{folder} holds a dataset: --yes removes it without asking")
    if not click.confirm(f"Remove the dataset in {folder}?", err=True):
        raise UsageError(f"{folder} is left as it is")


@main.command()
@_TABLE
@_PROGRESS
@_ends_cleanly
def plan(**options: Any) -> int:
    """Plan a dataset and say what it will take; nothing is fetched."""
    from acavdl.driver import plan as make_plan
    from acavdl.driver import tell_plan

    return tell_plan(make_plan(**_call_of(options)))


_PROCESSES = click.option(
    "--processes-count", type=int, metavar="N", help="Workers; default: one per core."
)
_THREADS = click.option(
    "--thread-count", type=int, metavar="N", help="Videos in flight in each; default: 24."
)
_TIMEOUT = click.option(
    "--timeout", type=float, metavar="S", help="Seconds for each clip; default: 60."
)
_RUN = _options(
    _THREADS,
    _TIMEOUT,
    click.option(
        "--max-shard-retry", type=int, metavar="N", help="Tries again of a shard that failed; 1."
    ),
    click.option("--max-hours", type=float, metavar="H", help="End in order after so long."),
    click.option("--max-bytes", metavar="N", help="End in order when so much is fetched: 500GB."),
    click.option("--enable-wandb", is_flag=True, default=None, help="Log to Weights & Biases."),
    click.option("--wandb-project", metavar="NAME", help="Its project there; default: acavdl."),
)


@main.command()
@_TABLE
@_PROCESSES
@_RUN
@_PROGRESS
@_ends_cleanly
def run(**options: Any) -> int:
    """Make the dataset on this machine, or what is missing of it."""
    from acavdl.driver import run as run_line
    from acavdl.driver import tell

    return tell(run_line(**_call_of(options)))


_FOLDER = _options(
    click.argument("output_folder", metavar="OUT"),
    click.option(
        "--config",
        metavar="FILE",
        help="Settings in YAML; default: ./acavdl.yaml if it is there, else those of the dataset.",
    ),
)
_OUTCOME = click.option(
    "--outcome",
    "outcomes",
    multiple=True,
    metavar="NAME",
    callback=lambda _, __, names: [name for text in names for name in text.split(",")],
    help="Only this outcome (repeatable, or a comma list).",
)


def _settings_of_folder(path: str | None) -> Any:
    """Return the settings for a dataset that is there; None = as it was made."""
    from pathlib import Path

    from acavdl.settings import CONFIG_FILE, load

    return load(path) if path is not None or Path(CONFIG_FILE).is_file() else None


@main.command()
@_FOLDER
@_OUTCOME
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--export", metavar="FILE", help="Write them as a table (csv, parquet) for `run`.")
@click.option(
    "--tombstones", metavar="FILE", help="Write the videos that are dead for good (csv, parquet)."
)
@_ends_cleanly
def failures(output_folder: str, config: str | None, *, as_json: bool, **options: Any) -> int:
    """Tell which clips failed, how and where; a retried one by its last outcome."""
    from acavdl.after import failures as find
    from acavdl.after import tell_failures

    found = find(output_folder, config=_settings_of_folder(config), **options)
    return tell_failures(found, as_json=as_json)


@main.command()
@_FOLDER
@_OUTCOME
@_PROCESSES
@_THREADS
@_TIMEOUT
@_RATE
@click.option("--tmp-dir", metavar="DIR", help="Local folder for what is on its way.")
@_PROGRESS
@_ends_cleanly
def retry(output_folder: str, config: str | None, **options: Any) -> int:
    """Ask for failed clips once more, in new shards; by default those that may pass."""
    from acavdl.after import retry as run_again
    from acavdl.driver import tell

    given, settings = _settings_in(options), _settings_of_folder(config)
    return tell(run_again(output_folder, config=settings, settings=given, **options))


@main.command()
@_FOLDER
@click.option(
    "--decode",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Samples of each shard to decode.",
)
@click.option("--repair", is_flag=True, help="Take broken shards back: the next run makes them.")
@_PROCESSES
@_PROGRESS
@_ends_cleanly
def verify(output_folder: str, config: str | None, **options: Any) -> int:
    """Read the shards, and compare them with their stats, rows and plan."""
    from acavdl.after import tell_verify
    from acavdl.after import verify as read_all

    given, settings = _settings_in(options), _settings_of_folder(config)
    return tell_verify(read_all(output_folder, config=settings, settings=given, **options))


@main.command()
@_FOLDER
@click.option("--ids", metavar="ID,…", multiple=True, help="Videos, by id or link (repeatable).")
@click.option("--ids-file", metavar="F", help="A list of videos: txt, csv, parquet, …")
@_ends_cleanly
def remove(output_folder: str, config: str | None, ids: tuple[str, ...], ids_file: str) -> int:
    """Take videos out of the shards, and keep them out of later runs."""
    from acavdl.after import remove as take_out
    from acavdl.after import tell_remove

    named = [text.strip() for texts in ids for text in texts.split(",") if text.strip()]
    settings = _settings_of_folder(config)
    return tell_remove(take_out(output_folder, named, ids_file=ids_file, config=settings))


@main.command()
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Nodes to work on, each with a job; fewer, if fewer have work.",
)
@click.option(
    "--in-allocation",
    is_flag=True,
    help="Work on the nodes of the job that this runs in (see slurm/acavdl.sbatch).",
)
@click.option("--queue", metavar="NAME", help="Slurm's partition.")
@click.option("--account", metavar="NAME", help="Whom Slurm charges.")
@click.option("--walltime", metavar="TIME", help="Of each job: 24:00:00, say.")
@click.option(
    "--slurm",
    "slurm_options",
    metavar="KEY=VALUE",
    multiple=True,
    help="Whatever else dask_jobqueue.SLURMCluster takes, as in distribution.slurm (repeatable).",
)
@click.option("--print-job-script", is_flag=True, help="Write a job's script, and no more.")
@click.option("--dry-run", is_flag=True, help="Plan and check all; submit nothing.")
@_TABLE
@_RUN
@_PROGRESS
@_ends_cleanly
def slurm(
    nodes: int | None,
    slurm_options: tuple[str, ...],
    *,
    in_allocation: bool,
    print_job_script: bool,
    dry_run: bool,
    **options: Any,
) -> int:
    """Make the dataset on nodes of a Slurm cluster: a job on each, a worker on each core.

    What the jobs ask for stands in these options, under distribution.slurm in
    acavdl.yaml, and in your jobqueue.yaml, in this order. Cores and memory that
    stand nowhere are those of the partition's nodes.
    """
    from acavdl import driver
    from acavdl.settings import slurm_values

    named = {name: options.pop(name) for name in ("queue", "account", "walltime")}
    call = _call_of({**options, "slurm": slurm_values(slurm_options, named)})
    if print_job_script:
        click.echo(driver.job_script(call["config"], call["tmp_dir"]), nl=False)
        return 0
    if in_allocation == (nodes is not None) or (in_allocation and dry_run):
        raise click.UsageError("give --nodes N, or --in-allocation within a job of Slurm")
    if nodes is not None and dry_run:
        return driver.tell_dry_run(driver.dry_run(nodes=nodes, **call))
    return driver.tell(driver.run(nodes=nodes or "allocation", **call))


@main.command()
@_FOLDER
@_ends_cleanly
def stop(output_folder: str, config: str | None) -> int:
    """End the run that works on a dataset in order, wherever it runs; open shards are saved."""
    from acavdl import driver

    return driver.tell_stop(output_folder, _settings_of_folder(config))


@main.command()
@click.option("--url-list", required=True, metavar="TABLE", help="The clip table.")
@click.option("--output-folder", metavar="OUT", default="dataset", show_default=True)
@click.option("--preset", metavar="NAME", help="Layout of the table.")
@click.option("--input-format", metavar="FORMAT", help="Default: as the table's name ends.")
@click.option("--force", is_flag=True, help="Replace an acavdl.yaml that is there.")
@_ends_cleanly
def init(
    url_list: str,
    output_folder: str,
    preset: str | None,
    input_format: str | None,
    *,
    force: bool,
) -> int:
    """Write acavdl.yaml for a table, with all settings and what they mean."""
    from acavdl.prepare import write_settings

    path = write_settings(url_list, output_folder, preset, input_format, force=force)
    click.echo(f"{path} is written; next:\n  acavdl plan\n  acavdl run")
    return 0


@main.command()
def presets() -> None:
    """List the layouts of clip tables that are known."""
    from acavdl.presets import PRESETS

    for preset in PRESETS:
        note = "" if preset.header else "  (to be named by --preset)"
        click.echo(f"{preset.name}{note}\n    {preset.about}")


@main.command()
@click.option("--output-folder", metavar="OUT", help="Default: ./acavdl-demo.")
@_PROGRESS
@_ends_cleanly
def demo(output_folder: str | None, progress: Any) -> int:
    """See it work without a network: a sandbox site, a table, a run, shards."""
    from acavdl.demo import run_demo

    return run_demo(output_folder or "acavdl-demo", progress)
