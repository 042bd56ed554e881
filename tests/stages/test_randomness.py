"""Random streams: addressed by key alone, and even."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.randomness import derive_seed, turn_seeds, uniforms
from tests.stages.reward_frames import LAW

SEEDS = st.integers(0, 2**63 - 1)
TURNS = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)), min_size=1, max_size=8)


def seeds_of(turns: list[tuple[str, int]], *, seed: int = 7, turn_index: int = 0) -> list[int]:
    samples = np.array([sample for _, sample in turns], dtype=np.int64)
    return turn_seeds(seed, [task for task, _ in turns], samples, turn_index).tolist()


def chi_square(numbers: np.ndarray, bins: int) -> float:
    counts = np.bincount((numbers * bins).astype(np.int64), minlength=bins)
    expected = len(numbers) / bins
    return float(((counts - expected) ** 2 / expected).sum())


# derive_seed


def test_derived_seeds_depend_on_where_parts_end() -> None:
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert derive_seed("ab") != derive_seed("a", "b")


def test_derived_seeds_depend_on_the_order_of_parts() -> None:
    assert derive_seed("a", "b") != derive_seed("b", "a")


@LAW
@given(parts=st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_derived_seeds_fit_into_63_bits(parts: list[object]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63


def test_derived_seeds_are_the_same_in_every_release() -> None:
    assert derive_seed(0, "weights") == 7831180306208225803


# turn_seeds


@LAW
@given(turns=TURNS, seed=SEEDS, turn_index=st.integers(0, 20))
def test_a_turns_seed_does_not_depend_on_the_turns_beside_it(
    turns: list[tuple[str, int]], seed: int, turn_index: int
) -> None:
    alone = [seeds_of([turn], seed=seed, turn_index=turn_index)[0] for turn in turns]
    assert seeds_of(turns, seed=seed, turn_index=turn_index) == alone


@LAW
@given(turns=TURNS, order=st.randoms(use_true_random=False))
def test_turn_seeds_follow_their_turns_through_any_order(
    turns: list[tuple[str, int]], order: Random
) -> None:
    by_turn = dict(zip(turns, seeds_of(turns), strict=True))
    order.shuffle(turns)
    assert seeds_of(turns) == [by_turn[turn] for turn in turns]


def test_turn_seeds_of_different_turns_differ() -> None:
    turns = [(f"task{task}", sample) for task in range(40) for sample in range(16)]
    seeds = {
        value
        for seed in range(3)
        for turn_index in range(5)
        for value in seeds_of(turns, seed=seed, turn_index=turn_index)
    }
    assert len(seeds) == 3 * 5 * len(turns)


def test_turn_seeds_fit_into_63_bits() -> None:
    seeds = seeds_of([("a", sample) for sample in range(1_000)])
    assert 0 <= min(seeds) < 2**62 <= max(seeds) < 2**63


def test_turn_seeds_of_no_turn_are_empty() -> None:
    assert seeds_of([]) == []


# uniforms


def test_uniforms_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    numbers = uniforms(np.array([1234567]), 4)[0]
    assert numbers.tolist() == [(value >> 11) * 2.0**-53 for value in published]


@LAW
@given(seeds=st.lists(SEEDS, min_size=1, max_size=6), count=st.integers(0, 12))
def test_a_stream_is_the_same_alone_and_beside_others(seeds: list[int], count: int) -> None:
    together = uniforms(np.array(seeds), count)
    alone = np.concatenate([uniforms(np.array([seed]), count) for seed in seeds])
    np.testing.assert_array_equal(together, alone)


@LAW
@given(seed=SEEDS, count=st.integers(1, 12), more=st.integers(0, 12))
def test_a_longer_stream_begins_with_the_shorter_one(seed: int, count: int, more: int) -> None:
    longer = uniforms(np.array([seed]), count + more)
    np.testing.assert_array_equal(longer[:, :count], uniforms(np.array([seed]), count))


@LAW
@given(seeds=st.lists(SEEDS, max_size=6), count=st.integers(0, 40))
def test_uniforms_lie_in_the_half_open_unit_interval(seeds: list[int], count: int) -> None:
    numbers = uniforms(np.array(seeds, dtype=np.int64), count)
    assert numbers.shape == (len(seeds), count)
    assert ((numbers >= 0) & (numbers < 1)).all()


# Chi-square of 63 degrees of freedom exceeds 130 once in a million; the seeds are fixed.


def test_uniforms_of_one_stream_are_even() -> None:
    assert chi_square(uniforms(np.array([5]), 65_536)[0], 64) < 130


def test_uniforms_of_neighbouring_seeds_are_even() -> None:
    assert chi_square(uniforms(np.arange(65_536), 1)[:, 0], 64) < 130


def test_first_draws_of_the_turns_of_a_rollout_are_even() -> None:
    turns = [(f"task{task}", sample) for task in range(512) for sample in range(32)]
    assert chi_square(uniforms(np.array(seeds_of(turns)), 1)[:, 0], 64) < 130


def test_neighbouring_draws_of_a_stream_are_not_correlated() -> None:
    numbers = uniforms(np.arange(256), 257)
    together = np.floor(numbers[:, :-1] * 8) * 8 + np.floor(numbers[:, 1:] * 8)
    assert chi_square(together.ravel() / 64, 64) < 130
