"""Grading: which answers are equal, and that no comparison hangs or blames the policy."""

import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.categories import GradingMethod, Verdict
from schemas.errors import TurnledgerError
from stages import _grading_processes, _grading_worker
from stages.grading import decide, disagreements, grade
from tests.stages.reward_frames import LAW

HANGING = r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"
UNDECIDED = (r"\sqrt{16}", "4")
PAIR = {"prediction": pl.String, "answer": pl.String}
DATA = Path(__file__).parents[3] / "shared" / "data"


def verdicts(*pairs: tuple[str | None, str], time_s: float = 20.0) -> list[str]:
    frame = pl.DataFrame(pairs, schema=PAIR, orient="row")
    return grade(frame, time_s=time_s)["verdict"].to_list()


def is_equal(prediction: str, answer: str) -> bool | None:
    decision = decide(prediction, answer)
    return None if decision is None else decision.equal


RIGHT = [
    ("1e3", "10^3"),
    ("10^9", "1e9"),
    ("20\u00b0C", "20"),
    (r"20^\circ \text{C}", "20 degrees Celsius"),
    ("$18$ dollars", "18"),
    (r"\{2,1\}", r"\{1,2\}"),
    (r"$\frac{3}{4}$ cup", "0.75"),
    ("$1,000$ people", "1000"),
    (r"\(5\) km", "5 kilometers"),
    ("five apples", "5"),
    ("a hundred", "100"),
    ("ten percent", "0.1"),
    ("\u22486", "6"),
    ("twenty-one", "21"),
    ("one hundred and five thousand", "105000"),
    ("nineteen hundred", "1900"),
    ("negative five", "-5"),
    ("minus 3", "-3"),
    ("five dollars", "$5"),
    (r"1.5 \text{ million}", "1500000"),
    ("$2 million", "2{,}000{,}000"),
    (r"0.1\overline{6}", r"\frac16"),
    (r"-0.\bar{3}", "-1/3"),
    ("60 km/h", "60 kilometers per hour"),
    ("60 mph", r"60\text{ miles per hour}"),
    ("12 square meters", "12 m^2"),
    (r"12\text{ cm}^3", "12 cubic centimeters"),
    ("5:30 p.m.", r"5:30\text{ PM}"),
    ("11:45", "11:45 a.m."),
    ("17:00", "5 pm"),
    ("12 am", "0:00 am"),
    ("5 m", "5 meters"),
    ("5 km", "5km"),
    ("ab", "ba"),
    ("0.0000012345678", "1.2345678e-6"),
    ("5 months", "5"),
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
    ("5 = x", "x=5"),
    (r"\theta = \frac{\pi}{3}", r"\frac{\pi}{3}"),
    ("y = 3 + 2x", "y=2x+3"),
    ("f(x)=x^3+3x-6", "x^3 + 3x - 6"),
    (r"x \in [-2,7]", "[-2, 7]"),
    (r"3 < x \le 4", "(3,4]"),
    ("4 >= x > 3", "(3,4]"),
    (r"x\geq 3", r"[3,\infty)"),
    (r"x < 1 \text{ or } x > 2", r"(-\infty,1)\cup(2,\infty)"),
    (r"(9,36)\cup(0,9)", r"(0,9) \cup (9,36)"),
    ("(0.5, 1.5)", r"(\frac12, \frac32)"),
    ("-2, 1", "1,-2"),
    (r"3, 5, \text{ and } 7", "3, 5, 7"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    ("1±√19", r"1 \pm \sqrt{19}"),
    (r"\begin{bmatrix}-\frac{1}{3}\\2\end{bmatrix}", r"\begin{pmatrix} -1/3 \\ 2 \end{pmatrix}"),
    (r"\varnothing", r"\emptyset"),
    ("52_{8}", "52_8"),
    ("52", "52_8"),
    ("(C)", "C"),
    ("(c)", r"\text{(C)}"),
    (r"\text{(C)}", "C."),
    ("**C**", "(C)"),
    ("(C) all of them", r"\text{(C)}"),
    ("YES.", "yes"),
    ("two", "2"),
    ("USD 18", "18"),
    ("18€", "18"),
    ("$18.00", "18 dollars"),
    ("864 inches^2", r"864 \mbox{ inches}^2"),
    ("15cm", r"15\text{ cm}"),
    ("5 km/h", "5"),
    ("0.333", "1/3"),
    ("33.333%", "1/3"),
    ("3/4", "0.75"),
    ("3 x 10^8", "300000000"),
    ("1_000", "1000"),
    ("\uff12\uff13", "23"),
    (r"3\sqrt13", r"3\sqrt{13}"),
    ("cot(x)", r"\cot x"),
    (r"\displaystyle\frac12", "1/2"),
]
WRONG = [
    ("(2,1)", r"\{1,2\}"),
    (r"\{0,1\}", "(0,1)"),
    ("20\u00b0C", "20\u00b0F"),
    ("$5$ km", "5 m"),
    (r"\(5\) kg", "5 g"),
    ("five or", "5"),
    ("one two", "1"),
    ("ten percent", "11"),
    ("60 mph", "60 km/h"),
    ("12 cm^2", "12 cm^3"),
    ("12 cm^2", "12 cm"),
    ("60 km/h", "60 km"),
    ("5 am", "5 pm"),
    ("5:30 am", "5:30 pm"),
    ("17:00", "5 am"),
    ("11:45 a.m.", "11:54 a.m."),
    ("five five", "10"),
    ("five hundred", "5"),
    ("2 million", "2"),
    (r"0.\overline{3}", r"0.\overline{6}"),
    (r"0.\overline{36}", "1/3"),
    ("5 cm", "5 m"),
    ("5 m", "5 km"),
    ("5 m", "5 s"),
    ("5m", "5 cm"),
    ("5 g", "5 kg"),
    ("ABC", "BAC"),
    ("LR", "RL"),
    ("HTT", "THT"),
    ("tea", "eat"),
    ("2 thirds", "2"),
    ("3 quarters", "3"),
    ("7 tenths", "7"),
    ("2 squared", "2"),
    ("5 factorial", "5"),
    ("5 millions", "5"),
    ("5 below zero", "5"),
    (r"2\times10^{-6}", r"2.4\times10^{-6}"),
    ("1.4e-7", "1e-7"),
    ("9.1e-31", "9.11e-31"),
    ("0.000001", "0.0000014"),
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
    ("10%", "11"),
    ("1,2", "12"),
    ("1,00", "100"),
    ("1, 2, 3", "1, 2"),
    ("52_8", "52"),
    ("52_8", "52_9"),
    ("42", "52_8"),
    ("x=5", "y=6"),
    ("y=2x+3", "y=2x+4"),
    ("(0,1)", "[0,1]"),
    ("x>2", "[2,\\infty)"),
    ("3 < x < 4", "(3,4]"),
    (r"1+\sqrt{19}", r"1\pm\sqrt{19}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ("3r^2", "3R^2"),
    ("(A)", "(B)"),
    ("(A) or (B)", "(A)"),
    ("A", "a"),
    ("no", "on"),
    ("Yes", "No"),
    ("east", "seat"),
    ("5 cm", "5 km"),
    ("$18", "18 cents"),
    ("€18", "$18"),
    ("3.14", r"\pi"),
    ("2 dozen", "2"),
    ("0.15", "0.150001"),
    ("6+9i", "9+6i"),
    (r"\emptyset", "0"),
]
METHODS = [
    (None, "7", "absent"),
    ("7", "7", "text"),
    (r"\dfrac12", r"\frac12", "text"),
    ("even", "odd", "text"),
    ("(A)", "B", "text"),
    ("7.0", "7", "number"),
    ("7", "8", "number"),
    ("(0.5,2)", r"(\frac12,3)", "number"),
    ("5 6", "11", "form"),
    ("52_8", "52_9", "form"),
    (r"\sqrt{16}", "4", "math_verify"),
    ("9" * 600, "9", "cap"),
    ("(" * 40 + "x" + ")" * 40, "x+1", "cap"),
    ("9^9^9^9", "9", "cap"),
    (r"5^{(5^{(5^{(5^5)}-4)})}", "9", "cap"),
    ("9**9**9**9", "9", "cap"),
    ("x^8+x^7+x^6+1", "x^8+x^6+x^7+1", "math_verify"),
    ("x^2y^3z^4", "y^3x^2z^4", "math_verify"),
    ("x^{100000}", "9", "cap"),
    ("(5!)!", "9", "cap"),
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


@pytest.mark.parametrize(("prediction", "answer", "method"), METHODS)
def test_grade_says_what_decided(prediction: str | None, answer: str, method: str) -> None:
    frame = pl.DataFrame({"prediction": [prediction], "answer": [answer]}, schema=PAIR)
    assert grade(frame, time_s=20.0)["method"].to_list() == [method]


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
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 10**6))
def test_a_repeating_decimal_is_its_geometric_series(first: int, places: int, again: int) -> None:
    again %= 10**places
    value = first + Fraction(again, 10**places) / (1 - Fraction(1, 10**places))
    written = rf"{first}.\overline{{{again:0{places}}}}"
    assert is_equal(written, f"{value.numerator}/{value.denominator}")


@LAW
@given(st.integers(), st.integers())
def test_integers_are_right_exactly_if_equal(a: int, b: int) -> None:
    assert verdicts((f"{a:,}", str(b))) == ["right" if a == b else "wrong"]


@LAW
@given(st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda x: abs(x) < 1e30))
def test_a_printed_float_equals_itself(value: float) -> None:
    assert verdicts((repr(value), f"{value:.60f}")) == ["right"]


