"""From a URL to streams: which formats, which facts, how many requests, on our own network."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yt_dlp import YoutubeDL
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, RequestError

from acavdl.budget import Budget
from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome
from acavdl.models import Line, Source
from acavdl.net import Network
from acavdl.resolve import (
    COUNT_FIELDS,
    INFO_FIELDS,
    Resolver,
    choose_formats,
    choose_sound,
    choose_track,
    typed_info,
)
from acavdl.sandbox import Fault, Sandbox, video_id

CODECS = ("avc1", "av01", "vp9")


# --- choosing ----------------------------------------------------------------------------------


def video(name: str, width: int, height: int, codec: str = "avc1.4d401e", **more: Any) -> Any:
    return {
        "format_id": name,
        "url": f"https://media.invalid/{name}",
        "protocol": "https",
        "ext": "mp4",
        "width": width,
        "height": height,
        "vcodec": codec,
        "acodec": "none",
        **more,
    }


def audio(name: str, rate: int, codec: str = "mp4a.40.2", **more: Any) -> Any:
    return {
        "format_id": name,
        "url": f"https://media.invalid/{name}",
        "protocol": "https",
        "ext": "m4a",
        "asr": rate,
        "vcodec": "none",
        "acodec": codec,
        **more,
    }


STORYBOARD = {
    "format_id": "sb0",
    "url": "https://i.ytimg.com/sb/x/storyboard3_L3/M$M.jpg",
    "protocol": "mhtml",
    "vcodec": "none",
    "acodec": "none",
}
#: As yt-dlp lists the formats of an ordinary video.
ORDINARY = [
    STORYBOARD,
    audio("139", 22050, "mp4a.40.5", tbr=49),
    audio("140-drc", 44100, tbr=128),
    audio("140", 44100, tbr=129),
    audio("251", 48000, "opus", tbr=130),
    video("18", 640, 360, "avc1.42001E", acodec="mp4a.40.2", tbr=450),
    video("160", 256, 144, tbr=80),
    video("134", 640, 360, tbr=400),
    video("243", 640, 360, "vp9", tbr=250),
    video("396", 640, 360, "av01.0.01M.08", tbr=200),
    video("135", 854, 480, tbr=800),
    video("136", 1280, 720, tbr=1500),
    video("93", 640, 360, acodec="mp4a.40.2", protocol="m3u8_native", tbr=100),
]


def chosen(formats: Any, size: int = 360, rate: int = 44100, codecs: Any = CODECS) -> list[str]:
    return [entry["format_id"] for entry in choose_formats(formats, size, rate, codecs)]


def refusal(formats: Any, *warnings: str) -> Outcome:
    with pytest.raises(ClipError) as raised:
        choose_formats(formats, 360, 44100, CODECS, warnings)
    return raised.value.outcome


@pytest.mark.parametrize(
    ("size", "rate", "names"),
    [
        (360, 44100, ["134", "140"]),
        (361, 44100, ["135", "140"]),
        (144, 22050, ["160", "139"]),
        # The smallest that is large enough, else the largest there is.
        (2160, 96000, ["136", "251"]),
        (1, 1, ["160", "139"]),
        (500, 48000, ["136", "251"]),
    ],
)
def test_smallest_that_is_large_enough(size: int, rate: int, names: list[str]) -> None:
    assert chosen(ORDINARY, size, rate) == names


def test_codecs_are_taken_by_preference() -> None:
    assert chosen(ORDINARY)[0] == "134"
    assert chosen(ORDINARY, codecs=("av01", "avc1"))[0] == "396"
    assert chosen(ORDINARY, codecs=("vp9",))[0] == "243"


def test_size_is_that_of_the_shorter_side() -> None:
    portrait = [video("low", 202, 360), video("mid", 360, 640), video("high", 720, 1280)]
    assert chosen([*portrait, audio("140", 44100)]) == ["mid", "140"]


def test_sound_is_the_original_and_uncompressed() -> None:
    dubbed = [
        audio("140", 44100, language="de", language_preference=-1, tbr=64),
        audio("140-drc", 44100, language="en", language_preference=10, tbr=64),
        audio("140", 44100, language="en", language_preference=10, tbr=129),
        audio("139", 44100, language="fr", language_preference=5, tbr=10),
    ]
    _, sound = choose_formats([video("134", 640, 360), *dubbed], 360, 44100, CODECS)
    assert (sound["format_id"], sound["language"]) == ("140", "en")
    # Where the original is there with a low rate alone, it is still the original.
    low = [dubbed[0], audio("139", 22050, language="en", language_preference=10)]
    assert chosen([video("134", 640, 360), *low]) == ["134", "139"]


def test_progressive_alone_is_one_file() -> None:
    assert chosen([STORYBOARD, ORDINARY[5]]) == ["18"]
    # Pictures without any sound to go with them are no choice, however well they fit.
    assert chosen([ORDINARY[5], video("136", 1280, 720)], size=720) == ["18"]


def test_webm_alone() -> None:
    formats = [video("243", 640, 360, "vp9"), video("244", 854, 480, "vp9")]
    assert chosen([*formats, audio("251", 48000, "opus")]) == ["243", "251"]


def test_formats_that_tell_no_codecs_are_taken_for_complete() -> None:
    """As yt-dlp lists a file of a site that says nothing about it."""
    assert chosen([{"format_id": "0", "url": "https://media.invalid/a.mp4"}]) == ["0"]


def test_protected_formats_are_not_touched() -> None:
    protected = [{**entry, "has_drm": True} for entry in ORDINARY if entry is not STORYBOARD]
    assert refusal([STORYBOARD, *protected]) is Outcome.DRM
    assert chosen([*protected, ORDINARY[5]]) == ["18"]


def test_what_is_missing_is_told() -> None:
    pictures, sounds = [video("134", 640, 360)], [audio("140", 44100)]
    assert refusal(pictures) is Outcome.NO_AUDIO
    assert refusal(sounds) is Outcome.NO_VIDEO
    assert refusal([]) is Outcome.NO_FORMATS
    assert refusal([STORYBOARD]) is Outcome.NO_FORMATS
    without_url = [{**entry, "url": None} for entry in ORDINARY]
    assert refusal(without_url) is Outcome.NO_FORMATS
    assert refusal([{**ORDINARY[-1]}]) is Outcome.NO_FORMATS


def test_reason_for_missing_formats_stands_in_the_warnings() -> None:
    warning = "[youtube] x: Unable to download API page: HTTP Error 429: Too Many Requests"
    assert refusal([], warning) is Outcome.HTTP_429


# --- sound alone


def sound(formats: Any, rate: int = 44100, *, copied: bool = False) -> str:
    return str(choose_sound(formats, rate, copied=copied)["format_id"])


OPUS = [audio("250", 48000, "opus", tbr=70), audio("251", 48000, "opus", tbr=130)]


@pytest.mark.parametrize(
    ("rate", "decoded", "copied"),
    [(44100, "140", "140"), (22050, "139", "139"), (48000, "251", "140"), (96000, "251", "140")],
)
def test_sound_alone_is_a_format_without_picture(rate: int, decoded: str, copied: str) -> None:
    """What is to be copied into an m4a is AAC, also where another has the rate asked for."""
    assert sound(ORDINARY, rate) == decoded
    assert sound(ORDINARY, rate, copied=True) == copied


def test_progressive_file_is_the_second_choice_of_sound() -> None:
    pictures = [video("134", 640, 360), video("22", 1280, 720, acodec="mp4a.40.2", tbr=900)]
    progressive = ORDINARY[5]
    # Nothing else has sound: the smallest.
    for copied in (False, True):
        assert sound([*pictures, progressive], copied=copied) == "18"
    # Nothing else has AAC.
    assert sound([*pictures, *OPUS, progressive], copied=True) == "18"
    assert sound([*pictures, *OPUS, progressive]) == "250"
    # Nothing has it: it will be encoded anew.
    assert sound([pictures[0], *OPUS], copied=True) == "250"
    webm = video("43", 640, 360, "vp8", acodec="vorbis")
    assert sound([*OPUS, webm], copied=True) == "250"


def test_sound_alone_is_the_original_whatever_its_codec() -> None:
    tracks = [
        audio("140", 44100, language="de", language_preference=-1),
        audio("251", 48000, "opus", language="en", language_preference=10),
        audio("140-drc", 44100, language="en", language_preference=10),
    ]
    for copied in (False, True):
        assert sound(tracks, copied=copied) == "251"


def test_files_that_tell_no_codecs_may_have_sound() -> None:
    assert sound([{"format_id": "0", "url": "https://media.invalid/a.mp3"}], copied=True) == "0"


def test_no_picture_is_missed_where_sound_is_all() -> None:
    assert sound([audio("140", 44100)]) == "140"
    protected = [{**entry, "has_drm": True} for entry in ORDINARY if entry is not STORYBOARD]
    for formats, outcome in (
        ([STORYBOARD, video("134", 640, 360)], Outcome.NO_AUDIO),
        ([], Outcome.NO_FORMATS),
        (protected, Outcome.DRM),
    ):
        with pytest.raises(ClipError) as raised:
            choose_sound(formats, 44100, copied=True)
        assert raised.value.outcome is outcome


_maybe_codec = st.sampled_from(["avc1.4d401e", "vp9", "av01.0.01M.08", "none"])
_formats = st.lists(
    st.fixed_dictionaries(
        {
            "format_id": st.sampled_from(["18", "134", "140", "140-drc", "251"]),
            "url": st.sampled_from(["https://media.invalid/a", None]),
            "vcodec": _maybe_codec,
            "acodec": st.sampled_from(["mp4a.40.2", "opus", "none"]),
        },
        optional={
            "width": st.sampled_from([None, 144, 360, 640]),
            "height": st.sampled_from([None, 144, 360, 640]),
            "tbr": st.sampled_from([None, 64, 128.5]),
            "asr": st.sampled_from([None, 22050, 44100, 48000]),
            "language": st.sampled_from([None, "en", "de"]),
            "language_preference": st.sampled_from([None, -1, 10]),
            "has_drm": st.booleans(),
            "protocol": st.sampled_from(["https", "m3u8_native"]),
        },
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(st.data(), _formats)
def test_choice_never_depends_on_the_order(data: Any, formats: list[dict[str, Any]]) -> None:
    def result(listed: list[dict[str, Any]]) -> Any:
        try:
            picked = choose_formats(listed, 360, 44100, CODECS)
        except ClipError as error:
            return error.outcome
        # What tells nothing from nothing is the same.
        facts = ("format_id", "vcodec", "acodec", "language", "asr", "tbr")
        return [
            [entry.get(name) or None for name in facts]
            + [min([side for side in (entry.get("width"), entry.get("height")) if side], default=0)]
            for entry in picked
        ]

    shuffled = data.draw(st.permutations(formats))
    first = result(formats)
    assert result(shuffled) == first
    for copied in (False, True):
        with contextlib.suppress(ClipError):
            heard = choose_sound(formats, 44100, copied=copied)
            again = choose_sound(shuffled, 44100, copied=copied)
            names = ("format_id", "vcodec", "acodec", "language", "asr", "tbr")
            assert [heard.get(name) or None for name in names] == [
                again.get(name) or None for name in names
            ]
            assert heard["url"]
            assert heard["acodec"] != "none"
    if isinstance(first, list):
        picked = choose_formats(formats, 360, 44100, CODECS)
        assert all(entry["url"] and not entry.get("has_drm") for entry in picked)
        assert any(entry["vcodec"] != "none" for entry in picked)
        assert any(entry["acodec"] != "none" for entry in picked)


# --- facts -------------------------------------------------------------------------------------

_foreign = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {}, optional={name: _foreign for name, _ in INFO_FIELDS} | {"url": _foreign}
    )
)
def test_info_is_typed_whatever_the_site_says(info: dict[str, Any]) -> None:
    found = typed_info(info)
    assert list(found) == [name for name, _ in INFO_FIELDS]
    for name, kind in INFO_FIELDS:
        assert found[name] is None or type(found[name]) is kind
        if kind is list:
            assert all(type(item) is str for item in found[name] or [])


def test_info_keeps_what_is_there() -> None:
    found = typed_info({"age_limit": "12", "duration": 10, "tags": ["a", 1], "title": ""})
    assert (found["age_limit"], found["duration"], found["tags"]) == (12, 10.0, ["a", "1"])
    assert found["title"] == ""
    assert found["channel"] is None


def test_half_a_surrogate_pair_can_be_written() -> None:
    found = typed_info({"title": "a\ud83d b", "tags": ["\udc00"]})
    assert (found["title"], found["tags"]) == ("a? b", ["?"])


# --- extraction from the site ------------------------------------------------------------------


@pytest.fixture
def resolver(online: Sandbox) -> Iterator[Resolver]:
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading())) as made,
    ):
        yield made


def watch(video: str) -> str:
    return f"https://www.youtube.com/watch?v={video}"


def test_extraction_is_two_requests(resolver: Resolver, online: Sandbox) -> None:
    """Also the second time in a thread; and all of it on one connection."""
    online.reset()
    for number in (11, 12):
        with Budget(30).scope() as budget:
            resolver.resolve(watch(video_id(number)))
        assert budget.requests == 2
        assert budget.bytes_received > 10_000
    stats = online.stats()
    assert (stats.requests["page"], stats.requests["player"]) == (2, 2)
    assert sum(stats.requests.values()) == 4
    assert sum(stats.bytes.values()) == pytest.approx(2 * budget.bytes_received, rel=0.1)
    assert stats.connections == (1,)


@pytest.mark.parametrize(
    "form",
    [
        "https://youtu.be/{}",
        "https://m.youtube.com/watch?v={}&t=3",
        "https://YouTube.com/shorts/{}",
    ],
)
def test_forms_of_a_url(resolver: Resolver, form: str) -> None:
    source = resolver.resolve(form.format(video_id(3)))
    assert source.info["id"] == video_id(3)


def test_source_tells_what_can_be_fetched(resolver: Resolver, online: Sandbox) -> None:
    name = video_id(2, master="m60")
    source = resolver.resolve(watch(name))
    picture, sound = source.streams
    renditions = {str(r.itag): r for r in online.masters["m60"].renditions}
    assert picture.size == renditions[picture.format_id].size
    assert sound.size == renditions[sound.format_id].size
    assert (picture.audio_codec, sound.video_codec) == (None, None)
    assert min(picture.width or 0, picture.height or 0) == 360
    assert source.duration == pytest.approx(online.masters["m60"].spec.duration, abs=1)
    assert "User-Agent" in source.headers
    told = json.dumps(source.info)
    assert "googlevideo" not in told
    assert source.info["title"]
    assert source.info["channel"]


@pytest.mark.parametrize(
    ("formats", "names"),
    [
        ({"video": "mp4", "audio": "m4a"}, ["134", "140"]),
        ({"audio": "m4a"}, ["140"]),
        ({"audio": "wav"}, ["140"]),
    ],
)
def test_source_is_what_samples_are_made_of(
    online: Sandbox, formats: dict[str, str], names: list[str]
) -> None:
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading(), formats)) as resolver,
    ):
        source = resolver.resolve(watch(video_id(2, master="m60")))
        assert [stream.format_id for stream in source.streams] == names
        if "video" not in formats:
            found = resolver.resolve(watch(video_id(1, fault=Fault.NO_VIDEO)))
            assert len(found.streams) == 1
            for master, name in (("webm", "251"), ("prog", "18")):
                (stream,) = resolver.resolve(watch(video_id(1, master=master))).streams
                assert stream.format_id == name
            with pytest.raises(ClipError) as raised:
                resolver.resolve(watch(video_id(1, fault=Fault.NO_AUDIO)))
            assert raised.value.outcome is Outcome.NO_AUDIO


def test_dub_and_drc_of_the_site_are_left_alone(resolver: Resolver, online: Sandbox) -> None:
    name = video_id(5)
    source = resolver.resolve(watch(name))
    assert "drc" not in source.streams[-1].format_id
    assert "acont%3Ddubbed" not in source.streams[-1].url
    plain = resolver.resolve(watch(video_id(6)))
    assert source.streams[-1].format_id.partition("-")[0] == plain.streams[-1].format_id


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault.PAGE_429, Outcome.HTTP_429),
        (Fault.PAGE_503, Outcome.HTTP_5XX),
        (Fault.PLAYER_429, Outcome.HTTP_429),
        (Fault.LIVE, Outcome.LIVE),
        (Fault.DRM, Outcome.DRM),
        (Fault.SABR_ONLY, Outcome.NO_FORMATS),
        (Fault.NO_AUDIO, Outcome.NO_AUDIO),
        (Fault.NO_VIDEO, Outcome.NO_VIDEO),
    ],
)
def test_holes_and_refusals_are_no_success(
    resolver: Resolver, fault: Fault, outcome: Outcome
) -> None:
    """A page that failed would leave metadata out, though the formats are there."""
    with Budget(20).scope(), pytest.raises(ClipError) as raised:
        resolver.resolve(watch(video_id(1, fault=fault)))
    assert raised.value.outcome is outcome
    assert raised.value.detail


def test_failure_does_not_stick_to_the_next_video(resolver: Resolver) -> None:
    with pytest.raises(ClipError):
        resolver.resolve(watch(video_id(1, fault=Fault.PAGE_429)))
    assert len(resolver.resolve(watch(video_id(4))).streams) == 2


@pytest.mark.parametrize(
    "url", ["https://[broken/", "nonsense", "https://www.youtube.com/watch?v=x"]
)
def test_what_is_no_video_is_bad_input(resolver: Resolver, url: str) -> None:
    with pytest.raises(ClipError) as raised:
        resolver.resolve(url)
    assert raised.value.outcome is Outcome.BAD_INPUT


def test_close_leaves_nothing_behind(online: Sandbox) -> None:
    """Each instance of yt-dlp adds a handler to a logger: those of all threads are gone."""
    before = {name: len(_logger(name).handlers) for name in ("yt-dlp", "yt_dlp", "")}
    closed: list[YoutubeDL] = []
    with contextlib.closing(Network()) as network, pytest.MonkeyPatch.context() as patch:
        close = YoutubeDL.close
        patch.setattr(YoutubeDL, "close", lambda self: (closed.append(self), close(self)))
        resolver = Resolver(network, Reading())
        threads = [
            threading.Thread(target=resolver.resolve, args=(watch(video_id(number)),))
            for number in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        resolver.close()
        assert len(set(map(id, closed))) == 3
    assert {name: len(_logger(name).handlers) for name in before} == before


def _logger(name: str) -> logging.Logger:
    return logging.getLogger(name)


# --- subtitles ---------------------------------------------------------------------------------


def listed(*names: str, **more: Any) -> list[dict[str, Any]]:
    return [{"ext": name, "url": f"https://x.invalid/{name}", **more} for name in names]


def test_track_is_of_the_best_format_and_of_people_before_machines() -> None:
    info = {
        "subtitles": {"en": listed("srt", "ttml", "vtt", "json3"), "de": listed("ttml", "srv3")},
        "automatic_captions": {"en": listed("json3"), "de": listed("vtt"), "fr": listed("json3")},
    }
    found = {
        (language, automatic): track and (track.name, track.automatic)
        for language in ("en", "de", "fr", "it")
        for automatic in (False, True)
        for track in [choose_track(info, language, automatic=automatic)]
    }
    assert found == {
        ("en", False): ("json3", False),
        ("en", True): ("json3", False),
        ("de", False): None,
        ("de", True): ("vtt", True),
        ("fr", False): None,
        ("fr", True): ("json3", True),
        ("it", False): None,
        ("it", True): None,
    }


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ({"url": "https://x.invalid/a.vtt?b=c"}, "vtt"),
        ({"ext": "vtt", "data": "WEBVTT"}, "vtt"),
        ({"ext": "vtt", "url": "https://x.invalid/list.m3u8", "protocol": "m3u8_native"}, None),
        ({"ext": "json3", "url": "file:///etc/passwd"}, None),
        ({"ext": "json3"}, None),
        ({}, None),
    ],
)
def test_track_is_one_file_that_can_be_had(entry: dict[str, Any], name: str | None) -> None:
    track = choose_track({"subtitles": {"en": [entry]}}, "en", automatic=False)
    assert (track and track.name) == name


@pytest.mark.parametrize("info", [{}, {"subtitles": None}, {"subtitles": []}, {"subtitles": {}}])
def test_no_list_is_no_track(info: dict[str, Any]) -> None:
    assert choose_track(info, "en", automatic=True) is None


def look_up(video: str, *languages: str, retries: int = 0, **options: Any) -> Source:
    reading = Reading(
        **{
            "writesubtitles": "first",
            "subtitleslangs": languages or ("en",),
            "retries": retries,
            **options,
        }
    )
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, reading)) as made,
        Budget(30).scope(),
    ):
        return made.resolve(watch(video))


def texts(source: Source) -> dict[str, str]:
    """The text of the line at 4 seconds, by language."""
    return {
        language: next(line.text for line in lines if line.start_ms == 4000)
        for language, lines in (source.subtitles or {}).items()
    }


ENGLISH, GERMAN, HEARD = "line at 4 seconds", "Zeile bei 4 Sekunden", "words at 4 seconds"
BILINGUAL = video_id(3)


@pytest.mark.parametrize(
    ("which", "languages", "found"),
    [
        ("first", ("de", "en"), {"de": GERMAN}),
        ("first", ("fr", "en", "de"), {"en": ENGLISH}),
        ("first", ("fr",), {}),
        ("all", ("de", "fr", "en", "de"), {"de": GERMAN, "en": ENGLISH}),
        (None, ("en",), {}),
    ],
)
def test_which_subtitles_come(
    online: Sandbox, which: Any, languages: tuple[str, ...], found: dict[str, str]
) -> None:
    online.reset()
    source = look_up(BILINGUAL, *languages, writesubtitles=which)
    assert texts(source) == found
    assert (source.subtitles is None) == (which is None)
    # One extraction, then a request for each; none for those that there are not.
    requests = online.stats().requests
    assert (requests["page"], requests["player"]) == (1, 1)
    assert requests["subtitles"] == len(found)
    assert online.stats().connections == (1,)


@pytest.mark.parametrize(
    ("video", "automatic", "found"),
    [
        (video_id(1), True, {"en": ENGLISH}),
        (video_id(1, fault=Fault.SUBTITLES_AUTOMATIC), True, {"en": HEARD}),
        (video_id(1, fault=Fault.SUBTITLES_AUTOMATIC), False, {}),
        (video_id(1, fault=Fault.SUBTITLES_NONE), True, {}),
        # What is listed and is not there is not there.
        (video_id(1, fault=Fault.SUBTITLES_404), True, {}),
    ],
)
def test_automatic_subtitles_are_the_second_choice(
    online: Sandbox, video: str, automatic: bool, found: dict[str, str]
) -> None:
    assert texts(look_up(video, writeautomaticsub=automatic)) == found


def test_lines_of_speech_recognition_do_not_overlap(online: Sandbox) -> None:
    source = look_up(video_id(1, fault=Fault.SUBTITLES_AUTOMATIC), writeautomaticsub=True)
    assert source.subtitles is not None
    assert source.subtitles["en"][:2] == (
        Line(0, 2000, "words at 0 seconds"),
        Line(2000, 4000, "words at 2 seconds"),
    )


@pytest.mark.parametrize(
    ("fault", "outcome", "requests"),
    [
        (Fault.SUBTITLES_429, Outcome.HTTP_429, 1),
        (Fault.SUBTITLES_503, Outcome.HTTP_5XX, 2),
        (Fault.SUBTITLES_CUT, Outcome.NETWORK, 2),
        (Fault.SUBTITLES_NOISE, Outcome.EXTRACTOR_BROKEN, 1),
        (Fault.SUBTITLES_TOKEN, Outcome.EXTRACTOR_BROKEN, 0),
    ],
)
def test_subtitles_that_are_refused_or_lost_are_no_missing_ones(
    online: Sandbox, fault: Fault, outcome: Outcome, requests: int
) -> None:
    online.reset()
    with pytest.raises(ClipError) as raised:
        look_up(video_id(1, fault=fault), retries=1)
    assert raised.value.outcome is outcome
    assert raised.value.detail
    assert online.stats().requests["subtitles"] == requests


def test_subtitles_withheld_in_a_language_that_nobody_asked_for(online: Sandbox) -> None:
    assert look_up(video_id(1, fault=Fault.SUBTITLES_TOKEN), "fr").subtitles == {}


def test_subtitles_that_fail_once_are_tried_again(online: Sandbox) -> None:
    online.reset()
    assert texts(look_up(video_id(1, fault=Fault.FIRST_503), retries=1)) == {"en": ENGLISH}


def test_subtitles_of_a_monstrous_size_are_given_up(
    online: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acavdl.resolve._SUBTITLES_BYTES", 100)
    with pytest.raises(ClipError, match="more than 100 bytes") as raised:
        look_up(video_id(1))
    assert raised.value.outcome is Outcome.EXTRACTOR_BROKEN


# --- files of this machine ---------------------------------------------------------------------


def resolved(url: str, **options: Any) -> Source:
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading(**options))) as made,
    ):
        return made.resolve(url)


@pytest.mark.parametrize("name", ["a.mp4", "ü #?%20.webm", "none"])
def test_file_of_this_machine(tmp_path: Path, name: str, no_variables: None) -> None:
    path = tmp_path / name
    path.write_bytes(b"media")
    for url in (path.as_uri(), path.as_uri().replace("file:///", "file://localhost/")):
        source = resolved(url)
        (stream,) = source.streams
        assert (stream.path, stream.size, stream.url) == (str(path), 5, url)
        assert stream.container == path.suffix[1:]
        assert source.info == dict.fromkeys(name for name, _ in INFO_FIELDS)
        assert source.counts == dict.fromkeys(COUNT_FIELDS)
        assert (source.duration, source.available_at, source.subtitles) == (None, None, None)
    assert resolved(url, writesubtitles="all").subtitles == {}


@pytest.mark.parametrize(
    "url",
    [
        "file:///nonexistent/a.mp4",
        "file:///",
        "file:///dev/zero",
        "file:///a%00b",
        "file:relative.mp4",
        "file://elsewhere/a.mp4",
        "file://[broken/a.mp4",
        "file:",
    ],
)
def test_what_is_no_file_of_this_machine_is_bad_input(url: str, no_variables: None) -> None:
    with pytest.raises(ClipError) as raised:
        resolved(url)
    assert raised.value.outcome is Outcome.BAD_INPUT
    assert raised.value.detail.startswith(url)


def test_other_spellings_of_the_scheme_lead_nowhere(tmp_path: Path, no_variables: None) -> None:
    """Whether files may stand in a table is decided by one spelling."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"media")
    with pytest.raises(ClipError):
        resolved(path.as_uri().replace("file:", "FILE:"))


