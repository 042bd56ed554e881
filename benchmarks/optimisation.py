"""Measures an optimiser step's gradient against a plain loop over padded rows.

The plain loop is what one writes first: rows padded to the longest of their micro-batch, logits of
every token, one softmax over all of them. Both compute the same loss of the same trajectories,
with the same tokens a micro-batch; the gradients are compared. Ways take turns, and each has the
shortest of several repeats: other work on the machine only ever adds. With `--memory` each way
computes once more in a process of its own, with a vocabulary as large as those of pretrained
models; its memory is what the step needs beside the model. Where TRL is installed (the extra
`trl`), the loss step of its GRPO trainer takes part, in float32 and without recomputing blocks.

    python -m benchmarks.optimisation --threads 1
    python -m benchmarks.optimisation --memory
"""

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from schemas.optimisation import OptimisationConfig
from stages.optimisation import Batch
from stages.optimisation.aggregation import token_weights
from stages.optimisation.forward import trained_logprobs
from stages.optimisation.losses import Tokens, clipped
from stages.optimisation.objective import Objective
from stages.optimisation.packing import make_pack, split_by_tokens
from stages.optimisation.trace import Trace

CPU = torch.device("cpu")
GROUP = 16
MIB = 2**20
Step = Callable[[PreTrainedModel, Batch, OptimisationConfig], None]


