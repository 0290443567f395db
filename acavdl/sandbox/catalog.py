"""What lies behind a video id: pure functions, no state.

An id that the sandbox makes reads ``<code>-<number>``, eleven characters in all: the code of a
master (`acavdl.sandbox.media`) or the code of a fault, and a zero-padded number that makes the id
one of many. Every other id is an ordinary video, so that any table can be run against the sandbox.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from acavdl.sandbox.media import DEMO_MASTERS, MasterSpec

#: Length of a YouTube video id, characters.
ID_LENGTH = 11

#: Waiting time that `Fault.AD_WAIT` asks for before the media, seconds.
AD_SECONDS = 3

_VIDEO_MP4 = frozenset({133, 134, 135, 136, 160})
_AUDIO_MP4 = frozenset({139, 140})

_ID = re.compile(r"(?P<code>[a-z0-9]{2,6})-(?P<number>[0-9]{4,8})")


class Stage(StrEnum):
    """Where in the exchange a fault shows."""

    PLAYABILITY = "playability"  # the player answers, and says that the video cannot be played
    FORMATS = "formats"  # the player answers, and something is odd about the formats
    PAGE = "page"  # HTTP, the watch page
    PLAYER = "player"  # HTTP, the player's answer
    ANY = "any"  # HTTP, every kind of request
    MEDIA = "media"  # HTTP, the media hosts
    SUBTITLES = "subtitles"  # which captions there are, and HTTP when they are asked for


class Fault(StrEnum):
    """A way for a video to go wrong: `code` is the prefix of its ids, `about` what it does."""

    BOT_CHECK = "bot_check"
    CAPTCHA = "captcha"
    PRIVATE = "private"
    REMOVED_UPLOADER = "removed_uploader"
    REMOVED_POLICY = "removed_policy"
    COPYRIGHT = "copyright"
    ACCOUNT_TERMINATED = "account_terminated"
    UNAVAILABLE = "unavailable"
    GEO_BLOCKED = "geo_blocked"
    AGE_GATED = "age_gated"
    MEMBERS_ONLY = "members_only"
    PAID = "paid"
    RATE_LIMITED = "rate_limited"
    UPCOMING = "upcoming"
    LIVE_NO_RECORDING = "live_no_recording"
    CLIENT_UNSUPPORTED = "client_unsupported"
    OTHER_VIDEO = "other_video"

    LIVE = "live"
    DRM = "drm"
    SABR_ONLY = "sabr_only"
    NO_PROGRESSIVE = "no_progressive"
    NO_AUDIO = "no_audio"
    NO_VIDEO = "no_video"
    AD_WAIT = "ad_wait"

    PAGE_429 = "page_429"
    PAGE_503 = "page_503"
    PLAYER_429 = "player_429"
    PLAYER_503 = "player_503"
    PLAYER_HANGS = "player_hangs"
    PLAYER_TRICKLES = "player_trickles"
    FIRST_503 = "first_503"

    MEDIA_403 = "media_403"
    MEDIA_404 = "media_404"
    MEDIA_429 = "media_429"
    MEDIA_503 = "media_503"
    MEDIA_EXPIRED = "media_expired"
    MEDIA_STALLS = "media_stalls"
    MEDIA_CUT = "media_cut"
    MEDIA_RESET = "media_reset"
    MEDIA_NOISE = "media_noise"
    MEDIA_HTML = "media_html"
    MEDIA_REDIRECT = "media_redirect"
    MEDIA_SLOW = "media_slow"
    MEDIA_NO_RANGE = "media_no_range"

    SUBTITLES_NONE = "subtitles_none"
    SUBTITLES_AUTOMATIC = "subtitles_automatic"
    SUBTITLES_TOKEN = "subtitles_token"  # noqa: S105 (no secret)
    SUBTITLES_404 = "subtitles_404"
    SUBTITLES_429 = "subtitles_429"
    SUBTITLES_503 = "subtitles_503"
    SUBTITLES_CUT = "subtitles_cut"
    SUBTITLES_NOISE = "subtitles_noise"

    @property
    def code(self) -> str:
        """The prefix of the fault's video ids: 2 to 6 of ``[a-z0-9]``."""
        return _FAULTS[self].code

    @property
    def stage(self) -> Stage:
        """Where in the exchange it shows."""
        return _FAULTS[self].stage

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return _FAULTS[self].about


@dataclass(frozen=True)
class _About:
    code: str
    stage: Stage
    about: str


