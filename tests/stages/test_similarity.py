"""Similarity shaping: what resembles what, and who earns what for it."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.config import SimilarityConfig, TurnRewardsConfig
from schemas.errors import TurnledgerError
from schemas.tables import ShapedRewards, TurnRewards, Turns
from stages.similarity import code_similarity, shape_rewards, tokenise
from stages.turn_rewards import score_turns
from tests.stages.reward_frames import LAW, Turn, executions_frame, prompts_frame, turns_frame

EDIT = SimilarityConfig(measure="edit")
NGRAM = SimilarityConfig(measure="ngram", ngram=3)
MEASURES = pytest.mark.parametrize("config", [EDIT, NGRAM], ids=["edit", "ngram"])

RIGHT: Turn = {"answer": "7"}
WRONG: Turn = {"answer": "8"}
CODES = st.lists(
    st.sampled_from(["x", "y", "=", "+", "1", "print", "(", ")", "\n"]), min_size=1, max_size=30
).map(" ".join)


def tokens_of(code: str) -> list[str]:
    tokens: list[str] = tokenise(pl.Series([code]))[0].to_list()
    return tokens


def similarity(a: str, b: str, config: SimilarityConfig) -> float:
    return float(code_similarity([tokens_of(a)], [tokens_of(b)], config)[0, 0])


def shape(
    config: SimilarityConfig, *trajectories: list[Turn], lost: int | None = None
) -> pl.DataFrame:
    """Shapes one group whose gold answer is 7; `lost` is the trajectory the machine failed."""
    turns = turns_frame({("t", i): turns for i, turns in enumerate(trajectories)})
    executions = executions_frame({} if lost is None else {("t", lost, 0): "infrastructure"})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions, TurnRewardsConfig())
    return shape_rewards(turns, rewards, config)


def of(shaped: pl.DataFrame, sample: int, column: str) -> list[Any]:
    return shaped.filter(pl.col("sample_index") == sample)[column].to_list()


@MEASURES
@LAW
@given(code=CODES)
def test_identical_code_has_similarity_1(config: SimilarityConfig, code: str) -> None:
    if tokens_of(code):
        assert similarity(code, code, config) == pytest.approx(1.0, abs=1e-12)


@MEASURES
@LAW
@given(a=CODES, b=CODES)
def test_similarity_is_symmetric_and_within_0_and_1(
    config: SimilarityConfig, a: str, b: str
) -> None:
    if tokens_of(a) and tokens_of(b):
        there, back = similarity(a, b, config), similarity(b, a, config)
        assert there == pytest.approx(back, abs=1e-12)
        assert 0.0 <= there <= 1.0


@MEASURES
def test_code_without_common_token_has_similarity_0(config: SimilarityConfig) -> None:
    assert similarity("x = 1", "print(2)", config) == 0.0


def test_spacing_and_comments_are_no_tokens() -> None:
    bare = tokens_of("x=1\nif x>0:\n  print(x)")
    assert tokens_of("x  =  1  # one\n\n# two\nif x > 0:\n\tprint( x )") == bare


@pytest.mark.parametrize(
    ("code", "tokens"),
    [
        ("a_1 **= 2", ["a_1", "**=", "2"]),
        ("x//y != 1.5e-3", ["x", "//", "y", "!=", "1.5e-3"]),
        ("f'a # b' + \"c\"", ["f'a # b'", "+", '"c"']),
        ("'''a\n# b''' # c", ["'''a\n# b'''"]),
        (r"'it\'s' 'un", [r"'it\'s'", "'", "un"]),
    ],
)
def test_tokenise_code(code: str, tokens: list[str]) -> None:
    assert tokens_of(code) == tokens


PYTHON_TOKEN = re.compile(
    r"""\#[^\n]* | (?P<token>
          [rbfuRBFU]{0,2}(?:
              \"{3}(?:\\.|[^\\])*?\"{3} | '{3}(?:\\.|[^\\])*?'{3}
            | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
        | (?:\d|\.\d)(?:[eE][+-]\d|[\w.])* | \w+
        | (?:\*\*|//|<<|>>)=? | [-+*/%@&|^=<>!:]= | -> | \.{3} | \S )""",
    re.VERBOSE | re.DOTALL,
)
CHARACTERS = "rbfax_1.0eE+-*/=<>!:@&|^%#'\"\\()[]\n \t\x1cé²\u0301٣\u2003"


@LAW
@given(st.text(CHARACTERS, max_size=60))
def test_tokens_are_those_of_the_expression_in_pythons_own_engine(code: str) -> None:
    found = [match["token"] for match in PYTHON_TOKEN.finditer(code)]
    assert tokens_of(code) == [token for token in found if token is not None]


def test_edit_similarity_counts_tokens_not_characters() -> None:
    # One of four tokens differs, whatever its length.
    assert similarity("total = 1 + 2", "x = 1 + 2", EDIT) == pytest.approx(0.8)


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    if not a or not b:
        return len(a) + len(b)
    rest = distance(a[1:], b[1:])
    if a[0] == b[0]:
        return rest
    return 1 + min(rest, distance(a[1:], b), distance(a, b[1:]))


FEW_TOKENS = st.lists(st.sampled_from("xy+1"), min_size=1, max_size=5)


@LAW
@given(st.lists(FEW_TOKENS, min_size=1, max_size=3), st.lists(FEW_TOKENS, min_size=1, max_size=3))
def test_edit_similarity_is_that_of_a_slow_oracle(
    codes: list[list[str]], peers: list[list[str]]
) -> None:
    expected = [[1 - distance(a, b) / max(len(a), len(b)) for b in peers] for a in codes]
    assert code_similarity(codes, peers, EDIT) == pytest.approx(np.array(expected))


@LAW
@given(st.lists(FEW_TOKENS, min_size=1, max_size=3), st.lists(FEW_TOKENS, min_size=1, max_size=3))
def test_ngram_similarity_is_that_of_a_slow_oracle(
    codes: list[list[str]], peers: list[list[str]]
) -> None:
    def cosine(a: list[str], b: list[str]) -> float:
        p, q = (Counter(zip(["", *x], x, strict=False)) for x in (a, b))
        norms = [sum(count**2 for count in counts.values()) ** 0.5 for counts in (p, q)]
        return sum(p[gram] * q[gram] for gram in p) / (norms[0] * norms[1])

    config = SimilarityConfig(measure="ngram", ngram=2)
    expected = [[cosine(a, b) for b in peers] for a in codes]
    assert code_similarity(codes, peers, config) == pytest.approx(np.array(expected))


def test_ngram_similarity_is_the_cosine_of_counts() -> None:
    # Counts of a, b, c are (2, 1, 0) and (1, 1, 1): 3 / (sqrt 5 sqrt 3).
    config = SimilarityConfig(measure="ngram", ngram=1)
    assert similarity("a a b", "a b c", config) == pytest.approx(3 / 15**0.5)


def test_the_sum_over_peers_is_divided_by_their_number_once() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5, measure="edit"),
        [{"code": "a b c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],  # similarity 1
        [{"code": "a b x y"}, RIGHT],  # similarity 1/2
    )
    assert of(shaped, 0, "shaped_accuracy") == [0.0, pytest.approx(0.5 / 2 * (1 + 0.5))]
    assert of(shaped, 0, "similarity_mean") == [pytest.approx(0.75)] * 2
    assert of(shaped, 0, "similarity_max") == [pytest.approx(1.0)] * 2
    assert of(shaped, 0, "peers") == [2, 2]


def test_the_largest_similarity_may_be_taken_instead() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5, aggregate="max"),
        [{"code": "a b c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],
        [{"code": "a b x y"}, RIGHT],
    )
    assert of(shaped, 0, "shaped_accuracy")[-1] == pytest.approx(0.5)


def test_the_code_of_all_turns_is_joined_in_order() -> None:
    shaped = shape(
        EDIT,
        [{"code": "a b"}, {"code": "c d"}, WRONG],
        [{"code": "a b c d"}, RIGHT],
    )
    assert of(shaped, 0, "similarity_max")[0] == 1.0


@LAW
@given(alpha=st.floats(0.0, 1.0))
def test_shaped_accuracy_scales_with_alpha(alpha: float) -> None:
    shaped = shape(
        SimilarityConfig(alpha=alpha), [{"code": "a b"}, WRONG], [{"code": "a c"}, RIGHT]
    )
    assert of(shaped, 0, "shaped_accuracy")[-1] == pytest.approx(alpha * 0.5)


def test_right_trajectories_keep_their_rewards() -> None:
    shaped = shape(EDIT, [{"code": "a"}, WRONG], [{"code": "a b"}, RIGHT], [RIGHT])
    right = shaped.filter(pl.col("sample_index") > 0)
    assert set(right["shaping"]) == {"right"}
    assert right["shaped_total"].to_list() == right["total"].to_list()


def test_penalties_stay_in_the_shaped_total() -> None:
    shaped = shape(
        SimilarityConfig(alpha=0.5),
        [{"code": "a", "parse_error": "syntax_error"}],
        [{"code": "a"}, RIGHT],
    )
    assert of(shaped, 0, "shaped_total") == [pytest.approx(0.5 - 0.1)]


@pytest.mark.parametrize(
    ("group", "shaping"),
    [
        ([[{"code": "a"}, WRONG], [{"code": "a"}, WRONG]], "no_peers"),
        ([[{"code": "a"}, WRONG], [RIGHT]], "no_peers"),
        ([[WRONG], [{"code": "a"}, RIGHT]], "no_code"),
        ([[{"code": "# only a comment"}, WRONG], [{"code": "a"}, RIGHT]], "no_code"),
    ],
    ids=["all wrong", "right peer without code", "no code", "comments only"],
)
def test_nothing_is_shaped_without_code_and_peers(group: list[list[Turn]], shaping: str) -> None:
    shaped = shape(EDIT, *group)
    assert set(of(shaped, 0, "shaping")) == {shaping}
    assert shaped["shaped_total"].to_list() == shaped["total"].to_list()
    assert set(of(shaped, 0, "similarity_mean")) == {None}


def test_alpha_0_measures_and_changes_nothing() -> None:
    shaped = shape(SimilarityConfig(alpha=0.0), [{"code": "a"}, WRONG], [{"code": "a"}, RIGHT])
    assert shaped["shaped_total"].to_list() == shaped["total"].to_list()
    assert of(shaped, 0, "similarity_mean") == [1.0, 1.0]


def test_an_excluded_trajectory_stays_null_and_is_no_peer() -> None:
    shaped = shape(EDIT, [{"code": "a"}, WRONG], [{"code": "a"}, RIGHT], lost=1)
    assert of(shaped, 1, "shaping") == ["excluded", "excluded"]
    assert of(shaped, 1, "shaped_total") == [None, None]
    assert set(of(shaped, 0, "shaping")) == {"no_peers"}


def test_an_excluded_trajectory_is_no_peer_even_with_an_outcome() -> None:
    turns = turns_frame({("t", 0): [{"code": "a"}, WRONG], ("t", 1): [{"code": "a"}, RIGHT]})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions_frame(), TurnRewardsConfig())
    out = pl.when(pl.col("sample_index") == 1).then(pl.lit("infrastructure"))
    marked = TurnRewards.validate(rewards.with_columns(excluded=out), cast=True)
    assert of(shape_rewards(turns, marked, EDIT), 0, "shaping") == ["no_peers", "no_peers"]


