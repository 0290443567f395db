"""From a video's URL to its streams and subtitles: yt-dlp once per video, on our own network.

yt-dlp is used by its public API. Its requests go through :class:`acavdl.net.Network` by a request
handler (yt-dlp's extension point for that), so that they share connections, trust, proxies and the
wall-clock budget with our own.
"""

from __future__ import annotations

import contextlib
import email.message
import functools
import http.client
import io
import itertools
import logging
import os
import stat
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import urllib3
import urllib3.exceptions
from isal import igzip, isal_zlib
from yt_dlp import YoutubeDL
from yt_dlp.extractor import get_info_extractor
from yt_dlp.extractor.common import InfoExtractor
from yt_dlp.networking import RequestHandler, Response
from yt_dlp.networking.common import Features, Request
from yt_dlp.networking.exceptions import (
    CertificateVerifyError,
    HTTPError,
    IncompleteRead,
    ProxyError,
    SSLError,
    TransportError,
)
from yt_dlp.utils import (
    DownloadError,
    ExtractorError,
    GeoRestrictedError,
    YoutubeDLError,
    determine_ext,
)
from yt_dlp.version import __version__ as _yt_dlp_version

from acavdl.budget import Budget, back_off
from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome, Retry, Scope, UsageError, whole_text
from acavdl.formats import choose_formats, choose_sound, distinct, has_track
from acavdl.messages import classify
from acavdl.models import Line, Source, Stream
from acavdl.net import Network
from acavdl.subtitles import FORMATS, SubtitlesError, parse

logger = logging.getLogger(__name__)

#: The version of yt-dlp in use: it stands in each row, since what it can do changes by the week.
EXTRACTOR_VERSION: str = _yt_dlp_version
_MAX_REDIRECTS = 10
#: Bytes of a file of subtitles, unpacked: some ten times those of a day of speech.
_SUBTITLES_BYTES = 16 << 20
#: Read at once: what is packed may be a thousand times as large unpacked.
_PIECE_BYTES = 1 << 16

#: Fields of yt-dlp's info that go into each sample's ``yt_meta_dict.info``: no URLs of media, no
#: times of access, one type each. Lists are lists of strings, None where the site says nothing.
INFO_FIELDS: tuple[tuple[str, type], ...] = (
    ("id", str),
    ("title", str),
    ("description", str),
    ("channel", str),
    ("channel_id", str),
    ("uploader", str),
    ("uploader_id", str),
    ("upload_date", str),
    ("duration", float),
    ("age_limit", int),
    ("availability", str),
    ("live_status", str),
    ("media_type", str),
    ("language", str),
    ("categories", list),
    ("tags", list),
    ("webpage_url", str),
)
#: What changes by the hour stands in the parquet, so that the same media give the same samples.
COUNT_FIELDS = ("view_count", "like_count", "comment_count", "channel_follower_count")

#: No formats of manifests: they are never taken, and each manifest is a request.
_NO_MANIFESTS = {"skip": ["hls", "dash"]}
#: Arguments for yt-dlp's YouTube extractor. `light` asks the player alone, not for the watch page
#: and what comes with it.
_ARGUMENTS: dict[str, dict[str, list[str]]] = {
    "full": _NO_MANIFESTS,
    "light": {**_NO_MANIFESTS, "player_skip": ["webpage", "configs", "initial_data", "js"]},
}
#: Fields that ``light`` knows nothing of: they stand on the watch page. For some of them yt-dlp
#: has a value all the same, the usual one.
LIGHT_LACKS = frozenset(
    (
        *("channel", "uploader", "uploader_id", "upload_date", "age_limit", "availability"),
        *("media_type", "categories", "like_count", "comment_count", "channel_follower_count"),
    )
)


