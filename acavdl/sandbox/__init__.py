"""A stand-in for the site on this machine: real extractor, real TLS, no network.

>>> from acavdl.sandbox import Fault, Sandbox, video_id
>>> with Sandbox() as sandbox:  # doctest: +SKIP
...     env = {**os.environ, **sandbox.environ()}
...     subprocess.run(["yt-dlp", f"https://youtu.be/{video_id(1)}"], env=env)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acavdl.sandbox.catalog import Fault, Video, parse, video_id
    from acavdl.sandbox.media import DEMO_MASTERS
    from acavdl.sandbox.origin import Sandbox, SandboxError, Stats

__all__ = [
    "DEMO_MASTERS",
    "Fault",
    "Sandbox",
    "SandboxError",
    "Stats",
    "Video",
    "parse",
    "video_id",
]

# Loaded at first use: the origin's process and the command line's help do without most of it.
_HOMES = {
    "DEMO_MASTERS": "media",
    "Fault": "catalog",
    "Sandbox": "origin",
    "SandboxError": "origin",
    "Stats": "origin",
    "Video": "catalog",
    "parse": "catalog",
    "video_id": "catalog",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