def test_trajectories_of_other_groups_are_no_peers() -> None:
    turns = turns_frame({("a", 0): [{"code": "x"}, WRONG], ("b", 0): [{"code": "x"}, RIGHT]})
    rewards = score_turns(
        prompts_frame({"a": "7", "b": "7"}), turns, executions_frame(), TurnRewardsConfig()
    )
    shaped = shape_rewards(turns, rewards, EDIT)
    assert shaped.filter(task_id="a")["shaping"].to_list() == ["no_peers", "no_peers"]


def test_groups_shaped_together_are_shaped_as_each_alone() -> None:
    codes = ["a b c", "a b", "# nothing", "a x c", "b"]
    trajectories = {
        (task, sample): [{"code": code}, RIGHT if (sample + size) % 2 else WRONG]
        for size, task in enumerate("abcd")
        for sample, code in enumerate(codes[size:])
    }

    def shaped(wanted: str) -> pl.DataFrame:
        turns = turns_frame({key: t for key, t in trajectories.items() if key[0] in wanted})
        shuffled = Turns.validate(turns.sample(fraction=1, shuffle=True, seed=1))
        prompts = prompts_frame(dict.fromkeys(wanted, "7"))
        rewards = score_turns(prompts, shuffled, executions_frame(), TurnRewardsConfig())
        return shape_rewards(shuffled, rewards, EDIT)

    assert_frame_equal(shaped("abcd"), pl.concat([shaped(task) for task in "abcd"]))


def test_tables_of_different_turns_are_refused() -> None:
    turns = turns_frame({("t", 0): [{"code": "x"}, WRONG]})
    rewards = score_turns(prompts_frame({"t": "7"}), turns, executions_frame(), TurnRewardsConfig())
    with pytest.raises(TurnledgerError, match="turn_index=1 has no reward"):
        shape_rewards(turns, TurnRewards.validate(rewards.head(1)), EDIT)
    with pytest.raises(TurnledgerError, match="turn_index=1 is not among the turns"):
        shape_rewards(turns.head(1), rewards, EDIT)  # type: ignore[arg-type]


def test_no_turns_give_no_rewards() -> None:
    shaped = shape_rewards(turns_frame({}), TurnRewards.create_empty(), EDIT)
    assert shaped.equals(ShapedRewards.create_empty())
