"""The origin as its clients see it: yt-dlp as it is, and urllib3, both with verification on."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import urllib3
import yt_dlp
from yt_dlp.utils import DownloadError, GeoRestrictedError

from acavdl.sandbox import DEMO_MASTERS, Fault, Sandbox, SandboxError, innertube, parse, video_id
from acavdl.sandbox.catalog import AD_SECONDS, Stage
from acavdl.sandbox.origin import Span, span

MASTERS = [spec for spec in DEMO_MASTERS if spec.code in ("m24", "m60", "h3")]
# When an answer is an error, yt-dlp leaves its connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")

WATCH = "https://www.youtube.com/watch?v="
PLAYER = "https://www.youtube.com/youtubei/v1/player"


@pytest.fixture(scope="module")
def running():
    with Sandbox(egresses=2, masters=MASTERS) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running, monkeypatch):
    """The sandbox with its counters at zero, and this process's trust in it."""
    running.reset()
    for name, value in running.environ().items():
        monkeypatch.setenv(name, value)
    return running


@pytest.fixture
def web(sandbox):
    """A plain client on the first egress."""
    with client(sandbox) as pool:
        yield pool


@contextlib.contextmanager
def client(sandbox, egress=0):
    pool = urllib3.ProxyManager(
        sandbox.proxies[egress],
        ca_certs=str(sandbox.ca_file),
        retries=False,
        timeout=urllib3.Timeout(10),
    )
    try:
        yield pool
    finally:
        pool.clear()


class Log:
    """What yt-dlp says."""

    def __init__(self):
        self.warnings = []

    def debug(self, message):
        pass

    def error(self, message):
        pass

    def warning(self, message):
        # Said of the machine, not of the video.
        if "No supported JavaScript runtime" not in message:
            self.warnings.append(message)


def extract(wanted, *, download=False, **params):
    """Return what yt-dlp makes of a video: its info, and its warnings."""
    log = Log()
    # certifi's bundle would come before SSL_CERT_FILE.
    fixed = {"compat_opts": {"no-certifi"}, "logger": log, "cachedir": False, "socket_timeout": 10}
    # With a runtime, which some machines have, more clients are asked.
    with yt_dlp.YoutubeDL({**fixed, "js_runtimes": {}, **params}) as ytdl:
        return ytdl.extract_info(WATCH + wanted, download=download), log.warnings


def failure(wanted, **params):
    """Return the message that yt-dlp fails with."""
    with pytest.raises(DownloadError) as caught:
        extract(wanted, **params)
    return str(caught.value)


def url_of(wanted, itag="140", **params):
    info, _ = extract(wanted, **params)
    return next(f["url"] for f in info["formats"] if f["format_id"] == itag)


def media(sandbox, wanted, itag=140):
    """Return the bytes that a video is to be served with."""
    return sandbox.masters[sandbox.video(wanted).master].rendition(itag).path.read_bytes()


def ask_player(web, wanted, **params):
    body = json.dumps({"videoId": wanted, "context": {"client": {"clientName": "VISIONOS"}}})
    return web.request("POST", PLAYER, body=body.encode(), **params)


# --- what yt-dlp is told ----------------------------------------------------------------------


def test_ytdlp_learns_everything_in_two_requests(sandbox):
    info, warnings = extract(video_id(12, master="h3"))
    assert warnings == []
    assert 10_800 <= info["duration"] < 10_800 + 20.48
    expected = innertube.describe(sandbox.video(info["id"]), info["duration"])
    assert info["title"] == expected.title
    assert info["id"] in info["description"]
    assert info["channel"] == info["uploader"] == expected.channel
    assert info["channel_id"] == expected.channel_id
    assert info["uploader_id"] == expected.handle
    assert info["channel_follower_count"] == expected.followers
    assert info["timestamp"] == expected.uploaded.timestamp()
    assert info["upload_date"] == time.strftime("%Y%m%d", time.gmtime(info["timestamp"]))
    assert info["categories"] == [expected.category]
    assert info["tags"] == list(expected.tags)
    assert info["view_count"] == expected.views
    assert info["like_count"] == expected.likes
    assert info["comment_count"] == expected.comments
    assert [c["title"] for c in info["chapters"]] == ["Intro", "Middle", "End"]
    assert [c["start_time"] for c in info["chapters"]] == [0, 3601, 7202]
    assert info["age_limit"] == 0
    assert info["availability"] == "public"
    assert info["live_status"] == "not_live"
    assert list(info["subtitles"]) == ["en"]
    assert {"en", "en-orig", "de"} <= set(info["automatic_captions"])
    requests = sandbox.stats().requests
    assert {k: n for k, n in requests.items() if n} == {"page": 1, "player": 1}


