"""Ids and what lies behind them."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acavdl.sandbox import DEMO_MASTERS, Fault, parse, video_id
from acavdl.sandbox.catalog import Video, clashes, ordinary
from acavdl.sandbox.media import MasterSpec

GRAMMAR = re.compile(r"[a-z0-9]{2,6}-[0-9]{4,8}")
BY_CODE = {spec.code: spec for spec in DEMO_MASTERS}


def spec(code, itags=(134, 140), virtual=None):
    return MasterSpec(code, 10.0, Fraction(25), itags, virtual=virtual)


@pytest.mark.parametrize("fault", Fault)
def test_the_id_of_a_fault_leads_back_to_it(fault):
    made = video_id(17, fault=fault)
    assert len(made) == 11
    assert GRAMMAR.fullmatch(made)
    video = parse(made)
    assert (video.video_id, video.number, video.fault) == (made, 17, fault)
    assert video.master in {s.code for s in ordinary(DEMO_MASTERS)}
    assert fault.about


@pytest.mark.parametrize("code", BY_CODE)
def test_the_id_of_a_master_leads_back_to_it(code):
    made = video_id(4711, master=code)
    assert len(made) == 11
    assert GRAMMAR.fullmatch(made)
    assert parse(made) == Video(made, 4711, code, None, BY_CODE[code].virtual)


def test_the_number_alone_makes_an_ordinary_video():
    assert video_id(3) == video_id(3, master=DEMO_MASTERS[0].code)


def test_codes_are_unique():
    assert len({fault.code for fault in Fault}) == len(Fault)
    assert clashes(DEMO_MASTERS) == ()
    assert clashes([spec(Fault.DRM.code), spec("fine")]) == (Fault.DRM.code,)


def test_the_number_of_a_fault_picks_the_master():
    picked = [parse(video_id(n, fault=Fault.MEDIA_CUT)).master for n in range(50)]
    codes = [s.code for s in ordinary(DEMO_MASTERS)]
    assert picked == [codes[n % len(codes)] for n in range(50)]


def test_ordinary_masters_have_video_and_audio_apart_and_are_no_longer_than_their_files():
    split, one, long = spec("a1"), spec("b2", itags=(18,)), spec("c3", virtual=900.0)
    assert ordinary([one, long, split]) == (split,)
    assert ordinary([one, long]) == (one,)
    assert ordinary([long]) == (long,)


@given(st.text(st.characters(codec="utf-8"), max_size=14))
def test_any_text_is_a_video_and_stays_the_same_one(text):
    first = parse(text)
    assert first == parse(text)
    assert first.video_id == text


@pytest.mark.parametrize(
    "other",
    ["dQw4w9WgXcQ", "bot-00001", "BOT-0000001", "nosuch-0001", "bot-000000x", "-----------"],
)
def test_ids_outside_the_grammar_are_ordinary_videos(other):
    video = parse(other)
    assert video.fault is None
    assert video.duration is None
    assert video.master in {s.code for s in ordinary(DEMO_MASTERS)}


def test_ordinary_videos_are_spread_over_the_masters():
    shown = {parse(f"dQw4w9WgX{n:02d}").master for n in range(100)}
    assert shown == {s.code for s in ordinary(DEMO_MASTERS)}


def test_other_masters_make_other_codes():
    mine = [spec("xy", virtual=7200.0)]
    assert parse("xy-00000001", mine).duration == 7200.0
    assert parse("xy-00000001").master != "xy"
    assert parse(video_id(1, fault=Fault.DRM), mine).duration == 7200.0


def test_without_masters_there_is_nothing_to_show():
    with pytest.raises(ValueError, match="at least one master"):
        parse("dQw4w9WgXcQ", [])


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": -1},
        {"number": 10**7, "master": "m30"},
        {"number": 10**6, "fault": Fault.REMOVED_POLICY},
        {"number": 1, "master": "toolong"},
        {"number": 1, "master": "A1"},
        {"number": 1, "master": "m30", "fault": Fault.DRM},
    ],
)
def test_ids_that_cannot_be_made(arguments):
    with pytest.raises(ValueError, match=r"id of 11 characters|not of both"):
        video_id(**arguments)


def test_the_largest_number_fits():
    made = video_id(9_999_999, master="m30")
    assert made == "m30-9999999"
    assert parse(made) == Video(made, 9_999_999, "m30", None, None)
