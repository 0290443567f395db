"""The answers of the site: watch page, player, next, captions; pure functions.

They hold what the unmodified YouTube extractor of yt-dlp 2026.10.26 reads, about as large as on the
site. What does not depend on the video is filler, made and compressed once per process: a
`Document` is a sequence of parts, and only the parts that depend on the video are compressed when
it is served.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import html
import json
import math
import random
import string
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from acavdl.sandbox.catalog import AD_SECONDS, Fault, Video

if TYPE_CHECKING:
    from acavdl.sandbox.media import Rendition

Json = dict[str, Any]

#: Path of the player's script, from which yt-dlp takes a number at most.
PLAYER_JS = "/s/player/0004de42/player_ias.vflset/en_US/base.js"
SIGNATURE_TIMESTAMP = 20431

#: How long media URLs are valid, seconds.
URL_LIFETIME = 21_540

#: How long before its beginning an upcoming premiere is asked for, seconds.
PREMIERE_WAIT = 5 * 3600

#: Seconds that a caption stays.
CAPTION_SECONDS = 2

#: Countries in which a geo-blocked video could be seen.
COUNTRIES = ("DE", "FR", "JP")

# Bytes of filler, so that whole answers come out at 0.93 MB (198 kB compressed) for the page and
# at 80 kB (17 kB) for the player.
_PAGE_SCRIPT = 9
_PAGE_RELATED = 5
_BLOCK = 65_536


# --- documents --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A stretch of a body, and the same compressed on its own.

    Attributes
    ----------
    raw
        The bytes.
    deflated
        Raw deflate (:rfc:`1951`) that ends on a byte with a full flush, so that parts can be
        strung together.
    """

    raw: bytes
    deflated: bytes


