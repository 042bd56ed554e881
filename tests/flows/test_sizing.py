"""The sizing model: sums done by hand, and laws that hold for any fleet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows.cli import app
from flows.sizing import GIB, Assumptions, decode_tokens_per_s, memory_of, size
from schemas.errors import ConfigError

fleets = st.integers(1, 512)
"""GPUs of a run."""


def test_sums_done_by_hand() -> None:
    assumed = Assumptions(
        parameters=1e9,
        groups=10,
        samples=10,
        turns=2,
        max_turns=2,
        prompt_tokens=50,
        turn_tokens=100,
        max_turn_tokens=100,
        observation_tokens=50,
        gpu_tflop_per_s=1_000,
        training_utilisation=0.5,
        cores_a_gpu=1,
        snippets_per_s_a_core=1,
        overlap_factor=1,
        scored_turns_per_s_a_core=100,
        store_gb_per_s=1,
        shards=1,
        stage_run_s=0.1,
        kept_policies=2,
        bytes_a_turn=1_000,
        bytes_a_sampled_token=10,
        gpu_usd_per_hour=3_600,
    )
    told = size(assumed, gpus=2, gpus_a_run=2)
    # 100 trajectories of 2 turns: 20,000 tokens sampled, 5,000 of prompts, 5,000 observed.
    assert told.sampled_tokens == 20_000
    # Each first turn has a snippet: 100 of them on 2 cores outlast the sampling.
    assert told.rollout_s == pytest.approx(50)
    assert told.scoring_s == pytest.approx(200 / 100 / 2)
    assert told.training_s == pytest.approx(6e9 * 30_000 / (2 * 500e12))
    # 12 GB are stored, with both moments, and the weights' 4 GB read by the engine.
    assert told.policy_s == pytest.approx(16)
    assert told.orchestration_s == pytest.approx(0.1 * (2 * 2 + 1 + 3))
    assert told.usd_an_iteration == pytest.approx(2 * told.iteration_s)
    assert told.policies_gb == pytest.approx(24)
    a_day = 86_400 / told.iteration_s
    assert told.tables_gb_a_day == pytest.approx((200 * 1_000 + 20_000 * 10) / 1e9 * a_day)


def test_memory_done_by_hand() -> None:
    assumed = Assumptions(
        parameters=GIB, layers=2, hidden_size=1_024, kv_size=256, micro_batch_tokens=1_024
    )
    memory = memory_of(assumed, gpus_a_run=4)
    assert (memory.weights_gib, memory.gradients_gib, memory.optimiser_gib) == (1, 1, 2)
    assert memory.gathered_gib == pytest.approx(8)
    assert memory.activations_gib == pytest.approx(34 * 2 * 2**20 / GIB)
    assert memory.engine_weights_gib == 2
    assert memory.engine_cache_gib == pytest.approx(30)
    # 1,800 tokens of 2 layers, keys and values, 256 numbers of 2 bytes.
    assert memory.trajectories_in_cache == int(30 * GIB / (1_800 * 2_048))


def test_a_gpu_alone_gathers_nothing() -> None:
    assert memory_of(Assumptions(parameters=1e9), gpus_a_run=1).gathered_gib == 0


@given(each=fleets, runs=st.integers(1, 20))
def test_runs_side_by_side_add_up(each: int, runs: int) -> None:
    one, many = (size(Assumptions(), gpus=each * n, gpus_a_run=each) for n in (1, runs))
    assert many.iteration_s == one.iteration_s
    assert many.tokens_per_s == pytest.approx(runs * one.tokens_per_s)
    assert many.usd_a_day == pytest.approx(runs * one.usd_a_day)
    assert many.usd_a_million_tokens == pytest.approx(one.usd_a_million_tokens)


@given(few=fleets, more=fleets)
def test_more_gpus_a_run_are_never_slower_and_never_cheaper_a_token(few: int, more: int) -> None:
    few, more = sorted((few, more))
    small, large = (size(Assumptions(), gpus=n, gpus_a_run=n) for n in (few, more))
    assert large.iteration_s <= small.iteration_s * (1 + 1e-9)
    assert large.usd_a_million_tokens >= small.usd_a_million_tokens * (1 - 1e-9)
    assert large.memory.training_gib <= small.memory.training_gib + small.memory.gathered_gib + 4.1


@given(sequences=st.floats(1, 1e4))
def test_a_full_batch_samples_more_but_never_beyond_the_arithmetic(sequences: float) -> None:
    assumed = Assumptions()
    rate = decode_tokens_per_s(assumed, sequences)
    assert rate < decode_tokens_per_s(assumed, 2 * sequences)
    limit = assumed.gpu_tflop_per_s * 1e12 * assumed.decode_utilisation / (2 * assumed.parameters)
    assert rate < limit


def test_the_longest_trajectory_bounds_a_rollout() -> None:
    assumed = Assumptions(overlap_factor=1)
    told = size(assumed, gpus=1_000, gpus_a_run=1_000)
    tokens = assumed.max_turns * assumed.max_turn_tokens
    assert told.rollout_s == pytest.approx(tokens / decode_tokens_per_s(assumed, 1))


@pytest.mark.parametrize(
    ("change", "gpus", "message"),
    [({"parameters": 70e9}, 8, "no room for a trajectory"), ({}, 4, "a run takes 8 GPUs")],
)
def test_what_cannot_be_is_refused(change: dict[str, float], gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        size(Assumptions.model_validate(change), gpus=gpus, gpus_a_run=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--assume", "gpu=1"], "no such assumption"),
        (["--assume", "parameters=-1"], "parameters: input should be greater than 0"),
        (["--assume", "parameters"], "write it as name=number"),
        (["--fleet", "8"], "as 64/8"),
    ],
)
def test_an_impossible_option_is_told(options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["size", *options])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_every_assumption_that_is_no_setting_of_a_model_says_where_it_is_from() -> None:
    told = CliRunner().invoke(app, ["size", "--explain"]).stdout
    for name, value in Assumptions():
        assert f"{name} = {value:,}" in told
    assert told.count("Measured") >= 4
    assert told.count("Assumed") >= 5
