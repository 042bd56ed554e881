"""What a cold start makes of a given policy, by the format of its dialogue."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from schemas.config_text import parse_config
from schemas.errors import PolicyError
from stages.cold_start.start import start_policy
from stages.dialogue.tags import TAGS
from tests.stages.dialogue.chat_tokenizers import chat_tokenizer

CONFIG = "problems.levels = [1]\ncold_start = {demonstrations = 20, batch_size = 2, steps = %d}"


def given_policy(template: bool = True) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    tokenizer = chat_tokenizer() if template else chat_tokenizer(None)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config), tokenizer


@pytest.mark.parametrize("dialogue", ["text", "chat"])
def test_without_steps_a_given_policy_stays_as_it_is(dialogue: str) -> None:
    config = parse_config(CONFIG % 0, [f"rollout.dialogue={dialogue}"])
    model, tokenizer = given_policy()
    before, known = {k: v.clone() for k, v in model.state_dict().items()}, tokenizer.get_vocab()
    started = start_policy(config, given=(model, tokenizer), seed=0)
    after = started.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert started.tokenizer.get_vocab() == known
    assert started.demonstrations.is_empty()
    assert started.updates.is_empty()


def test_without_steps_a_given_policy_still_learns_which_tokens_are_tags() -> None:
    started = start_policy(parse_config(CONFIG % 0), given=given_policy(), seed=0)
    assert set(TAGS) <= started.tokenizer.get_vocab().keys()
    assert started.demonstrations.is_empty()


@pytest.mark.parametrize("dialogue", ["text", "chat"])
def test_steps_train_a_given_policy_in_the_format_with_its_own_vocabulary(dialogue: str) -> None:
    config = parse_config(CONFIG % 12, [f"rollout.dialogue={dialogue}"])
    model, tokenizer = given_policy()
    known = tokenizer.get_vocab()
    started = start_policy(config, given=(model, tokenizer), seed=0)
    assert started.tokenizer.get_vocab() == known
    losses = started.updates["loss"].to_list()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("steps", [0, 1])
def test_a_policy_that_does_not_suit_the_format_is_refused(steps: int) -> None:
    config = parse_config(CONFIG % steps, ["rollout.dialogue=chat"])
    with pytest.raises(PolicyError, match="no chat template"):
        start_policy(config, given=given_policy(template=False), seed=0)


def test_the_embedded_policy_has_no_chat_template() -> None:
    config = parse_config(CONFIG % 1, ["rollout.dialogue=chat"])
    with pytest.raises(PolicyError, match=r"or rollout\.dialogue=text"):
        start_policy(config, given=None, seed=0)
