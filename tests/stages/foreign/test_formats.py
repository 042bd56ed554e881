"""Rows in the very form in which the other projects write them."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.foreign import format_of
from tests.stages.foreign.foreign_rows import imported, reasons, rows_of, turns_of_first

CODE = "print(6 * 7)"
CALL = (
    '<tool_call>\n{"name": "code_interpreter", "arguments": {"code": "print(6 * 7)"}}\n</tool_call>'
)
RUN = [(CODE, "42"), (None, None)]


def verl(**changes: Any) -> dict[str, Any]:
    """As `RayPPOTrainer._dump_generations` of verl/trainer/ppo/ray_trainer.py writes it.

    The texts are decoded with `skip_special_tokens=True` by `_log_rollout_data` there, so of
    ChatML only the bare roles are left.
    """
    return {
        "input": "system\nYou have tools.\nuser\nWhat is 6 * 7?\nassistant\n",
        "output": f"I compute.\n{CALL}\nuser\n<tool_response>\n42\n</tool_response>\nassistant\n"
        r"It is \boxed{42}.",
        "gts": "42",
        "score": 1.0,
        "step": 3,
        "request_id": "e2c4",
    } | changes


def trl(**changes: Any) -> dict[str, Any]:
    """As `GRPOTrainer.log` of trl/trainer/grpo_trainer.py writes it, read back from Parquet."""
    row = {
        "step": 1,
        "prompt": "What is 6 * 7?",
        "completion": "Try.\n```python\nprint(6 * 7)\n```\n```output\n42\n```\nThe answer is 42.",
        "accuracy_reward": 1.0,
        "format_reward": 0.5,
        "solution": "42",
        "advantage": 0.7,
    } | changes
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), file)
    read: dict[str, Any] = pq.read_table(file).to_pylist()[0]
    return read


def verifiers(**changes: Any) -> dict[str, Any]:
    """As `state_to_output` of verifiers/utils/save_utils.py makes it.

    `sanitize_tool_calls` of verifiers/utils/message_utils.py makes JSON text of each call.
    """
    call = {"id": "1", "name": "python", "arguments": json.dumps({"code": CODE})}
    return {
        "example_id": 7,
        "prompt": [
            {"role": "system", "content": "You have tools."},
            {"role": "user", "content": "What is 6 * 7?"},
        ],
        "completion": [
            {"role": "assistant", "content": "Try.", "tool_calls": [json.dumps(call)]},
            {"role": "tool", "content": "42", "tool_call_id": "1"},
            {"role": "assistant", "content": r"It is \boxed{42}."},
        ],
        "answer": "42",
        "reward": 1.0,
        "error": None,
        "timing": {"generation_ms": 3.0},
        "is_completed": True,
        "is_truncated": False,
        "metrics": {"correct": 1.0},
    } | changes


MAKERS = {"verl": verl, "trl": trl, "verifiers": verifiers}


@pytest.mark.parametrize("name", MAKERS)
def test_a_dialogue_with_a_call_becomes_two_turns(name: str) -> None:
    tables = imported(MAKERS[name]())
    assert turns_of_first(tables) == RUN
    assert tables.turns["answer"].to_list() == [None, "42"]
    assert tables.prompts.select("problem", "answer").rows() == [("What is 6 * 7?", "42")]
    assert tables.labels["score"].to_list() == [1.0]


@pytest.mark.parametrize("name", MAKERS)
def test_the_format_is_known_by_its_fields(name: str) -> None:
    assert format_of(rows_of("no JSON", {"a": 1}, MAKERS[name]())) == name


def test_results_of_verifiers_with_an_advantage_are_theirs() -> None:
    assert format_of(rows_of(verifiers(advantage=0.1))) == "verifiers"


@pytest.mark.parametrize(("name", "gold"), [("verl", "gts"), ("trl", "solution")])
def test_a_row_without_gold_answer_is_rejected(name: str, gold: str) -> None:
    tables = imported(MAKERS[name](), MAKERS[name](**{gold: None}))
    assert reasons(tables) == [(2, "no gold answer")]


@pytest.mark.parametrize(
    "gts", [42, 42.0, "#### 42", ["42"], {"ground_truth": "42"}, {"ground_truth": ["42"]}]
)
def test_verl_may_keep_the_gold_answer_in_a_structure(gts: Any) -> None:
    assert imported(verl(gts=gts)).prompts["answer"].to_list() == ["42"]


def test_a_label_of_verl_goes_before_its_score() -> None:
    tables = imported(verl(score=-1.0, acc=True, pred="[INVALID]"))
    assert tables.labels["score"].to_list() == [1.0]
    assert tables.turns["answer"].to_list() == [None, "42"]


def test_samples_of_a_verl_dump_are_a_group() -> None:
    tables = imported(verl(), verl(request_id="f", output="Answer: 41", score=0.0))
    assert tables.labels.select("sample_index", "score").rows() == [(0, 1.0), (1, 0.0)]
    assert len(tables.prompts) == 1


def test_trl_messages_with_calls_are_read_from_parquet() -> None:
    call = {"type": "function", "function": {"name": "python", "arguments": {"code": CODE}}}
    tables = imported(
        trl(
            prompt=[{"role": "user", "content": "What is 6 * 7?"}],
            completion=[
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "42", "tool_calls": None},
                {"role": "assistant", "content": "The answer is 42.", "tool_calls": None},
            ],
        )
    )
    assert turns_of_first(tables) == RUN
    assert tables.turns["answer"].to_list() == [None, "42"]


def test_rewards_of_which_none_speaks_of_accuracy_are_no_label() -> None:
    tables = imported(trl(accuracy_reward=None, length_reward=0.1))
    assert tables.labels["score"].to_list() == [None]


def test_a_rollout_that_failed_is_rejected() -> None:
    error = {"error": "SandboxError", "error_chain_repr": "...", "error_chain_str": "..."}
    tables = imported(verifiers(), verifiers(error=error, completion=None))
    assert reasons(tables) == [(2, "the rollout failed: SandboxError")]


def test_remarks_of_an_environment_part_the_turns() -> None:
    completion = [
        {"role": "assistant", "content": "41"},
        {"role": "user", "content": [{"type": "text", "text": "Look again."}]},
        {"role": "assistant", "content": "The answer is 42", "reasoning_content": "Hm."},
    ]
    tables = imported(verifiers(completion=completion))
    assert turns_of_first(tables) == [(None, None), (None, None)]
    assert tables.turns["text"].to_list()[1] == "<think>\nHm.\n</think>\nThe answer is 42"
    assert tables.labels["outputs_left_out"].to_list() == [1]


def test_a_gold_answer_may_be_in_info() -> None:
    row = verifiers(info={"ground_truth": 42})
    del row["answer"]
    assert imported(row).prompts["answer"].to_list() == ["42"]