def test_only_web_clients_are_told_the_upload_date_by_the_player(sandbox):
    skip = {"youtube": {"player_skip": ["webpage", "configs", "initial_data"]}}
    info, _ = extract(video_id(1, master="m60"), extractor_args=skip)
    assert info["duration"] == 12
    assert info["upload_date"] is None
    assert sandbox.stats().requests["page"] == 0


def test_the_duration_is_told_in_whole_seconds(sandbox):
    details = innertube.describe(sandbox.video(video_id(1)), 30.03)
    assert details.whole_seconds == 30
    assert "30.03" in details.description


def test_formats_are_those_of_the_master(sandbox):
    info, _ = extract(video_id(0, master="m24"))
    offered = {f["format_id"]: f for f in info["formats"]}
    renditions = sandbox.masters["m24"].renditions
    assert set(offered) == {str(rendition.itag) for rendition in renditions} >= {"18", "134", "140"}
    for rendition in renditions:
        shown = offered[str(rendition.itag)]
        codecs = {shown["vcodec"], shown["acodec"]} - {"none"}
        assert codecs == set(rendition.codecs.split(", "))
        assert (shown.get("width"), shown.get("height")) == (rendition.width, rendition.height)
        query = parse_qs(urlsplit(shown["url"]).query)
        if rendition.itag == 18:
            assert shown["filesize"] is None
        else:
            assert shown["filesize"] == rendition.size
            assert query["clen"] == [str(rendition.size)]
        assert float(query["dur"][0]) == pytest.approx(rendition.duration, abs=1e-3)


def test_some_videos_are_dubbed_and_their_original_comes_last(sandbox):
    info, _ = extract(video_id(5, master="m60"))
    opus = [f for f in info["formats"] if f["acodec"] == "opus"]
    tracks = [(f["language"], "drc" in f["format_id"]) for f in opus]
    assert sorted(tracks) == [("de", False), ("en", False), ("en", True)]
    chosen = [f for f in info["requested_formats"] if f["vcodec"] == "none"]
    assert [(f["language"], f["language_preference"]) for f in chosen] == [("en", 10)]
    grant = innertube.Grant("192.0.2.1", 2_000_000_000, 1, "VISIONOS")
    audio = sandbox.masters["m60"].rendition(140)
    stream = innertube.Stream(audio, audio.size, audio.duration, None, None)
    video = sandbox.video(video_id(5, master="m60"))
    listed = innertube.streaming_data(video, [stream], grant, None)["adaptiveFormats"]
    assert [f["audioTrack"]["id"] for f in listed] == ["de.3", "en.4", "en.4"]


def test_ytdlp_downloads_what_the_master_holds(sandbox, tmp_path):
    wanted = video_id(3, master="m24")
    extract(wanted, download=True, format="140", outtmpl=str(tmp_path / "out"), fixup="never")
    assert (tmp_path / "out").read_bytes() == media(sandbox, wanted)


def test_three_hours_are_served_out_of_a_small_file(sandbox, web):
    url = url_of(video_id(1, master="h3"), "134")
    size = int(parse_qs(urlsplit(url).query)["clen"][0])
    assert size > 50 * sandbox.masters["h3"].rendition(134).size
    answer = web.request("GET", url, headers={"Range": f"bytes={size - 1000}-"})
    assert answer.headers["Content-Range"] == f"bytes {size - 1000}-{size - 1}/{size}"
    assert len(answer.data) == 1000


def test_sizes_are_those_of_the_site(web):
    packed = {"headers": {"Accept-Encoding": "gzip"}, "decode_content": False}
    page = web.request("GET", WATCH + video_id(1), **packed)
    assert 180_000 < len(page.data) < 210_000
    assert 900_000 < len(zlib.decompress(page.data, 31)) < 960_000
    answer = ask_player(web, video_id(1), **packed)
    assert 13_000 < len(answer.data) < 20_000
    assert 70_000 < len(zlib.decompress(answer.data, 31)) < 90_000


