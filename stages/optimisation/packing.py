"""Parts of a batch without padding: pieces of token sequences end to end.

A piece is a whole trajectory, a prompt that several trajectories share, or what follows such a
prompt. Which piece sees which is the layout; `stages.optimisation.attention` heeds it.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.optimisation.batches import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Pieces of a pack; each sees its prefix whole and itself up to the token that looks.

    A prompt of 5 tokens with two answers of 3 and 4, then a trajectory of 9 by itself, reads
    `lengths = (5, 3, 4, 9)`, `prefixes = (None, 0, 0, None)`.
    """

    lengths: tuple[int, ...]
    prefixes: tuple[int | None, ...]
    """Index of the piece before it; null for a piece that starts a sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A micro-batch on the device; trained tokens in the order of its trajectories."""

    layout: Layout
    token_ids: torch.Tensor  # [packed]
    position_ids: torch.Tensor  # [packed] places in the token's own trajectory
    predictors: torch.Tensor  # [trained] place in the pack of the token before
    targets: torch.Tensor  # [trained] token ids
    places: NDArray[np.int64]  # [trained] place in the batch
    trajectories: torch.Tensor  # [trained] number of the trajectory in the pack
    temperatures: torch.Tensor  # [trained]
    top_ps: torch.Tensor  # [trained]
    top_ks: torch.Tensor  # [trained]

    def of(self, values: NDArray[np.generic]) -> torch.Tensor:
        """Returns those of [tokens] values of the batch that belong to trained tokens."""
        return torch.from_numpy(values[self.places]).to(self.targets.device)


def split_by_tokens(
    batch: Batch, trajectories: NDArray[np.int64], max_tokens: int, *, pairs_per_token: int
) -> Iterator[NDArray[np.int64]]:
    """Yields parts whose packs hold at most `max_tokens`; a longer trajectory is one of its own.

    Trajectories stay in order, but for those of one prompt, which follow the first of them.

    Args:
        batch: What the trajectories are of.
        trajectories: Indices.
        max_tokens: Tokens of a pack, a shared prompt counted once.
        pairs_per_token: As in `worth_sharing`.
    """
    prompts = shared_prompts(batch, trajectories, pairs_per_token)
    first = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    order = np.argsort([first[prompt] for prompt in prompts], kind="stable")
    part: list[int] = []
    there: set[bytes | int] = set()
    size = 0
    for index in order:
        trajectory, prompt = int(trajectories[index]), prompts[index]
        length, shared = int(batch.lengths[trajectory]), int(batch.prompt_lengths[trajectory])
        if part and size + length - (shared if prompt in there else 0) > max_tokens:
            yield np.array(part, dtype=np.int64)
            part, there, size = [], set(), 0
        size += length - (shared if prompt in there else 0)
        there.add(prompt)
        part.append(trajectory)
    if part:
        yield np.array(part, dtype=np.int64)


def make_pack(
    batch: Batch, trajectories: NDArray[np.int64], device: torch.device, *, pairs_per_token: int
) -> Pack:
    """Lays trajectories end to end; a prompt that several share stands there once.

    Args:
        batch: What the trajectories are of.
        trajectories: Indices; at least one.
        device: Where the pack goes.
        pairs_per_token: As in `worth_sharing`.
    """
    prompts = shared_prompts(batch, trajectories, pairs_per_token)
    users = Counter(prompts)
    lengths: list[int] = []
    prefixes: list[int | None] = []
    packed: list[NDArray[np.int64]] = []  # tokens of the batch, piece by piece
    positions: list[NDArray[np.int64]] = []
    predictors: list[NDArray[np.int64]] = []
    pieces: dict[bytes | int, tuple[int, int]] = {}  # of a shared prompt: index, last place

    def add(start: int, end: int, first_position: int, prefix: int | None) -> None:
        lengths.append(end - start)
        prefixes.append(prefix)
        packed.append(np.arange(start, end))
        positions.append(np.arange(first_position, first_position + end - start))

    place = 0
    for trajectory, prompt in zip(trajectories, prompts, strict=True):
        start, end = int(batch.offsets[trajectory]), int(batch.offsets[trajectory + 1])
        before = 0 if users[prompt] == 1 else int(batch.prompt_lengths[trajectory])
        if before and prompt not in pieces:
            add(start, start + before, 0, None)
            place += before
            pieces[prompt] = (len(lengths) - 1, place - 1)
        prefix, last = pieces.get(prompt, (None, -1))
        trained = np.flatnonzero(batch.trained[start + before : end])
        predictors.append(np.where(trained > 0, place + trained - 1, last))
        add(start + before, end, before, prefix)
        place += end - start - before

    def tensor(values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    learned = batch.places(trajectories)
    counts = [len(of_trajectory) for of_trajectory in predictors]
    return Pack(
        layout=Layout(lengths=tuple(lengths), prefixes=tuple(prefixes)),
        token_ids=tensor(batch.token_ids[np.concatenate(packed)]),
        position_ids=tensor(np.concatenate(positions)),
        predictors=tensor(np.concatenate(predictors)),
        targets=tensor(batch.token_ids[learned]),
        places=learned,
        trajectories=tensor(np.arange(len(counts)).repeat(counts)),
        temperatures=tensor(batch.temperatures[trajectories].repeat(counts)),
        top_ps=tensor(batch.top_ps[trajectories].repeat(counts)),
        top_ks=tensor(batch.top_ks[trajectories].repeat(counts)),
    )


def worth_sharing(prompt: int, rest: int, pairs_per_token: int) -> bool:
    """Whether a trajectory computes less when its prompt is computed elsewhere.

    It saves the matrices of the prompt's tokens. Attention over whole trajectories looks at
    (prompt + rest)^2 / 2 pairs of tokens; that of the rest alone goes through a mask over
    rest (prompt + rest) pairs, which is more if the rest is the longer part.

    Args:
        prompt: Tokens of the prompt.
        rest: Tokens that follow.
        pairs_per_token: Pairs whose attention costs what the matrices cost for a token; 0 never
            shares.
    """
    more_pairs = (prompt + rest) * (rest - prompt) / 2
    return prompt * pairs_per_token > max(0.0, more_pairs)


def shared_prompts(
    batch: Batch, trajectories: NDArray[np.int64], pairs_per_token: int
) -> list[bytes | int]:
    """Returns what trajectories that may share a prompt have in common; else their own number."""
    found: list[bytes | int] = []
    for trajectory in trajectories:
        start, prompt = int(batch.offsets[trajectory]), int(batch.prompt_lengths[trajectory])
        rest = int(batch.lengths[trajectory]) - prompt
        if worth_sharing(prompt, rest, pairs_per_token):
            found.append(batch.token_ids[start : start + prompt].tobytes())
        else:
            found.append(int(trajectory))
    return found
