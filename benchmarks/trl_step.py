"""TRL's GRPO loss step on a batch of this project: the same tokens, credit, bounds and mean.

The trainer is TRL's own, made with a dataset that nobody reads; only its loss runs.
"""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from schemas.config import PolicyConfig
from schemas.optimisation import OptimisationConfig
from stages.cold_start.tiny_policy import make_tokenizer
from stages.optimisation import Batch


def trl_step(
    model: PreTrainedModel, config: OptimisationConfig
) -> Callable[[PreTrainedModel, Batch, OptimisationConfig], None]:
    """Returns a step of TRL's trainer, on a copy of a model; the gradient goes to the model itself.

    Raises:
        ImportError: If TRL is not installed: `pip install "turnledger[trl]"`.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    trainer: Any = GRPOTrainer(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            report_to="none",
            per_device_train_batch_size=2,
            num_generations=2,
            loss_type="dapo",
            epsilon=config.clip_low,
            epsilon_high=config.clip_high,
            beta=0.0,
            # As here: float32, and no block computed twice.
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": "1"}]),
        processing_class=make_tokenizer(["1 2 3"], PolicyConfig()),
    )
    trainer.current_gradient_accumulation_steps = 1

    def step(model: PreTrainedModel, batch: Batch, config: OptimisationConfig) -> None:
        rows = max(1, config.micro_batch_tokens // int(batch.lengths.max()))
        total = torch.tensor(float(batch.trained.sum()))
        for start in range(0, len(batch), rows):
            part = np.arange(start, min(start + rows, len(batch)))
            inputs = _inputs(batch, part) | {"num_items_in_batch": total}
            trainer._compute_loss(trainer.model, inputs).backward()
        for ours, theirs in zip(model.parameters(), trainer.model.parameters(), strict=True):
            ours.grad, theirs.grad = theirs.grad, None

    return step


def _inputs(batch: Batch, part: NDArray[np.int64]) -> dict[str, torch.Tensor]:
    """Returns trajectories as TRL pads them: prompts on the left, what follows on the right."""
    prompts, lengths = batch.prompt_lengths[part], batch.lengths[part]
    prompt_width, width = int(prompts.max()), int((lengths - prompts).max())
    answers = {
        name: np.zeros((len(part), width), dtype=getattr(batch, name).dtype)
        for name in ("token_ids", "trained", "logprobs", "advantages")
    }
    prompt_ids = np.zeros((len(part), prompt_width), dtype=np.int64)
    for row, index in enumerate(part):
        start, end = batch.offsets[index], batch.offsets[index + 1]
        prompt = int(batch.prompt_lengths[index])
        prompt_ids[row, prompt_width - prompt :] = batch.token_ids[start : start + prompt]
        for name, values in answers.items():
            values[row, : end - start - prompt] = getattr(batch, name)[start + prompt : end]
    tensors = {name: torch.from_numpy(values) for name, values in answers.items()}
    places, before = np.arange(width)[None], np.arange(prompt_width)[None]
    return {
        "prompt_ids": torch.from_numpy(prompt_ids),
        "prompt_mask": torch.from_numpy((before >= prompt_width - prompts[:, None]).astype(int)),
        "completion_ids": tensors["token_ids"],
        "completion_mask": torch.from_numpy((places < (lengths - prompts)[:, None]).astype(int)),
        "tool_mask": tensors["trained"].long(),
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors["logprobs"],
    }
