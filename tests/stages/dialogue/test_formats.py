"""What holds of every format: who writes which token, and what a trajectory is made of."""

from typing import get_args

import dataframely as dy
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from schemas.config import DialogueFormat, ExecutionConfig, RolloutConfig
from schemas.tables import TURN_KEY, Executions, Prompts, Turns
from stages.dialogue import Dialogue, make_dialogue
from stages.execution import execute_turns
from stages.execution.unsafe_local import UnsafeLocalExecutor
from stages.optimisation.batches import make_batch
from stages.prompts import make_prompts
from stages.rollout import roll_out_turn
from stages.rollout.engine import Capabilities, Generations, Requests
from tests.stages.dialogue.chat_tokenizers import START, qwen_like, smol_like
from tests.stages.optimisation.optimisation_batches import advantages_of
from tests.stages.reward_frames import LAW
from tests.stages.tag_tokenizers import tiny_tokenizer

CALL, ANSWER = "Add.<code>print(2 + 3)</code>", "So.<answer>5</answer>"
FORMATS: list[tuple[DialogueFormat, PreTrainedTokenizerFast]] = [
    ("tags", tiny_tokenizer()),
    ("text", smol_like()),
    ("text", tiny_tokenizer()),
    ("chat", smol_like()),
    ("chat", qwen_like()),
]
EVERY_FORMAT = pytest.mark.parametrize("dialogue", [make_dialogue(*f) for f in FORMATS], ids=[
    "tags", "text", "text of the embedded policy", "chat", "chat with tokens"])  # fmt: skip


class Demonstrating:
    """An engine that says what was demonstrated, turn after turn."""

    capabilities = Capabilities(live_weights=False, prefix_cache=False)
    policy_version = 0
    max_context_tokens = 100_000

    def __init__(self, turns: list[list[int]]) -> None:
        self.turns = turns
        self.asked: list[Requests] = []

    def generate(self, requests: Requests) -> Generations:
        turn = self.turns[len(self.asked)]
        self.asked.append(requests)
        rows = [turn[:limit] for limit in requests.max_new_tokens.tolist()]
        return Generations(
            token_ids=rows,
            logprobs=[[-0.5] * len(row) for row in rows],
            stopped=[len(row) == len(turn) for row in rows],
            policy_version=0,
        )

    def update_weights(self, folder: str, policy_version: int) -> None:
        raise NotImplementedError


def rolled_out(
    dialogue: Dialogue, turns: list[str], config: RolloutConfig
) -> tuple[Demonstrating, dy.DataFrame[Prompts], dy.DataFrame[Turns], dy.DataFrame[Executions]]:
    problems = pl.DataFrame(
        {"task_id": ["a"], "problem": ["2 + 3?"], "answer": ["5"], "source": ["t"], "level": [1]},
        schema_overrides={"level": pl.Int32},
    )
    prompts = make_prompts(problems, encode=dialogue.encode_prompts)  # type: ignore[arg-type]
    engine = Demonstrating(dialogue.encode_turns(turns))
    said, shown = Turns.create_empty(), Executions.create_empty()
    for turn_index in range(len(turns)):
        new = roll_out_turn(
            prompts,
            said,
            shown,
            engine=engine,
            dialogue=dialogue,
            config=config,
            seed=0,
            turn_index=turn_index,
        )
        done = execute_turns(
            new,
            executor=UnsafeLocalExecutor(ExecutionConfig()),
            config=ExecutionConfig(),
            encode_observation=dialogue.encode_observations,
        )
        said = Turns.validate(pl.concat([said, new]))
        shown = Executions.validate(pl.concat([shown, done]))
    return engine, prompts, said, shown


def test_every_format_is_tested() -> None:
    assert {name for name, _ in FORMATS} == set(get_args(DialogueFormat))


@EVERY_FORMAT
@pytest.mark.filterwarnings("ignore:.*isolation")
def test_a_trajectory_is_prompt_turns_and_observations_and_only_turns_are_trained(
    dialogue: Dialogue,
) -> None:
    config = RolloutConfig(samples=1, max_turn_tokens=200)
    engine, prompts, turns, executions = rolled_out(dialogue, [CALL, CALL, ANSWER], config)
    assert turns["finish_reason"].to_list() == ["code", "code", "answer"]
    assert turns["code"].to_list() == ["print(2 + 3)"] * 2 + [None]
    assert turns["answer"].to_list() == [None, None, "5"]
    assert turns["parse_error"].null_count() == 3
    call, _, answer = dialogue.encode_turns([CALL, CALL, ANSWER])
    (prompt,), (shown,) = dialogue.encode_prompts(["2 + 3?"]), dialogue.encode_observations(["5"])
    assert engine.asked[2].contexts == [prompt + call + shown + call + shown]
    batch = make_batch(
        prompts,
        turns,
        executions,
        advantages_of({key: 1.0 for key in turns.select(TURN_KEY).rows()}),
    )
    parts = [(prompt, 0), (call, 1), (shown, 0), (call, 1), (shown, 0), (answer, 1)]
    assert batch.token_ids.tolist() == [index for ids, _ in parts for index in ids]
    assert batch.trained.tolist() == [bool(mark) for ids, mark in parts for _ in ids]
    assert np.array_equal(batch.advantages != 0, batch.trained)


