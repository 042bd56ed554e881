"""The embedded engine against plain forward passes and transformers.generate()."""

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Lfm2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from schemas.errors import PolicyError
from stages.rollout import decoding, transformers_engine
from stages.rollout.engine import Generations, Requests
from stages.rollout.transformers_engine import TransformersEngine
from tests.stages.rollout.rollout_policies import (
    CONTEXT,
    VOCABULARY,
    letters_tokenizer,
    ragged_contexts,
    random_model,
    recomputed_logprobs,
    requests,
)

KINDS = ("qwen3", "llama", "gpt2")
RAGGED = (3, 20, 11, 33, 1, 20, 7, 15)


def engine_of(kind: str = "llama", *, attention: str = "sdpa") -> TransformersEngine:
    return wrapped(random_model(kind, attention=attention))


def wrapped(model: PreTrainedModel, *, cache_mib: int = 64) -> TransformersEngine:
    return TransformersEngine(model, letters_tokenizer(), policy_version=0, cache_mib=cache_mib)


def worst_difference(engine: TransformersEngine, asked: Requests, got: Generations) -> float:
    return max(
        float(
            (
                recomputed_logprobs(
                    engine._model,
                    context,
                    tokens,
                    asked.temperature,
                    top_p=asked.top_p,
                    top_k=asked.top_k,
                )
                - given_
            )
            .abs()
            .max()
        )
        for context, tokens, given_ in zip(
            asked.contexts, got.token_ids, map(torch.tensor, got.logprobs), strict=True
        )
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_a_plain_forward_pass(
    kind: str, attention: str, temperature: float
) -> None:
    engine = engine_of(kind, attention=attention)
    asked = requests(ragged_contexts(RAGGED), temperature=temperature)
    assert worst_difference(engine, asked, engine.generate(asked)) < 1e-4


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_those_of_what_top_p_and_top_k_leave(temperature: float, top_k: int) -> None:
    engine = engine_of()
    contexts = ragged_contexts(RAGGED)
    asked = requests(contexts, temperature=temperature, top_p=0.9, top_k=top_k)
    assert worst_difference(engine, asked, engine.generate(asked)) < 1e-4


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, CONTEXT - 1), min_size=1, max_size=12),
    limits=st.lists(st.integers(1, CONTEXT), min_size=12, max_size=12),
    stops=st.integers(0, 12),
    shared=st.booleans(),
)
def test_logprobs_hold_on_any_ragged_batch(
    lengths: list[int], limits: list[int], stops: int, shared: bool
) -> None:
    engine = engine_of("gpt2")  # its positions end where the context ends
    contexts = ragged_contexts(lengths)
    contexts = contexts + contexts[:2] if shared else contexts
    room = [min(CONTEXT - len(c), n) for c, n in zip(contexts, limits * 2, strict=False)]
    asked = requests(contexts, limits=room, stop_ids=tuple(range(stops)) or (VOCABULARY,))
    got = engine.generate(asked)
    assert worst_difference(engine, asked, got) < 1e-4
    for tokens, limit in zip(got.token_ids, room, strict=True):
        stopped = [token < stops for token in tokens]
        assert not any(stopped[:-1])
        assert stopped[-1] or len(tokens) == limit


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers_generate(kind: str) -> None:
    engine = engine_of(kind)
    contexts = ragged_contexts(RAGGED)
    width = max(RAGGED)
    ids = torch.tensor([[0] * (width - len(c)) + c for c in contexts])
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts])
    output = engine._model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=[5, 6],
        pad_token_id=0,
    )[:, width:]
    got = engine.generate(requests(contexts, temperature=0, stop_ids=(5, 6)))
    for row, tokens in zip(output.tolist(), got.token_ids, strict=True):
        assert row[: len(tokens)] == tokens
        assert not any(row[len(tokens) :])  # padding alone is left


