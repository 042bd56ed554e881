"""What the cold start imitates besides its demonstrations: stored trajectories and conversations.

Trajectories of a run are taken by the token ids that were sampled and inserted. Conversations of a
file are written by the run's own dialogue, which is asked to read every turn back: one that it
reads otherwise, such as a call whose code holds a closing tag, would teach what no rollout means.
Nothing is dropped: what cannot be learnt from stays, with the reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import dataframely as dy
import polars as pl

from schemas.categories import FinishReason
from schemas.cold_start_tables import ColdStartExamples
from schemas.errors import ImitationError
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Executions, Prompts, TurnRewards, Turns
from stages.cold_start.conversations import Conversation, ConversationTurn
from stages.dialogue import Dialogue

TOO_LONG = "longer than the context"
WRONG = "not right"
NOT_SCORED = "infrastructure failed"
NO_TOKEN = "no token of its own"
UNREADABLE = "a turn that the dialogue would read otherwise"

_COLUMNS = ColdStartExamples.column_names()
_SHOWN_REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """The scored trajectories of one iteration."""

    prompts: dy.DataFrame[Prompts]
    turns: dy.DataFrame[Turns]
    executions: dy.DataFrame[Executions]
    rewards: dy.DataFrame[TurnRewards]


def examples_of_run(
    rollouts: Mapping[int, Rollout], dialogue: Dialogue, *, only_right: bool, max_tokens: int
) -> dy.DataFrame[ColdStartExamples]:
    """Returns the trajectories of a run, as sampled.

    Args:
        rollouts: Iteration to what it sampled.
        dialogue: That of the policy which is to learn them.
        only_right: Whether the others are left out.
        max_tokens: Longest trajectory, its prompt included.

    Returns:
        One row a trajectory, in the order of iterations and keys.

    Raises:
        ImitationError: If a prompt, or the turn of a trajectory, has not the token ids that this
            policy's dialogue gives it; or if nothing is left to learn from.
    """
    frames = []
    for iteration, rollout in sorted(rollouts.items()):
        _require_same_tokens(rollout, dialogue)
        found = _joined(rollout).with_columns(
            sampled_in=pl.lit(iteration, pl.Int32),
            left_out=_why_not_learnt(only_right=only_right, max_tokens=max_tokens),
        )
        frames.append(found.sort(TRAJECTORY_KEY))
    return _checked(pl.concat(frames, how="diagonal") if frames else pl.DataFrame())


def examples_of_file(
    conversations: Iterable[Conversation],
    dialogue: Dialogue,
    *,
    only_right: bool,
    max_tokens: int,
) -> dy.DataFrame[ColdStartExamples]:
    """Returns conversations as the dialogue writes them.

    Args:
        conversations: In the order of the file, those that cannot be used among them.
        dialogue: That of the policy which is to learn them.
        only_right: Whether conversations that are known to be wrong are left out.
        max_tokens: Longest conversation, its prompt included.

    Returns:
        One row a conversation.

    Raises:
        ImitationError: If nothing is left to learn from.
    """
    rows = []
    for conversation in conversations:
        reason = conversation.unusable
        if reason is None and only_right and conversation.is_right is False:
            reason = WRONG
        row: dict[str, object] = {"row": conversation.row, "left_out": reason}
        if reason is None:
            row |= _written(conversation, dialogue, max_tokens)
        rows.append(row)
    schema = {name: pl.Schema(ColdStartExamples)[name] for name in _COLUMNS if name != "example"}
    return _checked(pl.DataFrame(rows, schema=schema))


def _joined(rollout: Rollout) -> pl.DataFrame:
    """Lays prompts, turns and observations end to end, up to the last sampled token of each."""
    sampled = rollout.turns.with_columns(own=pl.col("token_ids").list.len() > 0)
    last = sampled.group_by(TRAJECTORY_KEY).agg(
        last=pl.col("turn_index").filter("own").max().fill_null(-1)
    )
    prompts = last.join(rollout.prompts, on="task_id", how="left").select(
        *TRAJECTORY_KEY,
        pl.lit(-1, pl.Int32).alias("turn_index"),
        pl.col("prompt_token_ids").alias("token_ids"),
        part=pl.lit("prompt"),
    )
    turns = sampled.join(last, on=TRAJECTORY_KEY).filter(pl.col("turn_index") <= pl.col("last"))
    observations = rollout.executions.join(last, on=TRAJECTORY_KEY).filter(
        pl.col("turn_index") < pl.col("last")
    )
    parts = pl.concat(
        [
            prompts,
            turns.select(*TURN_KEY, "token_ids", part=pl.lit("turn")),
            observations.select(
                *TURN_KEY,
                pl.col("observation_token_ids").alias("token_ids"),
                part=pl.lit("shown"),
            ),
        ]
    )
    order = pl.col("part") == "shown"
    tokens = (
        parts.sort(*TURN_KEY, order)
        .explode("token_ids", empty_as_null=False)
        .group_by(TRAJECTORY_KEY, maintain_order=True)
        .agg(
            "token_ids",
            carries_loss=pl.col("part") == "turn",
            tokens=pl.len().cast(pl.Int32),
            prompt_tokens=(pl.col("part") == "prompt").sum().cast(pl.Int32),
        )
    )
    outcomes = rollout.rewards.group_by(TRAJECTORY_KEY).agg(outcome=pl.col("outcome").first())
    return last.join(tokens, on=TRAJECTORY_KEY).join(outcomes, on=TRAJECTORY_KEY, how="left")


def _why_not_learnt(*, only_right: bool, max_tokens: int) -> pl.Expr:
    return (
        pl.when(pl.col("outcome").is_null())
        .then(pl.lit(NOT_SCORED))
        .when((pl.col("outcome") <= 0) & only_right)
        .then(pl.lit(WRONG))
        .when(pl.col("last") < 0)
        .then(pl.lit(NO_TOKEN))
        .when(pl.col("tokens") > max_tokens)
        .then(pl.lit(TOO_LONG))
    )


def _require_same_tokens(rollout: Rollout, dialogue: Dialogue) -> None:
    """Refuses token ids that mean something else to this policy.

    Prompts are compared as they are. Turns are decoded, as their text was when they were sampled:
    what a policy samples need not be how its tokenizer would encode the text.
    """
    asked = rollout.prompts
    told = "take a policy with the tokenizer of that run, and its rollout.dialogue"
    for task, problem, ids in asked.select("task_id", "problem", "prompt_token_ids").iter_rows():
        if dialogue.encode_prompts([problem]) != [ids]:
            raise ImitationError(f"the prompt of {task} has other token ids here: {told}")
    known = len(dialogue.tokenizer)
    keys, texts, tokens = (rollout.turns.select(TURN_KEY), *rollout.turns["text", "token_ids"])
    if max((max(ids, default=0) for ids in tokens.to_list()), default=0) >= known:
        raise ImitationError(f"turns hold token ids that are not in the vocabulary: {told}")
    decoded = dialogue.decode_turns(tokens.to_list())
    for key, text, here in zip(keys.iter_rows(), texts, decoded, strict=True):
        if text != here:
            raise ImitationError(f"the tokens of turn {key} say something else here: {told}")


def _written(conversation: Conversation, dialogue: Dialogue, max_tokens: int) -> dict[str, object]:
    """Returns a conversation as tokens, or why it cannot be."""
    turns = conversation.turns
    own = [_encoded_turn(turn, dialogue) for turn in turns]
    (prompt,) = dialogue.encode_prompts([conversation.problem])
    shown = dialogue.encode_observations([turn.shown or "" for turn in turns[:-1]])
    ids, carries_loss = list(prompt), [False] * len(prompt)
    for index, tokens in enumerate(own):
        if tokens is None:
            return {"left_out": UNREADABLE}
        ids += tokens
        carries_loss += [True] * len(tokens)
        if index < len(shown):
            ids += shown[index]
            carries_loss += [False] * len(shown[index])
    written = {"tokens": len(ids), "prompt_tokens": len(prompt)}
    if len(ids) > max_tokens:
        return {**written, "left_out": TOO_LONG}
    return {**written, "token_ids": ids, "carries_loss": carries_loss}


def _encoded_turn(turn: ConversationTurn, dialogue: Dialogue) -> list[int] | None:
    """Returns the tokens of a turn that the dialogue reads back as it was meant; else null."""
    for text in turn.ways_to_write:
        (ids,) = dialogue.encode_turns([text])
        if dialogue.stop_ids and not set(ids[:-1]).isdisjoint(dialogue.stop_ids):
            continue  # a rollout would have ended there
        frame = pl.DataFrame(
            {"token_ids": [ids], "text": dialogue.decode_turns([ids]), "limit": ["length"]}
        )
        read = dialogue.parse_turns(frame).row(0, named=True)
        if read["code"] == turn.code and (turn.code is not None or _says(turn, read)):
            return ids
    return None


def _says(turn: ConversationTurn, read: Mapping[str, object]) -> bool:
    if turn.answer is None:
        return read["finish_reason"] == FinishReason.END
    return read["answer"] == turn.answer


def _checked(rows: pl.DataFrame) -> dy.DataFrame[ColdStartExamples]:
    """Numbers the examples, and takes the tokens from those that are left out.

    Raises:
        ImitationError: If all of them are.
    """
    if rows.is_empty():
        raise ImitationError("there is nothing to imitate")
    learnt = pl.col("left_out").is_null()
    if not rows.select(learnt.any()).item():
        raise ImitationError(f"nothing is left to imitate: {told_reasons(rows['left_out'])}")
    present = [pl.col(n) if n in rows.columns else pl.lit(None).alias(n) for n in _COLUMNS[1:]]
    return ColdStartExamples.validate(
        rows.select(present)
        .with_columns(pl.when(learnt).then(n).alias(n) for n in ("token_ids", "carries_loss"))
        .with_row_index("example"),
        cast=True,
    )


def told_reasons(left_out: pl.Series) -> str:
    """Returns how many were left out for what, the commonest reasons first."""
    counts = left_out.drop_nulls().value_counts(sort=True).rows()
    told = [f"{count} {reason}" for reason, count in counts[:_SHOWN_REASONS]]
    more = sum(count for _, count in counts[_SHOWN_REASONS:])
    return ", ".join([*told, *([f"{more} for other reasons"] if more else [])])
