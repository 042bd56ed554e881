"""TRL's GRPO trainer on the task of a run of this project, an iteration each time it is told to.

A process of `benchmarks.peer_trl`: it waits for a line of its standard input before each iteration,
and writes a line of JSON after it. FOLDER holds `config.json`, the settings of the run, and
`prompts.parquet`, those of all its iterations; the trained policy goes to its folder `policy`.

    python -m benchmarks.trl_training FOLDER POLICY
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # about rollout_func, on each run

import dataframely as dy
import polars as pl
import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.trl_rollout import Meter, ToolLoop
from schemas.config import RunConfig
from schemas.tables import Prompts
from stages.dialogue import make_dialogue
from stages.execution import make_executor
from storage.checkpoints import end_ids, load_policy, save_policy

ROWS_AT_ONCE = 16
"""Most trajectories of a forward pass."""


def settings_of(config: RunConfig, folder: Path) -> Any:
    """Returns TRL's settings for the same training as that of a run's settings.

    Raises:
        ValueError: If TRL cannot cut the trajectories of an iteration into equal minibatches.
    """
    rollout, learning = config.rollout, config.optimisation
    trajectories = rollout.prompts * rollout.samples
    rows = min(ROWS_AT_ONCE, trajectories // learning.minibatches)
    passes, rest = divmod(trajectories, rows * learning.minibatches)
    if rest:
        raise ValueError(
            f"{trajectories} trajectories are no {learning.minibatches} minibatches of passes of "
            f"{rows}: set rollout.prompts or rollout.samples to a multiple"
        )
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        seed=config.seed,
        use_cpu=True,
        # As here: float32, and no block computed twice.
        bf16=False,
        gradient_checkpointing=False,
        num_generations=rollout.samples,
        temperature=rollout.temperature,
        shuffle_dataset=False,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes * learning.minibatches,
        max_steps=config.iterations * learning.minibatches,
        learning_rate=learning.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=learning.weight_decay,
        max_grad_norm=learning.gradient_clip,
        loss_type="dapo",
        epsilon=learning.clip_low,
        epsilon_high=learning.clip_high,
        beta=0.0,
        scale_rewards="group",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def train(folder: Path, policy: Path, meter: Meter) -> None:
    """Trains a policy with TRL and saves it beside what it was trained on."""
    config = RunConfig.model_validate_json((folder / "config.json").read_text())
    torch.set_num_threads(config.compute.threads)
    prompts = prompts_by_iteration(folder)
    model, tokenizer = load_policy(policy)
    loop = ToolLoop(
        prompts=prompts,
        config=config,
        dialogue=make_dialogue(config.rollout.dialogue, tokenizer, end_ids=end_ids(policy)),
        executor=make_executor(config.execution),
        meter=meter,
    )
    problems = pl.concat(prompts)["problem"].to_list()
    trainer: Any = GRPOTrainer(
        model=model,
        reward_funcs=loop.reward,
        rollout_func=loop.rollout,
        args=settings_of(config, folder),
        train_dataset=Dataset.from_dict({"prompt": problems}),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    meter.end()
    trained = folder / "policy"
    trained.mkdir()
    save_policy(trained, trainer.model, tokenizer, None)


def prompts_by_iteration(folder: Path) -> list[dy.DataFrame[Prompts]]:
    """Returns the prompts of every iteration, in the order of the trajectories' keys."""
    frame = pl.read_parquet(folder / "prompts.parquet").sort("iteration", "task_id")
    return [
        Prompts.validate(part.drop("iteration"))
        for part in frame.partition_by("iteration", maintain_order=True)
    ]


def main() -> None:
    """Trains as it is told."""
    reports = sys.stdout

    def wait() -> None:
        if not sys.stdin.readline():
            raise SystemExit("whoever gave the word for an iteration is gone")

    def tell(figures: dict[str, float]) -> None:
        print(json.dumps(figures), file=reports, flush=True)

    with redirect_stdout(sys.stderr):
        train(Path(sys.argv[1]), Path(sys.argv[2]), Meter(wait=wait, tell=tell))


if __name__ == "__main__":
    main()