def part(raw: bytes, level: int = 1) -> Part:
    """Compress a stretch at `level` (zlib's, 1 to 9)."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return Part(raw, packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH))


_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_DEFLATE_END = b"\x03\x00"


@dataclass(frozen=True)
class Document:
    """A body in parts.

    One gzip member holds them all: yt-dlp reads the first member alone.
    """

    mime: str
    parts: tuple[Part, ...]

    def plain(self) -> bytes:
        """Return the bytes."""
        return b"".join(p.raw for p in self.parts)

    def gzipped(self) -> bytes:
        """Return the bytes as one gzip member (:rfc:`1952`)."""
        crc = size = 0
        for p in self.parts:
            crc = zlib.crc32(p.raw, crc)
            size += len(p.raw)
        tail = _DEFLATE_END + crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
        return b"".join((_GZIP_HEAD, *(p.deflated for p in self.parts), tail))


def text_document(mime: str, text: str) -> Document:
    """Make a document of one part."""
    return Document(mime, (part(text.encode()),))


# --- the facts of a video ---------------------------------------------------------------------

_CATEGORIES = ("Music", "Science & Technology", "Sports", "Pets & Animals", "Education")
_TOPICS = ("barcode", "chirp", "countdown", "metronome", "test card", "loopback")


@dataclass(frozen=True)
class Details:
    """What the site tells about a video.

    Attributes
    ----------
    duration
        The media's real duration, seconds. The site itself tells whole seconds.
    uploaded
        Time of upload, with the zone that the site shows it in.
    chapters
        Start (whole seconds) and title of each.
    """

    video_id: str
    title: str
    description: str
    channel: str
    channel_id: str
    handle: str
    followers: int
    category: str
    tags: tuple[str, ...]
    duration: float
    uploaded: dt.datetime
    views: int
    likes: int
    comments: int
    chapters: tuple[tuple[int, str], ...]

    @property
    def whole_seconds(self) -> int:
        """The duration as the site tells it: the fraction is dropped."""
        return int(self.duration)


def describe(video: Video, duration: float) -> Details:
    """Make up what the site tells about a video: the same for the same id, always.

    Parameters
    ----------
    video
        From `acavdl.sandbox.catalog.parse`.
    duration
        Of its media, seconds.
    """
    seed = random.Random(video.video_id)
    topic = seed.choice(_TOPICS)
    channel_number = seed.randrange(1000)
    views = int(10 ** seed.uniform(1, 8))
    uploaded = dt.datetime(2008, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=-8)))
    chapters = ((0, "Intro"), (int(duration / 3), "Middle"), (int(duration * 2 / 3), "End"))
    digest = hashlib.blake2s(f"channel {channel_number}".encode(), digest_size=16).digest()
    return Details(
        video_id=video.video_id,
        title=f"Video {video.number}: “{topic}” & more",
        description=(
            f"A {topic} of {duration:.2f} s.\n\nEach frame carries its number.\n"
            f"https://example.com/{video.video_id}"
        ),
        channel=f"Test channel {channel_number}",
        channel_id="UC" + base64.urlsafe_b64encode(digest).decode().rstrip("="),
        handle=f"@testchannel{channel_number}",
        followers=seed.randrange(100, 1000) * 1000,
        category=seed.choice(_CATEGORIES),
        tags=(topic, "test", f"number {video.number}"),
        duration=duration,
        uploaded=uploaded + dt.timedelta(seconds=seed.randrange(16 * 365 * 86_400)),
        views=views,
        likes=views // 40,
        comments=views // 500,
        chapters=chapters if duration >= 30 else (),
    )


def is_dubbed(video: Video) -> bool:
    """Tell whether the video comes with a dub and a DRC variant of each audio format: one in 8."""
    return video.fault is None and video.number % 8 == 5


def is_bilingual(video: Video) -> bool:
    """Tell whether the video has captions in German, too: one in 8."""
    return video.fault is None and video.number % 8 == 3


# --- formats ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """A file that can be had for a video.

    Attributes
    ----------
    size
        Bytes.
    duration
        Seconds.
    init_range, index_range
        Inclusive byte offsets, as in `acavdl.sandbox.media.Rendition`.
    """

    rendition: Rendition
    size: int
    duration: float
    init_range: tuple[int, int] | None
    index_range: tuple[int, int] | None

    @property
    def has_video(self) -> bool:
        """Whether there are pictures."""
        return self.rendition.width is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.rendition.sample_rate is not None


@dataclass(frozen=True)
class Grant:
    """What media URLs are made out for.

    Attributes
    ----------
    address
        The client's address; the URL works from there only.
    expires
        Unix time, whole seconds.
    generation
        How many times the video was extracted so far, this time included.
    client
        Name of the client that asked, as ``VISIONOS``.
    """

    address: str
    expires: int
    generation: int
    client: str


@dataclass(frozen=True)
class _Track:
    """A variant of an audio format."""

    audio_track: Json | None = None
    drc: bool = False
    xtags: str | None = None


_PLAIN = (_Track(),)
# The original comes last, so that whoever takes the first audio format gets a dub.
_DUBBED = (
    _Track(
        {"displayName": "German", "id": "de.3", "audioIsDefault": False},
        xtags="acont=dubbed-auto:lang=de",
    ),
    _Track(
        {"displayName": "English original (default)", "id": "en.4", "audioIsDefault": True},
        drc=True,
        xtags="acont=original:drc=1:lang=en",
    ),
    _Track(
        {"displayName": "English original (default)", "id": "en.4", "audioIsDefault": True},
        xtags="acont=original:lang=en",
    ),
)

_QUALITY = ((144, "tiny"), (240, "small"), (360, "medium"), (480, "large"), (720, "hd720"))


def media_url(
    video_id: str, stream: Stream, grant: Grant, *, xtags: str | None = None, host: int = 3
) -> str:
    """Make a URL of the media hosts.

    Parameters
    ----------
    video_id
        Eleven characters; the URL carries it as ``id=o-<id>``.
    stream
        What the URL is for.
    grant
        For whom, and until when.
    xtags
        Names a variant of the format.
    host
        Number of the media host.

    Returns
    -------
    str
        About 1 kB, as on the site.
    """
    rendition = stream.rendition
    query = {
        "expire": grant.expires,
        "ei": f"{grant.generation:06x}Zr2EJmKp0wMA",
        "ip": grant.address,
        "id": f"o-{video_id}",
        "itag": rendition.itag,
        "source": "youtube",
        "requiressl": "yes",
        "xpc": "EgVo2aDSNQ==",
        "met": f"{grant.expires - URL_LIFETIME},",
        "mh": "7c",
        "mm": "31,29",
        "mn": "sn-4g5e6nsz,sn-4g5lznl6",
        "ms": "au,rdu",
        "mv": "m",
        "mvi": host,
        "pl": 24,
        "rms": "au,au",
        "initcwndbps": 3_451_250,
        "bui": _signature("bui", 64),
        "spc": _signature("spc", 48),
        "vprv": 1,
        "svpuc": 1,
        "mime": rendition.mime,
        "ns": _signature("ns", 24),
        "rqh": 1,
        **({"xtags": xtags} if xtags else {}),
        **({"gir": "yes", "clen": stream.size} if stream.index_range else {"ratebypass": "yes"}),
        "dur": f"{stream.duration:.3f}",
        "lmt": _last_modified(video_id),
        "mt": grant.expires - URL_LIFETIME - 300,
        "fvip": 4,
        "keepalive": "yes",
        "fexp": "51552689,51565115,51565682",
        "c": grant.client,
        "txp": "4532434",
        "sparams": "expire,ei,ip,id,itag,source,requiressl,xpc,bui,spc,vprv,svpuc,mime,ns,rqh,gir",
        "sig": _signature(f"{video_id} {rendition.itag}", 96),
        "lsparams": "met,mh,mm,mn,ms,mv,mvi,pl,rms,initcwndbps",
        "lsig": _signature("lsig", 80),
    }
    return f"https://rr{host}---sn-4g5e6nsz.googlevideo.com/videoplayback?{urlencode(query)}"


@lru_cache(maxsize=1024)
def _signature(of: str, length: int) -> str:
    digest = hashlib.blake2b(of.encode()).digest()
    return base64.urlsafe_b64encode(digest + digest).decode()[:length]


def _last_modified(video_id: str) -> str:
    return str(1_600_000_000_000_000 + zlib.crc32(video_id.encode()))


def streaming_data(
    video: Video, streams: Sequence[Stream], grant: Grant, fault: Fault | None
) -> Json:
    """Build the ``streamingData`` of a player's answer.

    Parameters
    ----------
    video
        The video.
    streams
        All that there is of it.
    grant
        For whom the URLs are made out.
    fault
        Which formats to leave out or to spoil.

    Returns
    -------
    dict
        With ``formats`` (video and audio in one) and ``adaptiveFormats`` (one alone); a live
        stream has an ``hlsManifestUrl`` too.
    """
    tracks = _DUBBED if is_dubbed(video) else _PLAIN
    both = [s for s in streams if s.has_video and s.has_audio]
    pictures = [s for s in streams if s.has_video and not s.has_audio]
    sound = [s for s in streams if s.has_audio and not s.has_video]
    if fault in (Fault.NO_PROGRESSIVE, Fault.NO_AUDIO, Fault.NO_VIDEO, Fault.LIVE):
        both = []
    if fault is Fault.NO_AUDIO:
        sound = []
    if fault is Fault.NO_VIDEO:
        pictures = []
    adaptive = [_format(video, s, grant, fault) for s in pictures]
    adaptive += [_format(video, s, grant, fault, track) for track in tracks for s in sound]
    data: Json = {
        "expiresInSeconds": str(URL_LIFETIME),
        "formats": [_format(video, s, grant, fault) for s in both],
        "adaptiveFormats": adaptive,
    }
    base = "https://rr3---sn-4g5e6nsz.googlevideo.com"
    if fault is Fault.SABR_ONLY:
        data["serverAbrStreamingUrl"] = f"{base}/videoplayback?sabr=1&id=o-{video.video_id}"
    if fault is Fault.DRM:
        data["licenseInfos"] = [
            {"drmFamily": "WIDEVINE", "url": "https://www.youtube.com/api/drm/widevine"}
        ]
    if fault is Fault.LIVE:
        data["hlsManifestUrl"] = (
            "https://manifest.googlevideo.com/api/manifest/hls_variant"
            f"/expire/{grant.expires}/id/{video.video_id}.1/source/yt_live_broadcast"
            "/file/index.m3u8"
        )
    return data


def _format(
    video: Video, stream: Stream, grant: Grant, fault: Fault | None, track: _Track = _PLAIN[0]
) -> Json:
    rendition = stream.rendition
    made: Json = {
        "itag": rendition.itag,
        "url": media_url(video.video_id, stream, grant, xtags=track.xtags),
        "mimeType": f'{rendition.mime}; codecs="{rendition.codecs}"',
        "bitrate": rendition.bitrate * 5 // 4,
        "lastModified": _last_modified(video.video_id),
        "projectionType": "RECTANGULAR",
        "averageBitrate": rendition.bitrate,
        "approxDurationMs": str(round(stream.duration * 1000)),
        **_ranges(stream),
        **(_pictures(rendition) if stream.has_video else {}),
        **(_sound(rendition, track) if stream.has_audio else {}),
    }
    if fault is Fault.SABR_ONLY:
        del made["url"]
    if fault is Fault.DRM:
        made["drmFamilies"] = ["WIDEVINE", "FAIRPLAY"]
    if fault is Fault.LIVE:
        made["targetDurationSec"] = 5.0
    return made


def _ranges(stream: Stream) -> Json:
    # The site does not tell the length of the progressive format.
    if stream.has_video and stream.has_audio:
        return {}
    made: Json = {"contentLength": str(stream.size)}
    for name, span in (("initRange", stream.init_range), ("indexRange", stream.index_range)):
        if span is not None:
            made[name] = {"start": str(span[0]), "end": str(span[1])}
    return made


def _pictures(rendition: Rendition) -> Json:
    height = rendition.height or 0
    fps = rendition.fps or 0
    return {
        "width": rendition.width,
        "height": height,
        "quality": next((name for limit, name in _QUALITY if height <= limit), "hd1080"),
        "qualityLabel": f"{height}p",
        "fps": round(fps),
    }


def _sound(rendition: Rendition, track: _Track) -> Json:
    low = rendition.itag in (139, 249, 600, 599)
    return {
        **({} if rendition.width else {"quality": "tiny"}),
        "audioQuality": "AUDIO_QUALITY_LOW" if low else "AUDIO_QUALITY_MEDIUM",
        "audioSampleRate": str(rendition.sample_rate),
        "audioChannels": rendition.channels,
        "loudnessDb": -3.45,
        **({"audioTrack": track.audio_track} if track.audio_track else {}),
        **({"isDrc": True} if track.drc else {}),
        **({"xtags": base64.b64encode(track.xtags.encode()).decode()} if track.xtags else {}),
    }


# --- why a video cannot be played -------------------------------------------------------------

_LEARN = "This helps protect our community. Learn more"
_UNAVAILABLE = "Video unavailable"

#: Status, reason and subreason of the player's answer, as the site words them.
_REFUSALS: Mapping[Fault, tuple[str, str, str | None]] = {
    Fault.BOT_CHECK: ("LOGIN_REQUIRED", "Sign in to confirm you’re not a bot", _LEARN),
    Fault.CAPTCHA: ("UNPLAYABLE", "Video unavailable", None),
    Fault.PRIVATE: (
        "LOGIN_REQUIRED",
        "Private video",
        "Sign in if you've been granted access to this video",
    ),
    Fault.REMOVED_UPLOADER: (
        "ERROR",
        _UNAVAILABLE,
        "This video has been removed by the uploader",
    ),
    Fault.REMOVED_POLICY: (
        "ERROR",
        "This video has been removed for violating YouTube's Community Guidelines",
        None,
    ),
    Fault.COPYRIGHT: (
        "UNPLAYABLE",
        _UNAVAILABLE,
        "This video is no longer available due to a copyright claim by Example Records",
    ),
    Fault.ACCOUNT_TERMINATED: (
        "ERROR",
        _UNAVAILABLE,
        "This video is no longer available because the YouTube account associated with this "
        "video has been terminated.",
    ),
    Fault.UNAVAILABLE: ("ERROR", _UNAVAILABLE, "This video is unavailable"),
    Fault.GEO_BLOCKED: (
        "UNPLAYABLE",
        _UNAVAILABLE,
        "The uploader has not made this video available in your country",
    ),
    Fault.AGE_GATED: (
        "LOGIN_REQUIRED",
        "Sign in to confirm your age",
        "This video may be inappropriate for some users.",
    ),
    Fault.MEMBERS_ONLY: (
        "UNPLAYABLE",
        "This video is available to this channel's members on level: Friend (or any higher "
        "level). Join this channel to get access to members-only content and other exclusive "
        "perks.",
        None,
    ),
    Fault.PAID: ("UNPLAYABLE", "This video requires payment to watch.", None),
    Fault.RATE_LIMITED: (
        "UNPLAYABLE",
        _UNAVAILABLE,
        "This content isn't available, try again later.",
    ),
    Fault.UPCOMING: ("LIVE_STREAM_OFFLINE", "Premieres in 5 hours", None),
    Fault.LIVE_NO_RECORDING: (
        "UNPLAYABLE",
        "This live stream recording is not available.",
        None,
    ),
    Fault.CLIENT_UNSUPPORTED: (
        "ERROR",
        "The following content is not available on this app. Watch on the latest version of "
        "YouTube.",
        None,
    ),
}

#: These are still described: the site shows the title and the rest, and a message for the video.
_DESCRIBED = frozenset(
    {
        Fault.BOT_CHECK,
        Fault.AGE_GATED,
        Fault.GEO_BLOCKED,
        Fault.MEMBERS_ONLY,
        Fault.PAID,
        Fault.UPCOMING,
    }
)


def playability(fault: Fault | None) -> Json:
    """Build the ``playabilityStatus``: ``OK``, or why not."""
    if fault is None or fault not in _REFUSALS:
        return {
            "status": "OK",
            "playableInEmbed": True,
            "miniplayer": {"miniplayerRenderer": {"playbackMode": "PLAYBACK_MODE_ALLOW"}},
            "contextParams": "Q0FFU0FnZ0E=",
        }
    status, reason, subreason = _REFUSALS[fault]
    error: Json = {"reason": {"simpleText": reason}, "icon": {"iconType": "ERROR_OUTLINE"}}
    if subreason:
        error["subreason"] = {"simpleText": subreason}
    screen: Json = {"playerErrorMessageRenderer": error}
    if fault is Fault.CAPTCHA:
        screen["playerCaptchaViewModel"] = {"captchaType": "CAPTCHA_TYPE_RECAPTCHA"}
    made: Json = {"status": status, "reason": reason, "errorScreen": screen}
    if fault is Fault.AGE_GATED:
        made["desktopLegacyAgeGateReason"] = 1
    return made


# --- the player -------------------------------------------------------------------------------


def player(
    video: Video,
    details: Details,
    streams: Sequence[Stream],
    grant: Grant,
    *,
    now: float,
    fault: Fault | None,
) -> Document:
    """Build the answer of ``/youtubei/v1/player``.

    Parameters
    ----------
    video, details, streams
        The video.
    grant
        For whom the URLs are made out.
    now
        Unix time, seconds.
    fault
        What goes wrong: the video's own, or what this egress refuses with.

    Returns
    -------
    Document
        JSON. As on the site, only web clients are told the upload date and the category; others
        get these from the watch page.
    """
    made = _response(video, details, now, fault, web=grant.client.startswith("WEB"))
    if fault not in _REFUSALS:
        made["streamingData"] = streaming_data(video, streams, grant, fault)
    if fault is Fault.AD_WAIT:
        made["adSlots"] = [_advertisement(AD_SECONDS)]
    return _json_document(made, "playerConfig", _player_filler())


def _response(
    video: Video, details: Details, now: float, fault: Fault | None, *, web: bool
) -> Json:
    made: Json = {
        "responseContext": {"visitorData": visitor_data(), "maxAgeSeconds": 0},
        "playabilityStatus": playability(fault),
    }
    described = fault not in _REFUSALS or fault in _DESCRIBED
    if described:
        made["videoDetails"] = _video_details(details, fault)
    if fault is Fault.OTHER_VIDEO:
        made["videoDetails"]["videoId"] = "aQvGIIdgFDM"
    if described and web:
        made["microformat"] = {"playerMicroformatRenderer": _microformat(details, now, fault)}
    if fault not in _REFUSALS and fault is not Fault.SUBTITLES_NONE:
        made["captions"] = _captions(video, web=web)
    return made


def _video_details(details: Details, fault: Fault | None) -> Json:
    made: Json = {
        "videoId": details.video_id,
        "title": details.title,
        "lengthSeconds": str(details.whole_seconds),
        "keywords": list(details.tags),
        "channelId": details.channel_id,
        "isOwnerViewing": False,
        "shortDescription": details.description,
        "isCrawlable": True,
        "thumbnail": {"thumbnails": _thumbnails(details.video_id)},
        "allowRatings": True,
        "viewCount": str(details.views),
        "author": details.channel,
        "isPrivate": False,
        "isUnpluggedCorpus": False,
        "isLiveContent": fault is Fault.LIVE,
    }
    if fault is Fault.LIVE:
        made |= {"isLive": True, "isLiveDvrEnabled": True, "lengthSeconds": "0"}
    if fault is Fault.UPCOMING:
        made |= {"isUpcoming": True, "lengthSeconds": "0"}
    return made


def _microformat(details: Details, now: float, fault: Fault | None) -> Json:
    made: Json = {
        "title": {"simpleText": details.title},
        "description": {"simpleText": details.description},
        "lengthSeconds": str(details.whole_seconds),
        "ownerProfileUrl": f"http://www.youtube.com/{details.handle}",
        "externalChannelId": details.channel_id,
        "isFamilySafe": fault is not Fault.AGE_GATED,
        "availableCountries": list(COUNTRIES),
        "isUnlisted": False,
        "hasYpcMetadata": False,
        "viewCount": str(details.views),
        "category": details.category,
        "publishDate": details.uploaded.isoformat(timespec="seconds"),
        "ownerChannelName": details.channel,
        "uploadDate": details.uploaded.isoformat(timespec="seconds"),
        "isShortsEligible": False,
        "externalVideoId": details.video_id,
        "thumbnail": {"thumbnails": _thumbnails(details.video_id)[-1:]},
    }
    if fault is Fault.LIVE:
        start = dt.datetime.fromtimestamp(now // 3600 * 3600 - 3600, dt.UTC)
        made["liveBroadcastDetails"] = {"isLiveNow": True, "startTimestamp": start.isoformat()}
    if fault is Fault.UPCOMING:
        start = dt.datetime.fromtimestamp(int(now) + PREMIERE_WAIT, dt.UTC)
        made["liveBroadcastDetails"] = {"isLiveNow": False, "startTimestamp": start.isoformat()}
    return made


def _thumbnails(video_id: str) -> list[Json]:
    base = f"https://i.ytimg.com/vi/{video_id}"
    sizes = (("default", 120, 90), ("mqdefault", 320, 180), ("hqdefault", 480, 360))
    return [{"url": f"{base}/{n}.jpg", "width": w, "height": h} for n, w, h in sizes]


def _advertisement(seconds: int) -> Json:
    advert = {"instreamVideoAdRenderer": {"playerVars": urlencode({"length_seconds": seconds})}}
    layout = {"playerBytesAdLayoutRenderer": {"renderingContent": advert}}
    return {
        "adSlotRenderer": {
            "adSlotMetadata": {"triggerEvent": "SLOT_TRIGGER_EVENT_BEFORE_CONTENT"},
            "fulfillmentContent": {"fulfilledLayout": layout},
        }
    }


_LANGUAGES = (
    ("de", "German"),
    ("en", "English"),
    ("es", "Spanish"),
    ("fr", "French"),
    ("ja", "Japanese"),
    ("pt", "Portuguese"),
)


def _captions(video: Video, *, web: bool) -> Json:
    languages = [("en", "English"), *([("de", "German")] if is_bilingual(video) else [])]
    manual = [
        {
            "baseUrl": _timedtext_url(video, code, kind=None),
            "name": {"runs": [{"text": name}]},
            "vssId": f".{code}",
            "languageCode": code,
            "isTranslatable": True,
            "trackName": "",
        }
        for code, name in languages
        if video.fault is not Fault.SUBTITLES_AUTOMATIC
    ]
    automatic = {
        "baseUrl": _timedtext_url(video, "en", kind="asr"),
        "name": {"runs": [{"text": "English (auto-generated)"}]},
        "vssId": "a.en",
        "languageCode": "en",
        "kind": "asr",
        "isTranslatable": True,
        "trackName": "",
    }
    tracks: Json = {"captionTracks": [*manual, automatic], "defaultAudioTrackIndex": 0}
    if web:
        tracks["translationLanguages"] = [
            {"languageCode": code, "languageName": {"runs": [{"text": name}]}}
            for code, name in _LANGUAGES
        ]
    return {"playerCaptionsTracklistRenderer": tracks}


def _timedtext_url(video: Video, language: str, *, kind: str | None) -> str:
    query = {
        "v": video.video_id,
        "ei": "0Zr2EJmKp0wMAA",
        "caps": "asr",
        "opi": "112496729",
        "xoaf": "5",
        "hl": "en",
        "ip": "0.0.0.0",
        "ipbits": "0",
        "sparams": "ip,ipbits,expire,v,ei,caps,opi,xoaf",
        "signature": _signature(video.video_id, 40),
        "key": "yt8",
        # The experiment by which yt-dlp knows that it would get nothing.
        **({"exp": "xpe"} if video.fault is Fault.SUBTITLES_TOKEN else {}),
        **({"kind": kind} if kind else {}),
        "lang": language,
    }
    return f"https://www.youtube.com/api/timedtext?{urlencode(query)}"


# --- the watch page ---------------------------------------------------------------------------


def visitor_data() -> str:
    """Return the visitor's token, which the client sends back."""
    return "CgtzYW5kYm94LXZpcyiAgICAgIDg8gE%3D"