def test_tokens_do_not_depend_on_neighbours() -> None:
    engine = engine_of()
    asked = requests(ragged_contexts(RAGGED))
    together = engine.generate(asked).token_ids
    for row, context in enumerate(asked.contexts):
        alone = requests([context], seeds=[int(asked.seeds[row])])
        assert engine.generate(alone).token_ids == [together[row]]


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_parts_of_the_prefill_do_not_show(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    engine = engine_of()
    asked = requests(ragged_contexts(RAGGED))
    usual = engine.generate(asked).token_ids
    monkeypatch.setattr(transformers_engine, "PREFILL_TOKENS_ON_CPU", budget)
    assert engine.generate(asked).token_ids == usual


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_wait_for_room_are_sampled_as_if_they_had_not(rows: int) -> None:
    engine = engine_of()
    asked = requests(ragged_contexts(RAGGED), stop_ids=tuple(range(5)))
    usual = engine.generate(asked)
    # Room for so many rows of the longest context, with what may follow.
    engine._cache_bytes = rows * (max(RAGGED) + 20) * engine._bytes_per_token
    held: list[int] = []
    real = engine._forward

    def noted(batch: decoding.Batch, token: torch.Tensor) -> torch.Tensor:
        held.append(batch.visible.numel() * engine._bytes_per_token)
        return real(batch, token)

    engine._forward = noted  # type: ignore[method-assign]
    waited = engine.generate(asked)
    assert max(held) <= engine._cache_bytes < 2 * max(held)
    assert waited.token_ids == usual.token_ids
    assert worst_difference(engine, asked, waited) < 1e-4


def test_a_row_takes_the_place_of_one_that_ended() -> None:
    engine = engine_of()
    asked = requests(ragged_contexts([9] * 6), limits=[1, 20, 1, 20, 1, 20], stop_ids=())
    engine._cache_bytes = 4 * 29 * engine._bytes_per_token
    steps = 0
    real = engine._forward

    def counted(batch: decoding.Batch, token: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return real(batch, token)

    engine._forward = counted  # type: ignore[method-assign]
    assert [len(row) for row in engine.generate(asked).token_ids] == [1, 20, 1, 20, 1, 20]
    assert steps < 25  # one batch after the other takes 38


def test_rows_say_whether_they_were_stopped() -> None:
    asked = requests(ragged_contexts(RAGGED), limits=4, stop_ids=tuple(range(8)))
    got = engine_of().generate(asked)
    assert list(got.stopped) == [tokens[-1] < 8 for tokens in got.token_ids]
    assert len(set(got.stopped)) == 2


def test_other_weights_are_sampled_from_after_an_update(tmp_path: Path) -> None:
    model, other = random_model("llama"), random_model("llama")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    other.save_pretrained(tmp_path)
    asked = requests(ragged_contexts(RAGGED))
    engine = wrapped(model)
    engine.update_weights(str(tmp_path), 7)
    got = engine.generate(asked)
    assert got.policy_version == engine.policy_version == 7
    assert got.token_ids == wrapped(other).generate(asked).token_ids


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    engine = engine_of()
    random_model("gpt2").save_pretrained(tmp_path / "gpt2")
    before = engine.generate(requests([[3, 4]]))
    for folder in ("gpt2", "none"):
        with pytest.raises(PolicyError, match=f"{folder} holds no weights for this policy"):
            engine.update_weights(str(tmp_path / folder), 1)
    assert engine.generate(requests([[3, 4]])) == before


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_finished_rows_does_not_show(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    engine = engine_of()
    asked = requests(ragged_contexts(RAGGED), stop_ids=tuple(range(5)))
    usual = engine.generate(asked).token_ids
    assert len({len(tokens) for tokens in usual}) > 3
    monkeypatch.setattr(transformers_engine, "COMPACT_BELOW", share)
    assert engine.generate(asked).token_ids == usual


def test_same_seed_repeats_exactly() -> None:
    engine = engine_of()
    asked = requests(ragged_contexts(RAGGED))
    assert engine.generate(asked) == engine.generate(asked)


def test_other_seeds_give_other_tokens() -> None:
    engine = engine_of()
    samples = engine.generate(requests([[3, 4, 5]] * 8)).token_ids
    assert len({tuple(tokens) for tokens in samples}) == 8


def test_limit_of_each_row_is_honoured() -> None:
    limits = [1, 2, 3, 17, 30, 5, 9, 1]
    asked = requests(ragged_contexts(RAGGED), limits=limits, stop_ids=(VOCABULARY,))
    assert [len(tokens) for tokens in engine_of().generate(asked).token_ids] == limits


def test_stop_token_is_the_last_one() -> None:
    stops = tuple(range(8))
    asked = requests(ragged_contexts(RAGGED), limits=40 - 8, stop_ids=stops)
    got = engine_of().generate(asked).token_ids
    assert all(tokens[-1] in stops for tokens in got)
    assert not any(token in stops for tokens in got for token in tokens[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_fill_the_context_beside_one_with_far_to_go(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(transformers_engine, "COMPACT_BELOW", 0.0)  # finished rows stay
    contexts = ragged_contexts([CONTEXT - 1, CONTEXT - 2, 2])
    engine = engine_of(kind)
    asked = requests(contexts, limits=[1, 2, CONTEXT - 2], stop_ids=(VOCABULARY,))
    got = engine.generate(asked)
    assert [len(tokens) for tokens in got.token_ids] == [1, 2, CONTEXT - 2]
    assert worst_difference(engine, asked, got) < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_the_probabilities(temperature: float) -> None:
    engine, context, draws = engine_of(), [3, 9, 4], 20_000
    asked = requests([context] * draws, limits=1, temperature=temperature)
    counts = np.bincount(
        [tokens[0] for tokens in engine.generate(asked).token_ids], minlength=VOCABULARY
    )
    scores = [
        recomputed_logprobs(engine._model, context, [token], temperature)[0]
        for token in range(VOCABULARY)
    ]
    expected = draws * np.exp(np.array(scores, dtype=np.float64))
    assert expected.sum() == pytest.approx(draws, rel=1e-4)
    common = expected >= 5
    statistic = ((counts - expected)[common] ** 2 / expected[common]).sum()
    statistic += (counts[~common].sum() - expected[~common].sum()) ** 2 / max(
        expected[~common].sum(), 1.0
    )
    freedom = torch.tensor(float(common.sum()))
    p_value = torch.special.gammaincc(freedom / 2, torch.tensor(statistic / 2))
    assert common.sum() > 5
    assert p_value > 0.001


def test_no_requests_no_generations() -> None:
    nothing = Generations(token_ids=[], logprobs=[], stopped=[], policy_version=0)
    assert engine_of().generate(requests([])) == nothing


def test_threads_get_what_one_thread_gets() -> None:
    engine = engine_of()
    batches = [requests(ragged_contexts(RAGGED, seed=seed)) for seed in range(6)]
    serial = [engine.generate(asked) for asked in batches]
    results: dict[int, Generations] = {}

    def work(part: int) -> None:
        torch.set_num_threads(1)
        for index in range(part, len(batches), 2):
            results[index] = engine.generate(batches[index])

    threads = [threading.Thread(target=work, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[index] for index in range(len(batches))] == serial


def test_a_window_longer_than_the_context_is_served() -> None:
    engine = wrapped(random_model("mistral", window=CONTEXT))
    asked = requests(ragged_contexts(RAGGED))
    assert worst_difference(engine, asked, engine.generate(asked)) < 1e-4


def test_a_window_shorter_than_the_context_is_refused_before_any_work() -> None:
    with pytest.raises(PolicyError, match=r"attend to 8 tokens \(sliding_window\) of .* 64"):
        wrapped(random_model("mistral", window=8))


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2),
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1),
        Lfm2Config(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_models_with_another_past_than_keys_and_values_are_refused(
    config: PreTrainedConfig,
) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(PolicyError, match=f"type {config.model_type} cannot be sampled from"):
        TransformersEngine(model, letters_tokenizer(), policy_version=0)


def test_weights_that_diverged_are_refused() -> None:
    model = random_model("llama")
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(PolicyError, match="diverged"):
        wrapped(model).generate(requests([[3, 4]]))


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda w: sum(w) > 1e-3),
    noise=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_inverts_the_cumulative_distribution(weights: list[float], noise: float) -> None:
    probabilities = np.array(weights) / sum(weights)
    logits = torch.log(torch.tensor(probabilities))[None]
    token, _ = decoding.draw(logits, torch.tensor([noise]).double(), requests([]))
    bounds = [0.0, *np.cumsum(probabilities)]
    drawn = next(
        index
        for index, (low, high) in enumerate(pairwise(bounds))
        if noise < high or index == len(probabilities) - 1
    )
    near = min(abs(noise - bound) for bound in bounds[1:-1]) < 1e-5
    assert near or int(token) == drawn