def test_compressed_or_not_a_body_is_the_same(web):
    plain = web.request("GET", WATCH + video_id(1), headers={"Accept-Encoding": "identity"})
    packed = web.request("GET", WATCH + video_id(1), headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.data == plain.data


def test_without_the_page_the_initial_data_come_from_next(sandbox):
    info, _ = extract(video_id(4), extractor_args={"youtube": {"player_skip": ["webpage"]}})
    assert info["channel"] == innertube.describe(sandbox.video(info["id"]), 1.0).channel
    assert sandbox.stats().requests["next"] == 1


# --- captions ---------------------------------------------------------------------------------

CAPTIONS = {
    "json3": '"tStartMs":4000,"dDurationMs":2000,"segs":[{"utf8":"line at 4 seconds"}]',
    "srv1": '<text start="4" dur="2">line at 4 seconds</text>',
    "srv2": '<text t="4000" d="2000">line at 4 seconds</text>',
    "srv3": '<p t="4000" d="2000">line at 4 seconds</p>',
    "ttml": '<p begin="00:00:04.000" end="00:00:06.000">line at 4 seconds</p>',
    "srt": "3\n00:00:04,000 --> 00:00:06,000\nline at 4 seconds\n",
    "vtt": "00:00:04.000 --> 00:00:06.000\nline at 4 seconds\n",
}


def test_captions_are_served_in_every_format(web):
    info, _ = extract(video_id(1))
    offered = {sub["ext"]: sub["url"] for sub in info["subtitles"]["en"]}
    assert set(offered) == set(CAPTIONS)
    for fmt, expected in CAPTIONS.items():
        assert expected in web.request("GET", offered[fmt]).data.decode()


def test_automatic_captions_time_each_word(web):
    info, _ = extract(video_id(1))
    url = next(s["url"] for s in info["automatic_captions"]["en-orig"] if s["ext"] == "json3")
    events = json.loads(web.request("GET", url).data)["events"]
    window, first, break_behind, second, *_ = events
    assert "segs" not in window
    assert first["segs"][:2] == [{"utf8": "words"}, {"utf8": " at", "tOffsetMs": 500}]
    assert break_behind["segs"] == [{"utf8": "\n"}]
    # They roll: a line stays while the next one is spoken.
    assert first["tStartMs"] + first["dDurationMs"] > second["tStartMs"]


def test_one_video_in_eight_has_captions_in_german(web):
    info, _ = extract(video_id(3))
    assert list(info["subtitles"]) == ["en", "de"]
    url = next(s["url"] for s in info["subtitles"]["de"] if s["ext"] == "srt")
    assert "Zeile bei 4 Sekunden" in web.request("GET", url).data.decode()


@pytest.mark.parametrize(
    ("fault", "manual", "automatic"),
    [
        (Fault.SUBTITLES_NONE, False, False),
        (Fault.SUBTITLES_AUTOMATIC, False, True),
        (Fault.SUBTITLES_TOKEN, False, False),
    ],
)
@pytest.mark.usefixtures("sandbox")
def test_captions_that_are_missing(fault, manual, automatic):
    info, warnings = extract(video_id(1, fault=fault), writesubtitles=True)
    assert ("en" in info["subtitles"], "en" in info["automatic_captions"]) == (manual, automatic)
    assert any("PO token" in w for w in warnings) == (fault is Fault.SUBTITLES_TOKEN)


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Fault.SUBTITLES_404, 404), (Fault.SUBTITLES_429, 429), (Fault.SUBTITLES_503, 503)],
)
def test_captions_that_are_refused(web, fault, status):
    info, _ = extract(video_id(1, fault=fault))
    assert web.request("GET", info["subtitles"]["en"][0]["url"]).status == status


def test_captions_that_break_off_or_are_noise(web):
    info, _ = extract(video_id(1, fault=Fault.SUBTITLES_CUT))
    with pytest.raises(urllib3.exceptions.ProtocolError):
        web.request("GET", info["subtitles"]["en"][0]["url"])
    info, _ = extract(video_id(1, fault=Fault.SUBTITLES_NOISE))
    answer = web.request("GET", info["subtitles"]["en"][0]["url"])
    assert (answer.status, len(answer.data)) == (200, 4096)


def test_the_last_caption_ends_with_the_video():
    lines = innertube.caption_lines(5.5)
    assert [(line.start, line.end) for line in lines] == [(0, 2000), (2000, 4000), (4000, 5500)]
    assert innertube.timedtext(lines, "no such format") is None


# --- faults: what yt-dlp makes of them --------------------------------------------------------