def config(video_id: str, *, embedded: bool = False) -> Json:
    """Build the page's ``ytcfg``; `embedded` is for the page of an embedded player."""
    name, number = ("WEB_EMBEDDED_PLAYER", 56) if embedded else ("WEB", 1)
    version = "1.20261020.01.00" if embedded else "2.20261020.01.00"
    client = {
        "hl": "en",
        "gl": "US",
        "clientName": name,
        "clientVersion": version,
        "visitorData": visitor_data(),
        "originalUrl": f"https://www.youtube.com/watch?v={video_id}",
        "userAgent": "Mozilla/5.0,gzip(gfe)",
    }
    context = {"jsUrl": PLAYER_JS, "encryptedHostFlags": _signature("host", 64)}
    kind = "EMBEDDED_PLAYER" if embedded else "KEVLAR_WATCH"
    return {
        "CLIENT_PROTOCOL": "HTTP/1.1",
        "INNERTUBE_API_KEY": "AIzaSandboxSandboxSandboxSandboxSandbox",
        "INNERTUBE_API_VERSION": "v1",
        "INNERTUBE_CLIENT_NAME": name,
        "INNERTUBE_CLIENT_VERSION": version,
        "INNERTUBE_CONTEXT": {"client": client, "user": {"lockedSafetyMode": False}},
        "INNERTUBE_CONTEXT_CLIENT_NAME": number,
        "INNERTUBE_CONTEXT_CLIENT_VERSION": version,
        "LOGGED_IN": False,
        "PLAYER_JS_URL": PLAYER_JS,
        "STS": SIGNATURE_TIMESTAMP,
        "VISITOR_DATA": visitor_data(),
        "WEB_PLAYER_CONTEXT_CONFIGS": {f"WEB_PLAYER_CONTEXT_CONFIG_ID_{kind}": context},
    }


