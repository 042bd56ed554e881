"""Rollouts and examples made by hand, for the tests of imitation."""

from collections.abc import Sequence

import dataframely as dy
import polars as pl

from schemas.cold_start_tables import ColdStartExamples
from schemas.config import TurnRewardsConfig
from schemas.tables import Executions, Prompts, Turns
from stages.cold_start.examples import Rollout
from stages.dialogue import Dialogue
from stages.turn_rewards import score_turns

Transcript = Sequence[tuple[str, str]]
"""(role, text) each, in the tag protocol; the role is `problem`, `turn` or `observation`."""

RIGHT: Transcript = [
    ("problem", "Take 12. Multiply it by 7."),
    ("turn", "product<code>print(12 * 7)</code>"),
    ("observation", "84"),
    ("turn", "<answer>84</answer>"),
]
WRONG: Transcript = [*RIGHT[:-1], ("turn", "<answer>85</answer>")]
CUT_OFF: Transcript = [*RIGHT[:-1], ("turn", "")]
"""Its observation left no room for another turn."""


def rollout_of(
    transcripts: Sequence[Transcript], dialogue: Dialogue, *, gold: str = "84", status: str = "ok"
) -> Rollout:
    """Returns one group whose samples are these transcripts."""
    problem = transcripts[0][0][1]
    prompts = pl.DataFrame({"task_id": ["t"], "problem": [problem], "answer": [gold]})
    turns, executions = [], []
    for sample, transcript in enumerate(transcripts):
        index = -1
        for role, text in transcript[1:]:
            index += role == "turn"
            key = {"task_id": "t", "sample_index": sample, "turn_index": index}
            if role == "turn":
                ids = dialogue.encode_turns([text])[0] if text else []
                turns.append({**key, "token_ids": ids, "limit": "context"})
            else:
                (ids,) = dialogue.encode_observations([text])
                executions.append({**key, "observation": text, "observation_token_ids": ids})
    return _scored(prompts, pl.DataFrame(turns), pl.DataFrame(executions), dialogue, status)


def _scored(
    prompts: pl.DataFrame,
    turns: pl.DataFrame,
    executions: pl.DataFrame,
    dialogue: Dialogue,
    status: str,
) -> Rollout:
    asked = Prompts.validate(
        prompts.with_columns(
            source=pl.lit("test"),
            level=pl.lit(None, pl.Int32),
            prompt_token_ids=pl.Series(dialogue.encode_prompts(prompts["problem"].to_list())),
            round=pl.lit(0),
        ),
        cast=True,
    )
    turns = turns.with_columns(text=pl.Series(dialogue.decode_turns(turns["token_ids"].to_list())))
    said = Turns.validate(
        turns.hstack(dialogue.parse_turns(turns)).with_columns(
            logprobs=pl.lit(-0.5).repeat_by(pl.col("token_ids").list.len()),
            temperature=pl.lit(1.0),
            top_p=pl.lit(1.0),
            top_k=pl.lit(0),
            policy_version=pl.lit(0),
            seed=pl.lit(0),
        ).select(Turns.column_names()),
        cast=True,
    )  # fmt: skip
    nothing = {"stdout": "", "stderr": "", "exit_code": 0, "wall_s": 0.1, "cpu_s": 0.1}
    ran = Executions.validate(
        executions.with_columns(
            status=pl.lit(status), **{name: pl.lit(value) for name, value in nothing.items()}
        ).select(Executions.column_names()),
        cast=True,
    )
    rewards = score_turns(asked, said, ran, TurnRewardsConfig())
    return Rollout(prompts=asked, turns=said, executions=ran, rewards=rewards)


def examples_of(
    sequences: Sequence[tuple[list[int], list[bool]]], *, prompt_tokens: int = 1
) -> dy.DataFrame[ColdStartExamples]:
    """Returns examples of token ids, with marks of those that carry loss."""
    empty = ColdStartExamples.create_empty()
    rows = [
        {
            "example": index,
            "row": index + 1,
            "tokens": len(ids),
            "prompt_tokens": prompt_tokens,
            "token_ids": ids,
            "carries_loss": marks,
        }
        for index, (ids, marks) in enumerate(sequences)
    ]
    return ColdStartExamples.validate(pl.DataFrame(rows, schema=empty.schema))
