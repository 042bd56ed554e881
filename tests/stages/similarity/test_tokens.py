"""Code tokens: what counts, and what does not."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.similarity.tokens import TokenNumbers, holds_token, tokenise
from tests.stages.reward_frames import LAW


def tokens_of(code: str) -> list[str]:
    tokens: list[str] = tokenise(pl.Series([code]))[0].to_list()
    return tokens


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


@LAW
@given(st.text(CHARACTERS, max_size=30))
def test_code_holds_a_token_where_tokenising_finds_one(code: str) -> None:
    holds = pl.DataFrame({"code": [code]}).select(holds_token(pl.col("code"))).item()
    assert holds == bool(tokens_of(code))


@LAW
@given(st.lists(st.text("ab+ #\n", max_size=12), min_size=1, max_size=5), st.data())
def test_numbers_are_equal_where_tokens_are(codes: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(codes) - 1))
    taken = TokenNumbers.of(pl.Series(codes)).take(slice(start, len(codes)))
    tokens = [token for code in codes[start:] for token in tokens_of(code)]
    assert np.diff(taken.bounds).tolist() == [len(tokens_of(code)) for code in codes[start:]]
    numbered = dict(zip(tokens, taken.numbers.tolist(), strict=True))
    assert [numbered[token] for token in tokens] == taken.numbers.tolist()
    assert len(set(numbered.values())) == len(numbered)
