"""Log-probabilities of packs against plain forward passes, one trajectory at a time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from schemas.errors import TurnledgerError
from schemas.optimisation import OptimisationConfig
from stages.distribution import entropy_of, log_distribution
from stages.optimisation import Batch, forward
from stages.optimisation.attention import attend, can_pack
from stages.optimisation.forward import pairs_per_token, trained_logprobs
from stages.optimisation.packing import Layout, Pack, make_pack
from tests.stages.optimisation.optimisation_batches import (
    gradients,
    grouped_batch,
    ragged_batch,
    replaced,
)
from tests.stages.optimisation.optimisation_models import ARCHITECTURES, ATTENDING, tiny_model
from tests.stages.rollout.rollout_policies import VOCABULARY, random_model

CPU = torch.device("cpu")
CONFIG = OptimisationConfig()
ALWAYS, NEVER = 10**9, 0
GROUPS = grouped_batch([9, 14], prompt=8, samples=3)


def packed(batch: Batch, pairs: int = ALWAYS) -> Pack:
    return make_pack(batch, np.arange(len(batch)), CPU, pairs_per_token=pairs)


def plain(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores each trajectory alone from the logits that the model returns."""
    logprobs, entropies = [], []
    for index in range(len(batch)):
        rows = slice(batch.offsets[index], batch.offsets[index + 1])
        ids = torch.from_numpy(batch.token_ids[rows])
        chosen = torch.from_numpy(batch.trained[rows])[1:]
        distribution = log_distribution(
            model(input_ids=ids[None], use_cache=False).logits[0, :-1][chosen],
            temperature=float(batch.temperatures[index]),
            top_p=float(batch.top_ps[index]),
            top_k=int(batch.top_ks[index]),
            kept=ids[1:][chosen],
        )
        logprobs.append(distribution.gather(1, ids[1:][chosen][:, None])[:, 0])
        entropies.append(entropy_of(distribution))
    return torch.cat(logprobs), torch.cat(entropies)