NUMERALS = st.from_regex(
    r"[-+]?(\$|\\\$ )?0?(7|70|1,000|7{10,19})(\.(0|3|33|335|12345|123456)?)?"
    r"( ?%| ?\\%| dollars| feet| and| million|\.)?|[-+]?(\\d?frac\{[17]\}\{[03]\}|[17]0?/[03])|"
    r"\$(7|1/3)\$|\\\(7\.0\\\)|0\.0?(333|0233|33333)%?",
    fullmatch=True,
)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(NUMERALS | st.text(" 0-7x.$%", max_size=4), NUMERALS), max_size=9))
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


def published(name: str) -> list[dict[str, Any]]:
    path = DATA / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("graded_pairs_gsm8k_openai", "label"),
        ("traj_tora_gsm8k_code_34b", "correct"),
        ("traj_mathcoder_gsm8k_L7b", "correct"),
    ],
)
def test_agreement_with_published_labels(name: str, label: str) -> None:
    rows = [(row["prediction"], row["gold"], row[label]) for row in published(name)]
    labelled = pl.DataFrame(rows, schema=[*PAIR, "label"], orient="row")
    apart = disagreements(labelled, time_s=20.0)
    assert apart.height <= 0.005 * labelled.height, apart.rows()


def test_disagreements_are_listed_with_what_decided() -> None:
    labelled = pl.DataFrame(
        {
            "prediction": ["1", "2", None, "3.0"],
            "answer": ["1", "3", "4", "3"],
            "label": [True, True, False, False],
            "id": "abcd",
        }
    ).with_columns(id=pl.Series(list("abcd")))
    apart = disagreements(labelled, time_s=1.0)
    assert apart.select("id", "verdict", "method").rows() == [
        ("b", "wrong", "number"),
        ("d", "right", "number"),
    ]


