"""Code tokens: names, numbers, strings and operators; comments, spacing and indentation are none.

It does not parse: any text has tokens, those of code that is no Python included.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

_WORD = r"\p{L}\p{N}_"
"""Letters, digits and the underscore, as in `\\w` of Python."""
_SPACE = r"\s\x1c-\x1f"
_TOKEN = rf"""(?x)
      \#[^\n]*                                                  # comment
    | [rbfuRBFU]{{0,2}}(?:
          "{{3}}(?s:\\.|[^\\])*?"{{3}} | '{{3}}(?s:\\.|[^\\])*?'{{3}}
        | "(?s:\\.|[^"\\\n])*" | '(?s:\\.|[^'\\\n])*' )
    | (?:\d|\.\d)(?:[eE][+-]\d|[{_WORD}.])*                    # number
    | [{_WORD}]+                                               # name or keyword
    | (?:\*\*|//|<<|>>)=? | [-+*/%@\&|^=<>!:]= | -> | \.{{3}}
    | [^{_SPACE}]
    """
_FIRST_TOKEN = rf"(?m)^[{_SPACE}]*[^{_SPACE}\#]"


def tokenise(codes: pl.Series) -> pl.Series:
    """Returns the tokens of each Python code, without comments and spacing; never fails."""
    is_comment = pl.element().str.starts_with("#")
    return codes.str.extract_all(_TOKEN).list.filter(~is_comment).alias("tokens")


def holds_token(code: pl.Expr) -> pl.Expr:
    """Says of each code whether it has tokens; null where the code is null.

    Before the first token stand only spaces and comments, so it is the first on its line.
    """
    return code.str.contains(_FIRST_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenNumbers:
    """The tokens of several codes as numbers: equal ones for equal tokens, low ones for usual."""

    numbers: np.ndarray
    """Of the tokens of all codes, one code after the other, [tokens]."""
    bounds: np.ndarray
    """Code `i` has `numbers[bounds[i] : bounds[i + 1]]`, [codes + 1]."""

    @classmethod
    def of(cls, codes: pl.Series) -> "TokenNumbers":
        """Tokenises codes."""
        tokens = tokenise(codes)
        lengths = tokens.list.len().to_numpy()
        flat = tokens.filter(tokens.list.len() > 0).explode()
        kinds = pl.Enum(flat.value_counts(sort=True)["tokens"])
        return cls(
            numbers=flat.cast(kinds).to_physical().to_numpy().astype(np.int64),
            bounds=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        )

    def take(self, codes: slice) -> "TokenNumbers":
        """Returns neighbouring codes, their tokens numbered as they are."""
        bounds = self.bounds[codes.start : codes.stop + 1]
        return TokenNumbers(numbers=self.numbers[bounds[0] : bounds[-1]], bounds=bounds - bounds[0])
