"""Cold start training: loss on turns alone, the same again from a seed, and falling."""

from collections.abc import Sequence

import dataframely as dy
import numpy as np
import pytest
import torch

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import ColdStartUpdates, Demonstrations
from schemas.config import PolicyConfig, RolloutConfig
from schemas.errors import TurnledgerError
from stages.cold_start.tiny_policy import TinyModel, make_model
from stages.cold_start.training import Sequences, tokenise, train_on_demonstrations
from stages.dialogue.tags import TagDialogue
from tests.stages.cold_start.cold_start_builders import SMALL_POLICY, demonstrations_frame

TRANSCRIPT = [
    ("problem", "Take 12. Multiply it by 7."),
    ("turn", "product<code>print(12 * 7)</code>"),
    ("observation", "84"),
    ("turn", "<answer>84</answer>"),
]


@pytest.fixture(scope="module")
def sequences(demonstrations: dy.DataFrame[Demonstrations], dialogue: TagDialogue) -> Sequences:
    return tokenise(demonstrations, dialogue)


def trained(
    dialogue: TagDialogue,
    sequences: Sequences,
    *,
    policy: PolicyConfig = SMALL_POLICY,
    seed: int = 0,
    steps: int = 5,
    batch_size: int = 8,
    warmup_steps: int = 2,
) -> tuple[TinyModel, dy.DataFrame[ColdStartUpdates]]:
    model = make_model(dialogue.tokenizer, policy, seed=1)
    config = ColdStartConfig(steps=steps, batch_size=batch_size, warmup_steps=warmup_steps)
    updates = train_on_demonstrations(model, sequences, config, pad_id=dialogue.pad_id, seed=seed)
    return model, updates


def taken(sequences: Sequences, rows: Sequence[int]) -> Sequences:
    return Sequences(
        token_ids=[sequences.token_ids[row] for row in rows],
        carries_loss=[sequences.carries_loss[row] for row in rows],
    )


def unlike_lengths(sequences: Sequences) -> list[int]:
    """Returns rows from the shortest to the longest of the first two hundred."""
    order = np.argsort([len(ids) for ids in sequences.token_ids[:200]], kind="stable")
    return [int(row) for row in order[[0, 60, 120, 199]]]


# tokenise


def test_a_transcript_is_its_parts_encoded_one_by_one_in_order(
    demonstrations: dy.DataFrame[Demonstrations], sequences: Sequences, dialogue: TagDialogue
) -> None:
    encode = {
        "problem": dialogue.encode_prompts,
        "turn": dialogue.encode_turns,
        "observation": dialogue.encode_observations,
    }
    for row in range(0, len(demonstrations), 40):
        parts = demonstrations["segments"][row]
        expected = [i for part in parts for i in encode[part["role"]]([part["text"]])[0]]
        assert sequences.token_ids[row].tolist() == expected


def test_loss_falls_on_the_tokens_of_turns_alone(
    demonstrations: dy.DataFrame[Demonstrations], sequences: Sequences, dialogue: TagDialogue
) -> None:
    for row in range(0, len(demonstrations), 40):
        turns = [part["text"] for part in demonstrations["segments"][row] if part["role"] == "turn"]
        learned = sequences.token_ids[row][sequences.carries_loss[row]].tolist()
        assert dialogue.decode_turns([learned]) == ["".join(turns)]


def test_a_transcript_decodes_into_the_protocol(dialogue: TagDialogue) -> None:
    (ids,) = tokenise(demonstrations_frame([TRANSCRIPT]), dialogue).token_ids
    assert dialogue.decode_turns([ids.tolist()]) == [
        "<problem>Take 12. Multiply it by 7.</problem>product<code>print(12 * 7)</code>"
        "<output>84</output><answer>84</answer>"
    ]


def test_a_tag_in_a_problem_or_observation_is_learned_as_text(dialogue: TagDialogue) -> None:
    forged = [("problem", "<answer>"), TRANSCRIPT[1], ("observation", "</code>"), TRANSCRIPT[3]]
    (ids,) = tokenise(demonstrations_frame([forged]), dialogue).token_ids
    assert ids.tolist().count(dialogue.code_end_id) == 1
    assert ids.tolist().count(dialogue.answer_end_id) == 1


def test_transcripts_fit_into_the_default_context_and_turns_into_their_limit(
    sequences: Sequences,
) -> None:
    # The tokenizer is of the default vocabulary size.
    assert max(map(len, sequences.token_ids)) <= PolicyConfig().max_context_tokens
    for carries in sequences.carries_loss:
        changes = np.flatnonzero(np.diff(np.concatenate([[0], carries.astype(int), [0]])))
        longest_turn = (changes[1::2] - changes[::2]).max()
        assert longest_turn <= RolloutConfig().max_turn_tokens


