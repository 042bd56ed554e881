"""One turn for every open trajectory: contexts token for token, and who is open."""

import dataframely as dy
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.config import ExecutionConfig, RolloutConfig
from schemas.tables import TRAJECTORY_KEY, TURN_KEY, Executions, Prompts, Turns
from stages.execution import execute_turns
from stages.execution.protocol import SNIPPET_SCHEMA
from stages.prompts import embedded_problems, make_prompts
from stages.rollout import roll_out_turn
from stages.rollout.engine import Generations, Requests
from stages.rollout.transformers_engine import TransformersEngine
from tests.stages.rollout.rollout_policies import (
    Policy,
    executions_of,
    prompts_of,
    recomputed_logprobs,
    started_policy,
    turns_of,
)

NO_TURNS, NO_EXECUTIONS = Turns.create_empty(), Executions.create_empty()
CONFIG = RolloutConfig(samples=8, max_turns=4, max_turn_tokens=40)


class Scripted:
    """An engine that notes what it is asked and answers every row alike."""

    policy_version = 3

    def __init__(self, answer: list[int], *, max_context_tokens: int = 100) -> None:
        self.answer = answer
        self.max_context_tokens = max_context_tokens
        self.asked: list[Requests] = []

    def generate(self, requests: Requests) -> Generations:
        self.asked.append(requests)
        rows = [self.answer[:limit] for limit in requests.max_new_tokens.tolist()]
        return Generations(
            token_ids=rows,
            logprobs=[[-0.5] * len(row) for row in rows],
            stopped=[row[-1] in requests.stop_ids for row in rows],
            policy_version=self.policy_version,
        )


def sample(
    policy: Policy,
    engine: Scripted | TransformersEngine,
    prompts: dy.DataFrame[Prompts],
    turns: dy.DataFrame[Turns] = NO_TURNS,
    executions: dy.DataFrame[Executions] = NO_EXECUTIONS,
    *,
    turn_index: int = 0,
    seed: int = 0,
    config: RolloutConfig = CONFIG,
) -> dy.DataFrame[Turns]:
    return roll_out_turn(
        prompts,
        turns,
        executions,
        engine=engine,
        dialogue=policy.dialogue,
        config=config,
        seed=seed,
        turn_index=turn_index,
    )


class Doubling:
    """Stands in for a sandbox: prints a text that depends on the code's length alone."""

    def execute(self, snippets: pl.DataFrame) -> pl.DataFrame:
        assert snippets.columns == SNIPPET_SCHEMA.names()
        return snippets.select(
            *TURN_KEY,
            status=pl.lit("ok").cast(Executions.create_empty().schema["status"]),
            stdout=pl.col("code").str.len_chars().mul(2).cast(pl.String),
            stderr=pl.lit(""),
            exit_code=pl.lit(0, pl.Int32),
            wall_s=pl.lit(0.0),
            cpu_s=pl.lit(0.0),
        )


def rolled_out(
    policy: Policy, config: RolloutConfig, *, seed: int = 0
) -> tuple[dy.DataFrame[Prompts], dy.DataFrame[Turns], dy.DataFrame[Executions]]:
    """Rolls whole trajectories out, with the stage that executes between the turns."""
    engine = TransformersEngine(policy.model, policy.tokenizer, policy_version=0)
    problems = embedded_problems(12, split="train", levels=(1,), seed=0)
    prompts = make_prompts(problems, encode=policy.dialogue.encode_prompts)
    turns, executions = NO_TURNS, NO_EXECUTIONS
    for turn_index in range(config.max_turns):
        new = sample(
            policy,
            engine,
            prompts,
            turns,
            executions,
            turn_index=turn_index,
            seed=seed,
            config=config,
        )
        done = execute_turns(
            new,
            executor=Doubling(),
            config=ExecutionConfig(),
            encode_observation=policy.dialogue.encode_observations,
        )
        turns = Turns.validate(pl.concat([turns, new]))
        executions = Executions.validate(pl.concat([executions, done]))
    return prompts, turns, executions


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_stored_logprobs_are_those_of_a_forward_pass_over_the_trajectory(
    policy: Policy, temperature: float
) -> None:
    config = CONFIG.model_copy(update={"temperature": temperature})
    prompts, turns, executions = rolled_out(policy, config)
    assert turns["turn_index"].max() >= 2
    shown = {
        row[:3]: row[3] for row in executions.select(*TURN_KEY, "observation_token_ids").rows()
    }
    contexts = {
        (task, index): list(ids)
        for task, ids in prompts.select("task_id", "prompt_token_ids").rows()
        for index in range(config.samples)
    }
    worst = 0.0
    for *key, tokens, logprobs in (
        turns.sort(TURN_KEY).select(*TURN_KEY, "token_ids", "logprobs").rows()
    ):
        context = contexts[key[0], key[1]]
        scored = recomputed_logprobs(policy.model, context, tokens, temperature)
        worst = max(worst, float((scored - torch.tensor(logprobs)).abs().max()))
        context += tokens + shown.get(tuple(key), [])
    assert worst < 1e-4


