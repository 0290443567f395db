"""From a URL to streams: which facts, how many requests, on our own network."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from urllib3.exceptions import DecodeError
from yt_dlp import YoutubeDL
from yt_dlp.extractor.youtube import YoutubeIE
from yt_dlp.networking import Request
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, RequestError

from acavdl.budget import Budget
from acavdl.config import Reading
from acavdl.errors import ClipError, Outcome, UsageError
from acavdl.models import Line, Source
from acavdl.net import Network
from acavdl.resolve import (
    COUNT_FIELDS,
    INFO_FIELDS,
    LIGHT_LACKS,
    Resolver,
    _unpacked,
    choose_track,
    typed_info,
)
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.sandbox.catalog import Stage

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


# --- full and light ----------------------------------------------------------------------------


@contextlib.contextmanager
def resolving(**options: Any) -> Iterator[Resolver]:
    with (
        contextlib.closing(Network()) as network,
        contextlib.closing(Resolver(network, Reading(**options))) as made,
    ):
        yield made


@pytest.fixture
def light(online: Sandbox) -> Iterator[Resolver]:
    with resolving(extraction="light") as made:
        yield made


@pytest.mark.parametrize(
    "video",
    [
        video_id(1),
        video_id(5),
        video_id(2, master="m60"),
        video_id(1, master="webm"),
        video_id(1, fault=Fault.AD_WAIT),
        video_id(1, fault=Fault.SUBTITLES_AUTOMATIC),
    ],
)
def test_full_is_all_that_yt_dlp_finds(online: Sandbox, video: str) -> None:
    """What costs less than yt-dlp's own way loses nothing of it: no field, format, language."""
    params = {"quiet": True, "compat_opts": {"no-certifi"}}
    with YoutubeDL(params, auto_init=False) as plain:
        plain.add_info_extractor(YoutubeIE())
        theirs = plain.extract_info(watch(video), download=False, process=False)
    with resolving(writesubtitles="all") as resolver:
        extractor = resolver._extractor(youtube=True)
        ours = extractor.extract(watch(video))
        source = resolver.resolve(watch(video))
    assert ours.keys() == theirs.keys()
    lists = ("formats", "subtitles", "automatic_captions")
    same = [name for name in theirs if name not in (*lists, "__post_extractor")]
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert [entry["format_id"] for entry in ours["formats"]] == [
        entry["format_id"] for entry in theirs["formats"]
    ]
    for kind in ("subtitles", "automatic_captions"):
        # In the format that is taken, and no other.
        assert {name: [entry["ext"] for entry in ours[kind][name]] for name in ours[kind]} == (
            {name: ["json3"] for name in theirs[kind]}
        )
    # What the site fills, the dataset holds.
    assert [name for name, value in source.info.items() if value is None] == ["language"]
    assert None not in source.counts.values()
    assert source.info == typed_info(theirs)
    assert source.counts == {name: theirs[name] for name in COUNT_FIELDS}


def test_light_is_one_request(light: Resolver, online: Sandbox) -> None:
    for number in (11, 12):
        online.reset()
        with Budget(30).scope() as budget:
            light.resolve(watch(video_id(number)))
        assert budget.requests == 1
        stats = online.stats()
        assert stats.requests["player"] == sum(stats.requests.values()) == 1


@pytest.mark.parametrize("video", [video_id(1), video_id(5), video_id(1, fault=Fault.AD_WAIT)])
def test_light_loses_what_is_documented_and_no_more(
    resolver: Resolver, light: Resolver, video: str
) -> None:
    full, less = resolver.resolve(watch(video)), light.resolve(watch(video))
    for found, lacking in ((full.info, less.info), (full.counts, less.counts)):
        assert found.keys() == lacking.keys()
        lost = {name for name in found if lacking[name] != found[name]}
        assert lost == LIGHT_LACKS & found.keys()
        assert all(lacking[name] is None for name in lost)
    assert [stream.format_id for stream in less.streams] == [
        stream.format_id for stream in full.streams
    ]
    assert (less.duration, less.headers) == (full.duration, full.headers)
    assert full.available_at is not None
    assert less.available_at == pytest.approx(full.available_at, abs=60)
    documented = (Path(__file__).parent.parent / "docs" / "extraction.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| yes \| (yes|null) \|", documented, re.MULTILINE)
    assert {name for name, there in rows if there == "null"} == LIGHT_LACKS
    assert {name for name, there in rows if there == "yes"} | {"language"} == (
        full.info.keys() | full.counts.keys()
    ) - LIGHT_LACKS


#: Failures that show in an extraction, and pages that `light` does not ask for.
SEEN = [
    fault
    for fault in Fault
    if fault.stage in (Stage.PLAYABILITY, Stage.FORMATS, Stage.PAGE, Stage.PLAYER)
    and fault not in (Fault.PLAYER_HANGS, Fault.PLAYER_TRICKLES)
]


@pytest.mark.parametrize("fault", SEEN)
def test_light_tells_failures_as_full_does(
    resolver: Resolver, light: Resolver, fault: Fault
) -> None:
    outcomes: list[Outcome] = []
    for made in (resolver, light):
        with Budget(20).scope():
            try:
                made.resolve(watch(video_id(1, fault=fault)))
                outcomes.append(Outcome.OK)
            except ClipError as error:
                outcomes.append(error.outcome)
    full, less = outcomes
    assert less is (Outcome.OK if fault.stage is Stage.PAGE else full)
    assert full is not Outcome.OK or fault in (Fault.NO_PROGRESSIVE, Fault.AD_WAIT)


