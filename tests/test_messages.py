"""Messages of yt-dlp and of the site, as they come, and what they are told as."""

from __future__ import annotations

import contextlib

import pytest
from helpers import EXPECTED
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.budget import Budget
from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome, Scope
from acavdl.messages import classify, normalise
from acavdl.net import Network
from acavdl.resolve import Resolver
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.sandbox.catalog import Stage

REPORT = (
    "; please report this issue on  https://github.com/yt-dlp/yt-dlp/issues?q= , filling out the "
    "appropriate issue template. Confirm you are on the latest version using  yt-dlp -U"
)
CORPUS = [
    (
        Outcome.RATE_LIMITED,
        "ERROR: [youtube] dQw4w9WgXcQ: Video unavailable. This content isn’t available, try again "
        "later. The current session has been rate-limited by YouTube for up to an hour.",
    ),
    (
        Outcome.BOT_CHECK,
        "ERROR: [youtube] dQw4w9WgXcQ: Sign in to confirm you’re not a bot. Use "
        "--cookies-from-browser or --cookies for the authentication.",
    ),
    (Outcome.BOT_CHECK, "YouTube is requiring a captcha challenge before playback"),
    (
        Outcome.BOT_CHECK,
        "All player responses are invalid. Your IP is likely being blocked by Youtube" + REPORT,
    ),
    (
        Outcome.HTTP_429,
        "ERROR: [youtube] dQw4w9WgXcQ: Unable to download API page: HTTP Error 429: Too Many "
        "Requests (caused by <HTTPError 429: Too Many Requests>)",
    ),
    (Outcome.HTTP_402, "Unable to download webpage: HTTP Error 402: Payment Required"),
    (
        Outcome.AGE_GATED,
        "Sign in to confirm your age. This video may be inappropriate for some users. Use "
        "--cookies-from-browser or --cookies for the authentication.",
    ),
    (Outcome.AGE_GATED, "This video is age-restricted and only available on YouTube"),
    (
        Outcome.PRIVATE,
        "[youtube] dQw4w9WgXcQ: Private video. Sign in if you've been granted access to this video",
    ),
    (Outcome.PRIVATE, "Video unavailable. This video is private"),
    (
        Outcome.MEMBERS_ONLY,
        "Join this channel to get access to members-only content like this video, and other "
        "exclusive perks.",
    ),
    (
        Outcome.MEMBERS_ONLY,
        "This video is available to this channel's members on level: Gold (or any higher level). "
        "Join this channel to get access",
    ),
    (Outcome.PAID, "This video requires payment to watch."),
    (
        Outcome.GEO_BLOCKED,
        "Video unavailable. The uploader has not made this video available in your country",
    ),
    (
        Outcome.GEO_BLOCKED,
        "Video unavailable. This video contains content from SME, who has blocked it in your "
        "country on copyright grounds",
    ),
    (
        Outcome.COPYRIGHT,
        "Video unavailable. This video contains content from UMG, who has blocked it on copyright "
        "grounds",
    ),
    (
        Outcome.COPYRIGHT,
        "Video unavailable. This video is no longer available due to a copyright claim by Someone",
    ),
    (
        Outcome.ACCOUNT_TERMINATED,
        "Video unavailable. This video is no longer available because the YouTube account "
        "associated with this video has been terminated.",
    ),
    (
        Outcome.REMOVED_POLICY,
        "This video has been removed for violating YouTube's Community Guidelines",
    ),
    (
        Outcome.REMOVED_POLICY,
        "This video has been removed for violating YouTube’s policy on hate speech.",
    ),
    (Outcome.REMOVED_UPLOADER, "Video unavailable. This video has been removed by the uploader"),
    (Outcome.UPCOMING, "Premieres in 5 hours"),
    (Outcome.UPCOMING, "Premiere will begin shortly"),
    (Outcome.UPCOMING, "This live event will begin in a few moments."),
    (Outcome.LIVE_NO_RECORDING, "This live stream recording is not available."),
    (Outcome.DRM, "ERROR: [youtube] dQw4w9WgXcQ: This video is DRM protected"),
    (
        Outcome.CLIENT_UNSUPPORTED,
        "The following content is not available on this app.. Watch on the latest version of "
        "YouTube.",
    ),
    (Outcome.UNAVAILABLE, "ERROR: [youtube] dQw4w9WgXcQ: Video unavailable"),
    (Outcome.UNAVAILABLE, "This video is unavailable"),
    (Outcome.UNAVAILABLE, "[youtube] dQw4w9WgXcQ: This video is not available"),
    (Outcome.UNAVAILABLE, "This video isn’t available anymore"),
    (Outcome.UNAVAILABLE, "Unable to download webpage: HTTP Error 404: Not Found"),
    (
        Outcome.NO_FORMATS,
        "Requested format is not available. Use --list-formats for a list of available formats",
    ),
    (Outcome.NO_FORMATS, "No video formats found!" + REPORT),
    (
        Outcome.NO_FORMATS,
        "[youtube] dQw4w9WgXcQ: n challenge solving failed: Some formats may be missing.",
    ),
    (
        Outcome.NO_FORMATS,
        "[youtube] dQw4w9WgXcQ: ios client https formats require a GVS PO Token which was not "
        "provided.",
    ),
    (Outcome.EXTRACTOR_BROKEN, "Failed to extract any player response" + REPORT),
    (Outcome.EXTRACTOR_BROKEN, "HTTP Error 400: Bad Request: Precondition check failed."),
    (
        Outcome.EXTRACTOR_BROKEN,
        "An extractor error has occurred. (caused by KeyError('x'))" + REPORT,
    ),
    (Outcome.HTTP_403_MEDIA, "unable to download video data: HTTP Error 403: Forbidden"),
    (Outcome.HTTP_5XX, "Unable to download webpage: HTTP Error 503: Service Unavailable"),
    (
        Outcome.HTTP_5XX,
        "Unable to download API page: HTTP Error 500: Internal Server Error" + REPORT,
    ),
    (
        Outcome.TLS,
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer "
        "certificate (_ssl.c:1006)",
    ),
    (Outcome.TIMEOUT, "Unable to download webpage: The read operation timed out"),
    (Outcome.TIMEOUT, "HTTPSConnectionPool(host='x'): Read timed out. (read timeout=20.0)"),
    (Outcome.NETWORK, "1024 bytes read, 4096 more expected. Giving up after 10 retries"),
    (Outcome.NETWORK, "Content too short (got 1 bytes and served 2)"),
    (Outcome.NETWORK, "Failed to resolve 'www.youtube.com' ([Errno -2] Name or service not known)"),
    (Outcome.NETWORK, "Unable to download webpage: [Errno 104] Connection reset by peer"),
    (Outcome.NETWORK, "('Unable to connect to proxy', OSError('Tunnel connection failed: 407'))"),
    (Outcome.NETWORK, "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol"),
    (Outcome.BAD_INPUT, "ERROR: Unsupported URL: https://example.org/"),
    (Outcome.BAD_INPUT, "Incomplete YouTube ID dQw4. URL https://youtu.be/dQw4 looks truncated."),
    (Outcome.BAD_INPUT, "ERROR: [generic] 'nonsense' is not a valid URL"),
    (Outcome.BAD_INPUT, "No suitable extractor found for URL https://www.youtube.com/watch?v=x"),
]


