"""Shares of a step's trajectories."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.optimisation import Batch
from stages.optimisation.balance import balanced_shares
from tests.stages.optimisation.optimisation_batches import grouped_batch, ragged_batch


def shares_of(batch: Batch, shares: int, pairs: int = 0) -> list[np.ndarray]:
    return balanced_shares(batch, np.arange(len(batch)), shares, pairs_per_token=pairs)


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(2, 60), max_size=30), shares=st.integers(1, 5))
def test_every_trajectory_is_in_one_share(lengths: list[int], shares: int) -> None:
    found = shares_of(ragged_batch(lengths), shares)
    assert len(found) == shares
    assert sorted(np.concatenate(found)) == list(range(len(lengths)))


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=30), shares=st.integers(1, 5))
def test_the_heaviest_share_is_within_a_third_of_the_best_there_can_be(
    lengths: list[int], shares: int
) -> None:
    heaviest = max(
        sum(lengths[t] for t in share) for share in shares_of(ragged_batch(lengths), shares)
    )
    assert heaviest <= 4 / 3 * sum(lengths) / shares + max(lengths)
    assert heaviest >= max(lengths)


def test_a_shared_prompt_stays_on_one_process_where_shares_come_out_even() -> None:
    batch = grouped_batch([3, 3], prompt=20, samples=4)
    assert [sorted(share) for share in shares_of(batch, 2, pairs=10_000)] in (
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[4, 5, 6, 7], [0, 1, 2, 3]],
    )


def test_a_group_is_cut_rather_than_left_to_one_process() -> None:
    batch = grouped_batch([30], prompt=20, samples=8)
    assert [len(share) for share in shares_of(batch, 2, pairs=10_000)] == [4, 4]
