"""Grading: which answers are equal, and that no comparison hangs or blames the policy."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import TurnledgerError
from schemas.tables import GradingMethod, Verdict
from stages import _grading_processes, _grading_worker
from stages.grading import decide, grade
from tests.stages.reward_frames import LAW

HANGING = r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"
UNDECIDED = (r"\sqrt{16}", "4")
DATA = Path(__file__).parents[3] / "shared" / "data"


def verdicts(*pairs: tuple[str | None, str], time_s: float = 20.0) -> list[str]:
    frame = pl.DataFrame(pairs, schema={"prediction": pl.String, "answer": pl.String}, orient="row")
    return grade(frame, time_s=time_s)["verdict"].to_list()


def is_equal(prediction: str, answer: str) -> bool | None:
    decision = decide(prediction, answer)
    return None if decision is None else decision.equal


RIGHT = [
    ("7", "7"),
    ("023", "23"),
    ("0" + "9" * 19, "9" * 19),
    ("+5", "5"),
    ("18.", "18"),
    ("18.0", "18"),
    (" $18$ ", "18"),
    (r"\(18\)", "18"),
    (r"The answer is $\boxed{18}$.", "18"),
    ("The final answer is: 42.", "42"),
    ("1,000,000", "1000000"),
    (r"11,\! 111", "11111"),
    ("10{,}000", "10000"),
    (r"\$1,234.50", "1234.5"),
    ("$18", "18"),
    ("-$5", "-5"),
    ("\u22125", "-5"),
    ("18 dollars", "18"),
    (r"12\text{ cm}", "12"),
    (r"90^\circ", "90"),
    ("1/2", "0.5"),
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", "-1/2"),
    ("1 1/2", "1.5"),
    (r"2\frac13", "7/3"),
    (r"50\%", "50"),
    ("0.5", "50%"),
    ("1e3", "1000"),
    (r"3.5 \times 10^3", "3500"),
    ("0.3333333333333333", r"\frac{1}{3}"),
    ("0.30000000000000004", "0.3"),
    ("Evelyn", r"\text{Evelyn}"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt2}"),
    ("2*sqrt(3)", r"2\sqrt{3}"),
    ("x**10", "x^{10}"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\{1,2\}", r"\{2,1\}"),
    ("x=5", "5"),
]
WRONG = [
    ("7", "8"),
    ("-5", "5"),
    ("9" * 19, "9" * 18 + "8"),
    ("0.33", "1/3"),
    ("0.334", "1/3"),
    ("0.123456", "0.123457"),
    ("1e-08", "2e-08"),
    ("1000000000000000", "1000000000000001"),
    ("1/0", "0"),
    ("5 or 6", "6"),
    ("5, 6", "6"),
    ("5 6", "11"),
    ("5 6", "56"),
    ("2 thousand", "2"),
    ("listen", "silent"),
    ("five", "6"),
    ("5x", "5"),
    ("(1,2)", "[1,2]"),
    (r"\sqrt{2}", "2"),
    ("9" * 600, "9"),
    ("(" * 40 + "1" + ")" * 40, "1"),
    ("]](({{", "4"),
]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Lets no process from before be used; lists what is started, as numbers of the start."""
    numbers: list[int] = []
    start = _grading_processes._Child.__init__

    def count(child: _grading_processes._Child) -> None:
        numbers.append(len(numbers))
        start(child)

    idle: list[_grading_processes._Child] = []
    monkeypatch.setattr(_grading_processes._Child, "__init__", count)
    monkeypatch.setattr(_grading_processes, "_idle", idle)
    yield numbers
    for child in idle:
        child.kill()


def test_grade_finds_equal_answers_right() -> None:
    assert dict(zip(RIGHT, verdicts(*RIGHT), strict=True)) == dict.fromkeys(RIGHT, "right")


def test_grade_finds_different_answers_wrong() -> None:
    assert dict(zip(WRONG, verdicts(*WRONG), strict=True)) == dict.fromkeys(WRONG, "wrong")


@pytest.mark.parametrize("prediction", [None, "", " \n"])
def test_grade_tells_no_answer_apart(prediction: str | None) -> None:
    assert verdicts((prediction, "1")) == ["no_answer"]


