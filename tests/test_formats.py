"""Which formats are fetched: the smallest that will do, the original sound, nothing protected."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.errors import ClipError, Outcome
from acavdl.formats import choose_formats, choose_sound

CODECS = ("avc1", "av01", "vp9")


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