def gradient(model: PreTrainedModel, scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    weights = torch.from_numpy(batch.advantages[batch.trained])
    model.zero_grad(set_to_none=True)
    (scores * weights).sum().backward()
    return gradients(model)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return float((ours - theirs).detach().norm()) <= tolerance * (1 + float(theirs.detach().norm()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pairs", [NEVER, ALWAYS])
def test_scores_and_gradient_are_those_of_the_plain_model(architecture: str, pairs: int) -> None:
    model = tiny_model(architecture)
    shared = pairs if can_pack(model) else NEVER
    logprobs, entropies = trained_logprobs(model, packed(GROUPS, shared), CONFIG)
    ours = gradient(model, logprobs, GROUPS)
    expected, expected_entropies = plain(model, GROUPS)
    assert close(logprobs, expected)
    assert close(entropies, expected_entropies)
    assert close(ours, gradient(model, expected, GROUPS))


def test_only_a_model_that_meets_in_attention_is_packed() -> None:
    assert [name for name in ARCHITECTURES if can_pack(tiny_model(name))] == list(ATTENDING)
    assert pairs_per_token(tiny_model("mamba")) == 0


@pytest.mark.parametrize(("top_p", "top_k"), [(0.8, 0), (1.0, 4), (0.9, 6)])
def test_chunks_change_nothing(top_p: float, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2")
    rows = len(GROUPS)
    batch = replaced(
        GROUPS,
        temperatures=np.linspace(0.5, 1.5, rows, dtype=np.float32),
        top_ps=np.where(np.arange(rows) % 2, np.float32(top_p), np.float32(1)),
        top_ks=np.where(np.arange(rows) % 3, top_k, 0),
    )
    whole, _ = trained_logprobs(model, packed(batch), CONFIG)
    expected = gradient(model, whole, batch)
    monkeypatch.setattr(forward, "LOGITS_OF_A_CHUNK", 7 * VOCABULARY)
    parts, _ = trained_logprobs(model, packed(batch), CONFIG)
    assert close(parts, whole)
    assert close(gradient(model, parts, batch), expected)
    assert close(whole, plain(model, batch)[0])


def test_no_more_logits_than_a_chunk_has_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "LOGITS_OF_A_CHUNK", 5 * VOCABULARY)
    model, rows = random_model("llama"), []
    model.lm_head.register_forward_hook(lambda *call: rows.append(call[2].shape[1]))
    logprobs, _ = trained_logprobs(model, packed(GROUPS), CONFIG)
    logprobs.sum().backward()
    assert max(rows) == 5
    assert sum(rows) == 2 * len(logprobs)  # forward, and anew in the backward pass


@settings(deadline=None, max_examples=20)
@given(
    lengths=st.lists(st.integers(2, 20), min_size=2, max_size=6),
    changed=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_a_neighbour_changes_nothing(lengths: list[int], changed: int, seed: int) -> None:
    changed %= len(lengths)
    model = random_model("qwen3").double()
    batch = ragged_batch(lengths, seed=seed)
    rows = slice(batch.offsets[changed], batch.offsets[changed + 1])
    tokens = batch.token_ids.copy()
    tokens[rows] = (tokens[rows] + 1 + seed) % VOCABULARY
    others = np.ones(len(tokens), dtype=np.bool_)
    others[rows] = False
    mine = torch.from_numpy(others[batch.trained])
    found = []
    for each in (batch, replaced(batch, token_ids=tokens)):
        logprobs, _ = trained_logprobs(model, packed(each), CONFIG)
        model.zero_grad(set_to_none=True)
        logprobs[mine].sum().backward()
        found.append((logprobs[mine], gradients(model)))
    assert torch.equal(found[0][0], found[1][0])
    assert close(found[0][1], found[1][1], 1e-12)


def test_a_neighbour_has_no_gradient() -> None:
    model = random_model("llama")
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.get_input_embeddings().register_forward_hook(keep)
    batch = ragged_batch([6, 9, 5])
    logprobs, _ = trained_logprobs(model, packed(batch), CONFIG)
    middle = np.arange(len(batch.token_ids))[batch.trained]
    logprobs[torch.from_numpy((middle >= 6) & (middle < 15))].sum().backward()
    reached = embedded[0].grad[0].abs().sum(1) > 0
    assert not reached[:6].any()
    assert reached[6:14].all()
    assert not reached[15:].any()


def test_recomputed_blocks_give_the_same_bits() -> None:
    model = random_model("gpt2")  # has dropout
    config = OptimisationConfig(recompute_activations=True)
    kept, _ = trained_logprobs(model, packed(GROUPS), CONFIG)
    expected = gradient(model, kept, GROUPS)
    anew, _ = trained_logprobs(model, packed(GROUPS), config)
    assert torch.equal(anew, kept)
    assert torch.equal(gradient(model, anew, GROUPS), expected)


def test_recomputed_blocks_run_twice() -> None:
    model, runs = random_model("llama"), []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: runs.append(1))
    config = OptimisationConfig(recompute_activations=True)
    logprobs, _ = trained_logprobs(model, packed(GROUPS), config)
    assert len(runs) == 1
    logprobs.sum().backward()
    assert len(runs) == 2


def test_entropies_have_a_gradient_only_if_asked() -> None:
    model = random_model("llama")
    _, without = trained_logprobs(model, packed(GROUPS), CONFIG)
    assert not without.requires_grad
    _, asked = trained_logprobs(model, packed(GROUPS), CONFIG, entropy_has_gradient=True)
    assert torch.equal(asked, without)
    ours = gradient(model, asked, GROUPS)
    assert close(ours, gradient(model, plain(model, GROUPS)[1], GROUPS), 1e-4)


def test_bfloat16_is_near_and_gives_float32() -> None:
    model = random_model("llama")
    exact, _ = trained_logprobs(model, packed(GROUPS), CONFIG)
    rough, _ = trained_logprobs(model, packed(GROUPS), OptimisationConfig(dtype="bfloat16"))
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).detach().abs().mean()) < 0.2
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_the_model_is_stored_as_if_nothing_had_been_computed(tmp_path: Path) -> None:
    model = random_model("qwen3", attention="eager")
    model.save_pretrained(tmp_path / "before")
    state = {name: vars(module).keys() for name, module in model.named_modules()}
    config = OptimisationConfig(recompute_activations=True)
    trained_logprobs(model, packed(GROUPS), config)[0].sum().backward()
    model.save_pretrained(tmp_path / "after")
    before, after = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "after")
    )
    assert before == after
    assert model.config._attn_implementation == "eager"
    assert {name: vars(module).keys() for name, module in model.named_modules()} == state


def test_a_model_is_whole_again_after_an_error() -> None:
    model = random_model("llama")
    broken = ragged_batch([4, 5])
    broken = replaced(broken, token_ids=np.full(9, VOCABULARY))
    with pytest.raises(IndexError):
        trained_logprobs(model, packed(broken), OptimisationConfig(recompute_activations=True))
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in vars(model.model.layers[0])


def test_attention_that_is_not_understood_is_refused() -> None:
    layout = Layout(lengths=(3,), prefixes=(None,))
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(TurnledgerError, match="Identity attends with s_aux"):
        attend(
            torch.nn.Identity(), states, states, states, None, packed=layout, s_aux=torch.zeros(2)
        )


def test_a_model_without_blocks_to_compute_anew_is_refused() -> None:
    model = random_model("llama")
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(TurnledgerError, match="recompute_activations: LlamaForCausalLM"):
        trained_logprobs(model, packed(GROUPS), OptimisationConfig(recompute_activations=True))
