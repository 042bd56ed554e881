"""Packs: every trajectory once, within the budget, a shared prompt once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.optimisation import Batch
from stages.optimisation.packing import Layout, make_pack, split_by_tokens, worth_sharing
from tests.stages.optimisation.optimisation_batches import grouped_batch, ragged_batch, replaced

CPU = torch.device("cpu")
ALWAYS, NEVER = 10**9, 0


def everything(batch: Batch) -> np.ndarray:
    return np.arange(len(batch))


def test_layout_token_for_token() -> None:
    batch = grouped_batch([2, 3], prompt=2, samples=2, seed=1)
    batch = replaced(
        batch,
        token_ids=np.array([1, 2, 11, 12, 1, 2, 21, 22, 3, 4, 31, 32, 33, 3, 4, 41, 42, 43]),
        trained=np.array([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 1]) > 0,
    )
    pack = make_pack(batch, np.array([0, 3, 1]), CPU, pairs_per_token=ALWAYS)
    assert pack.layout == Layout(lengths=(2, 2, 5, 2), prefixes=(None, 0, None, 0))
    assert pack.token_ids.tolist() == [1, 2, 11, 12, 3, 4, 41, 42, 43, 21, 22]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 2, 3]
    assert pack.targets.tolist() == [11, 12, 41, 42, 43, 22]
    assert pack.predictors.tolist() == [1, 2, 5, 6, 7, 9]


@settings(deadline=None, max_examples=60)
@given(
    rests=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    samples=st.integers(1, 4),
    seed=st.integers(0, 99),
    pairs=st.sampled_from([NEVER, 20, ALWAYS]),
)
def test_every_trajectory_reads_as_it_was(
    rests: list[int], samples: int, seed: int, pairs: int
) -> None:
    batch = grouped_batch(rests, prompt=7, samples=samples, seed=seed)
    order = np.random.default_rng(seed).permutation(len(batch))
    pack = make_pack(batch, order, CPU, pairs_per_token=pairs)
    pieces = pack.token_ids.split(pack.layout.lengths)
    used = {prefix for prefix in pack.layout.prefixes if prefix is not None}
    read = [
        [*([] if prefix is None else pieces[prefix].tolist()), *pieces[index].tolist()]
        for index, prefix in enumerate(pack.layout.prefixes)
        if index not in used
    ]
    rows = [slice(batch.offsets[t], batch.offsets[t + 1]) for t in order]
    assert read == [batch.token_ids[row].tolist() for row in rows]
    learned = np.concatenate([batch.token_ids[row][batch.trained[row]] for row in rows])
    assert pack.targets.tolist() == learned.tolist()
    before = np.concatenate([batch.token_ids[row][:-1][batch.trained[row][1:]] for row in rows])
    assert pack.token_ids[pack.predictors].tolist() == before.tolist()


@settings(deadline=None, max_examples=60)
@given(
    rests=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    samples=st.integers(1, 4),
    budget=st.integers(1, 300),
    pairs=st.sampled_from([NEVER, 20, ALWAYS]),
)
def test_parts_hold_every_trajectory_once_within_the_budget(
    rests: list[int], samples: int, budget: int, pairs: int
) -> None:
    batch = grouped_batch(rests, prompt=9, samples=samples)
    order = np.random.default_rng(0).permutation(len(batch))
    parts = list(split_by_tokens(batch, order, budget, pairs_per_token=pairs))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(batch)))
    for part in parts:
        pack = make_pack(batch, part, CPU, pairs_per_token=pairs)
        assert len(part) == 1 or len(pack.token_ids) <= budget


def test_a_prompt_that_groups_share_stands_once() -> None:
    batch = grouped_batch([10, 12], prompt=8, samples=4)
    pack = make_pack(batch, everything(batch), CPU, pairs_per_token=ALWAYS)
    assert len(pack.token_ids) == 2 * 8 + 4 * 10 + 4 * 12


def test_lone_trajectories_are_not_taken_apart() -> None:
    batch = ragged_batch([5, 9, 3])
    pack = make_pack(batch, everything(batch), CPU, pairs_per_token=ALWAYS)
    assert pack.layout == Layout(lengths=(5, 9, 3), prefixes=(None, None, None))


@pytest.mark.parametrize(
    ("prompt", "rest", "shares"), [(128, 128, True), (64, 128, True), (8, 500, False)]
)
def test_a_short_prompt_of_long_answers_is_not_shared(prompt: int, rest: int, shares: bool) -> None:
    assert worth_sharing(prompt, rest, 576) is shares
    assert not worth_sharing(prompt, rest, NEVER)
