"""Which of a video's formats to fetch; pure functions over what yt-dlp lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acavdl.errors import ClipError, Outcome
from acavdl.messages import classify


def choose_formats(
    formats: Sequence[Mapping[str, Any]],
    size: int,
    audio_rate: int,
    codecs: Sequence[str],
    warnings: Sequence[str] = (),
) -> tuple[Mapping[str, Any], ...]:
    """Choose what to fetch: one format with picture and sound, or one of each.

    Picture: the smallest whose shorter side is at least `size` pixels, else the largest below;
    among equals the earlier in `codecs`, then separate files before progressive ones (fewer bytes
    at the same size), then the lower bitrate. Sound: the original language, no DRC variant, the
    smallest rate of at least `audio_rate` Hz, else the highest below; AAC before others.

    Parameters
    ----------
    formats
        yt-dlp's ``formats`` of one video.
    warnings
        What yt-dlp warned of: where no format is left, the reason stands there.

    Raises
    ------
    ClipError
        ``drm``, ``no_formats``, ``no_audio`` or ``no_video``.
    """
    usable = _usable(formats, warnings)
    pictures = [entry for entry in usable if has_track(entry, "vcodec")]
    sounds = [
        entry for entry in usable if has_track(entry, "acodec") and not has_track(entry, "vcodec")
    ]
    complete = [entry for entry in pictures if has_track(entry, "acodec")]
    if not pictures:
        raise ClipError(Outcome.NO_VIDEO, f"only sound: {_names(usable)}")
    if not sounds and not complete:
        raise _only_pictures(usable)
    candidates = pictures if sounds else complete
    picture = min(candidates, key=lambda entry: _picture_rank(entry, size, codecs))
    if has_track(picture, "acodec"):
        return (picture,)
    return picture, min(sounds, key=lambda entry: _sound_rank(entry, audio_rate))


def choose_sound(
    formats: Sequence[Mapping[str, Any]],
    audio_rate: int,
    warnings: Sequence[str] = (),
    *,
    copied: bool,
) -> Mapping[str, Any]:
    """Choose what to fetch for sound alone: a format without picture, if there is one.

    By the order of `choose_formats`. Where it is to be `copied` into an m4a, AAC comes before the
    rate; a video that has none without picture may have it in a progressive file.

    Raises
    ------
    ClipError
        ``drm``, ``no_formats`` or ``no_audio``.
    """
    usable = _usable(formats, warnings)
    heard = [entry for entry in usable if has_track(entry, "acodec")]
    if not heard:
        raise _only_pictures(usable)
    candidates = [entry for entry in heard if not has_track(entry, "vcodec")]
    if copied and not any(_is_aac(entry) for entry in candidates):
        candidates = [entry for entry in heard if _is_aac(entry)] or candidates

    def rank(entry: Mapping[str, Any]) -> tuple[Any, ...]:
        language, drc, *others = _sound_rank(entry, audio_rate)
        return language, drc, copied and not _is_aac(entry), *others

    return min(candidates or heard, key=rank)


def _usable(
    formats: Sequence[Mapping[str, Any]], warnings: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the formats that can be fetched.

    Raises
    ------
    ClipError
        ``drm`` or ``no_formats``, if there is none.
    """
    media = [entry for entry in formats if has_track(entry, "vcodec") or has_track(entry, "acodec")]
    if media and all(entry.get("has_drm") for entry in media):
        raise ClipError(Outcome.DRM, "all formats are DRM protected")
    usable = [
        entry
        for entry in media
        if entry.get("url")
        and not entry.get("has_drm")
        and entry.get("protocol", "https") in ("http", "https")
    ]
    if not usable:
        outcome = classify("no video formats found", warnings)
        raise ClipError(outcome, " | ".join(["no format has a plain URL", *distinct(warnings)]))
    return usable


def _only_pictures(formats: Sequence[Mapping[str, Any]]) -> ClipError:
    return ClipError(Outcome.NO_AUDIO, f"only pictures: {_names(formats)}")


def _is_aac(entry: Mapping[str, Any]) -> bool:
    return str(entry.get("acodec")).startswith("mp4a")


def has_track(entry: Mapping[str, Any], codec: str) -> bool:
    """Whether there is a track: yt-dlp says "none" where there is not, nothing if unknown."""
    return bool(entry.get(codec) != "none")


def _names(formats: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(entry.get("format_id")) for entry in formats)


def _picture_rank(entry: Mapping[str, Any], size: int, codecs: Sequence[str]) -> tuple[Any, ...]:
    sides = [side for side in (entry.get("width"), entry.get("height")) if side]
    shorter = min(sides, default=0)
    codec = str(entry.get("vcodec"))
    preference = next((i for i, name in enumerate(codecs) if codec.startswith(name)), len(codecs))
    return (
        shorter < size,
        shorter if shorter >= size else -shorter,
        preference,
        has_track(entry, "acodec"),
        entry.get("tbr") or 0,
        *_facts(entry),
    )


def _sound_rank(entry: Mapping[str, Any], audio_rate: int) -> tuple[Any, ...]:
    rate = entry.get("asr") or 0
    drc = "drc" in str(entry.get("format_id", "")).lower().split("-")
    return (
        -(entry.get("language_preference") or 0),
        drc,
        rate < audio_rate,
        rate if rate >= audio_rate else -rate,
        not _is_aac(entry),
        entry.get("tbr") or 0,
        *_facts(entry),
    )


def _facts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what tells equals apart (the dubs of one video, say): their order is chance."""
    names = ("format_id", "language", "vcodec", "acodec", "asr", "width", "height")
    return tuple(str(entry.get(name) or "") for name in names)


def distinct(warnings: Sequence[str]) -> list[str]:
    """Return what yt-dlp warned of, each once, without its advice to install a runtime."""
    return list(dict.fromkeys(text for text in warnings if "JavaScript runtime" not in text))
