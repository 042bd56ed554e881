"""Task families: their code prints what they compute, and the two sides never meet."""

import re
from collections import Counter
from itertools import islice, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cold_start.families import (
    FAMILIES,
    HELD_OUT_ONE_IN,
    LARGEST_VALUE,
    EmbeddedProblem,
    Family,
    Split,
    draw_problems,
)
from tests.stages.cold_start.cold_start_builders import LEVELS, output_of
from tests.stages.reward_frames import LAW

RANDOMS = st.integers(0, 2**32).map(Random)


def drawn(
    count: int, *, split: Split = "train", levels: tuple[int, ...] = LEVELS, seed: int = 0
) -> list[EmbeddedProblem]:
    return list(islice(draw_problems(Random(seed), split=split, levels=levels), count))


def pattern_of(wording: str) -> re.Pattern[str]:
    """Returns a pattern that finds the parameters in a sentence of this wording."""
    return re.compile(re.sub(r"\\\{\d\\\}", r"(\\d+)", re.escape(wording)))


def meaning_of(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Reads a problem text without its wording: names of the families, with parameters."""
    opening, *sentences = re.findall(r"[^.?]+[.?]", text)
    read = [("start", tuple(re.findall(r"\d+", opening)))]
    for sentence in (part.strip() for part in sentences):
        (found,) = {
            (family.name, match.groups())
            for family in FAMILIES
            for wording in family.wordings
            if (match := pattern_of(wording).fullmatch(sentence))
        }
        read.append(found)
    return read


@pytest.fixture(scope="module")
def problems() -> list[EmbeddedProblem]:
    return drawn(3_000)


# A family


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@LAW
@given(random=RANDOMS, data=st.data())
def test_the_code_of_a_family_prints_what_it_computes(
    family: Family, random: Random, data: st.DataObject
) -> None:
    x = data.draw(st.integers(1, family.largest_input))
    parameters = family.draw(random)
    printed = output_of(family.code.format(*parameters, x=x))
    assert printed == f"{family.compute(x, *parameters)}\n"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("edge", ["smallest", "largest"])
def test_the_code_of_a_family_holds_at_the_edges_of_its_domain(family: Family, edge: str) -> None:
    x = 1 if edge == "smallest" else family.largest_input
    parameters = family.draw(Random(1))
    printed = output_of(family.code.format(*parameters, x=x))
    assert printed == f"{family.compute(x, *parameters)}\n"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_wording_says_every_parameter_once(family: Family) -> None:
    places = [f"{{{index}}}" for index in range(len(family.draw(Random(0))))]
    for wording in family.wordings:
        assert sorted(re.findall(r"\{\d\}", wording)) == places


def test_families_have_names_of_their_own() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


# A problem


def test_every_step_starts_from_what_the_step_before_yields(
    problems: list[EmbeddedProblem],
) -> None:
    for problem in problems:
        assert all(one.after == next_.before for one, next_ in pairwise(problem.steps))
        assert problem.answer == problem.steps[-1].after


def test_running_the_steps_in_turn_prints_the_answer(problems: list[EmbeddedProblem]) -> None:
    for problem in problems[:200]:
        value = problem.steps[0].before
        for step in problem.steps:
            value = int(output_of(step.family.code.format(*step.parameters, x=value)))
        assert value == problem.answer


def test_every_number_of_a_problem_lies_within_the_bounds(
    problems: list[EmbeddedProblem],
) -> None:
    for step in (step for problem in problems for step in problem.steps):
        assert 1 <= step.before <= step.family.largest_input
        assert 1 < step.after <= LARGEST_VALUE


def test_the_text_says_what_the_steps_do(problems: list[EmbeddedProblem]) -> None:
    for problem in problems[:500]:
        meant = [("start", (str(problem.steps[0].before),))]
        meant += [(s.family.name, tuple(map(str, s.parameters))) for s in problem.steps]
        assert meaning_of(problem.text) == meant


def test_a_source_names_the_families_in_order(problems: list[EmbeddedProblem]) -> None:
    for problem in problems[:100]:
        assert problem.source.split("+") == [step.family.name for step in problem.steps]


def test_levels_are_drawn_evenly(problems: list[EmbeddedProblem]) -> None:
    counts = Counter(len(problem.steps) for problem in problems)
    assert set(counts) == set(LEVELS)
    # Five standard deviations of a binomial count of 3,000 thirds.
    assert all(abs(count - 1_000) < 130 for count in counts.values())


@pytest.mark.parametrize("level", [1, 2, 5])
def test_a_level_is_the_number_of_steps(level: int) -> None:
    assert {len(problem.steps) for problem in drawn(50, levels=(level,))} == {level}


def test_every_family_is_asked(problems: list[EmbeddedProblem]) -> None:
    asked = Counter(step.family.name for problem in problems for step in problem.steps)
    assert set(asked) == {family.name for family in FAMILIES}
    assert min(asked.values()) > 50


def test_problems_are_a_function_of_the_seed() -> None:
    assert drawn(100, seed=3) == drawn(100, seed=3)
    assert drawn(100, seed=3) != drawn(100, seed=4)


# The two sides


def test_no_problem_is_asked_on_both_sides_in_whatever_words() -> None:
    train = {str(meaning_of(problem.text)) for problem in drawn(6_000, levels=(1,))}
    held_out = drawn(1_500, split="held_out", levels=(1,), seed=1)
    assert train.isdisjoint(str(meaning_of(problem.text)) for problem in held_out)


def test_identity_is_what_a_problem_asks_and_not_its_words() -> None:
    drawn_again = drawn(20_000, levels=(1,))
    texts: dict[str, set[str]] = {}
    for problem in drawn_again:
        texts.setdefault(problem.task_id, set()).add(problem.text)
    reworded = [said for said in texts.values() if len(said) > 1]
    assert len(reworded) > 100
    assert all(len({str(meaning_of(text)) for text in said}) == 1 for said in reworded)


def test_the_held_out_side_is_the_share_promised() -> None:
    # Steps without parameters are few enough to see all problems of: about 1,150.
    asked = {
        split: {p.task_id for p in drawn(count, split=split, levels=(1,)) if "()" in p.task_id}
        for split, count in (("train", 20_000), ("held_out", 4_000))
    }
    total = sum(map(len, asked.values()))
    assert total > 1_000
    # Five standard deviations of a binomial share of 1,150.
    assert abs(len(asked["held_out"]) / total - 1 / HELD_OUT_ONE_IN) < 0.05
