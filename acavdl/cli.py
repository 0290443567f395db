"""The command line: options and exit codes, no logic."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
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
        from acavdl.errors import AcavdlError

        # `kill`, scancel and a closed terminal end a run in order, as Ctrl-C does.
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.default_int_handler)
        try:
            code = command(*args, **kwargs)
        except AcavdlError as error:
            click.echo(f"acavdl: {error}", err=True)
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            again = shlex.join(["acavdl", *sys.argv[1:]])
            click.echo(
                f"\nacavdl: interrupted. Finished shards are kept; go on with:\n  {again}", err=True
            )
            sys.exit(130)
        sys.exit(code)

    return wrapped


_PROGRESS = click.option(
    "--progress",
    type=click.Choice(["auto", "plain", "json", "quiet"]),
    default="auto",
    show_default=True,
    help="How to show what is going on (on stderr).",
)


@main.command()
@click.option("--url-list", required=True, metavar="TABLE", help="A .csv or .parquet file.")
@click.option("--output-folder", required=True, metavar="OUT", help="Where the shards go.")
@click.option("--url-col", metavar="NAME", help="Column with video ids or links.")
@click.option("--clip-col", metavar="NAME", help="Column with lists of [start, end].")
@click.option("--caption-col", metavar="NAME", help="Column with captions.")
@click.option("--number-sample-per-shard", type=int, default=2000, show_default=True)
@click.option("--processes-count", type=int, help="Worker processes; default: one per core.")
@click.option(
    "--thread-count",
    type=int,
    default=16,
    show_default=True,
    help="Videos in flight in each process.",
)
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds per clip.")
@click.option(
    "--download-size",
    type=int,
    default=360,
    show_default=True,
    help="Least pixels of the shorter side.",
)
@click.option(
    "--download-audio-rate",
    type=int,
    default=44100,
    show_default=True,
    help="Least Hz of the sound.",
)
@click.option(
    "--rate-limit",
    type=click.FloatRange(min=0),
    default=300,
    show_default=True,
    help="Videos an hour asked of YouTube from this address, after a burst of as many; 0 = none.",
)
@click.option("--tmp-dir", metavar="DIR", help="Local folder for media on their way.")
@_PROGRESS
@_ends_cleanly
def run(**options: Any) -> int:
    """Make the dataset on this machine, or what is missing of it."""
    from acavdl.config import Config, Distribution, Reading, Storage
    from acavdl.driver import run as run_line
    from acavdl.driver import tell

    config = Config(
        Reading(
            download_size=options["download_size"],
            download_audio_rate=options["download_audio_rate"],
            timeout=options["timeout"],
            rate_limit=options["rate_limit"] or None,
        ),
        Storage(number_sample_per_shard=options["number_sample_per_shard"]),
        Distribution(
            processes_count=options["processes_count"], thread_count=options["thread_count"]
        ),
    )
    if config.reading.rate_limit is None:
        logging.getLogger(__name__).warning("no limit on the rate: the site may block this address")
    report = run_line(
        options["url_list"],
        options["output_folder"],
        config=config,
        url_col=options["url_col"],
        clip_col=options["clip_col"],
        caption_col=options["caption_col"],
        tmp_dir=options["tmp_dir"],
        progress=options["progress"],
    )
    return tell(report)


@main.command()
@click.option("--output-folder", metavar="OUT", help="Default: ./acavdl-demo.")
@_PROGRESS
@_ends_cleanly
def demo(output_folder: str | None, progress: Any) -> int:
    """See it work without a network: a sandbox site, a table, a run, shards."""
    from acavdl.demo import run_demo

    return run_demo(output_folder or "acavdl-demo", progress)
