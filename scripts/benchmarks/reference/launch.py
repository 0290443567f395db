"""Run video2dataset in its own environment: ``python launch.py CALL``, a file of JSON.

Without a call it is imported, and that is all.
It imports torch and much else in order to download. What its download path never calls is stubbed
here. Worker processes import this file again (multiprocessing's spawn), and so are served as well.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_STUBBED = frozenset(
    {
        *("cv2", "decord", "einops", "langdetect", "scenedetect", "soundfile"),
        *("torch", "torchaudio", "torchdata", "transformers", "wandb"),
    }
)


class _Anything(type):
    """Metaclass of names that may be derived from, called and looked into."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)

    def __getitem__(cls, _: Any) -> Any:
        return cls


def _named(name: str) -> Any:
    # A fresh class each time: two may be bases of one class.
    return _Anything(name, (), {"__init__": lambda self, *_, **__: None})


class _Stub(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 (a package, so that its submodules are asked for)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _named(name)


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        known = name.partition(".")[0] in _STUBBED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be done."""


def _trust_environment() -> None:
    """Let yt-dlp verify by ``SSL_CERT_FILE``, as its option ``--compat-options no-certifi`` does.

    The reference has no way to hand options to yt-dlp.
    """
    import yt_dlp

    class YoutubeDL(yt_dlp.YoutubeDL):  # type: ignore[misc]
        def __init__(self, params: dict[str, Any] | None = None, auto_init: bool = True) -> None:
            super().__init__({**(params or {}), "compat_opts": ["no-certifi"]}, auto_init)

    yt_dlp.YoutubeDL = YoutubeDL


sys.meta_path.insert(0, _Stubs())
_trust_environment()

if __name__ == "__main__":
    from video2dataset import video2dataset

    for path in sys.argv[1:]:
        video2dataset(**json.loads(Path(path).read_text("utf-8")))
