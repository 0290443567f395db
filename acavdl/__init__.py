"""Turn tables of video clips into WebDataset shards, on Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acavdl.after import failures, remove, retry, verify
    from acavdl.driver import download, plan, run
    from acavdl.reference import video2dataset

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "download",
    "failures",
    "plan",
    "remove",
    "retry",
    "run",
    "verify",
    "video2dataset",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import acavdl`` alone costs nothing."""
    if name in ("download", "plan", "run"):
        from acavdl import driver

        return getattr(driver, name)
    if name in ("failures", "remove", "retry", "verify"):
        from acavdl import after

        return getattr(after, name)
    if name == "video2dataset":
        from acavdl.reference import video2dataset

        return video2dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