def watch_page(video: Video, details: Details, now: float, fault: Fault | None) -> Document:
    """Build the watch page.

    Parameters
    ----------
    video, details
        The video.
    now
        Unix time, seconds.
    fault
        What goes wrong: the video's own, or what this egress refuses with.

    Returns
    -------
    Document
        HTML of 0.93 MB with ``ytcfg``, ``ytInitialPlayerResponse`` (without any URL of media) and
        ``ytInitialData``.
    """
    described = fault not in _REFUSALS or fault in _DESCRIBED
    response = _dump(_response(video, details, now, fault, web=True))
    data, gap = _dump(initial_data(details if described else None)).split(_RELATED_GAP)
    first = (
        f"<script>ytcfg.set({_dump(config(video.video_id))});</script>"
        f"{_meta(details) if described else '<title> - YouTube</title>'}</head><body>"
        f"<script>var ytInitialPlayerResponse = {response};</script>"
        f"<script>var ytInitialData = {data}"
    )
    last = f"{gap};</script></body></html>"
    head, related = _page_filler()
    return Document(
        "text/html; charset=utf-8", (*head, part(first.encode()), *related, part(last.encode()))
    )


def small_page(video_id: str, *, embedded: bool) -> Document:
    """Build a page that is asked for its ``ytcfg`` alone (the home page, an embedded player)."""
    text = _dump(config(video_id, embedded=embedded))
    return text_document(
        "text/html; charset=utf-8",
        f"<!DOCTYPE html><html><head><script>ytcfg.set({text});</script></head></html>",
    )


