"""Demonstrations: imperfect on purpose, true in what they show, from training problems alone."""

from itertools import islice, pairwise
from random import Random

import dataframely as dy
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import Demonstrations
from schemas.config import ExecutionConfig, RolloutConfig
from schemas.errors import ExecutorError
from stages.cold_start.demonstrations import make_demonstrations
from stages.cold_start.families import draw_problems
from stages.dialogue.tags import parse_turns
from stages.execution import Executor, make_executor, observation_text
from stages.grading import decide
from tests.stages.cold_start.cold_start_builders import LEVELS, calls_of, output_of, texts_of
from tests.stages.execution.frames import config_with, snippet_frame

RAISING = ("SyntaxError", "NameError", "ValueError")


def draw(
    count: int = 200, *, seed: int = 0, levels: tuple[int, ...] = LEVELS, **execution: int
) -> dy.DataFrame[Demonstrations]:
    config = ColdStartConfig(demonstrations=count)
    return make_demonstrations(config, ExecutionConfig(**execution), levels=levels, seed=seed)


def executor() -> Executor:
    """The default executor with limits that a busy machine does not run into."""
    try:
        return make_executor(config_with())
    except ExecutorError as error:
        pytest.skip(str(error))


def parsed_turns(demonstrations: dy.DataFrame[Demonstrations]) -> pl.DataFrame:
    """Returns every turn as the protocol reads it, with what is to follow it."""
    rows = []
    for segments in demonstrations["segments"]:
        turns = texts_of(segments, "turn")
        rows += [{"text": text, "stop": "code"} for text in turns[:-1]]
        rows.append({"text": turns[-1], "stop": "answer"})
    frame = pl.DataFrame(rows)
    return frame.hstack(parse_turns(frame))


# Draws


def test_demonstrations_are_a_function_of_the_seed() -> None:
    assert_frame_equal(draw(seed=1), draw(seed=1))
    assert draw(seed=1)["segments"].to_list() != draw(seed=2)["segments"].to_list()


def test_fewer_demonstrations_are_the_first_of_more() -> None:
    assert_frame_equal(draw(50), draw(100).head(50))


def test_demonstrations_are_as_many_as_configured_and_numbered() -> None:
    assert draw(37)["demonstration_id"].to_list() == list(range(37))


def test_levels_are_those_asked() -> None:
    assert set(draw(levels=(1, 3))["level"]) == {1, 3}


