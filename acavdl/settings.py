"""Settings from files, mappings and arguments of a call; the file that ``acavdl init`` writes."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acavdl.config import (
    AudioRate,
    Clipping,
    Config,
    Distribution,
    Limits,
    Output,
    Reading,
    Storage,
    TableOptions,
    Tracking,
)
from acavdl.errors import UsageError
from acavdl.keys import BY_NAME, KEYS, NULLABLE, Key, parsed

#: The file that is read where no other is named.
CONFIG_FILE = "acavdl.yaml"
_YT = "reading.yt_args"
#: Arguments of which one stands in place of the others.
_ALTERNATIVES = (
    ("caption_col", "caption_from"),
    ("clip_col", "start_col", "end_col", "whole_videos"),
)
#: What the reference knows and acavdl does not do: said by name rather than ignored.
_NOT_SUPPORTED = {
    "reading.dataloader_args": "acavdl reads tables, not datasets",
    "distribution.distributor_args": "the cluster is Dask's",
    "subsampling": "of the subsamplers there are ClippingSubsampler and AudioRateSubsampler",
    f"{_YT}.yt_metadata_args": "get_info and subtitles are what it knows",
    _YT: "sizes and metadata; options for yt-dlp go under reading.ytdlp",
    "stage": "acavdl downloads; the other stages are the reference's",
}
_SECTIONS = ("subsampling", "reading", "storage", "distribution")
_SECTION_TYPES: dict[str, Callable[..., Any]] = {
    "reading": Reading,
    "storage": Storage,
    "distribution": Distribution,
    "clipping": Clipping,
    "audio": AudioRate,
    "output": Output,
    "tracking": Tracking,
    "limits": Limits,
}
#: Of these the names alone are recorded.
_UNRECORDED = ("reading.ytdlp", "storage.options", "distribution.slurm")
_DISTRIBUTORS = ("pyspark", "multiprocessing", "slurm")


@dataclass(frozen=True)
class Settings:
    """What a file or mapping says: arguments of the call, the settings, and what to tell the user.

    `notes` are lines about what was accepted and is done in another way.
    """

    call: Mapping[str, Any]
    config: Config
    notes: tuple[str, ...] = ()


def load(path: str | None) -> Settings:
    """Read a YAML file; without a path, ``acavdl.yaml`` if there is one.

    Raises
    ------
    UsageError
        That names the file, the key and what was expected.
    """
    if path is None and not Path(CONFIG_FILE).is_file():
        return Settings({}, Config())
    file = Path(path or CONFIG_FILE)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return from_mapping({} if tree is None else tree)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error


def from_mapping(tree: Any) -> Settings:
    """Return the settings of a nested mapping, as a YAML file has it.

    Raises
    ------
    UsageError
        That names the key: unknown (with the nearest known one), not supported, or of a wrong kind.
    """
    if not isinstance(tree, Mapping):
        raise UsageError("settings are a mapping of sections: reading, storage, distribution")
    found: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for name, value in _leaves(tree):
        if name == "distribution.distributor":
            notes.append(_distributor(value))
            continue
        key = BY_NAME.get(name)
        if key is None:
            raise UsageError(_unknown(name))
        if value is None and key.name not in NULLABLE:
            continue
        given = None if value is None else parsed(key, value)
        found.setdefault(key.section, {})[key.field] = given
    return Settings(
        found.get("call", {}),
        Config(**{name: kind(**found.get(name, {})) for name, kind in _SECTION_TYPES.items()}),
        tuple(notes),
    )


def from_record(record: Mapping[str, Any]) -> Config:
    """Return the settings that `Config.as_dict` recorded; options of yt-dlp and the store are not.

    Raises
    ------
    UsageError
        For a value that this version does not know.
    """
    found: dict[str, dict[str, Any]] = {}
    for key in KEYS:
        section = record.get(key.section, {})
        if key.field not in section or key.name in _UNRECORDED:
            continue
        value = section[key.field]
        if value is not None:
            found.setdefault(key.section, {})[key.field] = parsed(key, value)
        elif key.name in NULLABLE:
            found.setdefault(key.section, {})[key.field] = None
    return Config(**{name: kind(**found.get(name, {})) for name, kind in _SECTION_TYPES.items()})


def from_arguments(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Return `settings` with what the arguments of a call say; None is what is not given.

    Raises
    ------
    TypeError
        For an argument that there is not.
    UsageError
        For a value of a wrong kind.
    """
    call, config = dict(settings.call), settings.config
    for names in _ALTERNATIVES:
        # Captions or spans of the call are in place of those of the file.
        if any(given.get(name) for name in names):
            call = {name: value for name, value in call.items() if name not in names}
    for name, value in given.items():
        key = BY_NAME.get(name)
        if key is None or "." in key.name:
            known = ", ".join(key.name for key in KEYS if "." not in key.name)
            raise TypeError(f"unexpected argument {name!r}; there are: {known}")
        if value is None or value in ((), []):
            continue
        if key.section == "call":
            call[name] = parsed(key, value)
        else:
            config = changed(config, {name: value})
    return Settings(call, config, settings.notes)


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Return `config` with settings replaced, by their dotted names."""
    for name, value in values.items():
        key = BY_NAME[name]
        given = None if value is None else parsed(key, value)
        section = dataclasses.replace(getattr(config, key.section), **{key.field: given})
        config = dataclasses.replace(config, **{key.section: section})
    return config


def slurm_values(given: Sequence[str], named: Mapping[str, str | None]) -> dict[str, Any]:
    """Return `distribution.slurm` as options of the command line have it.

    Parameters
    ----------
    given
        Texts like ``cores=48``: numbers, lists and mappings in YAML, all else as it is.
    named
        Values by their names; None is what is not given.

    Raises
    ------
    UsageError
        For a text that is not like that.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise UsageError(f"--slurm {text}: give KEY=VALUE, cores=48 say")
        # A time like 24:00:00 would be a number in YAML.
        plain = not value.isdecimal() and value[:1] not in ("[", "{") and value != "true"
        try:
            values[name.replace("-", "_")] = value if plain else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--slurm {text}: {' '.join(str(error).split())}") from error
    return values | {name: value for name, value in named.items() if value is not None}


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for part, value in tree.items():
        name = f"{prefix}{part}"
        inner = any(known.startswith(f"{name}.") for known in BY_NAME)
        if inner and isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif inner and value is None:
            continue
        elif inner:
            raise UsageError(f"{name} must be a mapping, not {value!r}")
        else:
            yield name, value