def _meta(details: Details) -> str:
    tags = {
        "og:title": details.title,
        "og:description": details.description.split("\n")[0],
        "og:image": f"https://i.ytimg.com/vi/{details.video_id}/maxresdefault.jpg",
        "og:url": f"https://www.youtube.com/watch?v={details.video_id}",
        "og:type": "video.other",
    }
    lines = [f"<title>{html.escape(details.title)} - YouTube</title>"]
    lines += [f'<meta property="{k}" content="{html.escape(v)}">' for k, v in tags.items()]
    lines += [
        f'<meta property="og:video:tag" content="{html.escape(tag)}">' for tag in details.tags
    ]
    return "".join(lines)


# Stands where the videos on the side go: they are the same for every video, and prepared.
_RELATED_GAP = '"@related@"'


def initial_data(details: Details | None) -> Json:
    """Build ``ytInitialData``, which is also the answer of ``/youtubei/v1/next``.

    Parameters
    ----------
    details
        The video; None if it cannot be described.

    Returns
    -------
    dict
        With a placeholder where the videos on the side go.
    """
    results = [] if details is None else [_primary(details), _secondary(details)]
    related = {"secondaryResults": {"results": _RELATED_GAP.strip('"')}}
    made: Json = {
        "responseContext": {"visitorData": visitor_data()},
        "contents": {
            "twoColumnWatchNextResults": {
                "results": {"results": {"contents": results}},
                "secondaryResults": related,
            }
        },
    }
    if details is not None:
        made["playerOverlays"] = {"playerOverlayRenderer": _overlay(details)}
        made["engagementPanels"] = [_comments_panel(details)]
    return made


