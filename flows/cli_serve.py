"""The command that stays: serve."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli_options import DEFAULT_STORE, ConfigOption, SetOption, StoreOption, read_config
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from prefect.schedules import Schedule

    from schemas.config import RunConfig

SERVED = ("train", "evaluate", "rerun", "nightly")
"""Deployments that are served, by the names of their flows in `flows.deployed`."""
CONFIGURED = ("train", "nightly")
"""Those that take settings; the others take those of the run that they are asked for."""


def serve(
    scheduled: Annotated[
        list[str] | None,
        typer.Argument(help="Deployments to start by schedule: train, evaluate or nightly."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    run: Annotated[
        str | None,
        typer.Option("--run", help="Run that train and evaluate take where none is asked for."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    cron: Annotated[
        str | None, typer.Option("--cron", help="When they start, as in '0 2 * * *'; UTC.")
    ] = None,
    interval_s: Annotated[
        float | None, typer.Option("--interval", min=1, help="Seconds between their starts.")
    ] = None,
) -> None:
    """Serves the deployments train, evaluate, rerun and nightly to a Prefect server.

    One process that stays until it is stopped, and starts what the server asks for: by schedule,
    from the server's web page, or by `prefect deployment run`. Settings are the defaults of the
    form there.

    Example: turnledger serve nightly --cron '0 2 * * *' --config nightly.toml
    """
    # Commands tell all that happens themselves; what is served tells it in the log of its run.
    # Before Prefect is imported: it reads its settings once, and hands them to what it starts.
    if os.environ.get("PREFECT_LOGGING_LEVEL") == "CRITICAL":
        os.environ["PREFECT_LOGGING_LEVEL"] = "INFO"
    from flows.prefect_server import check_prefect_home, has_prefect_server, prefect_started

    schedule = _schedule(scheduled or [], cron, interval_s)
    settings = read_config(config, overrides)
    if "nightly" in (scheduled or []) and settings.problems.path is None:
        raise ConfigError("problems.path is unset: name the folder in which problems arrive")
    if not has_prefect_server():
        raise ConfigError(
            "serving needs a Prefect server that stays, as a temporary one starts nothing: run "
            "`prefect server start` and set PREFECT_API_URL to its address"
        )
    check_prefect_home()
    with prefect_started():
        _serve(store, run, settings, scheduled or [], schedule)


def _schedule(
    scheduled: list[str], cron: str | None, interval_s: float | None
) -> "Schedule | None":
    """Returns the schedule that is asked for; null for none.

    Raises:
        ConfigError: If it cannot be used, or does not say of what it is.
    """
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron, Interval
    from pydantic import ValidationError

    for name in scheduled:
        if name not in SERVED:
            raise ConfigError(f"deployment {name} is unknown; deployments: {', '.join(SERVED)}")
    if "rerun" in scheduled:
        raise ConfigError("rerun is not started by schedule: it needs a stage and an iteration")
    if cron is not None and interval_s is not None:
        raise ConfigError("--cron and --interval both say when: leave one of them out")
    is_timed = cron is not None or interval_s is not None
    if is_timed != bool(scheduled):
        missing = "--cron or --interval" if scheduled else "what to start, as in `serve nightly`"
        raise ConfigError(f"a schedule is not complete: name {missing}")
    if interval_s is not None:
        return Interval(interval_s)
    if cron is None:
        return None
    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise ConfigError(
            f"--cron '{cron}' is no cron line: write five fields, as in '0 2 * * *'"
        ) from error
    return Cron(cron)


def _serve(
    store: str,
    run: str | None,
    settings: "RunConfig",
    scheduled: list[str],
    schedule: "Schedule | None",
) -> None:
    from prefect import serve as serve_deployments
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows import deployed

    place = store if "://" in store else str(Path(store).absolute())
    deployments = []
    for name in SERVED:
        parameters: dict[str, Any] = {"store": place}
        if name in CONFIGURED:
            parameters["config"] = settings.model_dump(mode="json")
        if name in ("train", "evaluate") and run is not None:
            parameters["run"] = run
        is_night = name == "nightly"
        limit = ConcurrencyLimitConfig(
            limit=1,
            # A night that comes while another trains is not missed: the next one has its problems.
            collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            if is_night
            else ConcurrencyLimitStrategy.ENQUEUE,
        )
        deployments.append(
            getattr(deployed, name).to_deployment(
                name=name,
                schedule=schedule if name in scheduled else None,
                parameters=parameters,
                concurrency_limit=limit,
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    typer.echo(f"serving {', '.join(SERVED)} with store {place}; Ctrl-C stops it")
    serve_deployments(*deployments, print_starting_message=False)
