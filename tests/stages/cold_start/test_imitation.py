"""Imitation: the loss of its formula on the policy's own tokens, whatever the packing."""

import dataframely as dy
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import ColdStartExamples, ColdStartUpdates
from schemas.config_text import parse_config
from schemas.errors import ImitationError, PolicyError, TurnledgerError
from schemas.optimisation import OptimisationConfig
from stages.cold_start.examples import examples_of_file
from stages.cold_start.imitation import imitate, start_by_imitation
from stages.dialogue import Dialogue
from tests.stages.cold_start.imitation_builders import examples_of
from tests.stages.cold_start.test_examples import CONVERSATION
from tests.stages.cold_start.test_start import given_policy
from tests.stages.optimisation.optimisation_models import tiny_model
from tests.stages.reward_frames import LAW
from tests.stages.rollout.rollout_policies import VOCABULARY

NUMBERS = OptimisationConfig()
LENGTHS = [9, 4, 17, 6, 12]
STEADY = {"learning_rate": 1e-2, "warmup_steps": 0}

Sequences = list[tuple[list[int], list[bool]]]


def drawn(lengths: list[int], seed: int = 0) -> Sequences:
    """Draws ragged sequences; the last token of each is the policy's own, the first never."""
    random = np.random.default_rng(seed)
    ids = [random.integers(1, VOCABULARY, size=length).tolist() for length in lengths]
    marks = [
        [False, *(random.random(length - 2) < 0.5).tolist(), True] if length > 1 else [True]
        for length in lengths
    ]
    return list(zip(ids, marks, strict=True))


def slow_loss(model: PreTrainedModel, sequences: Sequences) -> torch.Tensor:
    """Adds the loss up token by token, each sequence alone, straight from its formula."""
    losses = []
    for ids, marks in sequences:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        for place in (place for place, own in enumerate(marks) if own):
            row = logits[place - 1]
            losses.append(row.logsumexp(0) - row[ids[place]])
    return torch.stack(losses).mean()


def learnt(
    sequences: Sequences, *, seed: int = 0, numbers: OptimisationConfig = NUMBERS, **settings: float
) -> tuple[PreTrainedModel, dy.DataFrame[ColdStartUpdates]]:
    model = tiny_model("qwen3")
    config = ColdStartConfig.model_validate({"steps": 1, "batch_size": 8, **STEADY, **settings})
    return model, imitate(model, examples_of(sequences), config, numbers, seed=seed)


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Loss and step


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2", "mamba"])
def test_the_loss_is_the_mean_over_own_tokens_of_sequences_one_by_one(architecture: str) -> None:
    model, sequences = tiny_model(architecture), drawn(LENGTHS)
    expected = slow_loss(model, sequences).item()
    config = ColdStartConfig(steps=1, batch_size=8)
    updates = imitate(model, examples_of(sequences), config, NUMBERS, seed=0)
    assert updates["loss"][0] == pytest.approx(expected, rel=1e-5)


@LAW
@given(lengths=st.lists(st.integers(2, 20), min_size=1, max_size=6), limit=st.integers(1, 60))
def test_a_step_is_that_of_a_plain_loop_whatever_the_micro_batches(
    lengths: list[int], limit: int
) -> None:
    sequences = drawn(lengths, seed=len(lengths))
    plain = tiny_model("qwen3")
    optimiser = torch.optim.AdamW(
        plain.parameters(), lr=STEADY["learning_rate"], weight_decay=0.0, betas=(0.9, 0.95)
    )
    slow_loss(plain, sequences).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    before = weights(plain)
    optimiser.step()
    model, _ = learnt(sequences, numbers=OptimisationConfig(micro_batch_tokens=limit))
    moved, expected = weights(model) - before, weights(plain) - before
    # AdamW's first step is the sign of a gradient: where that is rounding it may be either.
    clear = torch.cat([p.grad.flatten().abs() for p in plain.parameters() if p.grad is not None])
    assert torch.allclose(moved[clear > 1e-6], expected[clear > 1e-6], atol=1e-4)


def test_a_prompt_that_several_share_changes_nothing_of_the_loss() -> None:
    prompt = drawn([30])[0][0]
    rests = drawn([5, 8, 6])
    sequences = [([*prompt, *ids], [False] * 30 + marks) for ids, marks in rests]
    expected = slow_loss(tiny_model("qwen3"), sequences).item()
    model = tiny_model("qwen3")
    updates = imitate(
        model,
        examples_of(sequences, prompt_tokens=30),
        ColdStartConfig(steps=1),
        NUMBERS,
        seed=0,
    )
    assert updates["loss"][0] == pytest.approx(expected, rel=1e-5)


