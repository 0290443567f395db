"""Outcomes are data that travel and are read back; fatal errors are exit codes."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from acavdl.errors import (
    AcavdlError,
    ClipError,
    EmptyTableError,
    Outcome,
    PlanMismatchError,
    Retry,
    Scope,
    ShardError,
    Stage,
    StorageError,
    UsageError,
)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_tells_where_what_and_whether_again(outcome: Outcome) -> None:
    assert isinstance(outcome.stage, Stage)
    assert isinstance(outcome.scope, Scope)
    assert isinstance(outcome.retry, Retry)
    assert (outcome.stage is Stage.DONE) == (outcome is Outcome.OK)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_comes_back_from_disk_and_from_other_processes(outcome: Outcome) -> None:
    assert pickle.loads(pickle.dumps(outcome)) is outcome
    assert copy.deepcopy(outcome) is outcome
    # The parquet and the stats hold plain words.
    assert Outcome(json.loads(json.dumps(outcome))) is outcome
    assert f"{outcome}" == outcome.value == outcome.name.lower()


def test_what_the_site_refuses_is_never_final_for_a_video() -> None:
    """A refused address says nothing of the video: its clips must be asked for again, later."""
    refused = {Outcome.RATE_LIMITED, Outcome.BOT_CHECK, Outcome.HTTP_429, Outcome.HTTP_402}
    assert {outcome for outcome in Outcome if outcome.scope is Scope.EGRESS} == refused
    assert {outcome.retry for outcome in refused} == {Retry.LATER}


def test_what_is_broken_here_is_never_final_for_a_video() -> None:
    broken = {outcome for outcome in Outcome if outcome.scope is Scope.ENVIRONMENT}
    assert broken >= {Outcome.EXTRACTOR_BROKEN, Outcome.NO_FORMATS, Outcome.TLS}
    assert Retry.NEVER not in {outcome.retry for outcome in broken}


@pytest.mark.parametrize(
    "outcome", [Outcome.PRIVATE, Outcome.REMOVED_UPLOADER, Outcome.COPYRIGHT, Outcome.DRM]
)
def test_what_is_gone_is_not_asked_for_again(outcome: Outcome) -> None:
    assert outcome.retry is Retry.NEVER


def test_an_unknown_word_is_no_outcome() -> None:
    with pytest.raises(ValueError, match="no_such_outcome"):
        Outcome("no_such_outcome")


@pytest.mark.parametrize("outcome", [Outcome.BOT_CHECK, Outcome.CORRUPT])
def test_a_clip_error_travels_whole(outcome: Outcome) -> None:
    error = ClipError(outcome, "Sign in to confirm: you’re not a bot")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ClipError
    assert again.outcome is outcome
    assert again.detail == error.detail
    assert str(again) == str(error)
    assert outcome.value in str(error)
    assert error.detail in str(error)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (UsageError, 2),
        (PlanMismatchError, 3),
        (EmptyTableError, 4),
        # Not told apart by the documentation: any failure that is none of the others.
        (StorageError, 1),
        (ShardError, 1),
    ],
)
def test_exit_codes(kind: type[AcavdlError], code: int) -> None:
    again = pickle.loads(pickle.dumps(kind("what happened")))
    assert isinstance(again, AcavdlError)
    assert type(again) is kind
    assert again.exit_code == code
    assert str(again) == "what happened"


def test_a_clip_error_does_not_end_a_command() -> None:
    assert not issubclass(ClipError, AcavdlError)


def test_detail_of_a_clip_can_always_be_written() -> None:
    """Half of a surrogate pair in a message must not cost a shard its parquet."""
    error = ClipError(Outcome.UNKNOWN, "Vid\ud83do “x”")
    assert error.detail == "Vid?o “x”"
    assert pickle.loads(pickle.dumps(error)).detail == error.detail