def test_a_rollout_repeats_and_follows_its_seed(policy: Policy) -> None:
    once, again, other = (rolled_out(policy, CONFIG, seed=seed)[1] for seed in (0, 0, 1))
    assert once.equals(again)
    assert not once.equals(other)


def test_a_shard_samples_what_the_whole_samples(policy: Policy) -> None:
    engine = TransformersEngine(policy.model, policy.tokenizer, policy_version=0)
    problems = embedded_problems(12, split="train", levels=(1,), seed=0)
    prompts = make_prompts(problems, encode=policy.dialogue.encode_prompts)
    whole = sample(policy, engine, prompts)
    part = Prompts.validate(prompts[5:8])
    expected = whole.join(part, on="task_id", how="semi")["token_ids"]
    assert sample(policy, engine, part)["token_ids"].equals(expected)


def test_every_finish_reason_is_what_the_tokens_say(policy: Policy) -> None:
    dialogue = policy.dialogue
    _, turns, _ = rolled_out(policy, CONFIG)
    stops = {"code": dialogue.code_end_id, "answer": dialogue.answer_end_id}
    seen = set()
    for reason, tokens in turns.select("finish_reason", "token_ids").iter_rows():
        seen.add(reason)
        if reason in stops:
            assert tokens[-1] == stops[reason]
        elif reason == "length":
            assert len(tokens) == CONFIG.max_turn_tokens
            assert tokens[-1] not in dialogue.stop_ids
        assert not set(tokens[:-1]) & set(dialogue.stop_ids)
    assert seen == {"code", "answer", "end", "length"}


tokens_strategy = st.lists(st.integers(20, 30), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), turn_index=st.integers(1, 3))
def test_contexts_are_prompt_turns_and_observations(data: st.DataObject, turn_index: int) -> None:
    prompts = {task: data.draw(tokens_strategy) for task in ("b", "a")}
    turns, observations, expected = {}, {}, []
    for task in sorted(prompts):
        for index in range(3):
            context = list(prompts[task])
            for turn in range(turn_index):
                key = (task, index, turn)
                turns[key] = (data.draw(tokens_strategy), [])
                turns[key] = (turns[key][0], [-0.5] * len(turns[key][0]))
                observations[key] = data.draw(st.lists(st.integers(20, 30), max_size=3))
                context += turns[key][0] + observations[key]
            expected.append(context)
    keys = data.draw(st.permutations(list(turns)))
    engine = Scripted([25])
    new = sample(
        started_policy(),
        engine,
        prompts_of(prompts),
        turns_of({key: turns[key] for key in keys}),
        executions_of({key: observations[key] for key in keys}),
        turn_index=turn_index,
    )
    assert engine.asked[0].contexts == expected
    assert new.select(TRAJECTORY_KEY).rows() == [(t, i) for t in ("a", "b") for i in range(3)]


def test_first_contexts_are_the_prompts_sorted_by_key(policy: Policy) -> None:
    engine = Scripted([25])
    new = sample(policy, engine, prompts_of({"b": [7, 8], "a": [9]}))
    assert engine.asked[0].contexts == [[9]] * 8 + [[7, 8]] * 8
    assert new.select(TURN_KEY).rows() == [(t, i, 0) for t in ("a", "b") for i in range(8)]


