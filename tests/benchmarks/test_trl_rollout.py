"""What TRL is given of a rollout: the tokens and the mask that this project trains on."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import dataframely as dy
import polars as pl
import pytest
import torch

from benchmarks.trl_rollout import Meter, ToolLoop, joined
from schemas.config import RunConfig
from schemas.config_text import parse_config
from schemas.tables import TURN_KEY, Prompts
from stages.execution import make_executor
from stages.optimisation import make_batch
from stages.prompts import embedded_problems, make_prompts
from storage.checkpoints import load_policy, save_policy
from tests.stages.optimisation.optimisation_batches import advantages_of
from tests.stages.rollout.rollout_policies import (
    Policy,
    executions_of,
    prompts_of,
    started_policy,
    turns_of,
)

CONFIG = parse_config(
    """
    iterations = 2
    rollout = {prompts = 2, samples = 4, max_turns = 3, max_turn_tokens = 40}
    optimisation = {minibatches = 2}
    compute = {threads = 1}
    """
)


@pytest.fixture
def policy() -> Policy:
    torch.set_num_threads(1)
    return started_policy()


def prompts_for(policy: Policy, iteration: int) -> dy.DataFrame[Prompts]:
    problems = embedded_problems(CONFIG.rollout.prompts, split="train", levels=(1,), seed=iteration)
    prompts = make_prompts(problems, encode=policy.dialogue.encode_prompts)
    return Prompts.validate(prompts.sort("task_id"))


def loop_of(policy: Policy, told: list[dict[str, float]], config: RunConfig = CONFIG) -> ToolLoop:
    return ToolLoop(
        prompts=[prompts_for(policy, 1), prompts_for(policy, 2)],
        config=config,
        dialogue=policy.dialogue,
        executor=make_executor(config.execution),
        meter=Meter(wait=lambda: None, tell=told.append),
    )


def repeated(prompts: dy.DataFrame[Prompts]) -> list[str]:
    return [text for text in prompts["problem"] for _ in range(CONFIG.rollout.samples)]


def test_tokens_and_mask_are_those_of_a_training_batch() -> None:
    prompts = prompts_of({"a": [1, 2], "b": [3]})
    turns = turns_of(
        {
            ("b", 0, 0): ([31, 32], [-1.0, -2.0]),
            ("a", 1, 0): ([21], [-0.5]),
            ("a", 0, 1): ([13], [-0.3]),
            ("a", 0, 0): ([11, 12], [-0.1, -0.2]),
        }
    )
    executions = executions_of({("a", 0, 1): [99], ("a", 0, 0): [91, 92, 93]})
    everywhere = dict.fromkeys(turns.select(TURN_KEY).iter_rows(), 1.0)
    batch = make_batch(prompts, turns, executions, advantages_of(everywhere))
    tokens, masks = joined(turns, executions)
    for row, (start, end) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
        first = start + batch.prompt_lengths[row]
        assert tokens[row] == batch.token_ids[first:end].tolist()
        assert masks[row] == batch.trained[first:end].astype(int).tolist()
    assert len(tokens) == len(batch)


def test_a_rollout_is_one_row_a_prompt_with_its_reward(policy: Policy) -> None:
    told: list[dict[str, float]] = []
    loop = loop_of(policy, told)
    asked = loop.prompts[0]
    found = loop.rollout(repeated(asked), SimpleNamespace(model=policy.model))
    samples = CONFIG.rollout.samples
    assert found["prompt_ids"] == [
        ids for ids in asked["prompt_token_ids"].to_list() for _ in range(samples)
    ]
    lengths = [len(row) for row in found["completion_ids"]]
    assert lengths == [len(row) for row in found["env_mask"]]
    assert sum(map(sum, found["env_mask"])) == loop.meter.figures["tokens"] > 0
    assert len(loop.reward(completions=[""] * len(lengths))) == len(lengths)


def test_a_rollout_of_other_prompts_is_refused(policy: Policy) -> None:
    loop = loop_of(policy, [])
    with pytest.raises(RuntimeError, match="other prompts in iteration 1"):
        loop.rollout(repeated(loop.prompts[1]), SimpleNamespace(model=policy.model))


def test_trl_trains_the_policy_by_the_same_iterations(policy: Policy, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason='TRL is not installed: pip install "turnledger[trl]"')
    from benchmarks.trl_training import train

    given = tmp_path / "given"
    given.mkdir()
    save_policy(given, policy.model, policy.tokenizer, None)
    frames: Sequence[pl.DataFrame] = [
        prompts_for(policy, number).with_columns(iteration=pl.lit(number)) for number in (1, 2)
    ]
    pl.concat(frames).write_parquet(tmp_path / "prompts.parquet")
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    waited: list[None] = []
    told: list[dict[str, float]] = []
    train(tmp_path, given, Meter(wait=lambda: waited.append(None), tell=told.append))
    assert len(waited) == len(told) == CONFIG.iterations
    assert all(of["seconds"] > of["rollout_s"] > of["generation_s"] > 0 for of in told)
    trained, _ = load_policy(tmp_path / "policy")
    assert trained.state_dict().keys() == policy.model.state_dict().keys()