def as_others_write(gold: str) -> list[str]:
    """A gold answer as others would write it, with the same meaning."""
    spaced = re.sub(r"([+=,])", r" \1 ", gold) if re.search(r"[a-z(]", gold) else gold
    return [
        *(gold, rf"$\boxed{{{gold}}}$.", rf"\({gold}\)", f"${gold}$", f"The answer is {gold}."),
        *(gold.replace(r"\frac", r"\dfrac"), gold.replace(r"\frac", r"\tfrac"), spaced),
        gold.replace("(", r"\left(").replace(")", r"\right)").replace(r"\left\left", r"\left"),
    ]


@pytest.mark.parametrize("name", ["math500", "aime24", "aime25", "amc23"])
def test_every_gold_answer_equals_itself_however_written(name: str) -> None:
    golds = {row["answer"] for row in published(name)}
    pairs = [(other, gold) for gold in sorted(golds) for other in as_others_write(gold)]
    wrong = [pair for pair, v in zip(pairs, verdicts(*pairs), strict=True) if v != "right"]
    assert wrong == []


def test_gold_answers_of_different_problems_are_told_apart() -> None:
    """Each against its neighbours in the order of the texts, where the most similar ones stand."""
    golds = sorted({row["answer"] for row in published("math500")})
    pairs = [(a, b) for k in (1, 2) for a, b in zip(golds, golds[k:], strict=False)]
    right = {pair for pair, v in zip(pairs, verdicts(*pairs), strict=True) if v == "right"}
    degrees = {(n, rf"{n}^\circ") for n in ("120", "30", "36", "90")}
    assert right == degrees | {("15", r"15\mbox{ cm}^2"), (r"10,\!080", "10080")}