_FAULTS = {
    Fault.BOT_CHECK: _About("bot", Stage.PLAYABILITY, "Sign in to confirm you’re not a bot"),
    Fault.CAPTCHA: _About("captch", Stage.PLAYABILITY, "a captcha is asked for before playback"),
    Fault.PRIVATE: _About("priv", Stage.PLAYABILITY, "Private video"),
    Fault.REMOVED_UPLOADER: _About("gone", Stage.PLAYABILITY, "removed by the uploader"),
    Fault.REMOVED_POLICY: _About(
        "policy", Stage.PLAYABILITY, "removed for violating the Community Guidelines"
    ),
    Fault.COPYRIGHT: _About("copyr", Stage.PLAYABILITY, "gone after a copyright claim"),
    Fault.ACCOUNT_TERMINATED: _About("term", Stage.PLAYABILITY, "the account was terminated"),
    Fault.UNAVAILABLE: _About("unav", Stage.PLAYABILITY, "Video unavailable, for no reason given"),
    Fault.GEO_BLOCKED: _About("geo", Stage.PLAYABILITY, "not available in your country"),
    Fault.AGE_GATED: _About("age", Stage.PLAYABILITY, "Sign in to confirm your age"),
    Fault.MEMBERS_ONLY: _About("memb", Stage.PLAYABILITY, "for the channel's members only"),
    Fault.PAID: _About("paid", Stage.PLAYABILITY, "requires payment"),
    Fault.RATE_LIMITED: _About(
        "rate", Stage.PLAYABILITY, "This content isn't available, try again later"
    ),
    Fault.UPCOMING: _About("soon", Stage.PLAYABILITY, "a premiere that is five hours away"),
    Fault.LIVE_NO_RECORDING: _About("norec", Stage.PLAYABILITY, "a live stream without recording"),
    Fault.CLIENT_UNSUPPORTED: _About("noapp", Stage.PLAYABILITY, "not available on this app"),
    Fault.OTHER_VIDEO: _About(
        "other", Stage.PLAYABILITY, "the player answers for another video, as to blocked addresses"
    ),
    Fault.LIVE: _About("live", Stage.FORMATS, "a live stream that is on air"),
    Fault.DRM: _About("drm", Stage.FORMATS, "all formats are protected"),
    Fault.SABR_ONLY: _About("sabr", Stage.FORMATS, "formats without URL"),
    Fault.NO_PROGRESSIVE: _About("noprog", Stage.FORMATS, "no format with both video and audio"),
    Fault.NO_AUDIO: _About("noaud", Stage.FORMATS, "formats with video alone"),
    Fault.NO_VIDEO: _About("novid", Stage.FORMATS, "formats with audio alone"),
    Fault.AD_WAIT: _About(
        "adwait", Stage.FORMATS, f"an advertisement of {AD_SECONDS} s before playback"
    ),
    Fault.PAGE_429: _About("pg429", Stage.PAGE, "429 on the watch page"),
    Fault.PAGE_503: _About("pg503", Stage.PAGE, "503 on the watch page"),
    Fault.PLAYER_429: _About("pl429", Stage.PLAYER, "429 on the player"),
    Fault.PLAYER_503: _About("pl503", Stage.PLAYER, "503 on the player"),
    Fault.PLAYER_HANGS: _About("hang", Stage.PLAYER, "the player never answers"),
    Fault.PLAYER_TRICKLES: _About("drip", Stage.PLAYER, "the player's answer comes by the byte"),
    Fault.FIRST_503: _About("once", Stage.ANY, "503 to the first request of each kind, then fine"),
    Fault.MEDIA_403: _About("m403", Stage.MEDIA, "403 on the media"),
    Fault.MEDIA_404: _About("m404", Stage.MEDIA, "404 on the media"),
    Fault.MEDIA_429: _About("m429", Stage.MEDIA, "429 on the media"),
    Fault.MEDIA_503: _About("m503", Stage.MEDIA, "503 on the media"),
    Fault.MEDIA_EXPIRED: _About(
        "expire", Stage.MEDIA, "403 with the URLs of the first extraction, fine with later ones"
    ),
    Fault.MEDIA_STALLS: _About("stall", Stage.MEDIA, "nothing comes after 30 % of an answer"),
    Fault.MEDIA_CUT: _About("cut", Stage.MEDIA, "closed after half of an answer"),
    Fault.MEDIA_RESET: _About("reset", Stage.MEDIA, "reset (RST) after half of an answer"),
    Fault.MEDIA_NOISE: _About("noise", Stage.MEDIA, "random bytes of the right length"),
    Fault.MEDIA_HTML: _About("html", Stage.MEDIA, "an HTML page with status 200"),
    Fault.MEDIA_REDIRECT: _About("redir", Stage.MEDIA, "redirected to another host, which works"),
    Fault.MEDIA_SLOW: _About("slow", Stage.MEDIA, "50 kB/s"),
    Fault.MEDIA_NO_RANGE: _About("norng", Stage.MEDIA, "Range ignored: 200 and the whole file"),
    Fault.SUBTITLES_NONE: _About("nosub", Stage.SUBTITLES, "a video without captions"),
    Fault.SUBTITLES_AUTOMATIC: _About(
        "auto", Stage.SUBTITLES, "captions of speech recognition alone"
    ),
    Fault.SUBTITLES_TOKEN: _About("stoken", Stage.SUBTITLES, "captions that a token is needed for"),
    Fault.SUBTITLES_404: _About("s404", Stage.SUBTITLES, "404 on the captions"),
    Fault.SUBTITLES_429: _About("s429", Stage.SUBTITLES, "429 on the captions"),
    Fault.SUBTITLES_503: _About("s503", Stage.SUBTITLES, "503 on the captions"),
    Fault.SUBTITLES_CUT: _About("scut", Stage.SUBTITLES, "closed after half of the captions"),
    Fault.SUBTITLES_NOISE: _About("snoise", Stage.SUBTITLES, "random bytes for captions"),
}