def test_grade_keeps_the_order_of_the_rows() -> None:
    assert verdicts(("1", "2"), ("2", "2"), (None, "2"), ("1", "2")) == [
        "wrong",
        "right",
        "no_answer",
        "wrong",
    ]


def test_grade_returns_every_category_of_the_schema() -> None:
    graded = grade(pl.DataFrame({"prediction": ["1"], "answer": ["1"]}), time_s=1.0)
    assert graded.schema == {
        "verdict": pl.Enum([v.value for v in Verdict]),
        "method": pl.Enum([m.value for m in GradingMethod]),
    }


def test_grade_of_no_rows_is_empty() -> None:
    assert verdicts() == []


@LAW
@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_equal_fractions_are_right_however_written(numerator: int, factor: int) -> None:
    written = rf"\frac{{{numerator * factor}}}{{{7 * factor}}}"
    assert verdicts((written, f"{numerator}/7")) == ["right"]


@LAW
@given(st.integers(), st.integers())
def test_integers_are_right_exactly_if_equal(a: int, b: int) -> None:
    assert verdicts((f"{a:,}", str(b))) == ["right" if a == b else "wrong"]


@LAW
@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda x: abs(x) < 1e30))
def test_a_printed_float_equals_itself(value: float) -> None:
    assert verdicts((repr(value), f"{value:.60f}")) == ["right"]


NUMERALS = st.from_regex(r"[-+]?0?(7|7{18,19})(\.0?)?\s?", fullmatch=True)


@LAW
@given(st.lists(st.tuples(NUMERALS | st.text(" 0-7x", max_size=3), NUMERALS), max_size=9))
def test_columns_decide_as_text_does(pairs: list[tuple[str, str]]) -> None:
    decided = [pair for pair in pairs if not pair[0].strip() or decide(*pair) is not None]
    expected = [
        ("right" if is_equal(p, a) else "wrong") if p.strip() else "no_answer" for p, a in decided
    ]
    assert verdicts(*decided) == expected


@LAW
@given(st.text(r"0123456789.,/\{}$%()-+ ^eEfracboxedtimes" + "\n", max_size=40))
def test_any_text_is_decided_or_left_open(text: str) -> None:
    assert is_equal(text, "7") in (True, False, None)
    assert is_equal(text, text) is True


def test_a_hanging_comparison_ends_and_the_next_pair_is_graded() -> None:
    start = time.monotonic()
    result = verdicts((HANGING, "7"), UNDECIDED, time_s=3.0)
    assert result[0] in ("timeout", "wrong")
    assert result[1] == "right"
    assert time.monotonic() - start < 60


def test_no_process_is_started_where_text_and_numbers_decide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert verdicts(("1", "1"), ("2", "1"), (None, "1")) == ["right", "wrong", "no_answer"]


