"""Imperfect demonstrations of the embedded problems, for the cold start.

Per step a demonstration is either clean or holds one planted flaw of the kinds that small
policies show by themselves: a number off by one, the wrong operation, a missing import, a syntax
error, a variable of an earlier snippet, an answer too early, no tool at all. Of the calls that
raise, most are repaired in the next turn. So a policy that imitates them is right sometimes and
holds, as less likely behaviour, everything that reinforcement has to choose between.

The snippets are this module's own, so they are run in process; the policy's snippets never are.
"""

import contextlib
import io
import traceback
from collections.abc import Iterator
from random import Random

import dataframely as dy
import polars as pl

from schemas.categories import ExecutionStatus
from schemas.cold_start import ColdStartConfig
from schemas.cold_start_tables import Demonstrations
from schemas.config import ExecutionConfig
from stages.cold_start.families import FAMILIES, EmbeddedProblem, Step, draw_problems
from stages.execution.observation import observation_text

FLAW_SHARE = 0.62
"""Share of steps with a flaw; about a fifth of those are repaired."""
REPAIR_SHARE = 0.6
"""Share of raising calls that the next turn repairs."""
SILENT_FLAWS = ("off_by_one", "wrong_operation")
RAISING_FLAWS = ("syntax_error", "dead_variable")
SHORT_FLAWS = ("early_answer", "no_tool")


def make_demonstrations(
    config: ColdStartConfig, execution: ExecutionConfig, *, levels: tuple[int, ...], seed: int
) -> dy.DataFrame[Demonstrations]:
    """Draws the demonstrations of a cold start from training problems.

    Args:
        config: Number of demonstrations.
        execution: Limit of the observations, as rollouts will have it.
        levels: Numbers of chained steps, drawn evenly.
        seed: Seed of problems, wordings and flaws.

    Returns:
        One row a demonstration, transcripts in the tag protocol.
    """
    random = Random(seed)
    problems = draw_problems(random, split="train", levels=levels)
    rows = [
        _demonstration_row(index, problem, random, execution.observation_chars)
        for index, problem in zip(range(config.demonstrations), problems, strict=False)
    ]
    return Demonstrations.validate(pl.DataFrame(rows, infer_schema_length=None), cast=True)


def _demonstration_row(
    index: int, problem: EmbeddedProblem, random: Random, max_chars: int
) -> dict[str, object]:
    flaws: list[str] = []
    turns = list(_turns(problem, random, max_chars, flaws))
    answer = turns[-1]["text"].partition("<answer>")[2].removesuffix("</answer>")
    return {
        "demonstration_id": index,
        "task_id": problem.task_id,
        "problem": problem.text,
        "answer": str(problem.answer),
        "source": problem.source,
        "level": len(problem.steps),
        "right": answer == str(problem.answer),
        "flaw": flaws[0] if flaws else None,
        "segments": [{"role": "problem", "text": problem.text}, *turns],
    }


def _turns(
    problem: EmbeddedProblem, random: Random, max_chars: int, flaws: list[str]
) -> Iterator[dict[str, str]]:
    """Yields turns and observations up to the answering turn; tells planted flaws in `flaws`."""
    value = problem.steps[0].before
    for position, step in enumerate(problem.steps):
        copied = Step(family=step.family, parameters=step.parameters, before=value, after=0)
        flaw = _draw_flaw(random, position, len(problem.steps))
        if flaw is not None:
            flaws.append(flaw)
        if flaw in SHORT_FLAWS or value > step.family.largest_input:
            break
        code = copied.code if flaw is None else _flawed_code(copied, flaw, random)
        observation, ok = _run(code, max_chars)
        yield _call(step, code)
        yield {"role": "observation", "text": observation}
        if not ok and random.random() < REPAIR_SHARE:
            observation, ok = _run(copied.code, max_chars)
            yield _call(step, copied.code)
            yield {"role": "observation", "text": observation}
        if not ok or not observation.isdigit():
            break
        value = int(observation)
    yield {"role": "turn", "text": f"<answer>{value}</answer>"}


def _call(step: Step, code: str) -> dict[str, str]:
    name = step.family.name.replace("_", " ")
    return {"role": "turn", "text": f"{name}<code>{code}</code>"}


def _draw_flaw(random: Random, position: int, steps: int) -> str | None:
    if random.random() >= FLAW_SHARE:
        return None
    kinds = [*SILENT_FLAWS, *SILENT_FLAWS, *RAISING_FLAWS]
    kinds += ["no_tool"] if position == 0 else ["early_answer"]
    return random.choice(kinds)


def _flawed_code(step: Step, flaw: str, random: Random) -> str:
    if flaw == "off_by_one":
        shifted = step.before + random.choice((-1, 1))
        return Step(family=step.family, parameters=step.parameters, before=shifted, after=0).code
    if flaw == "wrong_operation":
        others = [f for f in FAMILIES if f is not step.family and f.largest_input >= step.before]
        other = random.choice(others)
        return Step(family=other, parameters=other.draw(random), before=step.before, after=0).code
    if flaw == "syntax_error":
        return step.code.removesuffix(")")
    if "import math\n" in step.code:
        return step.code.removeprefix("import math\n")
    unknown = random.choice(("x", "n", "result"))
    return step.family.code.format(*step.parameters, x=unknown)


def _run(code: str, max_chars: int) -> tuple[str, bool]:
    """Runs one of this module's own snippets; returns what a policy would see, and success."""
    stdout = io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout):
            exec(compile(code, "<snippet>", "exec"), {"__name__": "__main__"})
    except (SyntaxError, NameError, ValueError) as error:
        stderr = "".join(traceback.format_exception_only(error))
        status = ExecutionStatus.ERROR
    else:
        stderr, status = "", ExecutionStatus.OK
    text = observation_text(status, stdout.getvalue(), stderr, max_chars=max_chars)
    return text, status is ExecutionStatus.OK
