"""Turn tables of video clips into WebDataset shards, on Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acavdl.driver import plan, run

__version__ = "0.1.0"
__all__ = ["__version__", "plan", "run"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: ``import acavdl`` alone costs nothing."""
    if name in ("plan", "run"):
        from acavdl import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
