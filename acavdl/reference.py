"""The reference's own call: video2dataset's arguments and defaults, done by acavdl."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from acavdl.driver import RunReport, run, settings_of, tell
from acavdl.errors import UsageError
from acavdl.settings import Settings, from_arguments

logger = logging.getLogger(__name__)


def video2dataset(  # noqa: PLR0917 (the reference's own places)
    url_list: str,
    output_folder: str = "videos",
    output_format: str = "files",
    input_format: str = "txt",
    encode_formats: Mapping[str, str] | None = None,
    stage: str = "download",
    url_col: str = "url",
    caption_col: str | None = None,
    clip_col: str | None = None,
    save_additional_columns: Sequence[str] | None = None,
    enable_wandb: bool = False,
    wandb_project: str = "video2dataset",
    incremental_mode: str = "incremental",
    max_shard_retry: int = 1,
    tmp_dir: str = "/tmp",  # noqa: S108
    config: str | Mapping[str, Any] = "default",
    **more: Any,
) -> RunReport:
    """Make a dataset as video2dataset 1.3.0's function of this name is called.

    The arguments have the reference's names, places, defaults and meanings; what is done better is
    done so: one mp4 with picture and sound, one extraction per video, a plan that is not counted
    anew, failures in the parquet and never in the tar.

    Parameters
    ----------
    url_list, output_folder, output_format, input_format, encode_formats, url_col, caption_col,
    clip_col, save_additional_columns, enable_wandb, wandb_project, incremental_mode,
    max_shard_retry, tmp_dir
        See `acavdl.run`. Without `clip_col`, whole videos are fetched.
    stage
        ``download``; the other stages work on datasets that are there.
    config
        The path of the reference's YAML, or what it holds; ``default``: acavdl's defaults.
    **more
        Further arguments of `acavdl.run`: ``client``, ``progress``, ``limit``, …

    Raises
    ------
    AcavdlError
        For what keeps the run from beginning, and for values that are not supported, by name.
    """
    if stage != "download":
        raise UsageError(f"stage {stage!r} is not supported: acavdl downloads")
    settings: Settings = settings_of(None if config == "default" else config)
    for note in settings.notes:
        logger.warning("%s", note)
    subtitles = settings.config.storage.captions_are_subtitles
    has_columns = input_format != "txt"
    client, progress = more.pop("client", None), more.pop("progress", "auto")
    arguments = {
        "output_format": output_format,
        "input_format": input_format,
        "encode_formats": encode_formats,
        "url_col": url_col if has_columns else None,
        "caption_col": caption_col,
        "clip_col": clip_col,
        "whole_videos": True if clip_col is None and not subtitles else None,
        "save_additional_columns": save_additional_columns,
        "enable_wandb": enable_wandb,
        "wandb_project": wandb_project,
        "incremental_mode": incremental_mode,
        "max_shard_retry": max_shard_retry,
        "tmp_dir": tmp_dir,
        **more,
    }
    report = run(
        url_list,
        output_folder,
        config=from_arguments(settings, arguments),
        client=client,
        progress=progress,
    )
    if progress != "quiet":
        tell(report)
    return report