def next_answer(details: Details | None) -> Document:
    """Build the answer of ``/youtubei/v1/next``: what yt-dlp asks for if it skips the page."""
    data, rest = _dump(initial_data(details)).split(_RELATED_GAP)
    _, related = _page_filler()
    mime = "application/json; charset=UTF-8"
    return Document(mime, (part(data.encode()), *related, part(rest.encode())))


def _primary(details: Details) -> Json:
    like = {
        "buttonViewModel": {
            "iconName": "LIKE",
            "title": f"{details.likes:,}",
            "accessibilityText": (f"like this video along with {details.likes:,} other people"),
        }
    }
    toggle = {"toggleButtonViewModel": {"defaultButtonViewModel": like}}
    button = {"likeButtonViewModel": {"toggleButtonViewModel": toggle}}
    views = {"simpleText": f"{details.views:,} views"}
    return {
        "videoPrimaryInfoRenderer": {
            "title": {"runs": [{"text": details.title}]},
            "viewCount": {"videoViewCountRenderer": {"viewCount": views}},
            "videoActions": {
                "menuRenderer": {
                    "topLevelButtons": [
                        {"segmentedLikeDislikeButtonViewModel": {"likeButtonViewModel": button}}
                    ]
                }
            },
            "dateText": {"simpleText": f"{details.uploaded:%b} {details.uploaded:%d, %Y}"},
        }
    }


def _secondary(details: Details) -> Json:
    endpoint = {
        "commandMetadata": {"webCommandMetadata": {"url": f"/{details.handle}"}},
        "browseEndpoint": {
            "browseId": details.channel_id,
            "canonicalBaseUrl": f"/{details.handle}",
        },
    }
    verified = {
        "metadataBadgeRenderer": {
            "icon": {"iconType": "CHECK_CIRCLE_THICK"},
            "style": "BADGE_STYLE_TYPE_VERIFIED",
            "tooltip": "Verified",
        }
    }
    owner = {
        "title": {"runs": [{"text": details.channel, "navigationEndpoint": endpoint}]},
        "subscriberCountText": {"simpleText": f"{details.followers // 1000}K subscribers"},
        "navigationEndpoint": endpoint,
        "badges": [verified],
    }
    return {
        "videoSecondaryInfoRenderer": {
            "owner": {"videoOwnerRenderer": owner},
            "attributedDescription": {"content": details.description},
            "metadataRowContainer": {"metadataRowContainerRenderer": {"rows": []}},
        }
    }


