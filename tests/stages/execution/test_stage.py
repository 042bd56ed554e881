"""The stage function and the observation text."""

import subprocess
import sys
from collections.abc import Sequence

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.categories import ExecutionStatus
from schemas.tables import Executions, Turns
from stages.execution import execute_turns, observation_text
from stages.execution.protocol import Outcome, outcome_frame
from stages.randomness import uniforms
from tests.stages.execution.frames import config_with

statuses = st.sampled_from([status.value for status in ExecutionStatus])


@given(status=statuses, stdout=st.text(), stderr=st.text(), max_chars=st.integers(1, 60))
def test_observation_is_never_longer_than_allowed(status, stdout, stderr, max_chars):
    assert len(observation_text(status, stdout, stderr, max_chars=max_chars)) <= max_chars


@given(stdout=st.text(max_size=50).filter(str.strip))
def test_short_output_is_shown_as_it_is(stdout):
    assert observation_text("ok", stdout, "", max_chars=50) == stdout.strip()


@given(stdout=st.text("abc", min_size=41, max_size=400), max_chars=st.integers(16, 40))
def test_marker_says_how_many_characters_were_cut(stdout, max_chars):
    text = observation_text("ok", stdout, "", max_chars=max_chars)
    head, _, rest = text.partition("[")
    count, _, tail = rest.partition(" cut]")
    assert stdout.startswith(head)
    assert stdout.endswith(tail)
    assert len(head) + int(count) + len(tail) == len(stdout)


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "expected"),
    [
        ("ok", " \n", "a warning", "(no output)"),
        ("error", "", "Traceback:\n  line\nNameError: name 'x'\n", "NameError: name 'x'"),
        ("error", "1\n", "ValueError\n", "1\nValueError"),
        ("error", "", "", "error"),
        ("timeout", "partial", "", "timeout"),
        ("memory", "", "", "out of memory"),
        ("output_limit", "xxx", "", "too much output"),
        ("refused", "", "reason", "refused"),
        ("infrastructure", "", "reason", "not available"),
    ],
)
def test_observation_of_each_status(status, stdout, stderr, expected):
    assert observation_text(status, stdout, stderr, max_chars=256) == expected


class EchoExecutor:
    """Answers every snippet with its own code as output."""

    def __init__(self) -> None:
        self.seen: list[pl.DataFrame] = []

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        self.seen.append(snippets)
        return outcome_frame(snippets, [Outcome("ok", code, "", 0) for code in snippets["code"]])


def turn_frame(rows: Sequence[tuple[str, str | None, str | None]]) -> dy.DataFrame[Turns]:
    return Turns.validate(
        pl.DataFrame(
            [
                {
                    "task_id": "task",
                    "sample_index": index,
                    "turn_index": 0,
                    "text": "text",
                    "token_ids": [1],
                    "logprobs": [-1.0],
                    "finish_reason": finish_reason,
                    "reasoning": "",
                    "code": code,
                    "answer": None,
                    "parse_error": parse_error,
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "top_k": 0,
                    "policy_version": 0,
                    "seed": 0,
                }
                for index, (finish_reason, code, parse_error) in enumerate(rows)
            ],
            schema_overrides={"answer": pl.String, "code": pl.String, "parse_error": pl.String},
        ),
        cast=True,
    )


def encode(texts: Sequence[str]) -> list[list[int]]:
    return [[ord(char) for char in text] for text in texts]


def run_stage(rows):
    executor = EchoExecutor()
    config = config_with(observation_chars=16)
    turns = turn_frame(rows)
    table = execute_turns(turns, executor=executor, config=config, encode_observation=encode)
    return table, executor


def test_only_turns_with_code_are_executed():
    table, executor = run_stage(
        [
            ("answer", None, None),
            ("code", "print(1)", None),
            ("code", None, "empty_code"),
            ("length", None, "unclosed_code"),
            ("end", "print(2)", None),
            ("code", "print(", "syntax_error"),
        ]
    )
    assert executor.seen[0]["code"].to_list() == ["print(1)", "print("]
    assert table["sample_index"].to_list() == [1, 5]


def test_result_is_a_valid_table_with_its_tokens():
    table, _ = run_stage([("code", "1+1", None)])
    assert Executions.is_valid(table)
    assert table["observation"].to_list() == ["1+1"]
    assert table["observation_token_ids"].to_list() == [[49, 43, 49]]


def test_observation_is_bounded_by_the_configuration():
    table, _ = run_stage([("code", "x" * 100, None)])
    assert table["observation"].to_list() == ["xxxx[93 cut]xxx"]