@pytest.mark.parametrize(("outcome", "message"), CORPUS)
def test_message(outcome: Outcome, message: str) -> None:
    assert classify(message) is outcome


@pytest.mark.parametrize(("outcome", "message"), CORPUS)
def test_message_as_a_terminal_shows_it(outcome: Outcome, message: str) -> None:
    shown = f"\x1b[0;31mERROR:\x1b[0m \x1b[1m[youtube]\x1b[0m xyz: {message.upper()}\n"
    assert classify(shown) is outcome
    assert classify(message.replace("'", "’")) is outcome


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault.stage is Stage.PLAYABILITY])
def test_message_of_the_site_through_the_extractor(online: Sandbox, fault: Fault) -> None:
    """The words that yt-dlp passes on, alone, tell the outcome too: the ledger keeps just them."""
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading())) as resolver,
        Budget(20).scope(),
        pytest.raises(ClipError) as raised,
    ):
        resolver.resolve(f"https://www.youtube.com/watch?v={video_id(1, fault=fault)}")
    assert raised.value.outcome is EXPECTED[fault]
    assert classify(raised.value.detail) is EXPECTED[fault]


def test_cause_is_sought_in_the_warnings_where_the_message_tells_none() -> None:
    broken = "Failed to extract any player response" + REPORT
    refused = "[youtube] x: Unable to download API page: HTTP Error 429: Too Many Requests"
    token = "web client https formats require a GVS PO Token which was not provided"
    assert classify(broken, [refused]) is Outcome.HTTP_429
    assert classify("No video formats found!", [token, refused]) is Outcome.HTTP_429
    assert classify("something new", [token]) is Outcome.NO_FORMATS
    assert classify("something new", ["something else"]) is Outcome.UNKNOWN
    assert classify(broken, ["something else"]) is Outcome.EXTRACTOR_BROKEN


def test_message_that_tells_a_cause_is_not_overruled_by_warnings() -> None:
    warning = "[youtube] x: Unable to download webpage: HTTP Error 503: Service Unavailable"
    assert classify("Private video", [warning]) is Outcome.PRIVATE


REFUSALS = [message for outcome, message in CORPUS if outcome.scope is Scope.EGRESS]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(REFUSALS),
    st.sampled_from(["Video unavailable. ", "This video is not available. ", "ERROR: "]),
    st.sampled_from(["", REPORT, " Video unavailable", " HTTP Error 503: Service Unavailable"]),
)
def test_refusal_is_never_taken_for_link_rot(message: str, before: str, after: str) -> None:
    assert classify(before + message + after).scope is Scope.EGRESS


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=3))
def test_any_text_has_an_outcome(message: str, warnings: list[str]) -> None:
    assert isinstance(classify(message, warnings), Outcome)
    assert normalise(normalise(message)) == normalise(message)