def _overlay(details: Details) -> Json:
    chapters = [
        {
            "chapterRenderer": {
                "title": {"simpleText": title},
                "timeRangeStartMillis": start * 1000,
            }
        }
        for start, title in details.chapters
    ]
    bar = {"chapteredPlayerBarRenderer": {"chapters": chapters}}
    return {
        "videoDetails": {
            "playerOverlayVideoDetailsRenderer": {"title": {"simpleText": details.title}}
        },
        "decoratedPlayerBarRenderer": {
            "decoratedPlayerBarRenderer": {"playerBar": bar if chapters else {}}
        },
    }


def _comments_panel(details: Details) -> Json:
    count = {"runs": [{"text": f"{details.comments:,}"}]}
    return {
        "engagementPanelSectionListRenderer": {
            "panelIdentifier": "engagement-panel-comments-section",
            "header": {
                "engagementPanelTitleHeaderRenderer": {
                    "title": {"runs": [{"text": "Comments"}]},
                    "contextualInfo": count,
                }
            },
        }
    }


# --- live, scripts, pictures ------------------------------------------------------------------


def hls_manifest(video_id: str, expires: int) -> Document:
    """Build the list of variants (:rfc:`8216`) of a live stream."""
    lines = ["#EXTM3U", "#EXT-X-INDEPENDENT-SEGMENTS"]
    for itag, width, height, rate in ((91, 256, 144, 197_400), (93, 640, 360, 1_209_862)):
        lines.append(
            f'#EXT-X-STREAM-INF:BANDWIDTH={rate},CODECS="mp4a.40.2,avc1.4D401E",'
            f"RESOLUTION={width}x{height},FRAME-RATE=30,VIDEO-RANGE=SDR,CLOSED-CAPTIONS=NONE"
        )
        lines.append(
            f"https://manifest.googlevideo.com/api/manifest/hls_playlist/expire/{expires}"
            f"/id/{video_id}.1/itag/{itag}/source/yt_live_broadcast/playlist/index.m3u8"
        )
    return text_document("application/vnd.apple.mpegurl", "\n".join(lines) + "\n")


def player_script() -> Document:
    """Build a player's script: as much of it as yt-dlp looks for without running it."""
    return text_document(
        "text/javascript",
        f"var _yt_player={{}};(function(g){{var s={{signatureTimestamp:"
        f"{SIGNATURE_TIMESTAMP}}};}})(_yt_player);",
    )


def iframe_api() -> Document:
    """Build the script that names the player's version."""
    path = "https:\\/\\/www.youtube.com\\/s\\/player\\/0004de42\\/www-widgetapi.vflset\\/"
    return text_document("text/javascript", f"var scriptUrl = '{path}www-widgetapi.js';")


# --- captions ---------------------------------------------------------------------------------


_CAPTIONS = {"en": "line at {} seconds", "de": "Zeile bei {} Sekunden"}
_HEARD = "words at {} seconds"


@dataclass(frozen=True)
class Line:
    """A caption: start and end in milliseconds, and its text."""

    start: int
    end: int
    text: str


