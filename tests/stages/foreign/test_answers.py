import polars as pl
import pytest

from stages.foreign.answers import final_answers


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4", "3"),
        ("<answer> 5 </answer>", "5"),
        (r"<answer>\boxed{5}</answer> \boxed{6}", r"\boxed{5}"),
        ("So the answer is 7.", "7"),
        ("The answer is: 7.5.\nDone", "7.5"),
        ("Answer: 8<|im_end|>", "8"),
        ("**Answer:** 9", "9"),
        ("#### 1,000", "1,000"),
        ("The answer is 7.\n#### Conclusion\nDone", "7"),
        ("Nothing to see", None),
        ("", None),
        (None, None),
    ],
)
def test_the_last_statement_of_an_answer_counts(text: str | None, answer: str | None) -> None:
    assert final_answers(pl.Series([text], dtype=pl.String)).to_list() == [answer]
