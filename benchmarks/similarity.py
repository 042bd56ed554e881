"""How long the shaping takes by each measure, and how it compares with usual ways to compare code.

In one run, on the same generated groups, of which every second trajectory is wrong: the whole stage
with `edit`, `ngram` and `tree`, for all groups or, where that takes longer than `--seconds`, for
those that came before, told as the time for all. Beside it per pair, on a sample of the groups: the
ratio of `difflib.SequenceMatcher` on tokens that are there already, `edit` likewise, and CodeBLEU
where it is installed. Ratios are of processor times: other work on the machine counts little then.

    python -m benchmarks.similarity --groups 10000 --json
"""

import argparse
import json
import time
from collections.abc import Callable
from difflib import SequenceMatcher
from random import Random

import dataframely as dy
import polars as pl

from benchmarks.programs import draw_group
from schemas.config import SimilarityConfig
from schemas.errors import ConfigError
from schemas.reward_components import COMPONENTS
from schemas.tables import TURN_KEY, TurnRewards, Turns
from stages.similarity import require_measure, shape_rewards
from stages.similarity.measures import make_measure
from stages.similarity.tokens import tokenise

SAMPLES = 16
LINES = 20
SLICE = 250
"""Groups that are shaped at once, about those of a shard."""

Pairs = list[tuple[str, str]]


def frames(
    groups: list[list[str]],
) -> tuple[dy.DataFrame[Turns], dy.DataFrame[TurnRewards]]:
    """Returns one turn a program, and rewards by which every second trajectory is wrong."""
    rows = [
        {"task_id": str(group), "sample_index": sample, "turn_index": 0, "code": code}
        for group, codes in enumerate(groups)
        for sample, code in enumerate(codes)
    ]
    keyed = pl.DataFrame(rows)
    right = (pl.col("sample_index") % 2).cast(pl.Float64)
    nothing = {
        name: pl.lit(None)
        for name in (*Turns.column_names(), *TurnRewards.column_names())
        if name not in (*TURN_KEY, "code")
    }
    nothing |= {name: right for name in ("accuracy", "total", "outcome", "grpo_reward")}
    nothing |= {name: pl.lit(0.0) for name in ("format", "no_tool", *COMPONENTS)}
    nothing |= {"is_last": pl.lit(True), "verdict": pl.lit("wrong")}
    filled = keyed.with_columns(**nothing).with_columns(
        text=pl.lit(""),
        token_ids=pl.lit([1]),
        logprobs=pl.lit([-0.5]),
        finish_reason=pl.lit("code"),
        reasoning=pl.lit(""),
        temperature=pl.lit(1.0),
        top_p=pl.lit(1.0),
        top_k=pl.lit(0),
        policy_version=pl.lit(0),
        seed=pl.lit(0),
    )
    return (
        Turns.validate(filled.select(Turns.column_names()), cast=True),
        TurnRewards.validate(filled.select(TurnRewards.column_names()), cast=True),
    )


def stage_seconds(
    groups: list[list[str]], config: SimilarityConfig, limit_s: float
) -> tuple[float, float]:
    """Returns CPU and wall seconds of the stage for all groups; what came after the limit is told
    in proportion."""
    cpu = wall = 0.0
    done = 0
    while done < len(groups) and wall < limit_s:
        part = groups[done : done + SLICE]
        turns, rewards = frames(part)
        started, at = time.process_time(), time.perf_counter()
        shape_rewards(turns, rewards, config)
        cpu += time.process_time() - started
        wall += time.perf_counter() - at
        done += len(part)
    return cpu * len(groups) / done, wall * len(groups) / done


def seconds_a_pair(compare: Callable[[int, int], object], pairs: list[tuple[int, int]]) -> float:
    started = time.process_time()
    for wrong, right in pairs:
        compare(wrong, right)
    return (time.process_time() - started) / len(pairs)


def measure(count: int, limit_s: float, sample: int) -> dict[str, float | str]:
    """Returns the figures by name, units in the names."""
    random = Random(0)
    groups = [draw_group(random, SAMPLES, LINES) for _ in range(count)]
    pairs_a_group = (SAMPLES // 2) ** 2
    figures: dict[str, float | str] = {
        "groups": count,
        "programs": count * SAMPLES,
        "pairs": count * pairs_a_group,
    }
    a_pair = {}
    for name in ("edit", "ngram", "tree"):
        cpu, wall = stage_seconds(groups, SimilarityConfig(measure=name), limit_s)
        figures |= {f"{name}_cpu_s": cpu, f"{name}_wall_s": wall}
        a_pair[name] = cpu / (count * pairs_a_group)
        figures[f"{name}_us_a_pair"] = 1e6 * a_pair[name]
    codes = [code for group in groups[:sample] for code in group]
    ready = make_measure(pl.Series([[code] for code in codes]), SimilarityConfig(), None)
    started = time.process_time()
    for group in range(0, len(codes), SAMPLES):
        ready(slice(group, group + SAMPLES // 2), slice(group + SAMPLES // 2, group + SAMPLES))
    a_pair["edit_on_tokens"] = (time.process_time() - started) / (sample * pairs_a_group)
    figures["edit_on_tokens_us_a_pair"] = 1e6 * a_pair["edit_on_tokens"]
    chosen = [
        (group * SAMPLES + wrong, group * SAMPLES + right)
        for group in range(sample)
        for wrong in range(0, SAMPLES, 2)
        for right in range(1, SAMPLES, 2)
    ]
    tokens = tokenise(pl.Series(codes)).to_list()
    others = {
        "difflib": seconds_a_pair(
            lambda a, b: SequenceMatcher(None, tokens[a], tokens[b]).ratio(), chosen
        )
    }
    try:
        require_measure(SimilarityConfig(measure="codebleu"))
    except ConfigError as missing:
        figures["codebleu"] = str(missing)
    else:
        from codebleu import calc_codebleu

        others["codebleu"] = seconds_a_pair(
            lambda a, b: calc_codebleu([codes[b]], [codes[a]], lang="python"), chosen[:400]
        )
    for name, seconds in others.items():
        figures[f"{name}_us_a_pair"] = 1e6 * seconds
        for own, own_seconds in a_pair.items():
            figures[f"{own}_against_{name}"] = seconds / own_seconds
    return figures


def main() -> None:
    """Reads the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10_000, help="groups of 16 (10,000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, a measure (60)")
    parser.add_argument("--sample", type=int, default=40, help="groups for difflib (40)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.groups, arguments.seconds, arguments.sample)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:26} {value:>14,.1f}" if isinstance(value, float | int) else value)


if __name__ == "__main__":
    main()