def make_batch(answers: NDArray[np.int64], *, prompt: int, vocabulary: int, seed: int = 0) -> Batch:
    """Returns trajectories of groups of `GROUP`, each a prompt and an answer of that many tokens.

    Every fourth token of an answer is an observation, which is not trained.
    """
    random = np.random.default_rng(seed)
    prompts = random.integers(vocabulary, size=(-(-len(answers) // GROUP), prompt))
    ids = [
        np.concatenate([prompts[i // GROUP], random.integers(vocabulary, size=length)])
        for i, length in enumerate(answers)
    ]
    places = [np.arange(len(row)) for row in ids]
    trained = np.concatenate([(p >= prompt) & (p % 4 > 0) for p in places])
    rows = len(answers)
    return Batch(
        token_ids=np.concatenate(ids).astype(np.int64),
        trained=trained,
        logprobs=np.where(trained, -np.log(vocabulary), 0).astype(np.float32),
        advantages=np.where(trained, random.standard_normal(len(trained)), 0).astype(np.float32),
        turns=np.where(trained, np.repeat(np.arange(rows), [len(row) for row in ids]), -1),
        turn_keys=pl.DataFrame(
            {"task_id": [f"t{i // GROUP}" for i in range(rows)]},
        ).with_columns(
            sample_index=pl.int_range(rows, dtype=pl.Int32) % GROUP,
            turn_index=pl.lit(0, pl.Int32),
        ),
        temperatures=np.ones(rows, dtype=np.float32),
        top_ps=np.ones(rows, dtype=np.float32),
        top_ks=np.zeros(rows, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64),
        prompt_lengths=np.full(rows, prompt, dtype=np.int64),
    )


def make_model(hidden: int, vocabulary: int) -> PreTrainedModel:
    """Returns a policy of the embedded one's shape, four layers."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden // 4,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def of_one_turn(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor
) -> Tokens:
    """Returns tokens for a loss that looks at each by itself."""
    nothing = torch.zeros(len(logprobs), dtype=torch.long)
    return Tokens(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        trajectories=nothing,
        turns=nothing,
    )


def packed_alone(model: PreTrainedModel, batch: Batch, config: OptimisationConfig) -> None:
    """The same without sharing the prompt of a group."""
    everything = np.arange(len(batch))
    for part in split_by_tokens(batch, everything, config.micro_batch_tokens, pairs_per_token=0):
        pack = make_pack(batch, part, CPU, pairs_per_token=0)
        logprobs, _ = trained_logprobs(model, pack, config)
        old, advantages = pack.of(batch.logprobs), pack.of(batch.advantages)
        found = clipped(of_one_turn(logprobs, old, advantages), config)
        (found.loss.sum() / int(batch.trained.sum())).backward()


def whole(model: PreTrainedModel, batch: Batch, config: OptimisationConfig) -> None:
    """The project's own way as the stage goes it, with all that it notes on the way."""
    objective = Objective.of(
        model, batch, config, reference_logprobs=None, on_part=lambda done, of: None
    )
    everything = np.arange(len(batch))
    objective.accumulate(everything, token_weights(batch, everything, config), Trace.of(batch))


def padded(model: PreTrainedModel, batch: Batch, config: OptimisationConfig) -> None:
    """The plain loop: rows in their order, as many as fit when all are as long as the longest."""
    rows = max(1, config.micro_batch_tokens // int(batch.lengths.max()))
    for start in range(0, len(batch), rows):
        part = range(start, min(start + rows, len(batch)))
        shape = (len(part), int(batch.lengths[part.start : part.stop].max()))
        columns = {}
        for name in ("token_ids", "trained", "logprobs", "advantages"):
            values = getattr(batch, name)
            rectangle = np.zeros(shape, dtype=values.dtype)
            for row, index in enumerate(part):
                own = values[batch.offsets[index] : batch.offsets[index + 1]]
                rectangle[row, : len(own)] = own
            columns[name] = torch.from_numpy(rectangle)
        logits = model(input_ids=columns["token_ids"], use_cache=False).logits[:, :-1]
        chosen = columns["trained"][:, 1:]
        distribution = torch.log_softmax(logits.float(), dim=-1)
        logprobs = distribution.gather(2, columns["token_ids"][:, 1:, None])[..., 0][chosen]
        old, advantages = columns["logprobs"][:, 1:][chosen], columns["advantages"][:, 1:][chosen]
        found = clipped(of_one_turn(logprobs, old, advantages), config)
        (found.loss.sum() / int(batch.trained.sum())).backward()


WAYS: dict[str, Step] = {
    "padded": padded,
    "packed": packed_alone,
    "shared prompts": whole,
}


def ways_for(model: PreTrainedModel) -> dict[str, Step]:
    """Returns the ways to compare on a model; TRL's is among them where it is installed."""
    if importlib.util.find_spec("trl") is None:
        return WAYS
    from benchmarks.trl_step import trl_step

    return {**WAYS, "TRL": trl_step(model, OptimisationConfig())}


def gradient_of(step: Step, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Returns all gradients of a step, end to end."""
    model.zero_grad(set_to_none=True)
    step(model, batch, OptimisationConfig())
    grads = [weights.grad for weights in model.parameters() if weights.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


def compare(name: str, answers: NDArray[np.int64], *, prompt: int, hidden: int, table: Table,
            repeats: int) -> None:  # fmt: skip
    """Measures all ways on one batch and adds a row for each."""
    model = make_model(hidden, 512)
    batch = make_batch(answers, prompt=prompt, vocabulary=512)
    expected = gradient_of(padded, model, batch)
    ways = ways_for(model)
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for way, step in ways.items():
            model.zero_grad(set_to_none=True)
            began = time.perf_counter()
            step(model, batch, OptimisationConfig())
            seconds[way] = min(seconds[way], time.perf_counter() - began)
    for way, step in ways.items():
        off = (gradient_of(step, model, batch) - expected).norm() / expected.norm()
        table.add_row(
            name,
            way,
            f"{int(batch.lengths.sum()) / seconds[way]:,.0f}",
            f"{seconds['padded'] / seconds[way]:.2f}",
            f"{float(off):.0e}",
        )


def measure_memory(way: str, vocabulary: int) -> None:
    """Prints how many bytes a step of this process adds to its memory at most."""
    model = make_model(96, vocabulary)
    answers = np.full(GROUP, 128)
    batch = make_batch(answers, prompt=32, vocabulary=vocabulary)
    # Gradients are there before, as after any step of a training.
    for weights in model.parameters():
        weights.grad = torch.zeros_like(weights)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use so far
    before = _status("VmRSS")
    WAYS[way](model, batch, OptimisationConfig())
    print(_status("VmHWM") - before)


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"the system does not tell {name}")
    return int(found[1]) * 1024


def compare_memory(vocabulary: int) -> Table:
    """Returns what each way needs, in a process of its own."""
    table = Table("way", "MiB beside the model", "of padded")
    used = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.optimisation"]
        command += ["--measure", way, "--vocabulary", str(vocabulary)]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        used[way] = int(told.stdout)
        table.add_row(way, f"{used[way] / MIB:,.0f}", f"{used[way] / used['padded']:.2f}")
    return table


def main() -> None:
    """Reads the options and prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--memory", action="store_true", help="measure memory, not speed")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.measure:
        measure_memory(asked.measure, asked.vocabulary)
        return
    console = Console()
    if asked.memory:
        console.print(compare_memory(asked.vocabulary))
        return
    table = Table("lengths", "way", "tokens/s", "times padded", "gradient off by")
    ragged = np.random.default_rng(1).lognormal(4.4, 0.7, 8 * GROUP).clip(12, 700).astype(np.int64)
    cases = {
        "as in rollouts": (ragged, 30),
        "equal": (np.full(8 * GROUP, 120), 30),
        "prompts as long as answers": (np.full(4 * GROUP, 128), 128),
    }
    for name, (answers, prompt) in cases.items():
        with console.status(f"measuring {name}"):
            compare(name, answers, prompt=prompt, hidden=asked.hidden, table=table,
                    repeats=asked.repeats)  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
