"""From what yt-dlp says to an outcome: one table, the first match wins.

Source: yt-dlp's YouTube extractor and what the site answers through it. The order matters:
"Video unavailable. This content isn't available, try again later" is a refusal of the address,
not a dead video.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from acavdl.errors import Outcome, Scope

_RULES: tuple[tuple[str, Outcome], ...] = (
    # Refusals first: they must never be taken for link rot.
    ("this content isn't available, try again later", Outcome.RATE_LIMITED),
    ("sign in to confirm you're not a bot", Outcome.BOT_CHECK),
    ("requiring a captcha challenge", Outcome.BOT_CHECK),
    ("all player responses are invalid. your ip is likely being blocked", Outcome.BOT_CHECK),
    ("http error 429", Outcome.HTTP_429),
    ("too many requests", Outcome.HTTP_429),
    ("402: payment required", Outcome.HTTP_402),
    # Access that an account might have.
    ("sign in to confirm your age", Outcome.AGE_GATED),
    ("inappropriate for some users", Outcome.AGE_GATED),
    ("age-restricted", Outcome.AGE_GATED),
    ("private video", Outcome.PRIVATE),
    ("this video is private", Outcome.PRIVATE),
    ("join this channel to get access", Outcome.MEMBERS_ONLY),
    ("available to this channel's members", Outcome.MEMBERS_ONLY),
    ("members-only", Outcome.MEMBERS_ONLY),
    ("requires payment", Outcome.PAID),
    ("not made this video available in your country", Outcome.GEO_BLOCKED),
    ("blocked it in your country", Outcome.GEO_BLOCKED),
    ("not available from your location", Outcome.GEO_BLOCKED),
    ("not available in your country", Outcome.GEO_BLOCKED),
    # Gone.
    ("account associated with this video has been terminated", Outcome.ACCOUNT_TERMINATED),
    ("no longer available due to a copyright claim", Outcome.COPYRIGHT),
    ("blocked it on copyright grounds", Outcome.COPYRIGHT),
    ("removed for violating youtube's", Outcome.REMOVED_POLICY),
    ("removed by the uploader", Outcome.REMOVED_UPLOADER),
    # Not yet, or never recorded.
    ("premieres in", Outcome.UPCOMING),
    ("premiere will begin", Outcome.UPCOMING),
    ("this live event will begin", Outcome.UPCOMING),
    ("live stream recording is not available", Outcome.LIVE_NO_RECORDING),
    ("drm protected", Outcome.DRM),
    ("not available on this app", Outcome.CLIENT_UNSUPPORTED),
    # What is out of date or missing here.
    ("requested format is not available", Outcome.NO_FORMATS),
    ("no video formats found", Outcome.NO_FORMATS),
    ("n challenge solving failed", Outcome.NO_FORMATS),
    ("require a gvs po token", Outcome.NO_FORMATS),
    # The wire. Before "unavailable": "HTTP Error 503: Service Unavailable" is no dead video.
    ("unable to download video data: http error 403", Outcome.HTTP_403_MEDIA),
    ("http error 403", Outcome.EXTRACTOR_BROKEN),
    ("http error 404", Outcome.UNAVAILABLE),
    ("http error 5", Outcome.HTTP_5XX),
    ("certificate verify failed", Outcome.TLS),
    ("certificate_verify_failed", Outcome.TLS),
    ("time for this clip is used up", Outcome.TIMEOUT),
    ("timed out", Outcome.TIMEOUT),
    ("more expected", Outcome.NETWORK),
    ("content too short", Outcome.NETWORK),
    ("failed to resolve", Outcome.NETWORK),
    ("name or service not known", Outcome.NETWORK),
    ("connection reset", Outcome.NETWORK),
    ("connection refused", Outcome.NETWORK),
    ("connection aborted", Outcome.NETWORK),
    ("connection broken", Outcome.NETWORK),
    ("remote end closed connection", Outcome.NETWORK),
    ("unable to connect to proxy", Outcome.NETWORK),
    ("[ssl", Outcome.NETWORK),
    ("video unavailable", Outcome.UNAVAILABLE),
    ("this video is unavailable", Outcome.UNAVAILABLE),
    ("this video is not available", Outcome.UNAVAILABLE),
    ("this video isn't available", Outcome.UNAVAILABLE),
    ("failed to extract any player response", Outcome.EXTRACTOR_BROKEN),
    ("precondition check failed", Outcome.EXTRACTOR_BROKEN),
    ("please report this issue", Outcome.EXTRACTOR_BROKEN),
    ("unsupported url", Outcome.BAD_INPUT),
    ("incomplete youtube id", Outcome.BAD_INPUT),
    ("no suitable extractor found for url", Outcome.BAD_INPUT),
    ("is not a valid url", Outcome.BAD_INPUT),
    ("invalid ipv6 url", Outcome.BAD_INPUT),
    ("failed to parse", Outcome.BAD_INPUT),
    ("label empty or too long", Outcome.BAD_INPUT),
)

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def normalise(message: str) -> str:
    """Return `message` without colours, curly quotes and capitals."""
    plain = _ANSI.sub("", message).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return plain.lower().strip()


def _match(message: str) -> Outcome:
    plain = normalise(message)
    return next((outcome for text, outcome in _RULES if text in plain), Outcome.UNKNOWN)


def classify(message: str, warnings: Iterable[str] = ()) -> Outcome:
    """Return the outcome that an extraction's error message stands for.

    Where the message only says that nothing was found, the cause (a 429, a broken connection, a
    certificate) stands in the warnings that came before it, so those are asked next.
    """
    outcome = _match(message)
    if outcome.scope is Scope.ENVIRONMENT or outcome is Outcome.UNKNOWN:
        causes = [found for text in warnings if (found := _match(text)) is not Outcome.UNKNOWN]
        return next(
            (cause for cause in causes if cause.scope is not Scope.ENVIRONMENT),
            next(iter(causes), outcome),
        )
    return outcome
