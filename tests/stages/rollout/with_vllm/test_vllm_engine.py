"""The vLLM engine on a real server: one for all tests, with tiny policies."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from schemas.config import VllmConfig
from schemas.errors import EngineError, PolicyError
from stages.rollout.engine import Requests
from stages.rollout.vllm_engine import VllmEngine
from stages.rollout.vllm_server import KEY_VARIABLE
from storage.checkpoints import load_policy
from tests.stages.rollout.rollout_policies import random_model
from tests.stages.rollout.with_vllm.vllm_environment import (
    CONFIG,
    forward,
    with_vllm,
)
from tests.stages.rollout.with_vllm.vllm_requests import asked, worst_difference

pytestmark = with_vllm


@pytest.fixture
def at_url(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VllmEngine]:
    """Makes engines on the started server as if somebody else ran it."""
    monkeypatch.setenv(KEY_VARIABLE, key_of(engine))

    def make(**changes: object) -> VllmEngine:
        url = {"url": engine._server.url}
        config = VllmConfig.model_validate({**CONFIG.model_dump(), **url, **changes})
        return VllmEngine(config, forward=forward)

    return make


def key_of(engine: VllmEngine) -> str:
    return engine._server.headers["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"temperature": 0.7},
        {"top_p": 0.9},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_logprobs_are_those_of_the_trainer(
    engine: VllmEngine, policy: Path, how: dict[str, float]
) -> None:
    requests = asked(**how)  # type: ignore[arg-type]
    got = engine.generate(requests)
    assert worst_difference(policy, requests, got) < 1e-4
    assert got.policy_version == 0


def test_seeds_repeat_and_decide(engine: VllmEngine) -> None:
    requests = asked()
    first, again = engine.generate(requests), engine.generate(requests)
    assert first.token_ids == again.token_ids
    assert np.allclose(np.concatenate(first.logprobs), np.concatenate(again.logprobs), atol=1e-4)
    same_context = Requests(
        contexts=[[5, 6, 7]] * 8,
        seeds=np.arange(8, dtype=np.int64),
        max_new_tokens=np.full(8, 20, dtype=np.int64),
        stop_ids=(),
    )
    assert len({tuple(tokens) for tokens in engine.generate(same_context).token_ids}) == 8


def test_a_row_ends_with_a_stop_token_or_at_its_limit(engine: VllmEngine) -> None:
    stops = tuple(range(20))
    got = engine.generate(asked(stop_ids=stops, limit=15))
    for tokens, stopped in zip(got.token_ids, got.stopped, strict=True):
        assert not set(tokens[:-1]) & set(stops)
        assert stopped == (tokens[-1] in stops)
        assert stopped or len(tokens) == 15
    assert 0 < sum(got.stopped) < len(got.stopped)


def test_a_row_ends_with_the_token_that_completes_a_stop_string(
    engine: VllmEngine, policy: Path
) -> None:
    tokenizer = load_policy(policy)[1]
    free = engine.generate(asked(stop_ids=()))
    texts = [str(tokenizer.decode(tokens)) for tokens in free.token_ids]
    stop = next(text[9:12] for text in texts if text[9:12].strip() and text[9:12].isascii())
    got = engine.generate(asked(stop_ids=(), stop_strings=(stop,)))
    for whole, cut, stopped in zip(free.token_ids, got.token_ids, got.stopped, strict=True):
        shortest = next(
            (n for n in range(1, len(whole) + 1) if stop in str(tokenizer.decode(whole[:n]))), None
        )
        assert cut == whole[:shortest]
        assert stopped == (shortest is not None)
    assert any(got.stopped)


def test_calls_of_several_threads_get_their_own_rows(engine: VllmEngine) -> None:
    parts = [asked(8, longest=length, limit=30) for length in (40, 80, 120, 160)]
    alone = [engine.generate(part).token_ids for part in parts]
    with ThreadPoolExecutor(4) as threads:
        together = [done.token_ids for done in threads.map(engine.generate, parts)]
    assert together == alone


def test_later_turns_find_earlier_ones_in_the_prefix_cache(
    engine: VllmEngine, policy: Path
) -> None:
    first = asked(8, longest=2, limit=150, stop_ids=())
    said = engine.generate(first)
    assert said.cached_tokens == [0] * 8
    later = [[*c, *t, 9, 9] for c, t in zip(first.contexts, said.token_ids, strict=True)]
    found = engine.generate(
        Requests(
            contexts=later,
            seeds=first.seeds,
            max_new_tokens=first.max_new_tokens,
            stop_ids=(),
        )
    )
    assert found.cached_tokens == [128] * 8  # whole blocks of the 150 tokens
    engine.update_weights(str(policy), 0)
    assert engine.generate(first).cached_tokens == [0] * 8


def test_new_weights_are_sampled_from_at_once(
    engine: VllmEngine, policy: Path, other: Path
) -> None:
    requests = asked()
    before = engine.generate(requests)
    process = engine._server.url
    engine.update_weights(str(other), 7)
    after = engine.generate(requests)
    assert engine._server.url == process
    assert (after.policy_version, engine.policy_version) == (7, 7)
    assert worst_difference(other, requests, after) < 1e-4
    assert worst_difference(policy, requests, after) > 0.1
    assert before.token_ids != after.token_ids
    assert engine.last_check is not None
    assert engine.last_check.difference < 1e-5


def untrained(weights: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weights).normal_(std=0.02) if weights.ndim > 1 else weights


def rounded(weights: torch.Tensor) -> torch.Tensor:
    return weights.bfloat16().float()


@pytest.mark.parametrize("change", [untrained, rounded], ids=["another policy", "in 16 bits"])
def test_wrong_weights_fail_loudly(
    engine: VllmEngine, policy: Path, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    wrong, _ = load_policy(policy)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in wrong.parameters():
            weights.copy_(change(weights))
    wrong.save_pretrained(tmp_path)
    held = engine._held()
    session = engine._answering()
    engine._loop.run(session.client.load_weights(str(tmp_path), time_s=60))
    with pytest.raises(EngineError, match=r"other weights than .*first.*0\.0001 is the bound"):
        engine._check(session, held)


def test_an_engine_that_failed_its_check_samples_no_more(
    at_url: Callable[..., VllmEngine], policy: Path, other: Path
) -> None:
    engine = at_url()
    engine._forward = lambda _, contexts, tokens: forward(str(other), contexts, tokens)
    with pytest.raises(EngineError, match="samples from other weights"):
        engine.update_weights(str(policy), 0)
    with pytest.raises(EngineError, match="holds no policy"):
        engine.generate(asked())


def test_weights_that_diverged_are_the_policys_fault(
    engine: VllmEngine, policy: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_policy(policy)
    with torch.no_grad():
        next(model.parameters()).mul_(float("nan"))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="its weights diverged"):
        engine.update_weights(str(tmp_path), 1)


@pytest.mark.parametrize(
    ("content", "match"),
    [({}, "is no model folder"), ({"config.json": '{"vocab_size": 300}'}, "holds no weights")],
)
def test_a_folder_without_policy_is_refused_and_the_server_lives(
    engine: VllmEngine, tmp_path: Path, content: dict[str, str], match: str
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PolicyError, match=match):
        engine.update_weights(str(tmp_path), 1)
    assert len(engine.generate(asked(2)).token_ids) == 2


def test_a_server_that_runs_already_is_used_by_url(
    at_url: Callable[..., VllmEngine], other: Path
) -> None:
    engine = at_url()
    engine.update_weights(str(other), 3)
    requests = asked(8)
    assert worst_difference(other, requests, engine.generate(requests)) < 1e-4
    engine.close()
    engine.update_weights(str(other), 3)  # it still runs


def test_a_server_of_another_model_is_refused_by_name(
    at_url: Callable[..., VllmEngine], tmp_path: Path
) -> None:
    random_model("qwen3").save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="has vocab_size 300, not 40"):
        at_url().update_weights(str(tmp_path), 0)


def test_a_server_of_other_numbers_is_refused_by_name(
    at_url: Callable[..., VllmEngine], policy: Path
) -> None:
    with pytest.raises(EngineError, match="has dtype float32, not bfloat16"):
        at_url(dtype="bfloat16").update_weights(str(policy), 0)


def test_the_server_lets_nobody_in_without_its_key(
    at_url: Callable[..., VllmEngine],
    engine: VllmEngine,
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in ("/health", "/metrics", "/v1/models", "/server_info"):
        assert httpx.get(engine._server.url + path).status_code == 401
    body = {"method": "served_policy"}
    assert httpx.post(engine._server.url + "/collective_rpc", json=body).status_code == 401
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    with pytest.raises(EngineError, match=f"put it into {KEY_VARIABLE}"):
        at_url().update_weights(str(policy), 0)