def test_tokens_that_nothing_own_follows_teach_nothing() -> None:
    ids, _ = drawn([8])[0]
    marks = [False, False, True, True, False, False, False, False]
    other = [*ids[:4], *(index % (VOCABULARY - 1) + 1 for index in ids[4:])]
    one, another = (learnt([(tokens, marks)])[0] for tokens in (ids, other))
    assert other != ids
    assert torch.equal(weights(one), weights(another))


def test_what_is_left_out_is_not_learnt() -> None:
    examples = examples_of(drawn(LENGTHS))
    left_out = pl.col("example") == 2
    nothing = pl.lit(None)
    some = ColdStartExamples.validate(
        examples.with_columns(
            left_out=pl.when(left_out).then(pl.lit("not right")),
            token_ids=pl.when(left_out).then(nothing).otherwise("token_ids"),
            carries_loss=pl.when(left_out).then(nothing).otherwise("carries_loss"),
        )
    )
    without = [sequence for index, sequence in enumerate(drawn(LENGTHS)) if index != 2]
    model = tiny_model("qwen3")
    config = ColdStartConfig.model_validate({"steps": 3, "batch_size": 8, **STEADY})
    imitate(model, some, config, NUMBERS, seed=0)
    assert torch.equal(weights(model), weights(learnt(without, steps=3)[0]))


# Order and schedule


def test_every_example_is_learnt_once_before_any_is_learnt_again() -> None:
    _, updates = learnt(drawn(LENGTHS), steps=6, batch_size=2)
    assert updates["tokens"][:3].sum() == updates["tokens"][3:].sum() == sum(LENGTHS)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_does_not() -> None:
    one, again, other = (
        weights(learnt(drawn(LENGTHS), steps=3, batch_size=2, seed=seed)[0]) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_rate_rises_linearly_and_falls_to_a_twentieth() -> None:
    _, updates = learnt(drawn([4]), steps=24, warmup_steps=4, learning_rate=1e-4)
    rates = [rate / 1e-4 for rate in updates["learning_rate"]]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == pytest.approx([max(0.05, (20 - i) / 20) for i in range(20)])


def test_no_step_leaves_the_policy_as_it_is() -> None:
    model, updates = learnt(drawn(LENGTHS), steps=0)
    assert updates.is_empty()
    assert torch.equal(weights(model), weights(tiny_model("qwen3")))


def test_a_sequence_is_learnt_by_heart() -> None:
    _, updates = learnt(drawn([12]), steps=60, learning_rate=3e-3)
    assert updates["loss"][-1] < 0.1 * updates["loss"][0]


def test_a_gradient_that_is_not_finite_stops_it() -> None:
    model = tiny_model("qwen3")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(TurnledgerError, match="step 0: the gradient is not finite; lower cold_st"):
        imitate(model, examples_of(drawn([5])), ColdStartConfig(steps=1), NUMBERS, seed=0)


# From a configuration


def conversations(dialogue: Dialogue, max_tokens: int) -> dy.DataFrame[ColdStartExamples]:
    return examples_of_file([CONVERSATION], dialogue, only_right=True, max_tokens=max_tokens)


SETTINGS = "problems.levels = [1]\ncold_start = {path = 'x', steps = 30, learning_rate = 1e-2}"


@pytest.mark.parametrize("dialogue", ["tags", "text", "chat"])
def test_a_given_policy_learns_conversations_in_the_format_of_the_run(dialogue: str) -> None:
    config = parse_config(SETTINGS, [f"rollout.dialogue={dialogue}"])
    started = start_by_imitation(
        config, NUMBERS, given=given_policy(), examples_for=conversations, seed=0
    )
    losses = started.updates["loss"]
    assert losses[-1] < 0.7 * losses[0]
    assert not started.model.training


def test_the_embedded_policy_learns_conversations() -> None:
    config = parse_config(
        SETTINGS,
        ["cold_start.demonstrations=20", "policy.hidden_size=32", "policy.layers=2",
         "policy.heads=2"],
    )  # fmt: skip
    started = start_by_imitation(config, NUMBERS, given=None, examples_for=conversations, seed=0)
    losses = started.updates["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_examples_are_asked_for_the_context_of_the_policy() -> None:
    model, tokenizer = given_policy()
    model.config.max_position_embeddings = 50
    config = parse_config(SETTINGS, ["rollout.dialogue=chat"])
    with pytest.raises(ImitationError, match="1 longer than the context"):
        start_by_imitation(
            config, NUMBERS, given=(model, tokenizer), examples_for=conversations, seed=0
        )


def test_a_policy_that_does_not_suit_the_format_is_refused() -> None:
    config = parse_config(SETTINGS, ["rollout.dialogue=chat"])
    given_one = given_policy(template=False)
    with pytest.raises(PolicyError, match="no chat template"):
        start_by_imitation(config, NUMBERS, given=given_one, examples_for=conversations, seed=0)