@pytest.mark.parametrize("executable", ["/nonexistent/python", "/bin/false"])
def test_a_process_that_cannot_start_is_no_wrong_answer(
    executable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(TurnledgerError, match="cannot start"):
        verdicts(UNDECIDED)


@pytest.mark.usefixtures("started")
def test_the_working_directory_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert verdicts(UNDECIDED) == ["right"]


def fake_worker(body: str) -> str:
    return f"import os, sys\nprint('\"ready\"', flush=True)\n{body}\n"


def test_a_worker_that_was_edited_since_the_import_is_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is stored under the digest of the code that was imported."""
    edited = tmp_path / "_grading_worker.py"
    source = Path(_grading_worker.__file__).read_text()
    edited.write_text(
        source.replace("def is_equal(", "def is_equal(*_):\n    return False\n\ndef _(")
    )
    monkeypatch.setattr(_grading_worker, "__file__", str(edited))
    assert verdicts(UNDECIDED) == ["right"]


def test_a_process_serves_one_call_after_the_other(started: list[int]) -> None:
    for _ in range(3):
        assert verdicts(UNDECIDED) == ["right"]
    assert len(started) == 1


def test_callers_at_the_same_time_share_the_processes(
    started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_grading_processes, "_permits", threading.BoundedSemaphore(2))
    groups = [[(rf"\sqrt{{{n * n}}}", str(n)) for n in range(k, k + 40)] for k in (2, 50, 99, 150)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda pairs: verdicts(*pairs), groups))
    assert results == [["right"] * 40] * 4
    assert len(started) <= 2


def test_many_comparisons_keep_their_order() -> None:
    pairs = [(rf"\sqrt{{{n * n + n % 3 // 2}}}", str(n)) for n in range(2, 80)]
    assert verdicts(*pairs) == ["wrong" if n % 3 == 2 else "right" for n in range(2, 80)]


def test_an_idle_process_ends_and_is_replaced(
    started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = _grading_processes._SOURCE.replace("IDLE_S = 20.0", "IDLE_S = 0.1")
    monkeypatch.setattr(_grading_processes, "_SOURCE", hasty)
    assert verdicts(UNDECIDED) == ["right"]
    time.sleep(1.0)
    assert verdicts(UNDECIDED) == ["right"]
    assert len(started) == 2


CONSTANTS = [
    *(r"\sqrt{2}", "1.414214", "1.4142", r"\pi", "3.14159", "3.1415927", r"\frac{\pi}{2}", "e"),
    *("50\\%", "0.5", "50", "5!", "120", r"\infty", r"\frac{1}{0}", "1+i", "2^{10}", "1024", "(1)"),
    *("10^{20}", "10^{20}+1", r"\{1\}", "x=2", "2", r"0.000001\pi", "0", r"1 \pm \sqrt{2}"),
]


@pytest.mark.parametrize("gold", CONSTANTS)
def test_different_numbers_are_told_as_math_verify_tells_them(gold: str) -> None:
    from math_verify import parse, verify

    for prediction in CONSTANTS:
        parsed = [parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, prediction)]
        expected = bool(verify(*parsed, timeout_seconds=None))
        assert _grading_worker.is_equal(prediction, gold) == expected, prediction


def test_a_failed_start_tells_what_the_process_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_grading_processes, "_SOURCE", "raise SystemExit('no sympy here')")
    with pytest.raises(TurnledgerError, match="no sympy here"):
        verdicts(UNDECIDED)


def test_a_crash_at_a_pair_counts_as_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    crashing = fake_worker("input(); os.kill(os.getpid(), 9)")
    monkeypatch.setattr(_grading_processes, "_SOURCE", crashing)
    assert verdicts(UNDECIDED, UNDECIDED) == ["timeout", "timeout"]


def test_a_process_killed_from_outside_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "was_killed"
    body = (
        f"for line in sys.stdin:\n"
        f"    if not os.path.exists({str(mark)!r}):\n"
        f"        open({str(mark)!r}, 'w').close(); os.kill(os.getpid(), 9)\n"
        f"    print('true', flush=True)"
    )
    monkeypatch.setattr(_grading_processes, "_SOURCE", fake_worker(body))
    assert verdicts(UNDECIDED) == ["right"]


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"prediction": ["1"]}),
        pl.DataFrame({"prediction": ["1"], "answer": pl.Series([None], dtype=pl.String)}),
    ],
)
def test_grade_refuses_a_missing_gold_answer(frame: pl.DataFrame) -> None:
    with pytest.raises(TurnledgerError, match="answer"):
        grade(frame, time_s=1.0)


def test_agreement_with_published_labels() -> None:
    path = DATA / "graded_pairs_gsm8k_openai.jsonl"
    if not path.exists():
        pytest.skip("graded pairs of GSM8K are not beside the repository")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    result = verdicts(*((row["prediction"], row["gold"]) for row in rows))
    agreed = [(v == "right") == row["label"] for v, row in zip(result, rows, strict=True)]
    assert sum(agreed) / len(agreed) >= 0.995


def test_every_gold_answer_of_math500_equals_itself() -> None:
    path = DATA / "math500.jsonl"
    if not path.exists():
        pytest.skip("MATH 500 is not beside the repository")
    golds = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    assert set(verdicts(*((rf"$\boxed{{{gold}}}$.", gold) for gold in golds))) == {"right"}