def test_no_demonstration_shows_a_held_out_problem(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    problems = draw_problems(Random(5), split="held_out", levels=LEVELS)
    held_out = list(islice(problems, 2_000))
    assert set(demonstrations["task_id"]).isdisjoint(problem.task_id for problem in held_out)
    assert set(demonstrations["problem"]).isdisjoint(problem.text for problem in held_out)


# What is right


def test_between_a_fifth_and_a_half_of_the_demonstrations_are_right(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    assert 0.20 < demonstrations["right"].cast(pl.Float64).mean() < 0.45  # type: ignore[operator]


def test_longer_problems_are_right_less_often(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    by_level = demonstrations.group_by("level").agg(pl.col("right").mean()).sort("level")
    shares = by_level["right"].to_list()
    assert by_level["level"].to_list() == list(LEVELS)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 2 * shares[-1] > 0


def test_right_is_what_comparing_the_answers_says(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    answers = parsed_turns(demonstrations).filter(pl.col("answer").is_not_null())["answer"]
    decisions = [
        decide(ours, gold) for ours, gold in zip(answers, demonstrations["answer"], strict=True)
    ]
    compared = [None if decision is None else decision.equal for decision in decisions]
    assert compared == demonstrations["right"].to_list()


def test_a_demonstration_without_flaw_is_right(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    assert demonstrations.filter(pl.col("flaw").is_null())["right"].all()


def test_every_kind_of_flaw_is_planted(demonstrations: dy.DataFrame[Demonstrations]) -> None:
    counts = dict(demonstrations["flaw"].drop_nulls().value_counts().rows())
    assert set(counts) == {
        "off_by_one",
        "wrong_operation",
        "syntax_error",
        "dead_variable",
        "early_answer",
        "no_tool",
    }
    assert min(counts.values()) > 40


def test_some_raising_calls_are_repaired_and_some_are_not(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    raising = demonstrations.filter(pl.col("flaw").is_in(["syntax_error", "dead_variable"]))
    repaired = raising["right"].sum()
    assert 100 < repaired < len(raising) - 100


# Transcripts


def test_turns_and_observations_alternate_up_to_the_answering_turn(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    for segments in demonstrations["segments"]:
        roles = [segment["role"] for segment in segments]
        calls = len(roles) // 2 - 1
        assert roles == ["problem", *["turn", "observation"] * calls, "turn"]


def test_the_transcript_begins_with_the_problem(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    first = [segments[0]["text"] for segments in demonstrations["segments"]]
    assert first == demonstrations["problem"].to_list()


def test_every_turn_reads_as_a_call_or_an_answer(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    turns = parsed_turns(demonstrations)
    assert (turns["finish_reason"].cast(pl.String) == turns["stop"]).all()
    assert set(turns["parse_error"].drop_nulls()) == {"syntax_error"}


def test_the_answer_is_the_last_number_seen(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    for problem, segments in demonstrations.select("problem", "segments").iter_rows():
        seen = [text for text in texts_of(segments, "observation") if text.isdigit()]
        start = next(word for word in problem.replace(".", " ").split() if word.isdigit())
        assert texts_of(segments, "turn")[-1] == f"<answer>{[start, *seen][-1]}</answer>"


def test_a_repair_is_code_that_runs(demonstrations: dy.DataFrame[Demonstrations]) -> None:
    repairs = 0
    for segments in demonstrations["segments"][:500]:
        calls = calls_of(segments)
        for (_, failed), (code, observation) in pairwise(calls):
            if failed.startswith(RAISING):
                assert output_of(code).strip() == observation
                repairs += 1
    assert repairs > 20


def test_observations_keep_within_the_limit_of_rollouts() -> None:
    shown = [
        text
        for segments in draw(observation_chars=16)["segments"]
        for text in texts_of(segments, "observation")
    ]
    assert max(map(len, shown)) == 16
    assert any("cut]" in text for text in shown)


def test_most_transcripts_need_no_more_turns_than_a_rollout_has(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    turns = [len(texts_of(segments, "turn")) for segments in demonstrations["segments"]]
    fitting = sum(count <= RolloutConfig().max_turns for count in turns)
    assert fitting > 0.98 * len(turns)


# What the sandbox says to the same code


def test_observations_are_those_of_the_sandbox(
    demonstrations: dy.DataFrame[Demonstrations],
) -> None:
    calls = sampled_calls(demonstrations)
    assert sum(observation.startswith(RAISING) for _, observation in calls) >= 20
    outcomes = executor().execute(snippet_frame([code for code, _ in calls]))
    seen = [
        observation_text(status, stdout, stderr, max_chars=ExecutionConfig().observation_chars)
        for status, stdout, stderr in outcomes.select("status", "stdout", "stderr").iter_rows()
    ]
    assert seen == [observation for _, observation in calls]


def sampled_calls(demonstrations: dy.DataFrame[Demonstrations]) -> list[tuple[str, str]]:
    """Returns calls of each family: one that runs, and one of each way to raise."""
    kinds: dict[tuple[str, str], tuple[str, str]] = {}
    for segments in demonstrations["segments"]:
        turns = texts_of(segments, "turn")
        for turn, (code, observation) in zip(turns, calls_of(segments), strict=False):
            failure = observation if observation.startswith(RAISING) else "ok"
            kinds.setdefault((turn.partition("<code>")[0], failure), (code, observation))
    return list(kinds.values())