MESSAGES = {
    Fault.BOT_CHECK: "Sign in to confirm you’re not a bot",
    Fault.CAPTCHA: "YouTube is requiring a captcha challenge before playback",
    Fault.PRIVATE: "Private video. Sign in if you've been granted access to this video",
    Fault.REMOVED_UPLOADER: "Video unavailable. This video has been removed by the uploader",
    Fault.REMOVED_POLICY: "removed for violating YouTube's Community Guidelines",
    Fault.COPYRIGHT: "This video is no longer available due to a copyright claim by",
    Fault.ACCOUNT_TERMINATED: "account associated with this video has been terminated",
    Fault.UNAVAILABLE: "Video unavailable. This video is unavailable",
    Fault.GEO_BLOCKED: "The uploader has not made this video available in your country",
    Fault.AGE_GATED: "Sign in to confirm your age",
    Fault.MEMBERS_ONLY: "Join this channel to get access",
    Fault.PAID: "This video requires payment to watch",
    Fault.RATE_LIMITED: "This content isn't available, try again later",
    Fault.UPCOMING: "Premieres in 5 hours",
    Fault.LIVE_NO_RECORDING: "This live stream recording is not available",
    Fault.CLIENT_UNSUPPORTED: "not available on this app",
    Fault.OTHER_VIDEO: "All player responses are invalid. Your IP is likely being blocked",
    Fault.DRM: "This video is DRM protected",
    Fault.SABR_ONLY: "No video formats found",
}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("fault", MESSAGES)
def test_ytdlp_tells_why_a_video_cannot_be_had(fault):
    wanted = video_id(1, fault=fault)
    assert f"[youtube] {wanted}: " in (message := failure(wanted))
    assert MESSAGES[fault] in message


def test_every_fault_of_playability_has_its_message():
    assert {f for f in Fault if f.stage is Stage.PLAYABILITY} <= set(MESSAGES)


@pytest.mark.usefixtures("sandbox")
def test_the_countries_of_a_blocked_video_are_told():
    with pytest.raises(DownloadError) as caught:
        extract(video_id(1, fault=Fault.GEO_BLOCKED))
    reason = caught.value.exc_info[1]
    assert isinstance(reason, GeoRestrictedError)
    assert tuple(reason.countries) == innertube.COUNTRIES


@pytest.mark.usefixtures("sandbox")
def test_a_premiere_tells_its_time():
    info, warnings = extract(video_id(1, fault=Fault.UPCOMING), ignore_no_formats_error=True)
    assert info["live_status"] == "is_upcoming"
    wait = info["release_timestamp"] - time.time()
    assert innertube.PREMIERE_WAIT - 30 < wait <= innertube.PREMIERE_WAIT
    assert any("Premieres in 5 hours" in w for w in warnings)


@pytest.mark.usefixtures("sandbox")
def test_a_live_stream_is_live():
    info, _ = extract(video_id(1, fault=Fault.LIVE))
    assert info["live_status"] == "is_live"
    assert {f["protocol"] for f in info["formats"]} == {"m3u8_native"}


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize(
    ("fault", "left"),
    [
        (Fault.NO_PROGRESSIVE, {(True, False), (False, True)}),
        (Fault.NO_AUDIO, {(True, False)}),
        (Fault.NO_VIDEO, {(False, True)}),
        (None, {(True, False), (False, True), (True, True)}),
    ],
)
def test_kinds_of_formats_that_are_left(fault, left):
    wanted = video_id(0, fault=fault) if fault else video_id(0, master="m24")
    assert parse(wanted, MASTERS).master == "m24"
    info, _ = extract(wanted)
    assert {(f["vcodec"] != "none", f["acodec"] != "none") for f in info["formats"]} == left


@pytest.mark.usefixtures("sandbox")
def test_formats_without_url_are_told_from_formats_that_are_missing():
    _, warnings = extract(video_id(1, fault=Fault.SABR_ONLY), ignore_no_formats_error=True)
    assert any("missing a URL" in w for w in warnings)


@pytest.mark.usefixtures("sandbox")
def test_an_advertisement_makes_the_formats_wait():
    before = time.time()
    info, _ = extract(video_id(1, fault=Fault.AD_WAIT))
    after = time.time()
    waits = {f["available_at"] for f in info["formats"]}
    assert all(before + AD_SECONDS <= wait <= after + AD_SECONDS + 1 for wait in waits)


@pytest.mark.parametrize(("fault", "status"), [(Fault.PAGE_429, 429), (Fault.PAGE_503, 503)])
def test_without_its_page_a_video_is_still_found(sandbox, fault, status):
    info, warnings = extract(video_id(1, fault=fault), extractor_retries=1)
    assert info["formats"]
    assert any(f"Unable to download webpage: HTTP Error {status}" in w for w in warnings)
    # yt-dlp gives up at once on a 429, and retries a 503.
    assert sandbox.stats().requests["page"] == (1 if status == 429 else 2)