class Resolver:
    """Extracts videos in the calling thread; an instance of yt-dlp for each thread.

    Parameters
    ----------
    network
        The way out.
    reading
        Sizes, codecs, subtitles and options for yt-dlp.
    encode_formats
        What samples are made of (`Output.encode_formats`); None = a picture with its sound.

    Raises
    ------
    UsageError
        For arguments of extractors, among the options for yt-dlp, that are none.
    """

    def __init__(
        self,
        network: Network,
        reading: Reading,
        encode_formats: Mapping[str, str] | None = None,
    ) -> None:
        self._network = network
        self._reading = reading
        self._encode_formats = encode_formats or {"video": "mp4"}
        self._arguments = _extractor_args(reading)
        self._local = threading.local()
        self._opened: list[_Extractor] = []
        self._lock = threading.Lock()

    def resolve(self, url: str) -> Source:
        """Return the streams and subtitles of the video at `url` that the settings ask for.

        A ``file:`` URL is a media file of this machine: it has no metadata.

        Raises
        ------
        ClipError
            With the outcome that the site's answer stands for, and its words.
        """
        wanted = self._reading.writesubtitles
        if is_local(url):
            return _local_source(url, None if wanted is None else {})
        extractor = self._extractor(youtube=is_youtube(url))
        info = extractor.extract(url)
        _refuse_partial(extractor.warnings)
        if self._reading.extraction == "light" and is_youtube(url):
            info = {name: value for name, value in info.items() if name not in LIGHT_LACKS}
        live_status = info.get("live_status")
        if live_status in ("is_live", "post_live"):
            raise ClipError(Outcome.LIVE, f"live_status is {live_status}")
        if live_status == "is_upcoming":
            raise ClipError(Outcome.UPCOMING, f"starts at {info.get('release_timestamp')}")
        formats = self._chosen(info.get("formats") or [info], extractor.warnings)
        waits = [entry["available_at"] for entry in formats if entry.get("available_at")]
        return Source(
            streams=tuple(_stream(entry) for entry in formats),
            headers=extractor.headers_for(formats[0]),
            available_at=max(waits, default=None),
            duration=_number(info.get("duration")),
            info=typed_info(info),
            counts=_counts(info),
            subtitles=None if wanted is None else self._subtitles(extractor, info),
        )

    def _chosen(
        self, formats: Sequence[Mapping[str, Any]], warnings: Sequence[str]
    ) -> tuple[Mapping[str, Any], ...]:
        reading = self._reading
        if "video" in self._encode_formats:
            size, rate = reading.download_size, reading.download_audio_rate
            return choose_formats(formats, size, rate, reading.codecs, warnings)
        copied = self._encode_formats["audio"] == "m4a"
        return (choose_sound(formats, reading.download_audio_rate, warnings, copied=copied),)

    def _subtitles(
        self, extractor: _Extractor, info: Mapping[str, Any]
    ) -> dict[str, tuple[Line, ...]]:
        reading = self._reading
        found: dict[str, tuple[Line, ...]] = {}
        for language in dict.fromkeys(reading.subtitleslangs):
            track = choose_track(info, language, automatic=reading.writeautomaticsub)
            lines = None if track is None else extractor.lines(track, reading.retries)
            if lines is None:
                _refuse_withheld(extractor.warnings, language, automatic=reading.writeautomaticsub)
                continue
            found[language] = lines
            if reading.writesubtitles == "first":
                break
        return found

    def close(self) -> None:
        """Close all instances of yt-dlp (each holds a log handler and a cookie jar)."""
        with self._lock:
            for extractor in self._opened:
                extractor.close()
            self._opened.clear()

    def _extractor(self, *, youtube: bool) -> _Extractor:
        name = "youtube" if youtube else "any"
        extractor: _Extractor | None = getattr(self._local, name, None)
        if extractor is None:
            extractor = _Extractor(self._network, self._reading, self._arguments, youtube=youtube)
            setattr(self._local, name, extractor)
            with self._lock:
                self._opened.append(extractor)
        return extractor


