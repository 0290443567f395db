"""What can go wrong: outcomes of clips (data) and fatal errors (exit codes).

A clip that cannot be had is a row with an :class:`Outcome`, never an exception that
leaves its thread. What stops a run is an :class:`AcavdlError` with an exit code.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Where in the line a clip ended."""

    DONE = "done"
    RESOLVE = "resolve"
    FETCH = "fetch"
    CUT = "cut"


class Scope(StrEnum):
    """What an outcome says something about."""

    CLIP = "clip"
    VIDEO = "video"
    EGRESS = "egress"
    ENVIRONMENT = "environment"


class Retry(StrEnum):
    """Whether, and when, the same clip may be asked for again."""

    NEVER = "never"
    NOW = "now"
    LATER = "later"


class Outcome(StrEnum):
    """How a clip ended; blocked (egress), dead (video) and broken (environment) never share one."""

    stage: Stage
    scope: Scope
    retry: Retry

    def __new__(
        cls,
        value: str,
        stage: Stage = Stage.RESOLVE,
        scope: Scope = Scope.VIDEO,
        retry: Retry = Retry.LATER,
    ) -> Outcome:
        """Make a string member that carries its stage, scope and retry."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.stage, member.scope, member.retry = stage, scope, retry
        return member

    OK = "ok", Stage.DONE, Scope.CLIP, Retry.NEVER

    # The site refuses this address for now: nothing is known about the video.
    RATE_LIMITED = "rate_limited", Stage.RESOLVE, Scope.EGRESS, Retry.LATER
    BOT_CHECK = "bot_check", Stage.RESOLVE, Scope.EGRESS, Retry.LATER
    HTTP_429 = "http_429", Stage.RESOLVE, Scope.EGRESS, Retry.LATER
    HTTP_402 = "http_402", Stage.RESOLVE, Scope.EGRESS, Retry.LATER

    # The video is not to be had, whoever asks (or from here, or without an account).
    AGE_GATED = "age_gated", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    PRIVATE = "private", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    MEMBERS_ONLY = "members_only", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    PAID = "paid", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    GEO_BLOCKED = "geo_blocked", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    ACCOUNT_TERMINATED = "account_terminated", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    COPYRIGHT = "copyright", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    REMOVED_POLICY = "removed_policy", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    REMOVED_UPLOADER = "removed_uploader", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    LIVE_NO_RECORDING = "live_no_recording", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    DRM = "drm", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    # Taken out of the dataset (`acavdl remove`), by whoever it is that may ask for it.
    REMOVED = "removed", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    UPCOMING = "upcoming", Stage.RESOLVE, Scope.VIDEO, Retry.LATER
    LIVE = "live", Stage.RESOLVE, Scope.VIDEO, Retry.LATER
    CLIENT_UNSUPPORTED = "client_unsupported", Stage.RESOLVE, Scope.VIDEO, Retry.LATER
    # Where its subtitles are what clips are made of.
    NO_SUBTITLES = "no_subtitles", Stage.RESOLVE, Scope.VIDEO, Retry.NEVER
    # Ambiguous on the site: worth one more look some other day.
    UNAVAILABLE = "unavailable", Stage.RESOLVE, Scope.VIDEO, Retry.LATER

    # Something here is out of date or missing (yt-dlp, its JavaScript runtime).
    NO_FORMATS = "no_formats", Stage.RESOLVE, Scope.ENVIRONMENT, Retry.LATER
    EXTRACTOR_BROKEN = "extractor_broken", Stage.RESOLVE, Scope.ENVIRONMENT, Retry.LATER

    HTTP_403_MEDIA = "http_403_media", Stage.FETCH, Scope.VIDEO, Retry.LATER
    HTTP_404_MEDIA = "http_404_media", Stage.FETCH, Scope.VIDEO, Retry.LATER
    HTTP_5XX = "http_5xx", Stage.FETCH, Scope.VIDEO, Retry.NOW
    NETWORK = "network", Stage.FETCH, Scope.VIDEO, Retry.NOW
    TLS = "tls", Stage.FETCH, Scope.ENVIRONMENT, Retry.LATER
    TIMEOUT = "timeout", Stage.FETCH, Scope.VIDEO, Retry.NOW

    CLIP_OUT_OF_RANGE = "clip_out_of_range", Stage.CUT, Scope.CLIP, Retry.NEVER
    NO_AUDIO = "no_audio", Stage.CUT, Scope.VIDEO, Retry.NEVER
    NO_VIDEO = "no_video", Stage.CUT, Scope.VIDEO, Retry.NEVER
    CORRUPT = "corrupt", Stage.CUT, Scope.VIDEO, Retry.LATER

    BAD_INPUT = "bad_input", Stage.RESOLVE, Scope.CLIP, Retry.NEVER
    UNKNOWN = "unknown", Stage.RESOLVE, Scope.VIDEO, Retry.LATER


def whole_text(text: str) -> str:
    """Return `text` with half of a surrogate pair, which no file can hold, as a question mark."""
    return text.encode("utf-8", "replace").decode()


class ClipError(Exception):
    """A clip (or all clips of a video) cannot be made.

    Parameters
    ----------
    outcome
        What the ledger says of it.
    detail
        The raw message of the library or site, kept word for word (see `whole_text`).
    """

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(f"{outcome}: {detail}")
        self.outcome = outcome
        self.detail = whole_text(detail)

    def __reduce__(self) -> tuple[type[ClipError], tuple[Outcome, str]]:
        """Pickle by the two arguments (``Exception`` would keep the joined text alone)."""
        return type(self), (self.outcome, self.detail)


#: Exit code of a run that was ended before its end, and goes on with the same command.
INTERRUPTED = 130


class AcavdlError(Exception):
    """What ends a command: one line for the user, and an exit code."""

    exit_code = 1


class UsageError(AcavdlError):
    """A wrong option, configuration or environment."""

    exit_code = 2


class PlanMismatchError(AcavdlError):
    """The output folder holds another plan."""

    exit_code = 3


class EmptyTableError(AcavdlError):
    """The table has no usable row."""

    exit_code = 4


class ClusterError(AcavdlError):
    """The cluster does not take the jobs, or they end as soon as they begin."""

    exit_code = 5


class StorageError(AcavdlError):
    """The store cannot be read or written; never charged to a clip."""


class HeldBackError(AcavdlError):
    """The site refused all addresses for too long; another time the same run goes on."""

    exit_code = 6


class ShardError(AcavdlError):
    """Some shards could not be finished (storage or a bug); the others are published."""


class SampleError(AcavdlError):
    """A sample of a dataset cannot be read back."""
