"""The command `size`: what fleets of GPUs would come to."""

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from flows.sizing import Assumptions, Sizing

FLEETS = ["8/8", "64/8", "1000/8", "64/64", "1000/1000"]

LINES: dict[str, Callable[["Sizing"], float]] = {
    "GPUs": lambda s: s.gpus,
    "runs side by side": lambda s: s.runs,
    "rollout, s": lambda s: s.rollout_s,
    "rewards to advantages, s": lambda s: s.scoring_s,
    "optimisation, s": lambda s: s.training_s,
    "policy to store and engine, s": lambda s: s.policy_s,
    "Prefect and store, s": lambda s: s.orchestration_s,
    "an iteration, s": lambda s: s.iteration_s,
    "sampled tokens/s, all runs": lambda s: s.tokens_per_s,
    "tables, GB a day": lambda s: s.tables_gb_a_day,
    "kept policies, GB": lambda s: s.policies_gb,
    "USD an iteration": lambda s: s.usd_an_iteration,
    "USD a million sampled tokens": lambda s: s.usd_a_million_tokens,
    "USD a day, GPUs": lambda s: s.usd_a_day,
    "USD a month, storage": lambda s: s.storage_usd_a_month,
    "optimiser on a GPU, GiB": lambda s: s.memory.training_gib,
    "engine on a GPU, GiB": lambda s: s.memory.engine_weights_gib + s.memory.engine_cache_gib,
    "trajectories in its cache": lambda s: s.memory.trajectories_in_cache,
}
"""Name of a line to its figure."""


def size(
    fleet: Annotated[
        list[str] | None,
        typer.Option(
            "--fleet",
            help="GPUs, and how many of them one run takes, as 64/8. Repeatable; left out, "
            f"{', '.join(FLEETS)}.",
        ),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option("--assume", help="An assumption as name=number. Repeatable."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Prints every assumption with its source and stops.")
    ] = False,
) -> None:
    """Says what a training would come to on fleets of GPUs: speed, storage, cost, memory.

    Arithmetic on assumptions, for an order of magnitude. Nothing is measured and no store is read.

    Example: turnledger size --fleet 8/8 --assume parameters=1.5e9 --assume turn_tokens=800
    """
    from flows.sizing import size as size_of

    assumed = assumptions(assume or [])
    if explain:
        typer.echo(explained(assumed))
        return
    fleets = [_numbers(text) for text in fleet or FLEETS]
    sizings = [size_of(assumed, gpus=gpus, gpus_a_run=each) for gpus, each in fleets]
    typer.echo(table(sizings))


def assumptions(overrides: list[str]) -> "Assumptions":
    """Returns the assumptions with some of them changed.

    Raises:
        ConfigError: If one is unknown, or is no number that it can be.
    """
    from pydantic import ValidationError

    from flows.sizing import Assumptions

    values = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ConfigError(f"--assume {override}: write it as name=number")
        values[name.strip()] = value.strip()
    try:
        return Assumptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name, told = ".".join(map(str, first["loc"])), str(first["msg"])
        if first["type"] == "extra_forbidden":
            told = "there is no such assumption; `turnledger size --explain` lists all"
        raise ConfigError(f"--assume {name}: {told[:1].lower()}{told[1:]}") from error


def table(sizings: list["Sizing"]) -> str:
    """Returns the figures as text, a column a fleet."""
    return "\n".join(
        f"{name:<30}" + "".join(f"{_short(figure(sizing)):>11}" for sizing in sizings)
        for name, figure in LINES.items()
    )


def explained(assumed: "Assumptions") -> str:
    """Returns every assumption with its value and what is known of it."""
    parts = []
    for name, field in type(assumed).model_fields.items():
        told = " ".join((field.description or "").split())
        parts.append(f"{name} = {getattr(assumed, name):,}")
        parts += textwrap.wrap(told, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(parts)


def _short(value: float) -> str:
    """Writes a figure with about two digits of meaning, as no assumption has more."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _numbers(text: str) -> tuple[int, int]:
    gpus, slash, each = text.partition("/")
    if not (slash and gpus.isdecimal() and each.isdecimal()):
        raise ConfigError(f"--fleet {text}: write GPUs and GPUs a run, as 64/8")
    return int(gpus), int(each)