def test_fifo_is_not_waited_for(tmp_path: Path, no_variables: None) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    with pytest.raises(ClipError, match="not a file"):
        resolved((tmp_path / "fifo.mp4").as_uri())


def test_file_that_may_not_be_read(tmp_path: Path, no_variables: None) -> None:
    path, me = tmp_path / "a.mp4", os.geteuid()
    path.write_bytes(b"media")
    path.chmod(0)
    with contextlib.closing(Network()) as network:
        resolver = Resolver(network, Reading())
        if me == 0:
            # Root reads everything: be somebody else meanwhile.
            os.seteuid(65534)
        try:
            with pytest.raises(ClipError, match="Permission denied"):
                resolver.resolve(path.as_uri())
        finally:
            os.seteuid(me)


def test_no_site_can_name_a_file_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page says is never taken for a path: only the table's own words are."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    page = b'<html><video src="file:///etc/passwd" type="video/mp4"></video></html>'
    with site(lambda *_: (200, {"Content-Type": "text/html"}, page)) as server:
        try:
            source = resolved(server.url("/page"))
        except ClipError:
            return
    assert [stream.path for stream in source.streams] == [None]


# --- yt-dlp's requests over our network --------------------------------------------------------


class Site(http.server.ThreadingHTTPServer):
    """Answers with what `answer` says, and keeps the requests."""

    answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"


class SiteHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    server: Site

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.command, self.path, headers, body))
        status, told, data = type(self.server).answer(self.command, self.path)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **told}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.close_connection = "Content-Length" in told

    do_POST = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: standard error is not the place."""


@contextlib.contextmanager
def site(answer: Callable[[str, str], tuple[int, dict[str, str], bytes]]) -> Iterator[Site]:
    server = type("_Site", (Site,), {"answer": staticmethod(answer)})()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def downloader(monkeypatch: pytest.MonkeyPatch) -> Iterator[YoutubeDL]:
    """yt-dlp as the resolver sets it up."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading())) as resolver,
    ):
        yield resolver._extractor(youtube=True)


def redirecting(status: int, location: str) -> Callable[[str, str], Any]:
    def answer(_: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/from":
            return status, {"Location": location}, b"moved"
        return 200, {}, b"here"

    return answer


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
        (302, "GET", "GET"),
        (303, "HEAD", "HEAD"),
    ],
)
def test_redirect(downloader: YoutubeDL, status: int, method: str, then: str) -> None:
    data = b"form" if method == "POST" else None
    with site(redirecting(status, "/to")) as server:
        request = Request(server.url("/from"), data=data, method=method)
        with contextlib.closing(downloader.urlopen(request)) as response:
            assert response.url == server.url("/to")
            assert response.read() == (b"" if method == "HEAD" else b"here")
    assert [asked[:2] for asked in server.asked] == [(method, "/from"), (then, "/to")]
    assert server.asked[1][3] == (b"form" if then == "POST" else b"")