class _Extractor(YoutubeDL):  # type: ignore[misc]
    """yt-dlp on our network, with the extractors it needs, keeping what it warned of."""

    def __init__(
        self, network: Network, reading: Reading, arguments: Mapping[str, Any], *, youtube: bool
    ) -> None:
        self._network = network
        self.warnings: list[str] = []
        params = {
            "logger": _WarningKeeper(self.warnings),
            "noplaylist": True,
            "skip_download": True,
            # A made-up address in a header would be a way round a refusal.
            "geo_bypass": False,
            # It tries pages again by itself, at once if nobody tells it to wait.
            "extractor_retries": reading.retries,
            "retry_sleep_functions": {"extractor": _wait_before},
            # Some extractors ask for a list of subtitles only then; YouTube's tells what it had to
            # leave out. Automatic ones are in its list anyway, without their many translations.
            "writesubtitles": reading.writesubtitles is not None,
            "writeautomaticsub": reading.writesubtitles is not None
            and reading.writeautomaticsub
            and not youtube,
            **reading.ytdlp,
            "extractor_args": arguments,
        }
        # Registering all 1,800 extractors costs 50 ms; YouTube's own one 0.1 ms.
        super().__init__(params, auto_init=not youtube)
        if youtube:
            self.add_info_extractor(_youtube(subtitles=reading.writesubtitles is not None)())

    def build_request_director(self, handlers: Any, preferences: Any = None) -> Any:
        """Use our handler in place of yt-dlp's (its extension point for request handlers)."""
        handler = functools.partial(_NetworkRH, network=self._network)
        return super().build_request_director([handler], None)

    def extract(self, url: str) -> dict[str, Any]:
        """Return yt-dlp's info of one video, unprocessed.

        Raises
        ------
        ClipError
            For whatever yt-dlp raises.
        """
        self.warnings.clear()
        try:
            info = self.extract_info(url, download=False, process=False)
        except DownloadError as error:
            raise _clip_error(error, self.warnings) from error
        except (YoutubeDLError, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClipError(classify(str(error), self.warnings), repr(error)) from error
        except Exception as error:
            # A page that an extractor does not know makes it trip over anything: its video fails.
            logger.debug("yt-dlp failed on %s", url, exc_info=True)
            raise ClipError(Outcome.EXTRACTOR_BROKEN, repr(error)) from error
        if info is None or info.get("_type", "video") != "video":
            kind = None if info is None else info.get("_type")
            raise ClipError(Outcome.BAD_INPUT, f"{url} is not one video but {kind}")
        return dict(info)

    def lines(self, track: Track, retries: int) -> tuple[Line, ...] | None:
        """Return the lines of a track of subtitles; None if the site has it no more.

        Raises
        ------
        ClipError
            If it is refused, lost (after `retries` more tries), or no subtitles.
        """
        data = self._body(track, retries) if track.data is None else track.data
        try:
            return None if data is None else parse(data, track.name, automatic=track.automatic)
        except SubtitlesError as error:
            raise ClipError(Outcome.EXTRACTOR_BROKEN, f"subtitles: {error}") from error

    def _body(self, track: Track, retries: int) -> bytes | None:
        for tries in itertools.count(1):
            try:
                return self._body_at_once(track)
            except ClipError as error:
                budget = Budget.current()
                over = budget is not None and budget.exceeded
                if error.outcome.retry is not Retry.NOW or tries > retries or over:
                    raise
            back_off(tries)
        return None

    def _body_at_once(self, track: Track) -> bytes | None:
        """Return the body behind the track's URL; None where there is none (404, 410)."""
        try:
            request = Request(track.url, headers=self.headers_for(track.entry))
            with contextlib.closing(self.urlopen(request)) as response:
                return _at_most(response, _SUBTITLES_BYTES)
        except HTTPError as error:
            if error.status in (404, 410):
                return None
            raise ClipError(classify(str(error)), f"subtitles: {error}") from error
        except (YoutubeDLError, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            outcome = classify(str(error))
            if outcome is Outcome.UNKNOWN and isinstance(error, TransportError):
                outcome = Outcome.NETWORK
            raise ClipError(outcome, f"subtitles: {error!r}") from error

    def save_cookies(self) -> None:
        """Leave the user's cookie file alone: many threads would write it at once."""

    def headers_for(self, entry: Mapping[str, Any]) -> dict[str, str]:
        """Return the headers that go with a format's media URL."""
        return {**self.params["http_headers"], **(entry.get("http_headers") or {})}


def _wait_before(n: int) -> None:
    """Wait before the try behind `n` others, within the budget: yt-dlp itself need not."""
    back_off(n)


def _extractor_args(reading: Reading) -> dict[str, Any]:
    """Return the arguments for yt-dlp's extractors: the user's, and ours where he has none.

    Raises
    ------
    UsageError
        If the user's are not written as yt-dlp's Python API has them.
    """
    theirs = reading.ytdlp.get("extractor_args") or {}
    youtube = theirs.get("youtube") or {} if isinstance(theirs, Mapping) else None
    if not isinstance(youtube, Mapping):
        raise UsageError(
            "reading.ytdlp.extractor_args must be lists by extractor and argument, such as "
            "{youtube: {player_client: [default]}}"
        )
    return {**theirs, "youtube": {**_ARGUMENTS[reading.extraction], **youtube}}


class _LeanReading(InfoExtractor):  # type: ignore[misc]
    """An override for yt-dlp's YouTube extractor: the same is found in less time."""

    def extract_yt_initial_data(self, item_id: str, webpage: str, fatal: bool = True) -> Any:
        """Read the script that has the data, else look for them: patterns and json take 6 ms."""
        script = _script_with("ytInitialData", webpage) or ""
        start = script.find("{", script.find("ytInitialData"))
        try:
            found = orjson.loads(script[start : script.rfind("}") + 1])
        except orjson.JSONDecodeError:
            found = None
        if isinstance(found, dict):
            return found
        return super().extract_yt_initial_data(item_id, webpage, fatal=fatal)


def _script_with(name: str, page: str) -> str | None:
    """Return the first script of `page` that has `name` in it, as a browser finds its end."""
    found = page.find(name)
    start = page.rfind("<script", 0, max(found, 0))
    stop = page.find("</script", found)
    return page[start:stop] if min(found, start, stop) >= 0 else None


@functools.cache
def _youtube(*, subtitles: bool) -> Any:
    """Return the class of yt-dlp's YouTube extractor, or of the user's plug-in for it, made lean.

    It lists each track of subtitles in seven formats, and one is enough.
    """
    # What is registered may be a stub that turns into the extractor when it is made.
    base = type(get_info_extractor("Youtube")())
    # Its name tells yt-dlp whose arguments are its own.
    listed = FORMATS[:1] if subtitles else ()
    return type("YoutubeIE", (_LeanReading, base), {"_SUBTITLE_FORMATS": listed})


class _WarningKeeper:
    """yt-dlp's `logger`: keeps warnings, passes the rest to `logging` at debug level."""

    def __init__(self, warnings: list[str]) -> None:
        self._warnings = warnings

    def debug(self, message: str) -> None:
        logger.debug("%s", message)

    info = debug
    error = debug

    def warning(self, message: str) -> None:
        self._warnings.append(message)
        logger.debug("%s", message)


class _NetworkRH(RequestHandler):  # type: ignore[misc]
    """yt-dlp's requests over our network: same TLS context, proxies, connections and budget."""

    _SUPPORTED_URL_SCHEMES = ("http", "https")
    # The network looks after proxies itself, from the same variables and options.
    _SUPPORTED_PROXY_SCHEMES = None
    _SUPPORTED_FEATURES = (Features.NO_PROXY, Features.ALL_PROXY)

    def __init__(self, *, network: Network, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._network = network

    def _check_extensions(self, extensions: dict[str, Any]) -> None:
        super()._check_extensions(extensions)
        for known in ("cookiejar", "timeout", "legacy_ssl", "keep_header_casing"):
            extensions.pop(known, None)

    def _send(self, request: Request) -> Response:
        headers = {**self._get_headers(request), "Accept-Encoding": "gzip, deflate"}
        method, url, body = request.method, request.url, request.data
        jar = self._get_cookiejar(request)
        for _ in range(_MAX_REDIRECTS + 1):
            cookie = jar.get_cookie_header(url)
            sent = {**headers, "Cookie": cookie} if cookie else headers
            with _errors_as_yt_dlp():
                answer = self._network.open(
                    method, url, sent, body, timeout=self._calculate_timeout(request)
                )
            # Not opened: the cookie jar wants to know what was asked for.
            asked = urllib.request.Request(url, None, sent)  # noqa: S310
            jar.extract_cookies(_CookieView(answer.headers), asked)
            location = answer.headers.get("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not location:
                break
            answer.drain_conn()
            target = urllib.parse.urljoin(url, location)
            self._check_url_scheme(Request(target))
            if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                method, body = "HEAD" if method == "HEAD" else "GET", None
            if urllib.parse.urlsplit(target)[:2] != urllib.parse.urlsplit(url)[:2]:
                # The jar knows which cookies are for the other host.
                secrets = ("authorization", "cookie")
                headers = {k: v for k, v in headers.items() if k.lower() not in secrets}
            url = target
        response = _Body(answer, url)
        if not 200 <= response.status < 300:
            raise HTTPError(_whole(response), redirect_loop=300 <= response.status < 400)
        return response


class _CookieView:
    """What `http.cookiejar` wants of a response: its headers as a message."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._message = email.message.Message()
        for name, value in headers.items():
            self._message[name] = value

    def info(self) -> email.message.Message:
        return self._message


class _Body(Response):  # type: ignore[misc]
    """A response of the network as yt-dlp reads it: decoded, its bytes charged to the budget."""

    def __init__(self, answer: urllib3.BaseHTTPResponse, url: str) -> None:
        super().__init__(
            fp=answer, url=url, headers=answer.headers, status=answer.status, reason=answer.reason
        )
        self._answer = answer
        self._charged = 0

    def read(self, amt: int | None = None) -> bytes:
        packed = self._answer.headers.get("Content-Encoding") == "gzip"
        with _errors_as_yt_dlp():
            if amt is None and packed and not self._answer.tell():
                data = _unpacked(self._answer.read(decode_content=False))
            else:
                data = self._answer.read(amt, decode_content=True)
        if amt is None:
            # urllib3 gives the connection back at the end of the body; a full read is that.
            self._answer.release_conn()
        budget = Budget.current()
        if budget is not None:
            total = self._answer.tell()
            budget.bytes_received += total - self._charged
            self._charged = total
        return data


def _unpacked(data: bytes) -> bytes:
    """Return what was packed with gzip; in a third of the time that zlib takes.

    Raises
    ------
    urllib3.exceptions.DecodeError
        If it is something else.
    """
    try:
        return bytes(igzip.decompress(data))  # type: ignore[no-untyped-call]
    except (OSError, EOFError, isal_zlib.IsalError) as error:  # type: ignore[misc]
        raise urllib3.exceptions.DecodeError(f"a body that is no gzip: {error}") from error


def _whole(body: _Body) -> Response:
    """Return an answer with its body read: nobody closes an error, and its connection is of use."""
    data = b""
    # What is refused is refused, even if its explanation is cut short.
    with contextlib.suppress(TransportError):
        data = body.read()
    return Response(
        fp=io.BytesIO(data),
        url=body.url,
        headers=body.headers,
        status=body.status,
        reason=body.reason,
    )


@contextlib.contextmanager
def _errors_as_yt_dlp() -> Iterator[None]:
    """Turn urllib3's errors into yt-dlp's, so that its own retrying sees what it knows."""
    try:
        yield
    except urllib3.exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise CertificateVerifyError(cause=error) from error
        raise SSLError(cause=error) from error
    except urllib3.exceptions.ProxyError as error:
        raise ProxyError(cause=error) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        # urllib3 has it as the cause of a broken connection; `partial` is a count in its own kind.
        short = error.__cause__
        if isinstance(short, http.client.IncompleteRead):
            partial: bytes | int = short.partial
            count = partial if isinstance(partial, int) else len(partial)
            raise IncompleteRead(count, short.expected, cause=error) from error
        raise TransportError(cause=error) from error


def _clip_error(error: DownloadError, warnings: Sequence[str]) -> ClipError:
    """Return the outcome of a failed extraction; the words of the site are kept as they are."""
    cause = (error.exc_info or (None, None))[1]
    message = str(error)
    detail = " | ".join([message, *distinct(warnings)])
    if isinstance(cause, GeoRestrictedError):
        countries = ", ".join(cause.countries or [])
        return ClipError(Outcome.GEO_BLOCKED, f"{detail} (countries: {countries or 'not told'})")
    if isinstance(cause, ExtractorError):
        # "please report this issue" is appended to any unexpected error: look at the cause first.
        text = f"{cause.orig_msg} {cause.cause or ''}"
        outcome = classify(text, warnings)
        if outcome is not Outcome.UNKNOWN:
            return ClipError(outcome, detail)
    return ClipError(classify(message, warnings), detail)


def _refuse_partial(warnings: Sequence[str]) -> None:
    """Raise if a request of the extraction failed for good, though yt-dlp could do without.

    A page that was refused or broken leaves holes in the metadata, other ones in each run; and a
    refusal is to be heeded at its first sign. What yt-dlp tries again by itself is no failure.
    """
    for text in warnings:
        outcome = classify(text)
        lost = outcome in (Outcome.HTTP_5XX, Outcome.NETWORK, Outcome.TIMEOUT)
        if (lost or outcome.scope is Scope.EGRESS) and ". Retrying" not in text:
            raise ClipError(outcome, text)


def _refuse_withheld(warnings: Sequence[str], language: str, *, automatic: bool) -> None:
    """Raise if there are subtitles in `language` that yt-dlp had to leave out: a hole, too."""
    for text in warnings:
        if "because a PO token was not provided" in text:
            named = text.partition("languages are missing: ")[2].partition(".")[0].split(", ")
            if language in named or (automatic and "Automatic captions for" in text):
                raise ClipError(Outcome.EXTRACTOR_BROKEN, text)


def _at_most(response: Response, limit: int) -> bytes:
    data = bytearray()
    while piece := response.read(_PIECE_BYTES):
        data += piece
        if len(data) > limit:
            raise ClipError(Outcome.EXTRACTOR_BROKEN, f"subtitles of more than {limit} bytes")
    return bytes(data)


def is_youtube(url: str) -> bool:
    """Whether `url` is on YouTube's hosts."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in ("youtu.be", "youtube.com") or host.endswith(".youtube.com")


# --- files of this machine ---------------------------------------------------------------------


def is_local(url: str) -> bool:
    """Whether `url` names a file of this machine, as tables are checked for (in lower case)."""
    return url.startswith("file:")


def _local_source(url: str, subtitles: Mapping[str, tuple[Line, ...]] | None) -> Source:
    """Return a file of this machine as a source of one stream.

    Raises
    ------
    ClipError
        ``bad_input``, with the words of the system, if it can't be read.
    """
    try:
        path = _local_path(url)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a file")
        with path.open("rb"):
            size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise ClipError(Outcome.BAD_INPUT, f"{url}: {error}") from error
    nothing: dict[str, Any] = dict.fromkeys(("width", "height", "fps", "sample_rate", "bitrate"))
    stream = Stream(
        format_id="file",
        url=url,
        container=path.suffix.removeprefix("."),
        video_codec=None,
        audio_codec=None,
        size=size,
        path=str(path),
        **nothing,
    )
    return Source((stream,), {}, None, None, typed_info({}), _counts({}), subtitles)


def _local_path(url: str) -> Path:
    """Return the path of a ``file:`` URL (:rfc:`8089`).

    Raises
    ------
    ValueError
        If it is of another machine, or relative.
    """
    parts = urllib.parse.urlsplit(url)
    path = Path(os.fsdecode(urllib.parse.unquote_to_bytes(parts.path)))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise ValueError("not a path of this machine")
    return path


# --- which subtitles -------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """Subtitles of one language that can be read.

    `entry` is yt-dlp's, `name` the name of the format; `data` is the file where the extractor had
    it at hand, else it is behind `url`.
    """

    entry: Mapping[str, Any]
    url: str
    name: str
    data: bytes | None
    automatic: bool


def choose_track(info: Mapping[str, Any], language: str, *, automatic: bool) -> Track | None:
    """Choose the subtitles of a video in `language`, by its exact name; None if there are none.

    Those of people come before those of speech recognition, which are taken with `automatic` alone
    (with YouTube's translations of them, as yt-dlp lists both).
    """
    kinds = (("subtitles", False), *([("automatic_captions", True)] if automatic else []))
    for field, recognised in kinds:
        listed = info.get(field)
        entries = listed.get(language) if isinstance(listed, Mapping) else None
        tracks = [found for entry in entries or [] if (found := _track(entry, recognised))]
        if tracks:
            return min(tracks, key=lambda track: FORMATS.index(track.name))
    return None


def _track(entry: Mapping[str, Any], automatic: bool) -> Track | None:
    """Return an entry of yt-dlp's lists as a track, if it is one file of a format that we read."""
    url, data = str(entry.get("url") or ""), entry.get("data")
    name = str(entry.get("ext") or determine_ext(url)).lower()
    plain = entry.get("protocol", "https") in ("http", "https")
    web = plain and url.lower().startswith(("http:", "https:"))
    if name not in FORMATS or not (web or isinstance(data, str)):
        return None
    body = whole_text(data).encode() if isinstance(data, str) else None
    return Track(entry, url, name, body, automatic)


# --- facts -----------------------------------------------------------------------------------


def _stream(entry: Mapping[str, Any]) -> Stream:
    return Stream(
        format_id=str(entry.get("format_id")),
        url=str(entry["url"]),
        container=str(entry.get("ext") or ""),
        video_codec=entry.get("vcodec") if has_track(entry, "vcodec") else None,
        audio_codec=entry.get("acodec") if has_track(entry, "acodec") else None,
        width=entry.get("width"),
        height=entry.get("height"),
        fps=_number(entry.get("fps")),
        sample_rate=entry.get("asr"),
        bitrate=_number(entry.get("tbr")),
        size=entry.get("filesize"),
    )


def _number(value: Any) -> float | None:
    number: float | None = _typed(value, float)
    return number


def _counts(info: Mapping[str, Any]) -> dict[str, int | None]:
    return {name: _typed(info.get(name), int) for name in COUNT_FIELDS}


def typed_info(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the documented fields of yt-dlp's info, typed, None where absent or unreadable."""
    return {name: _typed(info.get(name), kind) for name, kind in INFO_FIELDS}


def _typed(value: Any, kind: type) -> Any:
    if value is None:
        return None
    if kind is list:
        many = isinstance(value, list | tuple)
        return [whole_text(str(item)) for item in value] if many else None
    # Extractors of other sites pass on what they found.
    try:
        return whole_text(str(value)) if kind is str else kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