@pytest.mark.parametrize(("fault", "status"), [(Fault.PLAYER_429, 429), (Fault.PLAYER_503, 503)])
def test_what_the_player_answered_is_in_a_warning_only(sandbox, fault, status):
    wanted = video_id(1, fault=fault)
    assert "No video formats found" in failure(wanted)
    _, warnings = extract(wanted, ignore_no_formats_error=True, extractor_retries=0)
    assert any(f"HTTP Error {status}" in w for w in warnings)


def test_the_first_request_of_each_kind_fails(sandbox, web):
    wanted = video_id(1, fault=Fault.FIRST_503)
    statuses = [web.request("GET", WATCH + wanted).status for _ in range(3)]
    statuses += [ask_player(web, wanted).status for _ in range(3)]
    assert statuses == [503, 200, 200, 503, 200, 200]
    url = url_of(wanted)
    assert [web.request("HEAD", url).status for _ in range(2)] == [503, 200]
    sandbox.reset()
    assert web.request("GET", WATCH + wanted).status == 503


def test_a_player_that_never_answers(sandbox, web):
    wanted = video_id(1, fault=Fault.PLAYER_HANGS)
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        ask_player(web, wanted, timeout=0.5)
    assert sandbox.stats().videos == {wanted: {"player": 1}}


def test_a_player_that_answers_by_the_byte(web):
    wanted = video_id(1, fault=Fault.PLAYER_TRICKLES)
    began = time.monotonic()
    answer = ask_player(web, wanted, preload_content=False)
    assert int(answer.headers["Content-Length"]) > 10_000
    assert len(answer.read(10)) == 10
    assert time.monotonic() - began > 0.3
    answer.close()


# --- faults of the media ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault.MEDIA_403, 403),
        (Fault.MEDIA_404, 404),
        (Fault.MEDIA_429, 429),
        (Fault.MEDIA_503, 503),
    ],
)
def test_media_that_are_refused(web, fault, status):
    url = url_of(video_id(1, fault=fault))
    assert [web.request("GET", url).status for _ in range(2)] == [status, status]


def test_media_urls_that_expired_work_after_another_extraction(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_EXPIRED)
    first = url_of(wanted)
    assert web.request("GET", first).status == 403
    second = url_of(wanted)
    assert web.request("GET", second).data == media(sandbox, wanted)
    assert web.request("GET", first).status == 403


def read_until_it_breaks(answer):
    """Return what came of a body, and the error that ended it."""
    got = bytearray()
    try:
        for piece in answer.stream(1000):
            got += piece
    except urllib3.exceptions.HTTPError as error:
        return bytes(got), error
    finally:
        answer.close()
    return bytes(got), None


def test_media_that_stall(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_STALLS)
    answer = web.request("GET", url_of(wanted), preload_content=False, timeout=0.5)
    got, error = read_until_it_breaks(answer)
    assert isinstance(error, urllib3.exceptions.ReadTimeoutError)
    whole = media(sandbox, wanted)
    assert int(answer.headers["Content-Length"]) == len(whole)
    assert 0.25 * len(whole) < len(got) <= 0.3 * len(whole)
    assert whole.startswith(got)


@pytest.mark.parametrize("fault", [Fault.MEDIA_CUT, Fault.MEDIA_RESET])
def test_media_that_break_off(sandbox, web, fault):
    wanted = video_id(1, fault=fault)
    answer = web.request("GET", url_of(wanted), preload_content=False)
    got, error = read_until_it_breaks(answer)
    whole = media(sandbox, wanted)
    assert isinstance(error, urllib3.exceptions.ProtocolError)
    assert int(answer.headers["Content-Length"]) == len(whole)
    assert 0.4 * len(whole) < len(got) <= len(whole) // 2
    assert whole.startswith(got)


@contextlib.contextmanager
def tunnel(sandbox, host):
    """A TLS connection with nothing on top."""
    there = urlsplit(sandbox.proxies[0])
    context = ssl.create_default_context(cafile=str(sandbox.ca_file))
    with socket.create_connection((there.hostname, there.port), timeout=10) as sock:
        sock.sendall(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        with context.wrap_socket(sock, server_hostname=host) as tls:
            yield tls


def end_of(tls):
    """Tell how a connection ends, which Python's TLS does not: it takes a reset for an end."""
    with socket.socket(fileno=tls.detach()) as sock:
        sock.settimeout(10)
        try:
            while sock.recv(65_536):
                pass
        except ConnectionResetError:
            return "reset"
    return "closed"


@pytest.mark.parametrize(
    ("fault", "end"), [(Fault.MEDIA_CUT, "closed"), (Fault.MEDIA_RESET, "reset")]
)
def test_how_connections_end(sandbox, fault, end):
    parts = urlsplit(url_of(video_id(1, fault=fault)))
    with tunnel(sandbox, parts.hostname) as tls:
        request = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.hostname}\r\n\r\n"
        tls.sendall(request.encode())
        assert end_of(tls) == end


