"""Turn tables of video clips into WebDataset shards, on Dask."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acavdl.after import failures, remove, retry, verify
    from acavdl.dataset import open_dataset
    from acavdl.decode import Decoder
    from acavdl.driver import download, plan, run
    from acavdl.reference import video2dataset

__version__ = "0.1.0"
__all__ = [
    "Decoder",
    "__version__",
    "download",
    "failures",
    "open_dataset",
    "plan",
    "remove",
    "retry",
    "run",
    "verify",
    "video2dataset",
]
#: Which module has what is imported when it is asked for.
_MODULES = {
    "Decoder": "acavdl.decode",
    "download": "acavdl.driver",
    "failures": "acavdl.after",
    "open_dataset": "acavdl.dataset",
    "plan": "acavdl.driver",
    "remove": "acavdl.after",
    "retry": "acavdl.after",
    "run": "acavdl.driver",
    "verify": "acavdl.after",
    "video2dataset": "acavdl.reference",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import acavdl`` alone costs nothing."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