def test_light_knows_no_translations(online: Sandbox) -> None:
    """The list of languages to translate to stands on the watch page; the rest is the same."""
    heard = video_id(1, fault=Fault.SUBTITLES_AUTOMATIC)
    for extraction, languages in (("full", {"en", "de"}), ("light", {"en"})):
        options: dict[str, Any] = {"writesubtitles": "all", "extraction": extraction}
        source = look_up(heard, "en", "de", writeautomaticsub=True, **options)
        assert source.subtitles is not None
        assert source.subtitles.keys() == languages
        source = look_up(BILINGUAL, "en", "de", **options)
        assert texts(source) == {"en": ENGLISH, "de": GERMAN}


def test_manifests_are_not_asked_for(resolver: Resolver, online: Sandbox) -> None:
    online.reset()
    with pytest.raises(ClipError):
        resolver.resolve(watch(video_id(1, fault=Fault.LIVE)))
    stats = online.stats()
    assert stats.requests["page"] == stats.requests["player"] == 1
    assert (sum(stats.requests.values()), stats.forbidden) == (2, 0)


def test_arguments_of_the_user_win_one_by_one(online: Sandbox) -> None:
    theirs = {"youtube": {"player_skip": ["js"], "lang": ["de"]}, "generic": {"impersonate": [""]}}
    reading = {"extraction": "light", "ytdlp": {"extractor_args": theirs}}
    with resolving(**reading) as resolver:
        arguments = resolver._extractor(youtube=True).params["extractor_args"]
        assert arguments == {
            "youtube": {"skip": ["hls", "dash"], "player_skip": ["js"], "lang": ["de"]},
            "generic": {"impersonate": [""]},
        }
        online.reset()
        source = resolver.resolve(watch(video_id(1)))
    assert online.stats().requests["page"] == 1
    # The same fields whatever pages there were.
    assert source.info["channel"] is None
    for nothing in (None, {}, {"youtube": None}):
        with resolving(ytdlp={"extractor_args": nothing}) as resolver:
            assert resolver.resolve(watch(video_id(1))).info["channel"]


@pytest.mark.parametrize("wrong", ["youtube:player_skip=js", {"youtube": ["player_skip=js"]}, [1]])
def test_arguments_that_are_none_are_named(wrong: Any, no_variables: None) -> None:
    with (
        pytest.raises(UsageError, match=r"reading\.ytdlp\.extractor_args"),
        resolving(ytdlp={"extractor_args": wrong}),
    ):
        pass


@pytest.mark.parametrize(
    "page",
    [
        '<script>var ytInitialData = {"contents": 1};</script><p>}</p>',
        '<script nonce="x">window["ytInitialData"] = {"contents": 1};</script>',
        '<script>f("ytInitialData")</script><script>ytInitialData = {"contents": 1}</script>',
        '<p>ytInitialData</p><script>ytInitialData = {"contents": 1}</script>',
        '<script>ytInitialData = {"contents": 1};',
        'ytInitialData = {"contents": 1};',
        '<script type="application/json" id="yt-initial-data">{"contents": 1}</script>',
        "<script>ytInitialData = null;</script>",
        "",
    ],
)
def test_data_of_a_page_are_found_as_yt_dlp_finds_them(downloader: YoutubeDL, page: str) -> None:
    plain = YoutubeIE(downloader)
    theirs = plain.extract_yt_initial_data("x", page, fatal=False)
    ours = downloader.get_info_extractor("Youtube")
    assert ours.extract_yt_initial_data("x", page, fatal=False) == theirs
    assert theirs == ({"contents": 1} if "contents" in page else {})


def test_patterns_are_not_tried_on_a_page_that_has_its_data(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: Any, **__: Any) -> Any:
        raise AssertionError("the whole page is searched")

    monkeypatch.setattr(YoutubeIE, "extract_yt_initial_data", search)
    assert resolver.resolve(watch(video_id(1))).info["channel"]


@pytest.mark.parametrize("damage", ["cut", "noise", "junk"])
def test_a_page_that_is_not_what_its_header_says_is_no_page(damage: str) -> None:
    packed = gzip.compress(bytes(range(256)) * 100)
    data = {"cut": packed[:-9], "noise": b"\x1f\x8b" + b"\xff" * 90, "junk": packed + b"more"}
    with pytest.raises(DecodeError):
        _unpacked(data[damage])
    assert _unpacked(packed + packed) == 2 * _unpacked(packed)


def test_light_is_for_one_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with (
        site(lambda *_: (200, {"Content-Type": "video/mp4"}, b"media")) as server,
        resolving(extraction="light") as resolver,
        resolving() as full,
    ):
        url = server.url("/clip.mp4")
        assert resolver.resolve(url).info == full.resolve(url).info


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


@pytest.mark.parametrize(("retries", "asked"), [(0, 1), (2, 3)])
def test_tries_of_the_extractor_are_bounded_by_the_setting(
    online: Sandbox, retries: int, asked: int
) -> None:
    online.reset()
    video = video_id(1, fault=Fault.PLAYER_503)
    with contextlib.closing(Network()) as network:
        resolver = Resolver(network, Reading(retries=retries))
        with (
            contextlib.closing(resolver),
            Budget(60).scope(),
            pytest.raises(ClipError) as raised,
        ):
            resolver.resolve(watch(video))
    assert raised.value.outcome is Outcome.HTTP_5XX
    assert online.stats().videos[video]["player"] == asked
