"""How the reference is installed and called, and how what it made is read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import certifi
import pyarrow as pa
import pyarrow.parquet as pq

_HERE = Path(__file__).parent
PACKAGE = "video2dataset==1.3.0"


@dataclass(frozen=True)
class Reference:
    """How the reference is called.

    Attributes
    ----------
    line
        The program and its first argument; the next one is the file of the call.
    own
        Whether it is video2dataset itself; else its recipe, re-created.
    ffmpeg
        The program that it is to find on the PATH.
    audio
        Whether it makes an m4a beside the mp4, which has no sound.
    """

    line: tuple[str, ...]
    own: bool
    ffmpeg: str
    audio: bool

    def __str__(self) -> str:
        name = PACKAGE if self.own else f"the recipe of {PACKAGE}, re-created"
        return f"{name}, {'mp4 and m4a' if self.audio else 'mp4 without sound'}"


def reference_of(venv: Path, ffmpeg: str, *, audio: bool, recipe: bool) -> Reference:
    """Return the reference: the package, or what stands for it where it does not install.

    Parameters
    ----------
    venv
        Folder of its environment, which is made at first use.
    ffmpeg, audio
        See `Reference`.
    recipe
        Whether to do without the package anyway.
    """
    if not recipe:
        try:
            python = _environment(venv)
        except (OSError, subprocess.SubprocessError) as error:
            why = getattr(error, "stderr", None) or error
            sys.stdout.write(f"{PACKAGE} does not install: {str(why).strip()[-500:]}\n")
        else:
            return Reference((str(python), str(_HERE / "launch.py")), True, ffmpeg, audio)
    return Reference((sys.executable, str(_HERE / "recipe.py")), False, ffmpeg, audio)


def _environment(venv: Path) -> Path:
    """Make the environment, or bring it up to date, with the yt-dlp that we have."""
    python = venv / "bin" / "python"
    needed = _HERE / "requirements.txt"
    ours = f"yt-dlp=={version('yt-dlp')}"
    stamp, content = venv / "acavdl-bench", f"{needed.read_text()}{ours}\n{sys.version}\n"
    if stamp.is_file() and stamp.read_text() == content:
        return python
    sys.stdout.write(f"making the reference's environment in {venv} (once)\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for line in (
        [sys.executable, "-m", "venv", "--clear", str(venv)],
        [*pip, "-r", str(needed), ours],
        [*pip, "--no-deps", PACKAGE],
        # Whether what is stubbed suffices.
        [str(python), str(_HERE / "launch.py")],
    ):
        subprocess.run(line, check=True, capture_output=True, text=True)
    stamp.write_text(content)
    return python


def arguments(
    folder: Path,
    urls: Sequence[str],
    spans: Sequence[tuple[float, float]],
    processes: int,
    *,
    audio: bool,
) -> dict[str, Any]:
    """Write a table of clips (seconds); return the call that makes ``folder/out`` of it.

    The settings are those of the recipe for ACAV100M, with a shard for each process and with as
    many threads as acavdl has.
    """
    table, temporary = folder / "clips.parquet", folder / "tmp"
    temporary.mkdir()
    clips = [[list(span)] for span in spans]
    pq.write_table(pa.table({"url": list(urls), "clips": clips}), table)
    return {
        "url_list": str(table),
        "output_folder": str(folder / "out"),
        "output_format": "webdataset",
        "input_format": "parquet",
        "encode_formats": {"video": "mp4", **({"audio": "m4a"} if audio else {})},
        "clip_col": "clips",
        "tmp_dir": str(temporary),
        "config": {
            "subsampling": {"ClippingSubsampler": {"args": {"precision": "low"}}},
            "reading": {
                "yt_args": {
                    "download_size": 360,
                    "download_audio_rate": 44100,
                    "yt_metadata_args": {"get_info": True},
                },
                "timeout": 60,
                "sampler": None,
            },
            "storage": {
                "number_sample_per_shard": -(-len(urls) // processes),
                "oom_shard_count": 5,
                "captions_are_subtitles": False,
            },
            "distribution": {
                "processes_count": processes,
                "thread_count": 16,
                "subjob_size": 1000,
                "distributor": "multiprocessing",
            },
        },
    }


def line_of(reference: Reference, folder: Path, call: dict[str, Any]) -> list[str]:
    """Write a call of `arguments` to a file; return the program that works it off."""
    path = folder / "call.json"
    path.write_text(json.dumps(call))
    return [*reference.line, str(path)]


def environ(folder: Path, ca_file: Path, ffmpeg: str) -> dict[str, str]:
    """Return the variables that lead the reference to ffmpeg, and to the sandbox's CA.

    In the wild each of its instances of yt-dlp loads certifi's bundle, and so it does here.
    """
    programs, bundle = folder / "bin", folder / "bundle.pem"
    programs.mkdir()
    (programs / "ffmpeg").symlink_to(ffmpeg)
    bundle.write_bytes(Path(certifi.where()).read_bytes() + b"\n" + ca_file.read_bytes())
    path = os.pathsep.join((str(programs), os.environ.get("PATH", "")))
    return {"PATH": path, "SSL_CERT_FILE": str(bundle)}