def test_secrets_stay_with_their_host(downloader: YoutubeDL) -> None:
    secrets = {"Authorization": "Basic eDp5", "Cookie": "a=b", "X-Other": "kept"}
    with site(lambda *_: (200, {}, b"here")) as target:
        location = target.url("/to", "localhost")
        with site(redirecting(302, location)) as server:
            request = Request(server.url("/from"), headers=secrets)
            assert downloader.urlopen(request).read() == b"here"
    assert server.asked[0][2]["authorization"] == "Basic eDp5"
    assert target.asked[0][2]["x-other"] == "kept"
    assert not {"authorization", "cookie"} & set(target.asked[0][2])


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/"])
def test_redirect_away_from_the_web_is_refused(downloader: YoutubeDL, location: str) -> None:
    with site(redirecting(302, location)) as server, pytest.raises(RequestError, match="scheme"):
        downloader.urlopen(server.url("/from"))


def test_redirect_loop_is_bounded(downloader: YoutubeDL) -> None:
    with site(redirecting(302, "/from")) as server, pytest.raises(HTTPError) as raised:
        downloader.urlopen(server.url("/from"))
    assert raised.value.redirect_loop
    assert len(server.asked) < 30
    raised.value.close()


def test_cookies_are_kept_and_sent_where_they_belong(downloader: YoutubeDL) -> None:
    def answer(_: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/from":
            return 302, {"Location": "/to", "Set-Cookie": "one=1; Path=/"}, b""
        return 200, {"Set-Cookie": "two=2; Path=/nowhere"}, b"here"

    with site(answer) as server, site(answer) as other:
        for path in ("/from", "/only/x", "/to"):
            downloader.urlopen(server.url(path)).read()
        downloader.urlopen(other.url("/to", "localhost")).read()
    cookies = [asked[2].get("cookie") for asked in server.asked]
    # From the redirect itself; and none outside of its path.
    assert cookies == [None, "one=1", "one=1", "one=1"]
    assert other.asked[0][2].get("cookie") is None


@pytest.mark.parametrize("status", [304, 403, 404, 429, 503])
def test_error_status_is_yt_dlps_own_error(downloader: YoutubeDL, status: int) -> None:
    with site(lambda *_: (status, {}, b"" if status == 304 else b"why")) as server:
        with pytest.raises(HTTPError) as raised:
            downloader.urlopen(server.url())
        assert raised.value.status == status
        assert raised.value.response.read() == (b"" if status == 304 else b"why")


def test_refusal_that_is_cut_short_is_still_one(downloader: YoutubeDL) -> None:
    with (
        site(lambda *_: (429, {"Content-Length": "100"}, b"half")) as server,
        pytest.raises(HTTPError, match="429"),
    ):
        downloader.urlopen(server.url())


def test_short_body_is_yt_dlps_own_error(downloader: YoutubeDL) -> None:
    """So that its retrying sees what it knows, and no short page is taken for whole."""
    with site(lambda *_: (200, {"Content-Length": "100"}, b"half")) as server:
        response = downloader.urlopen(server.url())
        with pytest.raises(IncompleteRead) as raised:
            response.read()
        assert (raised.value.partial, raised.value.expected) == (4, 96)
        response.close()


def test_compressed_body_is_decoded_and_charged_as_it_came(downloader: YoutubeDL) -> None:
    import gzip

    page = gzip.compress(b"page" * 10_000)
    with (
        site(lambda *_: (200, {"Content-Encoding": "gzip"}, page)) as server,
        Budget(20).scope() as budget,
    ):
        assert downloader.urlopen(server.url()).read() == b"page" * 10_000
    assert (budget.requests, budget.bytes_received) == (1, len(page))


def test_file_of_another_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """A direct link, through yt-dlp's generic extractor: one stream with whatever is in it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        site(lambda *_: (200, {"Content-Type": "video/mp4"}, b"media")) as server,
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading())) as resolver,
    ):
        source = resolver.resolve(server.url("/clip.mp4"))
    assert [(stream.url, stream.container) for stream in source.streams] == [
        (server.url("/clip.mp4"), "mp4")
    ]
    assert source.info["title"] == "clip"


def test_extractor_that_trips_over_a_page_fails_its_video_alone(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trip(*_: object) -> None:
        raise TypeError("'NoneType' object is not subscriptable")

    monkeypatch.setattr(YoutubeIE, "_extract_player_responses", trip)
    with pytest.raises(ClipError, match="NoneType") as raised:
        resolver.resolve(f"https://www.youtube.com/watch?v={video_id(1)}")
    assert raised.value.outcome is Outcome.EXTRACTOR_BROKEN


def test_cookie_file_of_the_user_is_read_and_left_alone(online: Sandbox, tmp_path: Path) -> None:
    file = tmp_path / "cookies.txt"
    text = "# Netscape HTTP Cookie File\n.youtube.com\tTRUE\t/\tTRUE\t4102444800\tmine\tsecret\n"
    file.write_text(text)
    reading = Reading(ytdlp={"cookiefile": str(file)})
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, reading)) as resolver,
    ):
        assert resolver.resolve(watch(video_id(1))).streams
    assert file.read_text() == text


def test_counts_stand_apart_from_what_lasts(resolver: Resolver) -> None:
    source = resolver.resolve(watch(video_id(1)))
    assert source.counts["view_count"] is not None
    assert not set(source.counts) & set(source.info)