@pytest.mark.parametrize("reason", ["answer", "end", "length", "context"])
def test_a_trajectory_that_ended_stays_closed(policy: Policy, reason: str) -> None:
    ended, running = ("a", 0, 0), ("a", 1, 0)
    turns = turns_of({ended: ([5], [-0.1]), running: ([6], [-0.1])}, finish_reasons={ended: reason})
    executions = executions_of({ended: [7], running: [7]})
    new = sample(policy, Scripted([25]), prompts_of({"a": [4]}), turns, executions, turn_index=1)
    assert new.select(TURN_KEY).rows() == [("a", 1, 1)]


@pytest.mark.parametrize(
    "status", ["ok", "error", "timeout", "memory", "output_limit", "refused", "infrastructure"]
)
def test_only_a_failure_of_the_machine_closes_a_trajectory(policy: Policy, status: str) -> None:
    key = ("a", 0, 0)
    executions = executions_of({key: [7]}, statuses={key: status})
    turns = turns_of({key: ([5], [-0.1])})
    new = sample(policy, Scripted([25]), prompts_of({"a": [4]}), turns, executions, turn_index=1)
    assert len(new) == (status != "infrastructure")


def test_a_call_without_execution_is_closed(policy: Policy) -> None:
    turns = turns_of({("a", 0, 0): ([5], [-0.1])})
    new = sample(policy, Scripted([25]), prompts_of({"a": [4]}), turns, NO_EXECUTIONS, turn_index=1)
    assert new.is_empty()


def test_a_trajectory_that_ended_earlier_is_closed(policy: Policy) -> None:
    first = ("a", 0, 0)
    turns = turns_of({first: ([5], [-0.1])})
    new = sample(
        policy,
        Scripted([25]),
        prompts_of({"a": [4]}),
        turns,
        executions_of({first: [7]}),
        turn_index=2,
    )
    assert new.is_empty()


def test_none_open_is_an_empty_valid_frame_and_asks_nothing(policy: Policy) -> None:
    engine = Scripted([25])
    turns = turns_of({("a", 0, 0): ([5], [-0.1])}, finish_reasons={("a", 0, 0): "answer"})
    new = sample(policy, engine, prompts_of({"a": [4]}), turns, NO_EXECUTIONS, turn_index=1)
    assert new.is_empty()
    assert Turns.is_valid(new)
    assert engine.asked == []


def test_a_turn_cut_by_the_context_says_so(policy: Policy) -> None:
    engine = Scripted([25] * 50, max_context_tokens=12)
    new = sample(policy, engine, prompts_of({"a": [9] * 5, "b": [9]}))
    assert engine.asked[0].max_new_tokens.tolist() == [7] * 8 + [11] * 8
    assert set(new["finish_reason"]) == {"context"}


def test_a_turn_cut_by_its_own_limit_is_not_the_context(policy: Policy) -> None:
    config = CONFIG.model_copy(update={"max_turn_tokens": 7})
    engine = Scripted([25] * 50, max_context_tokens=12)
    new = sample(policy, engine, prompts_of({"a": [9] * 5}), config=config)
    assert set(new["finish_reason"]) == {"length"}


@pytest.mark.parametrize("overflow", [0, 1, 20])
def test_without_room_a_turn_has_no_tokens(policy: Policy, overflow: int) -> None:
    engine = Scripted([25], max_context_tokens=12)
    prompts = prompts_of({"full": [9] * (12 + overflow), "open": [9]})
    new = sample(policy, engine, prompts)
    full = new.filter(task_id="full")
    assert set(full["finish_reason"]) == {"context"}
    assert full["token_ids"].to_list() == [[]] * 8
    assert engine.asked[0].contexts == [[9]] * 8
    assert new.filter(task_id="open")["token_ids"].to_list() == [[25]] * 8


def test_seeds_are_those_of_trajectory_and_turn(policy: Policy) -> None:
    engine = Scripted([25])
    first = sample(policy, engine, prompts_of({"a": [4], "b": [4]}))
    keys = {key: ([5], [-0.1]) for key in first.select(TURN_KEY).rows()}
    executions = executions_of({key: [7] for key in keys})
    sample(
        policy, engine, prompts_of({"a": [4], "b": [4]}), turns_of(keys), executions, turn_index=1
    )
    seeds = np.concatenate([asked.seeds for asked in engine.asked])
    assert len(np.unique(seeds)) == 32
    assert first["seed"].to_list() == engine.asked[0].seeds.tolist()