_BY_CODE = {about.code: fault for fault, about in _FAULTS.items()}


@dataclass(frozen=True)
class Video:
    """What the sandbox shows under a video id.

    Attributes
    ----------
    video_id
        The id, 11 characters.
    number
        The id's number, or a hash of an id outside the grammar.
    master
        Code of the master whose media are served.
    fault
        What goes wrong, if anything.
    duration
        Seconds to which the master is stretched; None if it is served as it is.
    """

    video_id: str
    number: int
    master: str
    fault: Fault | None
    duration: float | None


def video_id(number: int, *, master: str | None = None, fault: Fault | None = None) -> str:
    """Make the id of a video.

    Parameters
    ----------
    number
        Makes it one of many: 0 or more, of as many digits as fit beside the code (5 to 8).
    master
        Code of the master to show; the first of `DEMO_MASTERS` if neither is given.
    fault
        What shall go wrong. A fault's master is chosen by the number.

    Returns
    -------
    str
        Eleven characters.

    Raises
    ------
    ValueError
        If both `master` and `fault` are given, or the number does not fit.
    """
    if master is not None and fault is not None:
        raise ValueError("a video has the code of a master or of a fault, not of both")
    code = fault.code if fault is not None else master or DEMO_MASTERS[0].code
    digits = ID_LENGTH - len(code) - 1
    made = f"{code}-{number:0{digits}d}"
    if number < 0 or len(made) != ID_LENGTH or _ID.fullmatch(made) is None:
        raise ValueError(f"no id of {ID_LENGTH} characters for {code!r} and {number}")
    return made


def parse(video_id: str, masters: Sequence[MasterSpec] = DEMO_MASTERS) -> Video:
    """Tell what lies behind an id.

    Parameters
    ----------
    video_id
        Any id.
    masters
        The masters that there are; a sandbox with others than the default knows other codes.

    Returns
    -------
    Video
        The same for the same id and masters, always.

    Raises
    ------
    ValueError
        If there are no masters.
    """
    found = _ID.fullmatch(video_id) if len(video_id) == ID_LENGTH else None
    named = next((spec for spec in masters if found and spec.code == found["code"]), None)
    fault = _BY_CODE.get(found["code"]) if found and named is None else None
    number = int(found["number"]) if found and (named or fault) else _hash(video_id)
    spec = named or _pick(ordinary(masters), number)
    return Video(video_id, number, spec.code, fault, spec.virtual)


def clashes(masters: Iterable[MasterSpec]) -> tuple[str, ...]:
    """Return the codes of `masters` that a fault has too: such masters would never be shown."""
    return tuple(spec.code for spec in masters if spec.code in _BY_CODE)


def ordinary(masters: Sequence[MasterSpec]) -> tuple[MasterSpec, ...]:
    """Return the masters that stand behind ids which name none.

    These have an mp4 of video and one of audio, so that whichever formats a fault leaves out, some
    are left; and they are served as they are. Where there are none such, the choice gets wider.
    """
    plain = tuple(spec for spec in masters if spec.virtual is None)
    split = tuple(
        spec for spec in plain if _VIDEO_MP4 & set(spec.itags) and _AUDIO_MP4 & set(spec.itags)
    )
    return split or plain or tuple(masters)


def _pick(specs: Sequence[MasterSpec], number: int) -> MasterSpec:
    if not specs:
        raise ValueError("a sandbox needs at least one master")
    return specs[number % len(specs)]


@lru_cache(maxsize=4096)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest(), "big")