def _unknown(name: str) -> str:
    lasts = {known.rsplit(".", 1)[-1]: known for known in BY_NAME}
    last = name.rsplit(".", 1)[-1]
    if last in lasts:
        return f"unknown key {name}; the nearest is {lasts[last]}"
    for prefix, reason in _NOT_SUPPORTED.items():
        if name == prefix or name.startswith(f"{prefix}."):
            return f"{name} is not supported ({reason})"
    near = difflib.get_close_matches(name, BY_NAME, 1, 0.75) or [
        lasts[known] for known in difflib.get_close_matches(last, lasts, 1, 0.75)
    ]
    if near:
        return f"unknown key {name}; the nearest is {near[0]}"
    return f"unknown key {name}; the sections are: {', '.join(_SECTIONS)}"


def _distributor(value: Any) -> str:
    if value not in _DISTRIBUTORS:
        raise UsageError(
            f"distribution.distributor must be {' or '.join(_DISTRIBUTORS)}, not {value!r}"
        )
    return f"distributor {value}: Dask does that work here"


def example(values: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """Return a YAML file with all settings and what they mean.

    Parameters
    ----------
    values
        What is set, by dotted names; the others stand in comments, with their defaults.
    remarks
        Further lines of comment before a setting.
    """
    lines = [
        "# Settings of a dataset, for the commands of acavdl in this folder. What is commented out",
        "# shows the default. Options of the command line win.",
    ]
    begun: list[str] = []
    for key in KEYS:
        *sections, name = key.name.split(".")
        same = [a == b for a, b in zip(sections, begun, strict=False)]
        common = (*same, False).index(False)
        if not sections or common < len(sections):
            lines.append("")
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(common, len(sections))]
        begun = sections
        indent = "  " * len(sections)
        comments = [key.text, *remarks.get(key.name, "").splitlines()]
        lines += [f"{indent}# {text}" for text in comments]
        mark = "" if key.name in values else "# "
        value = values[key.name] if key.name in values else _default(key)
        lines.append(f"{indent}{mark}{name}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _default(key: Key) -> Any:
    owner: Any = TableOptions("") if key.section == "call" else getattr(Config(), key.section)
    value = getattr(owner, key.field, None)
    if key.name == "incremental_mode":
        return "incremental"
    return list(value) if isinstance(value, tuple) else value


def load_sampler(path: str) -> Callable[[list[int]], Any]:
    """Return the function that `reading.sampler` names.

    Raises
    ------
    UsageError
        If there is none.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    here = str(Path.cwd())
    try:
        # A console script does not look in the folder that it is called in.
        sys.path.insert(0, here)
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"reading.sampler: {path} can't be imported ({error})") from error
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UsageError(f"reading.sampler: {path} is not a function")
    sampler: Callable[[list[int]], Any] = found
    return sampler
