"""A rollout of several turns as TRL's GRPO trainer takes it from its users: a `rollout_func`.

The embedded policy has no chat template, so TRL's own loop of tool calls cannot serve it. What a
user would write is here: `model.generate()` of transformers on all open trajectories, turn by turn.
The format of the dialogue, the limits, the sandbox and the reward are this project's, so that both
trainers do the same task.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dataframely as dy
import polars as pl
from transformers import PreTrainedModel

from benchmarks.against_generate import generated_rows
from schemas.config import RunConfig
from schemas.tables import TURN_KEY, Executions, Prompts, Turns
from stages.dialogue import Dialogue
from stages.execution import Executor, execute_turns
from stages.rollout import roll_out_turn
from stages.rollout.engine import Capabilities, Generations, Requests
from stages.turn_rewards import score_turns


@dataclass(slots=True, kw_only=True)
class GenerateEngine:
    """Samples with `model.generate()`; a row's randomness is that of torch, not of its seed."""

    model: PreTrainedModel
    policy_version: int
    seconds: float = 0.0
    """Wall time of all calls."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(live_weights=False, prefix_cache=False)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of a context with its continuation."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def update_weights(self, folder: str, policy_version: int) -> None:
        """Never happens: the trainer changes the model itself."""
        raise NotImplementedError

    def generate(self, requests: Requests) -> Generations:
        """Samples a continuation of every context; its log-probabilities are left at 0.

        TRL computes them itself, with a further pass.
        """
        began = time.perf_counter()
        output, sampled = generated_rows(self.model, requests)
        token_ids = [
            [token for token, chosen in zip(*row, strict=True) if chosen][:limit]
            for *row, limit in zip(
                output.tolist(), sampled.tolist(), requests.max_new_tokens.tolist(), strict=True
            )
        ]
        self.seconds += time.perf_counter() - began
        return Generations(
            token_ids=token_ids,
            logprobs=[[0.0] * len(row) for row in token_ids],
            stopped=[bool(row) and row[-1] in requests.stop_ids for row in token_ids],
            policy_version=self.policy_version,
        )


@dataclass(slots=True, kw_only=True)
class Meter:
    """Measures iterations, which begin when somebody says so."""

    wait: Callable[[], None]
    """Waits until the next iteration may begin."""
    tell: Callable[[dict[str, float]], None]
    """Takes the figures of an iteration."""
    figures: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    processor_began: float = 0.0

    def begin(self) -> None:
        """Ends the iteration before, if there was one, and waits for the next one."""
        if self.figures:
            self.end()
        self.wait()
        self.began, self.processor_began = time.perf_counter(), time.process_time()

    def end(self) -> None:
        """Tells the figures of an iteration."""
        took = {
            "seconds": time.perf_counter() - self.began,
            "processor_s": time.process_time() - self.processor_began,
        }
        self.tell({**took, **self.figures})
        self.figures = {}


@dataclass(slots=True, kw_only=True)
class ToolLoop:
    """Rolls prompts out turn by turn, and rewards what came of it, as TRL calls it."""

    prompts: list[dy.DataFrame[Prompts]]
    """Of every iteration, sorted by task, in the order in which TRL asks for them."""
    config: RunConfig
    dialogue: Dialogue
    executor: Executor
    meter: Meter
    iteration: int = 0
    rewards: list[float | None] = field(default_factory=list)
    """Of the trajectories of the last rollout."""

    def rollout(self, prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        """Returns tokens of trajectories, and a mask of those that the policy sampled.

        Args:
            prompts: Problems, each as often as its group has trajectories.
            trainer: TRL's.
        """
        self.meter.begin()
        asked = self.prompts[self.iteration]
        samples = self.config.rollout.samples
        if prompts != asked["problem"].repeat_by(samples).explode().to_list():
            raise RuntimeError(f"TRL asks for other prompts in iteration {self.iteration + 1}")
        began = time.perf_counter()
        engine = GenerateEngine(model=trainer.model, policy_version=self.iteration)
        turns, executions = self._roll_out(asked, engine)
        completion_ids, mask = joined(turns, executions)
        ended = time.perf_counter()
        self.rewards = (
            score_turns(asked, turns, executions, self.config.turn_rewards)
            .filter(pl.col("turn_index") == 0)["grpo_reward"]
            .to_list()
        )
        self.iteration += 1
        self.meter.figures = {
            "rollout_s": ended - began,
            "generation_s": engine.seconds,
            "tokens": float(turns["token_ids"].list.len().sum()),
        }
        return {
            "prompt_ids": [
                row for row in asked["prompt_token_ids"].to_list() for _ in range(samples)
            ],
            "completion_ids": completion_ids,
            # Read by TRL only where vLLM sampled.
            "logprobs": [[0.0] * len(row) for row in completion_ids],
            "env_mask": mask,
        }

    def reward(self, completions: list[str], **_: object) -> list[float | None]:
        """Returns the reward of the trajectories of the last rollout; null if it is not known."""
        return self.rewards

    def _roll_out(
        self, asked: dy.DataFrame[Prompts], engine: GenerateEngine
    ) -> tuple[dy.DataFrame[Turns], dy.DataFrame[Executions]]:
        turns, executions = Turns.create_empty(), Executions.create_empty()
        last = self.config.rollout.max_turns - 1
        for turn in range(last + 1):
            said = roll_out_turn(
                asked,
                turns,
                executions,
                engine=engine,
                dialogue=self.dialogue,
                config=self.config.rollout,
                seed=0,
                turn_index=turn,
            )
            turns = Turns.validate(pl.concat([turns, said]))
            if turn < last:
                done = execute_turns(
                    said,
                    executor=self.executor,
                    config=self.config.execution,
                    encode_observation=self.dialogue.encode_observations,
                )
                executions = Executions.validate(pl.concat([executions, done]))
        return turns, executions


def joined(
    turns: dy.DataFrame[Turns], executions: dy.DataFrame[Executions]
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns all tokens after each prompt, and 1 for each that was sampled, 0 for the inserted.

    In the order of the trajectories' keys. What was shown after a last turn is left out.
    """
    history = (
        turns.join(executions, on=TURN_KEY, how="left")
        .sort(TURN_KEY)
        .select("turn_index", "token_ids", pl.col("observation_token_ids").fill_null([]))
    )
    rows: list[list[int]] = []
    masks: list[list[int]] = []
    shown: list[int] = []
    for index, sampled, observed in history.iter_rows():
        if index == 0:
            rows.append([])
            masks.append([])
        else:
            rows[-1] += shown
            masks[-1] += [0] * len(shown)
        rows[-1] += sampled
        masks[-1] += [1] * len(sampled)
        shown = observed
    return rows, masks