def test_media_that_are_noise(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_NOISE)
    url = url_of(wanted)
    whole = web.request("GET", url)
    part = web.request("GET", url, headers={"Range": "bytes=100-199"})
    assert (whole.status, part.status) == (200, 206)
    expected = media(sandbox, wanted)
    assert len(whole.data) == len(expected)
    assert part.data == whole.data[100:200]
    assert b"ftyp" not in whole.data[:16]
    # Random bytes do not compress.
    assert len(zlib.compress(whole.data)) > len(whole.data)


def test_media_that_are_a_page(web):
    answer = web.request("GET", url_of(video_id(1, fault=Fault.MEDIA_HTML)))
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.data.startswith(b"<html>")


def test_media_behind_a_redirect(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_REDIRECT)
    url = url_of(wanted)
    answer = web.request("GET", url, redirect=False)
    assert answer.status == 302
    there = urlsplit(answer.headers["Location"]).hostname
    assert there.endswith(".googlevideo.com")
    assert there != urlsplit(url).hostname
    assert web.request("GET", answer.headers["Location"]).data == media(sandbox, wanted)


def test_media_that_are_slow(web):
    url = url_of(video_id(1, fault=Fault.MEDIA_SLOW))
    began = time.monotonic()
    assert len(web.request("GET", url, headers={"Range": "bytes=0-24999"}).data) == 25_000
    assert 0.4 < time.monotonic() - began < 5


def test_media_that_ignore_ranges(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_NO_RANGE)
    answer = web.request("GET", url_of(wanted), headers={"Range": "bytes=100-199"})
    assert answer.status == 200
    assert answer.data == media(sandbox, wanted)


# --- ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "query", "expected"),
    [
        (None, None, Span(0, 1000, 200)),
        ("bytes=0-99", None, Span(0, 100, 206)),
        ("bytes=990-", None, Span(990, 1000, 206)),
        ("bytes=990-5000", None, Span(990, 1000, 206)),
        ("bytes=-10", None, Span(990, 1000, 206)),
        ("bytes=-5000", None, Span(0, 1000, 206)),
        ("bytes=999-999", None, Span(999, 1000, 206)),
        ("bytes=1000-", None, None),
        ("bytes=-0", None, None),
        ("bytes=5-3", None, Span(0, 1000, 200)),
        ("bytes=0-1,5-6", None, Span(0, 1000, 200)),
        ("bytes=-", None, Span(0, 1000, 200)),
        ("lines=1-2", None, Span(0, 1000, 200)),
        (None, "10-19", Span(10, 20, 200)),
        (None, "10-", Span(10, 1000, 200)),
        (None, "10-5000", Span(10, 1000, 200)),
        (None, "1000-1001", None),
        ("bytes=0-99", "10-19", Span(10, 20, 200)),
        ("bytes=0-99", "nonsense", Span(0, 100, 206)),
    ],
)
def test_which_bytes_are_asked_for(header, query, expected):
    assert span(1000, header, query) == expected


def test_ranges_of_the_media(sandbox, web):
    wanted = video_id(2, master="m60")
    whole, url = media(sandbox, wanted), url_of(wanted)
    size = len(whole)
    answer = web.request("GET", url, headers={"Range": "bytes=1000-1999"})
    assert (answer.status, answer.data) == (206, whole[1000:2000])
    assert answer.headers["Content-Range"] == f"bytes 1000-1999/{size}"
    assert answer.headers["Content-Type"] == "audio/mp4"
    answer = web.request("GET", f"{url}&range=1000-1999")
    assert (answer.status, answer.data) == (200, whole[1000:2000])
    answer = web.request("GET", url, headers={"Range": f"bytes={size}-"})
    assert (answer.status, answer.data) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{size}"
    answer = web.request("HEAD", url)
    assert (answer.status, answer.headers["Content-Length"], answer.data) == (200, str(size), b"")
    answer = web.request("GET", url)
    assert (answer.status, answer.data) == (200, whole)


