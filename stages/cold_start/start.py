"""The cold start as a stage: from a configuration to the first policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import dataframely as dy
import polars as pl
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import ColdStartUpdates, Demonstrations
from schemas.config import (
    ComputeConfig,
    ExecutionConfig,
    PolicyConfig,
    ProblemsConfig,
    RolloutConfig,
)
from stages.cold_start.demonstrations import make_demonstrations
from stages.cold_start.tiny_policy import adapt_to_tags, make_model, make_tokenizer
from stages.cold_start.training import tokenise, train_on_demonstrations
from stages.dialogue import make_dialogue
from stages.dialogue.tags import TAGS
from stages.randomness import derive_seed

Policy = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A model with its tokenizer."""


class ColdStartSettings(Protocol):
    """The sections of a run's configuration that a cold start reads.

    Named one by one, so that a new setting of any other section is no change of this code.
    """

    @property
    def problems(self) -> ProblemsConfig:
        """Of which only `levels` counts."""

    @property
    def policy(self) -> PolicyConfig:
        """Sizes of the embedded policy."""

    @property
    def cold_start(self) -> ColdStartConfig:
        """Demonstrations and their learning."""

    @property
    def execution(self) -> ExecutionConfig:
        """Limits of what the demonstrations execute."""

    @property
    def rollout(self) -> RolloutConfig:
        """Of which only `dialogue` counts."""

    @property
    def compute(self) -> ComputeConfig:
        """Device of the policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedPolicy:
    """What a cold start yields."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    demonstrations: dy.DataFrame[Demonstrations]
    updates: dy.DataFrame[ColdStartUpdates]


def start_policy(
    config: ColdStartSettings,
    *,
    given: Policy | None,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> StartedPolicy:
    """Makes the first policy and trains it on demonstrations of the embedded families.

    Args:
        config: A whole configuration, or what has its sections.
        given: Model and tokenizer to start from; null makes the embedded tiny policy. For the
            dialogue `tags` the tokenizer is taught the control tags where it does not know them;
            for any other, and without steps, the policy stays as it is.
        seed: Seed of demonstrations, weights and order.
        on_step: Told each step and its loss.

    Raises:
        schemas.errors.PolicyError: If the dialogue does not suit the tokenizer.
        schemas.errors.TurnledgerError: If a gradient is not finite.
    """
    if given is not None and config.cold_start.steps == 0:
        return _as_given(config, given)
    demonstrations = _demonstrations(config, seed)
    model, tokenizer = (
        _embedded(config, demonstrations, seed) if given is None else _adapted(config, given)
    )
    dialogue = make_dialogue(config.rollout.dialogue, tokenizer)
    updates = train_on_demonstrations(
        model,
        tokenise(demonstrations, dialogue),
        config.cold_start,
        pad_id=dialogue.pad_id,
        seed=derive_seed(seed, "order"),
        on_step=on_step,
    )
    return StartedPolicy(
        model=model, tokenizer=tokenizer, demonstrations=demonstrations, updates=updates
    )


def untrained_policy(
    config: ColdStartSettings,
    *,
    given: Policy | None,
    seed: int,
) -> Policy:
    """Returns the policy that `start_policy` would train; see there."""
    if given is not None:
        return _adapted(config, given)
    return _embedded(config, _demonstrations(config, seed), seed)


def _demonstrations(config: ColdStartSettings, seed: int) -> dy.DataFrame[Demonstrations]:
    return make_demonstrations(
        config.cold_start,
        config.execution,
        levels=config.problems.levels,
        seed=derive_seed(seed, "demonstrations"),
    )


def _embedded(
    config: ColdStartSettings, demonstrations: dy.DataFrame[Demonstrations], seed: int
) -> Policy:
    """Returns the embedded policy, whose tokenizer is made of the demonstrations' texts."""
    tokenizer = make_tokenizer(_texts(demonstrations), config.policy)
    model = make_model(tokenizer, config.policy, seed=derive_seed(seed, "weights"))
    model.to(config.compute.device)  # type: ignore[arg-type]  # declared without self
    return model, tokenizer


def _adapted(config: ColdStartSettings, given: Policy) -> Policy:
    """Returns a given policy, which learns which tokens are tags where the dialogue has any."""
    if config.rollout.dialogue == "tags":
        adapt_to_tags(*given)
    return given


def _as_given(config: ColdStartSettings, given: Policy) -> StartedPolicy:
    """Returns a given policy untrained; nothing is demonstrated to it."""
    model, tokenizer = _adapted(config, given)
    make_dialogue(config.rollout.dialogue, tokenizer)
    return StartedPolicy(
        model=model,
        tokenizer=tokenizer,
        demonstrations=Demonstrations.create_empty(),
        updates=ColdStartUpdates.create_empty(),
    )


def _texts(demonstrations: dy.DataFrame[Demonstrations]) -> list[str]:
    """Returns the text of transcripts, cut at the control tags, which are tokens already."""
    text = pl.col("segments").list.eval(pl.element().struct.field("text")).list.join(" ")
    return demonstrations.select(text.str.replace_all("|".join(TAGS), " ")).to_series().to_list()
