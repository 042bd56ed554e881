"""Measures the three loops that run the model: sampling, optimisation, cold start.

A short cold start makes the policy, so that turns have realistic lengths. Sampling is measured
over whole rollouts, observations of executed code included, and against transformers.generate(),
which answers the same requests, and others of equal lengths. Medians of repeats, which take turns
so that a busy machine disturbs all alike. With a pretrained model, the comparison with generate()
on it is all that is measured.

    python -m benchmarks.throughput --threads 1 2 --json
    python -m benchmarks.throughput --threads 2 --model smollm2 --repeats 5
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.against_generate import add_ratio, equal_lengths, measure_pretrained
from benchmarks.printing import Figures
from schemas.config import RunConfig
from schemas.config_text import parse_config
from schemas.tables import TURN_KEY, Advantages, Executions, Prompts, Turns
from stages.cold_start.start import StartedPolicy, start_policy
from stages.cold_start.training import tokenise, train_on_demonstrations
from stages.dialogue.tags import TagDialogue
from stages.execution import Executor, execute_turns, make_executor
from stages.optimisation import Batch, make_batch, optimise
from stages.prompts import embedded_problems, make_prompts
from stages.rollout import roll_out_turn
from stages.rollout.engine import Generations, Requests
from stages.rollout.transformers_engine import TransformersEngine
from storage.checkpoints import load_policy

SEED = 0
COLD_START_STEPS_SKIPPED = 5
"""First steps that are not counted: they pay for allocations."""

Rolled = tuple[dy.DataFrame[Turns], dy.DataFrame[Executions]]


class TimedEngine(TransformersEngine):
    """The embedded engine with a clock at its parts."""

    def __init__(self, started: StartedPolicy) -> None:
        super().__init__(started.model, started.tokenizer, policy_version=0)
        self.seconds = {"prefill": 0.0, "decode_forward": 0.0, "generate": 0.0}
        self.asked: list[Requests] = []

    def generate(self, requests: Requests) -> Generations:
        """As the engine does."""
        self.asked.append(requests)
        return self._timed("generate", super().generate, requests)

    def _prefill(self, *args: Any) -> Any:
        return self._timed("prefill", super()._prefill, *args)

    def _forward(self, *args: Any) -> Any:
        return self._timed("decode_forward", super()._forward, *args)

    def _timed(self, name: str, work: Callable[..., Any], *args: Any) -> Any:
        started = time.perf_counter()
        result = work(*args)
        self.seconds[name] += time.perf_counter() - started
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every measurement works on."""

    config: RunConfig
    started: StartedPolicy
    dialogue: TagDialogue
    prompts: dy.DataFrame[Prompts]
    executor: Executor


def main() -> None:
    arguments = parse_arguments()
    if arguments.model is not None:
        report(
            {threads: of_pretrained(threads, arguments) for threads in arguments.threads},
            as_json=arguments.json,
        )
        return
    config = parse_config(
        overrides=[
            f"cold_start.steps={arguments.cold_start_steps}",
            f"cold_start.demonstrations={max(256, 16 * arguments.cold_start_steps)}",
            f"execution.backend={arguments.backend}",
            f"rollout.prompts={arguments.prompts}",
        ]
    )
    torch.set_num_threads(arguments.threads[0])
    started = start_policy(config, given=None, seed=SEED)
    dialogue = TagDialogue(started.tokenizer)
    problems = embedded_problems(
        config.rollout.prompts, split="train", levels=config.problems.levels, seed=SEED
    )
    bench = Bench(
        config=config,
        started=started,
        dialogue=dialogue,
        prompts=make_prompts(problems, encode=dialogue.encode_prompts),
        executor=make_executor(config.execution),
    )
    figures = {threads: measure(bench, threads, arguments) for threads in arguments.threads}
    report(figures, as_json=arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measures tokens a second of sampling, optimisation and cold start."
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads of torch"
    )
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each figure")
    parser.add_argument(
        "--seconds", type=float, default=20, help="after which a number of threads is not repeated"
    )
    parser.add_argument("--prompts", type=int, default=32, help="groups of a rollout, of 8 samples")
    parser.add_argument(
        "--cold-start-steps", type=int, default=100, help="steps that make the policy"
    )
    parser.add_argument("--model", help="folder of a pretrained model: only that is measured")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch of that model")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of such a row")
    parser.add_argument(
        "--backend",
        choices=["sandbox", "unsafe_local"],
        default="sandbox",
        help="how sampled code is run; not part of any figure",
    )
    return parser.parse_args()


