"""Grading of whole columns: what expressions can decide of answers without a look at each.

They know numbers of at most 11 digits and 5 decimals with a currency, a percent sign or a unit,
plain fractions, and equal texts. They decide as `stages._grading_rules` does, which decides the
rest; a test holds the two together.
"""

import polars as pl

from schemas.categories import GradingMethod, Verdict
from stages._grading_numbers import NOT_UNITS, ROUNDED_PLACES
from stages._grading_rules import MAX_CHARS

VERDICTS = pl.Enum([verdict.value for verdict in Verdict])
METHODS = pl.Enum([method.value for method in GradingMethod])

_SCALE = 10**5
"""Decimals are counted in this part of one."""
_DECIMAL = (
    r"^([+-]?) ?(\\?\$)? ?0*([0-9]{1,3}(?:,[0-9]{3}){1,2}|[0-9]{1,11})(?:\.([0-9]{0,5}))?"
    r"(?:( ?\\?%)|((?: [A-Za-z]{2,}){1,3}))?$"
)
_FRACTION = r"^([+-]?)(?:\\[dt]?frac\{([0-9]{1,8})\}\{([0-9]{1,8})\}|([0-9]{1,8})/([0-9]{1,8}))$"
_NOT_UNITS = rf"(?i)\b(?:{NOT_UNITS})\b"


def decide_columns(pairs: pl.DataFrame) -> pl.DataFrame:
    """Returns verdict and method of each pair, null where the rules must look.

    Args:
        pairs: `prediction`, null where there is no answer, and `answer`.

    Returns:
        `verdict` and `method`, in the order of the pairs.
    """
    texts = pl.concat([pairs["prediction"], pairs["answer"]]).drop_nulls().unique()
    read = _read(texts)
    ours = read.select(pl.all().name.prefix("our_"))
    gold = read.select(pl.all().name.prefix("gold_"))
    joined = pairs.join(
        ours, left_on="prediction", right_on="our_text", how="left", maintain_order="left"
    ).join(gold, left_on="answer", right_on="gold_text", how="left", maintain_order="left")
    right, wrong = pl.lit(Verdict.RIGHT.value), pl.lit(Verdict.WRONG.value)
    blank = pl.col("our_bare").is_null() | (pl.col("our_bare") == "")
    same_text = pl.col("our_bare") == pl.col("gold_bare")
    same_number = _is_same_number()
    return joined.select(
        verdict=pl.when(blank)
        .then(pl.lit(Verdict.NO_ANSWER.value))
        .when(same_text | same_number)
        .then(right)
        .when(~same_number)
        .then(wrong)
        .cast(VERDICTS),
        method=pl.when(blank)
        .then(pl.lit(GradingMethod.ABSENT.value))
        .when(same_text)
        .then(pl.lit(GradingMethod.TEXT.value))
        .when(same_number.is_not_null())
        .then(pl.lit(GradingMethod.NUMBER.value))
        .cast(METHODS),
    )


def _read(texts: pl.Series) -> pl.DataFrame:
    """Returns what expressions can read of distinct answers, one row a text.

    Columns: `text`; `bare`, it without wrappers; `scaled`, the decimal in units of 0.00001;
    `percent`; `unit`, or the currency; `above` and `below` of a fraction. Null
    where the text is no such number.
    """
    stripped = pl.col("text").str.strip_chars()
    bare = (
        stripped.str.replace_all("\u2212", "-", literal=True)
        .str.replace(r"^\$([^$\\{}]*)\$$", "${1}")
        .str.replace(r"^\\\(([^$\\{}]*)\\\)$", "${1}")
        .str.replace(r"([0-9A-Za-z])\.$", "${1}")
        .str.strip_chars()
    )
    is_short = pl.col("text").str.len_chars() <= MAX_CHARS
    frame = pl.DataFrame({"text": texts}).with_columns(
        bare=pl.when(is_short).then(bare).otherwise(stripped)
    )
    decimal = pl.col("bare").str.extract_groups(_DECIMAL)
    fraction = pl.col("bare").str.extract_groups(_FRACTION)
    frame = frame.select(
        "text",
        "bare",
        decimal.struct.rename_fields(
            ["sign", "currency", "whole", "part", "percent", "unit"]
        ).struct.unnest(),
        fraction.struct.rename_fields(["minus", "a", "b", "c", "d"]).struct.unnest(),
    )
    is_unit = ~pl.col("unit").str.contains(_NOT_UNITS).fill_null(False)
    whole = pl.col("whole").str.replace_all(",", "", literal=True).cast(pl.Int64)
    part = pl.col("part").fill_null("").str.pad_end(5, "0").cast(pl.Int64)
    below = pl.coalesce("b", "d").cast(pl.Int64)
    return frame.select(
        "text",
        "bare",
        scaled=pl.when(is_unit).then(_signed("sign", whole * _SCALE + part)),
        percent=pl.col("percent").is_not_null(),
        unit=pl.coalesce(pl.col("currency").str.slice(-1), pl.col("unit").str.to_lowercase()),
        above=pl.when(below > 0).then(_signed("minus", pl.coalesce("a", "c").cast(pl.Int64))),
        below=pl.when(below > 0).then(below),
    )


def _signed(sign: str, value: pl.Expr) -> pl.Expr:
    return pl.when(pl.col(sign) == "-").then(-value).otherwise(value)


def _is_same_number() -> pl.Expr:
    """Says whether two numbers are equal; null where one is none, or the rules must look."""
    ours, gold = pl.col("our_scaled"), pl.col("gold_scaled")
    percent, gold_percent = pl.col("our_percent"), pl.col("gold_percent")
    by_sign = (
        pl.when(percent == gold_percent)
        .then(ours == gold)
        .when(percent)
        .then((ours == gold) | (ours == 100 * gold))
        .otherwise((gold == ours) | (gold == 100 * ours))
    )
    # Different units with the same value: the rules must see whether it is one unit by two names.
    units = pl.col("our_unit"), pl.col("gold_unit")
    may_differ = (units[0] != units[1]).fill_null(False) & by_sign
    above, below = (pl.col(f"our_{name}") for name in ("above", "below"))
    gold_above, gold_below = (pl.col(f"gold_{name}") for name in ("above", "below"))
    return pl.coalesce(
        pl.when(~may_differ).then(by_sign),
        above * gold_below == gold_above * below,
        _is_decimal_of_fraction(gold, gold_percent, above, below),
        _is_decimal_of_fraction(ours, percent, gold_above, gold_below),
    )


def _is_decimal_of_fraction(
    scaled: pl.Expr, percent: pl.Expr, above: pl.Expr, below: pl.Expr
) -> pl.Expr:
    """Says whether a decimal, perhaps a percentage, is a fraction; null where it may be rounded."""
    decimal, fraction = scaled.cast(pl.Int128) * below, above.cast(pl.Int128) * _SCALE
    apart = (decimal - fraction).abs(), (decimal - 100 * fraction).abs()
    equal = (apart[0] == 0) | (percent & (apart[1] == 0))
    rounded = below * (_SCALE // 10**ROUNDED_PLACES)
    far = (apart[0] > rounded) & (~percent | (apart[1] > rounded))
    return pl.when(equal | far).then(equal)