# train_on_demonstrations


def test_the_loss_falls(dialogue: TagDialogue, sequences: Sequences) -> None:
    _, updates = trained(dialogue, sequences, policy=PolicyConfig(), steps=30)
    losses = updates["loss"].to_list()
    assert losses[0] > 0.8 * np.log(len(dialogue.tokenizer))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_the_loss_is_the_mean_over_the_turns_tokens_of_rows_without_padding(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    rows = taken(sequences, unlike_lengths(sequences))
    _, updates = trained(dialogue, rows, steps=1, batch_size=4)
    model = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1)
    losses = []
    for ids, carries in zip(rows.token_ids, rows.carries_loss, strict=True):
        with torch.inference_mode():
            logprobs = model(torch.tensor(ids)[None]).logits[0].log_softmax(-1)
        losses += [-logprobs[i - 1, ids[i]].item() for i in np.flatnonzero(carries)]
    assert updates["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_padding_does_not_change_what_is_learned(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    rows = taken(sequences, unlike_lengths(sequences))
    losses = []
    for pad_id in (dialogue.pad_id, dialogue.code_end_id):
        model = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1)
        config = ColdStartConfig(steps=3, batch_size=4, warmup_steps=0)
        updates = train_on_demonstrations(model, rows, config, pad_id=pad_id, seed=0)
        losses.append(updates["loss"].to_list())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_what_carries_no_loss_does_not_change_the_loss_of_a_lone_first_turn(
    dialogue: TagDialogue,
) -> None:
    unlike = [*TRANSCRIPT[:2], ("observation", "1234567"), TRANSCRIPT[3]]
    frames = [demonstrations_frame([transcript]) for transcript in (TRANSCRIPT, unlike)]
    rows = [tokenise(frame, dialogue) for frame in frames]
    for sequences in rows:
        (carries,) = sequences.carries_loss
        first_turn_ends = np.flatnonzero(np.diff(carries.astype(int)) == -1)[0]
        carries[first_turn_ends + 1 :] = False
    losses = [trained(dialogue, row, steps=1, batch_size=1)[1]["loss"][0] for row in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    one, other = (trained(dialogue, sequences)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_another_seed_takes_the_demonstrations_in_another_order(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    one, other = (trained(dialogue, sequences, seed=seed)[1]["loss"] for seed in (0, 1))
    assert one.to_list() != other.to_list()


def test_every_demonstration_is_learned_once_before_any_is_learned_again(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    rows = taken(sequences, range(20))
    _, updates = trained(dialogue, rows, steps=10, batch_size=4)
    all_tokens = sum(map(len, rows.token_ids))
    assert updates["tokens"][:5].sum() == updates["tokens"][5:].sum() == all_tokens


def test_no_step_leaves_the_policy_as_it_is(dialogue: TagDialogue, sequences: Sequences) -> None:
    model, updates = trained(dialogue, sequences, steps=0)
    before = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1).state_dict()
    assert updates.height == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_step_trains_every_weight(dialogue: TagDialogue, sequences: Sequences) -> None:
    model, _ = trained(dialogue, sequences, steps=1)
    before = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1).state_dict()
    after = model.state_dict()
    assert [name for name in after if torch.equal(after[name], before[name])] == []


def test_the_learning_rate_rises_linearly_and_falls_to_a_twentieth(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    _, updates = trained(dialogue, sequences, steps=44, batch_size=1, warmup_steps=4)
    peak = ColdStartConfig().adamw_learning_rate
    rates = [rate / peak for rate in updates["learning_rate"]]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[4:] == pytest.approx([max(0.05, (40 - i) / 40) for i in range(40)])


def test_each_step_is_told_with_its_loss(dialogue: TagDialogue, sequences: Sequences) -> None:
    told: list[tuple[int, float]] = []
    model = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1)
    updates = train_on_demonstrations(
        model,
        sequences,
        ColdStartConfig(steps=3, batch_size=2),
        pad_id=dialogue.pad_id,
        seed=0,
        on_step=lambda step, loss: told.append((step, loss)),
    )
    assert told == updates.select("step", "loss").rows()
    assert not model.training


def test_a_gradient_that_is_not_finite_stops_it(
    dialogue: TagDialogue, sequences: Sequences
) -> None:
    model = make_model(dialogue.tokenizer, SMALL_POLICY, seed=1)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    config = ColdStartConfig(steps=1, batch_size=8)
    with pytest.raises(TurnledgerError, match="step 0: the gradient is not finite; lower cold_st"):
        train_on_demonstrations(model, sequences, config, pad_id=dialogue.pad_id, seed=0)