def of_pretrained(threads: int, arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(threads)
    model, tokenizer = load_policy(arguments.model)
    figures = Figures()
    measure_pretrained(
        model,
        tokenizer,
        figures,
        rows=arguments.rows,
        tokens=arguments.tokens,
        repeats=arguments.repeats,
    )
    return {**figures.medians(), "load_average_1_min": os.getloadavg()[0]}


def measure(bench: Bench, threads: int, arguments: argparse.Namespace) -> dict[str, float]:
    torch.set_num_threads(threads)
    figures = Figures()
    engine = TimedEngine(bench.started)
    batch = credited(bench, roll_out(bench, engine))
    began = time.perf_counter()
    repeats = 0
    while repeats == 0 or (
        repeats < arguments.repeats and time.perf_counter() - began < arguments.seconds
    ):
        repeats += 1
        measure_rollout(bench, figures)
        measure_against_generate(bench, engine.asked, figures)
        measure_optimisation(bench, batch, figures)
        measure_cold_start(bench, figures)
    return {**figures.medians(), "repeats": repeats, "load_average_1_min": os.getloadavg()[0]}


def measure_rollout(bench: Bench, figures: Figures) -> None:
    """Adds tokens a second of whole rollouts, and the shares of their parts."""
    engine = TimedEngine(bench.started)
    clock = Clock()
    turns, _ = roll_out(bench, engine, clock)
    tokens = turns["token_ids"].list.len().sum()
    parts = engine.seconds
    figures.add(
        rollout_tokens_per_s=tokens / clock.seconds,
        rollout_tokens=tokens,
        rollout_seconds=clock.seconds,
        rollout_prefill_percent=100 * parts["prefill"] / clock.seconds,
        rollout_decode_forward_percent=100 * parts["decode_forward"] / clock.seconds,
        rollout_drawing_percent=100
        * (parts["generate"] - parts["prefill"] - parts["decode_forward"])
        / clock.seconds,
        rollout_frames_percent=100 * (clock.seconds - parts["generate"]) / clock.seconds,
    )


@dataclass(slots=True)
class Clock:
    """Adds up the seconds of what is called through it."""

    seconds: float = 0.0

    def call(self, work: Callable[[], dy.DataFrame[Turns]]) -> dy.DataFrame[Turns]:
        """Does the work and adds its seconds."""
        started = time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - started
        return result


def roll_out(bench: Bench, engine: TransformersEngine, clock: Clock | None = None) -> Rolled:
    """Samples whole trajectories; the clock runs while turns are sampled, not while code runs."""
    clock = clock or Clock()
    turns, executions = Turns.create_empty(), Executions.create_empty()
    for turn_index in range(bench.config.rollout.max_turns):

        def sample(
            turn_index: int = turn_index,
            turns: dy.DataFrame[Turns] = turns,
            executions: dy.DataFrame[Executions] = executions,
        ) -> dy.DataFrame[Turns]:
            return roll_out_turn(
                bench.prompts,
                turns,
                executions,
                engine=engine,
                dialogue=bench.dialogue,
                config=bench.config.rollout,
                seed=SEED,
                turn_index=turn_index,
            )

        sampled = clock.call(sample)
        executed = execute_turns(
            sampled,
            executor=bench.executor,
            config=bench.config.execution,
            encode_observation=bench.dialogue.encode_observations,
        )
        turns = Turns.validate(pl.concat([turns, sampled]))
        executions = Executions.validate(pl.concat([executions, executed]))
    return turns, executions


def measure_against_generate(bench: Bench, requests: Sequence[Requests], figures: Figures) -> None:
    """Adds tokens a second of the engine and of transformers.generate() on equal requests.

    Once on the turns that a rollout asked for, and once on prompts cut to one length whose
    continuations all run to the limit, where no row waits for another.
    """
    model = bench.started.model
    engine = TransformersEngine(model, bench.started.tokenizer, policy_version=0)
    add_ratio("mixed", engine, model, requests, figures)
    add_ratio("equal_lengths", engine, model, [equal_lengths(requests[0])], figures)


def credited(bench: Bench, rolled: Rolled) -> Batch:
    """Lays a rollout out for training, with advantages drawn at random."""
    turns, executions = rolled
    random = np.random.default_rng(SEED)
    nothing = dict.fromkeys(("reward", "return", "baseline", "scale"), 0.0)
    advantages = Advantages.validate(
        turns.select(TURN_KEY).with_columns(
            **{name: pl.lit(value) for name, value in nothing.items()},
            advantage=pl.Series(random.standard_normal(len(turns))),
            estimator=pl.lit("random"),
            gamma=pl.lit(1.0),
            normalise=pl.lit("none"),
            turn_advantage=pl.lit(None),
            turn_weight=pl.lit(None),
            outcomes_equal=pl.lit(None),
            excluded=pl.lit(None),
        ),
        cast=True,
    )
    return make_batch(bench.prompts, turns, executions, advantages)


def measure_optimisation(bench: Bench, batch: Batch, figures: Figures) -> None:
    """Adds tokens a second of the optimiser steps of one iteration, forward and backward."""
    model = copy.deepcopy(bench.started.model)
    started = time.perf_counter()
    config = bench.config.optimisation
    updates = optimise(model, batch, config, optimiser_state=None, seed=SEED).updates
    seconds = time.perf_counter() - started
    figures.add(
        optimisation_tokens_per_s=len(batch.token_ids) / seconds,
        optimisation_trained_tokens_per_s=updates["tokens"].sum() / seconds,
        optimisation_seconds=seconds,
    )


def measure_cold_start(bench: Bench, figures: Figures, *, steps: int = 15) -> None:
    """Adds tokens a second of cold-start steps, padding left out."""
    updates = train_on_demonstrations(
        copy.deepcopy(bench.started.model),
        tokenise(bench.started.demonstrations.head(512), bench.dialogue),
        bench.config.cold_start.model_copy(update={"steps": steps}),
        pad_id=bench.dialogue.pad_id,
        seed=SEED,
    )[COLD_START_STEPS_SKIPPED:]
    figures.add(cold_start_tokens_per_s=updates["tokens"].sum() / updates["seconds"].sum())


def report(figures: dict[int, dict[str, float]], *, as_json: bool) -> None:
    if as_json:
        rounded = {
            f"threads_{threads}": {name: round(value, 3) for name, value in values.items()}
            for threads, values in figures.items()
        }
        print(json.dumps(rounded, indent=2))
        return
    table = Table("figure (median)", *[f"threads {threads}" for threads in figures])
    for name in next(iter(figures.values())):
        table.add_row(name, *[f"{values[name]:,.2f}" for values in figures.values()])
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