def test_a_connection_is_used_again(sandbox, web):
    url = url_of(video_id(2, master="m60"))
    sandbox.reset()
    for start in range(0, 5000, 1000):
        web.request("GET", url, headers={"Range": f"bytes={start}-{start + 999}"})
    assert sandbox.stats().connections == (1, 0)


# --- who may come, and where to ---------------------------------------------------------------


@pytest.mark.parametrize("host", ["example.com", "youtube.com.example.com", "www.googleapis.com"])
def test_other_hosts_are_forbidden(sandbox, web, host):
    with pytest.raises(urllib3.exceptions.ProxyError, match="403"):
        web.request("GET", f"https://{host}/")
    assert sandbox.stats().forbidden == 1


def test_other_ports_are_forbidden(web):
    with pytest.raises(urllib3.exceptions.ProxyError, match="403"):
        web.request("GET", "https://www.youtube.com:8443/")


def test_plain_http_is_led_to_https_or_forbidden(web):
    answer = web.request("GET", "http://www.youtube.com/watch?v=x", redirect=False)
    assert (answer.status, answer.headers["Location"]) == (301, "https://www.youtube.com/watch?v=x")
    assert web.request("GET", "http://example.com/").status == 403


def test_who_does_not_trust_the_ca_gets_nothing(sandbox, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    pool = urllib3.ProxyManager(sandbox.proxies[0], retries=False)
    with pytest.raises(urllib3.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        pool.request("GET", WATCH + video_id(1))
    pool.clear()


def test_a_media_url_works_from_its_own_egress_only(sandbox):
    wanted = video_id(2, master="m60")
    url = url_of(wanted, proxy=sandbox.proxies[1])
    with client(sandbox, 0) as here, client(sandbox, 1) as there:
        assert here.request("GET", url).status == 403
        assert there.request("GET", url).data == media(sandbox, wanted)


def test_a_media_url_does_not_work_for_ever(web):
    url = url_of(video_id(2, master="m60"))
    expires = parse_qs(urlsplit(url).query)["expire"][0]
    late = url.replace(f"expire={expires}", f"expire={int(time.time()) - 1}")
    assert [web.request("HEAD", u).status for u in (late, url)] == [403, 200]


@pytest.mark.parametrize("path", ["/nowhere", "/watch", "/youtubei/v1/player"])
def test_requests_about_no_video_fail(web, path):
    assert web.request("GET", f"https://www.youtube.com{path}").status in (400, 404)


def test_pictures_are_pictures(web):
    answer = web.request("GET", f"https://i.ytimg.com/vi/{video_id(1)}/hqdefault.jpg")
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert answer.data[:2] == b"\xff\xd8"
    assert answer.data[-2:] == b"\xff\xd9"


# --- counting and refusing --------------------------------------------------------------------


def test_everything_is_counted(sandbox):
    wanted = video_id(2, master="m60")
    url = url_of(wanted, proxy=sandbox.proxies[1])
    with client(sandbox, 1) as there:
        there.request("GET", url, headers={"Range": "bytes=0-999"})
        there.request("GET", url, headers={"Range": "bytes=1000-2999"})
        there.request("HEAD", url)
    stats = sandbox.stats()
    assert stats.requests == {
        "page": 1, "player": 1, "next": 0, "media": 3, "subtitles": 0, "other": 0
    }  # fmt: skip
    assert stats.bytes["media"] == 3000
    assert stats.bytes["page"] > 100_000
    assert stats.egress_requests == (0, 5)
    assert stats.egress_bytes == (0, sum(stats.bytes.values()))
    assert stats.videos == {wanted: {"page": 1, "player": 1, "media": 3}}
    assert stats.cpu_seconds > 0
    sandbox.reset()
    assert sandbox.stats().requests == dict.fromkeys(stats.requests, 0)
    assert sandbox.stats().videos == {}


def test_bytes_that_were_not_sent_are_not_counted(sandbox, web):
    wanted = video_id(1, fault=Fault.MEDIA_CUT)
    read_until_it_breaks(web.request("GET", url_of(wanted), preload_content=False))
    assert sandbox.stats().bytes["media"] == len(media(sandbox, wanted)) // 2


@pytest.fixture
def refusing(sandbox):
    yield sandbox
    for egress in range(2):
        sandbox.refuse(egress, None)


def test_an_egress_can_be_taken_for_a_bot(refusing, web):
    wanted = video_id(2, master="m60")
    url = url_of(wanted)
    refusing.refuse(0, Fault.BOT_CHECK)
    assert "not a bot" in failure(wanted, proxy=refusing.proxies[0])
    # What was handed out before still works, and the other egress is another matter.
    assert web.request("HEAD", url).status == 200
    assert extract(wanted, proxy=refusing.proxies[1])[0]["formats"]
    refusing.refuse(0, None)
    assert extract(wanted, proxy=refusing.proxies[0])[0]["formats"]


def test_an_egress_can_be_refused_altogether(refusing, web):
    url = url_of(video_id(2, master="m60"))
    refusing.refuse(0, Fault.PLAYER_429)
    picture = "https://i.ytimg.com/vi/x/0.jpg"
    assert [web.request("GET", u).status for u in (url, WATCH + "x", picture)] == [429] * 3
    with client(refusing, 1) as other:
        assert other.request("GET", picture).status == 200


def test_refusals_that_make_no_sense(sandbox):
    with pytest.raises(ValueError, match="no egress 2"):
        sandbox.refuse(2, Fault.BOT_CHECK)
    with pytest.raises(ValueError, match="cannot refuse with media_cut"):
        sandbox.refuse(0, Fault.MEDIA_CUT)


def test_control_needs_the_token(sandbox):
    for token in ("", "Bearer wrong"):
        connection = http.client.HTTPConnection("127.0.0.1", sandbox._control, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/stats", headers={"Authorization": token})
            assert connection.getresponse().status == 403


# --- the process ------------------------------------------------------------------------------


@pytest.fixture
def own_tmp(tmp_path, monkeypatch):
    """A directory for temporary files that nobody else uses meanwhile."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_latency_and_bandwidth_can_be_set(monkeypatch):
    with Sandbox(masters=MASTERS, latency=0.2, bandwidth=500_000) as slow:
        for name, value in slow.environ().items():
            monkeypatch.setenv(name, value)
        url = url_of(video_id(1))
        with client(slow) as pool:
            pool.request("HEAD", url)
            began = time.monotonic()
            pool.request("HEAD", url)
            waited = time.monotonic() - began
            began = time.monotonic()
            pool.request("GET", url, headers={"Range": "bytes=0-149999"})
            took = time.monotonic() - began
    assert 0.2 <= waited < 2
    assert 0.49 <= took < 4


def test_nothing_is_left_behind(own_tmp):
    sandbox = Sandbox(masters=MASTERS)
    with contextlib.suppress(KeyError), sandbox:
        process = sandbox._process
        folder = sandbox.ca_file.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in folder.iterdir()] == ["ca.pem"]
        assert b"PRIVATE" not in sandbox.ca_file.read_bytes()
        raise KeyError
    assert folder.parent == own_tmp
    assert process.returncode == 0
    assert list(own_tmp.iterdir()) == []
    with pytest.raises(SandboxError, match="not running"):
        sandbox.stats()


def test_a_sandbox_can_be_entered_again():
    sandbox = Sandbox(masters=MASTERS)
    for _ in range(2):
        with sandbox:
            assert sandbox.stats().forbidden == 0


def test_an_interrupt_does_not_reach_the_origin():
    with Sandbox(masters=MASTERS) as sandbox:
        assert os.getpgid(sandbox._process.pid) != os.getpgid(0)
        sandbox._process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert sandbox.stats().forbidden == 0


def test_an_origin_that_was_killed_is_told_from_one_that_answers(own_tmp):
    with Sandbox(masters=MASTERS) as sandbox:
        sandbox._process.kill()
        sandbox._process.wait(10)
        with pytest.raises(SandboxError, match="does not answer"):
            sandbox.stats()
    assert list(own_tmp.iterdir()) == []


PARENT = """
import sys, time
from acavdl.sandbox import DEMO_MASTERS, Sandbox
with Sandbox(masters=[s for s in DEMO_MASTERS if s.code == "m60"]) as sandbox:
    print(sandbox.ca_file, flush=True)
    time.sleep(60)
"""


def test_the_origin_dies_with_a_parent_that_is_killed():
    root = str(Path(innertube.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        folder = Path(parent.stdout.readline().strip()).parent
        assert folder.is_dir()
        parent.kill()
    wait_until(lambda: not folder.exists())


@pytest.mark.parametrize(
    "settings",
    [
        {"egresses": 0},
        {"egresses": 251},
        {"latency": -1.0},
        {"bandwidth": 0.0},
        {"masters": []},
    ],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(ValueError, match=r"sandbox has|latency is|no masters"):
        Sandbox(**settings)


def test_environ_leads_a_program_to_its_egress(sandbox):
    variables = sandbox.environ(1)
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == sandbox.proxies[1]
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == str(sandbox.ca_file)
    assert variables["NO_PROXY"] == variables["no_proxy"] == ""