def caption_lines(
    duration: float, language: str = "en", *, automatic: bool = False
) -> tuple[Line, ...]:
    """Make a caption for each `CAPTION_SECONDS` of a video of `duration` seconds.

    Automatic ones roll as the site's do: a line stays while the next one is spoken.
    """
    end = round(duration * 1000)
    step = CAPTION_SECONDS * 1000
    shown = 2 * step if automatic else step
    text = _HEARD if automatic else _CAPTIONS.get(language, _CAPTIONS["en"])
    return tuple(
        Line(at, min(at + shown, end), text.format(at // 1000)) for at in range(0, end, step)
    )


def timedtext(lines: Iterable[Line], fmt: str, *, automatic: bool = False) -> Document | None:
    """Build an answer of ``/api/timedtext``.

    Parameters
    ----------
    lines
        The captions.
    fmt
        ``json3``, ``srv1``, ``srv2``, ``srv3``, ``ttml``, ``srt`` or ``vtt``.
    automatic
        Whether they come from speech recognition: the words carry their own times, a window comes
        first and a line break behind each line (json3 only).

    Returns
    -------
    Document or None
        None if there is no such format.
    """
    lines = tuple(lines)
    match fmt:
        case "json3":
            events = _rolling(lines) if automatic else [_event(line, [line.text]) for line in lines]
            text = _dump({"wireMagic": "pb3", "events": events})
            return text_document("application/json; charset=UTF-8", text)
        case "vtt":
            text = "WEBVTT\nKind: captions\nLanguage: en\n\n" + _cues(lines, ".", "")
            return text_document("text/vtt; charset=UTF-8", text)
        case "srt":
            return text_document("text/plain; charset=UTF-8", _cues(lines, ",", "{n}\n"))
        case "srv1" | "srv2" | "srv3" | "ttml":
            return text_document("text/xml; charset=UTF-8", _xml(lines, fmt))
    return None


def _event(line: Line, words: Sequence[str], step: int = 0) -> Json:
    spoken = [
        {"utf8": word if n == 0 else f" {word}", **({"tOffsetMs": n * step} if n else {})}
        for n, word in enumerate(words)
    ]
    return {"tStartMs": line.start, "dDurationMs": line.end - line.start, "segs": spoken}


def _rolling(lines: Sequence[Line]) -> list[Json]:
    """Make the events of speech recognition: a window, then lines and what moves them up."""
    end = max((line.end for line in lines), default=0)
    made: list[Json] = [{"tStartMs": 0, "dDurationMs": end, "id": 1, "wpWinPosId": 1}]
    for line in lines:
        words = line.text.split(" ")
        step = CAPTION_SECONDS * 1000 // len(words)
        made.append({**_event(line, words, step), "wWinId": 1})
        at = min(line.start + CAPTION_SECONDS * 1000 - 10, line.end - 1)
        rest = {"dDurationMs": line.end - at, "wWinId": 1, "aAppend": 1}
        made.append({"tStartMs": at, **rest, "segs": [{"utf8": "\n"}]})
    return made


def _clock(milliseconds: int, mark: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{rest:03d}"


def _cues(lines: Sequence[Line], mark: str, head: str) -> str:
    spans = [f"{_clock(line.start, mark)} --> {_clock(line.end, mark)}" for line in lines]
    return "".join(
        f"{head.format(n=n)}{times}\n{line.text}\n\n"
        for n, (times, line) in enumerate(zip(spans, lines, strict=True), 1)
    )


def _xml(lines: Sequence[Line], fmt: str) -> str:
    spans = [(line.start, line.end - line.start, html.escape(line.text)) for line in lines]
    head = '<?xml version="1.0" encoding="utf-8" ?>'
    match fmt:
        case "srv1":
            body = "".join(
                f'<text start="{t / 1000:g}" dur="{d / 1000:g}">{x}</text>' for t, d, x in spans
            )
            return f"{head}<transcript>{body}</transcript>"
        case "srv2":
            body = "".join(f'<text t="{t}" d="{d}">{x}</text>' for t, d, x in spans)
            return f"{head}<timedtext>{body}</timedtext>"
        case "srv3":
            body = "".join(f'<p t="{t}" d="{d}">{x}</p>' for t, d, x in spans)
            return f'{head}<timedtext format="3"><body>{body}</body></timedtext>'
    body = "".join(
        f'<p begin="{_clock(t, ".")}" end="{_clock(t + d, ".")}">{x}</p>' for t, d, x in spans
    )
    return f'{head}<tt xmlns="http://www.w3.org/ns/ttml"><body><div>{body}</div></body></tt>'


# --- filler -----------------------------------------------------------------------------------


def _dump(value: Json) -> str:
    # As the site does: what would end a script element is escaped.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _json_document(value: Json, key: str, filler: Part) -> Document:
    """Make a JSON object with one more member, whose value is prepared."""
    text = f'{_dump(value)[:-1]},"{key}":'
    mime = "application/json; charset=UTF-8"
    return Document(mime, (part(text.encode()), filler, part(b"}")))


def _words(seed: int, count: int, vocabulary: int) -> list[str]:
    """Make tokens; the larger the vocabulary, the less do they compress."""
    made = random.Random(seed)
    letters = string.ascii_letters + string.digits
    known = ["".join(made.choices(letters, k=made.randint(3, 14))) for _ in range(vocabulary)]
    return made.choices(known, weights=[1 / (n + 4) for n in range(vocabulary)], k=count)


def _code(seed: int, size: int) -> bytes:
    words = iter(_words(seed, size // 8, 700))
    fours = zip(words, words, words, words, strict=False)
    text = ";".join(f"{a}.{b}=function({c}){{return this.{a}({d})}}" for a, b, c, d in fours)
    return text.encode()[: size - 1] + b"\n"


def _entries(seed: int, size: int, vocabulary: int = 700) -> list[Json]:
    """Make JSON objects of about `size` bytes in all, nested as those of the site are."""
    words = iter(_words(seed, size // 4, vocabulary))
    made: list[Json] = []
    total = 0
    while total < size:
        entry = {
            "lockupViewModel": {
                "contentId": next(words),
                "metadata": {"title": {"content": f"{next(words)} {next(words)} {next(words)}"}},
                "contentImage": {
                    "url": f"https://i.ytimg.com/vi/{next(words)}/{next(words)}.jpg",
                    "width": 336,
                },
                "rendererContext": {
                    "loggingContext": {"trackingParams": "".join(next(words) for _ in range(6))},
                    "commandContext": {"onTap": {"innertubeCommand": {"params": next(words)}}},
                },
            }
        }
        total += len(_dump(entry)) + 1
        made.append(entry)
    return made


@lru_cache(maxsize=1)
def _player_filler() -> Part:
    return part(_dump({"entries": _entries(3, 69_000, 6000)}).encode(), 6)


@lru_cache(maxsize=1)
def _page_filler() -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Make what precedes the page's own data, and the videos on its side.

    A block is larger than deflate's window of 32 KiB, so repeating one costs nothing here and
    does not compress any better for the client either.
    """
    code = part(_code(1, _BLOCK), 6)
    start = part(b"<!DOCTYPE html><html lang='en'><head><script>/*\n", 6)
    head = (start, *([code] * _PAGE_SCRIPT), part(b"*/</script>", 6))
    entries = part(",".join(_dump(e) for e in _entries(2, _BLOCK)).encode(), 6)
    comma = part(b",", 6)
    middle: list[Part] = [part(b"[", 6)]
    for n in range(_PAGE_RELATED):
        middle += [entries] if n == 0 else [comma, entries]
    return head, (*middle, part(b"]", 6))


def warm_up() -> None:
    """Prepare the filler, so that the first answers are as quick as the rest."""
    _player_filler()
    _page_filler()


def expiry(now: float) -> int:
    """Tell until when URLs made at `now` are valid, Unix time in whole seconds."""
    return math.floor(now) + URL_LIFETIME