@EVERY_FORMAT
def test_a_demonstrated_turn_is_parsed_as_what_it_demonstrates(dialogue: Dialogue) -> None:
    ids = dialogue.encode_turns([CALL, ANSWER])
    assert all(
        row[-1] in dialogue.stop_ids or text.endswith(dialogue.stop_strings)
        for row, text in zip(ids, dialogue.decode_turns(ids), strict=True)
    )
    frame = pl.DataFrame({"token_ids": ids, "limit": "length"})
    parsed = dialogue.parse_turns(frame.with_columns(text=pl.Series(dialogue.decode_turns(ids))))
    assert parsed["code"].to_list() == ["print(2 + 3)", None]
    assert parsed["answer"].to_list() == [None, "5"]


PIECES = [
    *("<code>", "</code>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "\\boxed{8}"),
    '{"name": "python", "arguments": {"code": "1"}}',
    *("```python\n", "```", "1", "\n", " "),
]


@EVERY_FORMAT
@LAW
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    ended=st.booleans(),
    limit=st.sampled_from(["length", "context"]),
)
def test_a_turn_has_code_or_answer_exactly_if_its_finish_reason_says_so(
    dialogue: Dialogue, pieces: str, ended: bool, limit: str
) -> None:
    tokenizer = dialogue.tokenizer
    ids = tokenizer(pieces, add_special_tokens=False)["input_ids"]
    ids += [dialogue.stop_ids[-1]] if ended else []
    frame = pl.DataFrame(
        {"token_ids": [ids], "text": dialogue.decode_turns([ids]), "limit": [limit]},
        schema_overrides={"token_ids": pl.List(pl.Int32)},
    )
    (turn,) = dialogue.parse_turns(frame).rows(named=True)
    assert (turn["code"] is not None) == (turn["finish_reason"] == "code")
    assert (turn["answer"] is not None) == (turn["finish_reason"] == "answer")
    if turn["finish_reason"] in ("length", "context"):
        assert turn["finish_reason"] == limit
        assert not ended


@EVERY_FORMAT
def test_no_turn_at_all_is_parsed_into_the_types_of_the_turns_table(dialogue: Dialogue) -> None:
    empty = pl.DataFrame(
        schema={"token_ids": pl.List(pl.Int32), "text": pl.String, "limit": pl.String}
    )
    parsed = dialogue.parse_turns(empty)
    assert parsed.schema == {name: Turns.create_empty().schema[name] for name in parsed.columns}
    assert dialogue.encode_prompts([]) == dialogue.encode_observations([]) == []
    assert dialogue.decode_turns([]) == []


@EVERY_FORMAT
@pytest.mark.filterwarnings("ignore:.*isolation")
def test_a_turn_that_fills_the_trajectory_ends_it(dialogue: Dialogue) -> None:
    call, answer = dialogue.encode_turns([CALL, ANSWER])
    (shown,) = dialogue.encode_observations(["5"])
    config = RolloutConfig(samples=1, max_turn_tokens=200)
    most = len(call) + len(shown)
    for more, ids, reason in (
        (len(answer), answer, "answer"),
        (2, answer[:2], "context"),
        (0, [], "context"),
        (-3, [], "context"),
    ):
        limited = config.model_copy(update={"max_trajectory_tokens": most + more})
        _, _, turns, _ = rolled_out(dialogue, [CALL, ANSWER], limited)
        last = turns.row(1, named=True)
        assert (last["token_ids"], last["finish_reason"]) == (ids, reason)


@pytest.mark.parametrize(("name", "tokenizer"), FORMATS)
def test_a_turn_ends_with_any_end_token_of_the_model(
    name: DialogueFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    known = tokenizer.get_added_vocab()
    second = known.get(START, tokenizer.pad_token_id)  # a control token that ends nothing by itself
    text = tokenizer.encode("a", add_special_tokens=False)[0]
    dialogue = make_dialogue(name, tokenizer, end_ids=(second, text, 10_000))
    assert second not in make_dialogue(name, tokenizer).stop_ids
    assert second in dialogue.stop_ids
    assert not {text, 10_000} & set(dialogue.stop_ids)
    said = [*tokenizer.encode("So \\boxed{5}.", add_special_tokens=False), second]
    turns = pl.DataFrame({"text": dialogue.decode_turns([said]), "token_ids": [said]})
    read = dialogue.parse_turns(turns.with_columns(limit=pl.lit("length")))
    expected = ("end", None) if name == "tags" else ("answer", "5")
    assert (read["finish_reason"].item(), read["answer"].item()) == expected