def test_no_turns_with_code_give_an_empty_valid_table():
    table, _ = run_stage([("answer", None, None)])
    assert table.height == 0
    assert Executions.is_valid(table)


def test_addresses_are_left_out():
    shown = observation_text("ok", "<function f at 0x7f0a12bc>\n", "", max_chars=256)
    assert shown == "<function f>"
    assert observation_text("ok", "look at 0x7f0a", "", max_chars=256) == "look at 0x7f0a"


def test_import_is_light():
    heavy = {"torch", "prefect", "transformers"}
    code = f"import sys, stages.execution; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_code_of_earlier_turns_of_the_trajectory_goes_before():
    executor = EchoExecutor()
    first = turn_frame([("code", "a", None), ("code", None, "empty_code"), ("code", "c", None)])
    second = turn_frame([("code", "A", None), ("code", "B", None), ("answer", None, None)])
    later = Turns.cast(second.with_columns(turn_index=pl.lit(1, pl.Int32)))
    execute_turns(
        later, earlier=first, executor=executor, config=config_with(), encode_observation=encode
    )
    assert executor.seen[0].select("code", "earlier").rows() == [("A", ["a"]), ("B", [])]


def run_many(calls: int, fault_rate: float) -> tuple[pl.DataFrame, EchoExecutor]:
    return run_seeds(np.arange(calls) * 7919, fault_rate)


def run_seeds(seeds: np.ndarray, fault_rate: float) -> tuple[pl.DataFrame, EchoExecutor]:
    executor = EchoExecutor()
    rows = turn_frame([("code", f"{number}", None) for number in range(len(seeds))])
    turns = Turns.cast(rows.with_columns(seed=pl.Series(seeds, dtype=pl.Int64)))
    table = execute_turns(
        turns,
        executor=executor,
        config=config_with(fault_rate=fault_rate),
        encode_observation=encode,
    )
    return table, executor


@pytest.mark.parametrize("fault_rate", [0.0, 0.05, 0.2, 0.5, 0.9])
def test_the_share_of_calls_that_the_tool_fails_is_as_asked_for(fault_rate):
    table, executor = run_many(1000, fault_rate)
    faults = (table["observation"] == "ConnectionError: the tool did not answer").sum()
    assert (
        abs(faults / 1000 - fault_rate) < 4 * (fault_rate * (1 - fault_rate) / 1000) ** 0.5 + 1e-9
    )
    assert (table["status"] == "error").sum() == faults
    assert executor.seen[0].height == 1000 - faults


def test_what_the_tool_does_not_fail_is_answered_as_it_would_be_without():
    with_faults, _ = run_many(200, 0.3)
    without, _ = run_many(200, 0.0)
    assert with_faults["sample_index"].equals(without["sample_index"])
    answered = with_faults.filter(pl.col("status") == "ok")
    assert 0 < answered.height < 200
    assert answered.equals(without.join(answered, on="sample_index", how="semi"))
    assert run_many(200, 0.3)[0].equals(with_faults)


def test_a_call_that_the_tool_failed_left_no_state():
    calls = [("code", f"{number}", None) for number in range(100)]
    first = turn_frame(calls)
    first = Turns.cast(first.with_columns(seed=pl.int_range(100, dtype=pl.Int64)))
    later = Turns.cast(first.with_columns(turn_index=pl.lit(1, pl.Int32)))
    config = config_with(fault_rate=0.5)
    executor = EchoExecutor()
    before = execute_turns(first, executor=executor, config=config, encode_observation=encode)
    execute_turns(later, earlier=first, executor=executor, config=config, encode_observation=encode)
    ran = set(before.filter(pl.col("status") == "ok")["sample_index"])
    for sample, earlier in executor.seen[1].select("sample_index", "earlier").iter_rows():
        assert bool(earlier) == (sample in ran)


def faults_of(seeds: np.ndarray) -> pl.Series:
    table, _ = run_seeds(seeds, 0.3)
    return table["status"] == "error"


def test_whether_the_tool_fails_a_call_does_not_depend_on_the_calls_beside_it():
    seeds = np.random.default_rng(5).permutation(200) * 7919
    together = faults_of(seeds)
    order = np.random.default_rng(6).permutation(200)
    assert faults_of(seeds[order]).equals(together[order])
    apart = [faults_of(half) for half in np.split(seeds, 2)]
    assert pl.concat(apart).equals(together)


def test_a_fault_says_nothing_of_the_first_token_of_the_turn():
    seeds = np.random.default_rng(7).integers(0, 2**62, 10_000)
    draws = uniforms(seeds, 1)[:, 0]
    assert abs(np.corrcoef(faults_of(seeds).to_numpy(), draws)[0, 1]) < 0.05
