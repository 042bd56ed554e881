"""What the commands share: options, reading of settings, and which run is meant."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import ConfigError, StoreError, TurnledgerError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from schemas.config import RunConfig
    from storage import Store

DEFAULT_STORE = "turnledger-store"

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="TURNLEDGER_STORE", help="Folder of the store, or s3://bucket/prefix."
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", "--from-run", help="Name of the run; left out, the run that was changed last."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Changes one setting: section.key=value. Repeatable."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file with the sections of the config.")
]
IntoOption = Annotated[
    str | None, typer.Option("--into", help="Name of the branch; default RUN.1, RUN.2, ...")
]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="train, evaluation or the name of a benchmark.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", help="Last stage to compute; left out, all downstream.")
]
OnlyOption = Annotated[
    bool | None,
    typer.Option(
        "--only/--downstream",
        help="The stage alone, or with all that depends on it in the iteration (the default).",
    ),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Tells nothing but errors: the exit code says how it ended.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Tells what happens as JSON, one object a line.")
]


def read_text(path: Path, what: str) -> str:
    """Returns the text of a file that a user named.

    Args:
        path: The file.
        what: What errors call it.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{what} {path} cannot be read: {reason}") from error


def read_config(path: Path | None, overrides: list[str] | None) -> "RunConfig":
    """Reads settings from a file and overrides.

    Raises:
        ConfigError: If the file cannot be read or a setting cannot be used.
    """
    from schemas.config_text import parse_config

    text = "" if path is None else read_text(path, "config file")
    return parse_config(text, overrides or [], name=str(path or "config"))


def settings_of(
    store: "Store | None", run: str | None, path: Path | None, overrides: list[str] | None
) -> "RunConfig":
    """Returns the settings for a training: those of the run, where it exists and no file is given.

    Raises:
        ConfigError: If a setting cannot be used.
        StoreError: If the run's record cannot be read.
    """
    if store is None or run is None or path is not None or not store.has_run(run):
        return read_config(path, overrides)
    from flows.sessions import stored_config
    from schemas.config_text import override_config

    return override_config(stored_config(store.run_record(run)), overrides or [])


def last_stage(stage: str, until: str | None, only: bool | None) -> str | None:
    """Returns the last stage that a rerun computes; null for all that depend on the first.

    Raises:
        ConfigError: If the options contradict each other.
    """
    if until is not None and only is not None:
        raise ConfigError("--until says how far to go already: leave out --only and --downstream")
    return stage if only else until


def chosen_run(store: "Store", run: str | None) -> str:
    """Returns the named run, or the one that was changed last.

    Raises:
        StoreError: If there is no such run.
    """
    if run is not None:
        return store.run_record(run).name
    records = store.runs()
    if not records:
        raise StoreError(f"no run in {store.url}: `turnledger train` makes one")
    by_age = sorted(records, key=lambda record: record.updated_at, reverse=True)
    # A branch that was refused holds nothing to look at or to go on from.
    used = (r for r in by_age if r.parent is None or store.has_results(r.name))
    return next(used, by_age[0]).name


def as_toml(config: "RunConfig") -> str:
    """Writes settings as TOML; a null is a comment, as TOML has none."""
    return "\n".join(_toml_lines(config.model_dump(mode="json"), ""))


def _toml_lines(values: dict[str, Any], name: str) -> list[str]:
    sections = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"\n[{name}]"] if name and len(sections) < len(values) else []
    for key, value in values.items():
        if key not in sections:
            lines.append(f"# {key} is unset" if value is None else f"{key} = {json.dumps(value)}")
    for key, section in sections.items():
        lines += _toml_lines(section, f"{name}.{key}" if name else key)
    return lines


def check_output(path: Path | None, ending: str) -> None:
    """Refuses a file that could not be written, before the work for it is done.

    Args:
        path: The file that a user named; null where none is asked for.
        ending: What its name must end with, dot included.

    Raises:
        TurnledgerError: If it has another ending, is a folder or lies in none.
    """
    if path is None:
        return
    if path.suffix != ending:
        raise TurnledgerError(f"{path} cannot be written: take a name that ends in {ending}")
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise TurnledgerError(f"{path} cannot be written: {reason}")


def write_frame(frame: "pl.DataFrame", path: Path) -> None:
    """Writes a frame to the Parquet file that a user named.

    Raises:
        TurnledgerError: If it cannot be written.
    """
    content = io.BytesIO()  # a file that is there stays as it is until all is ready
    frame.write_parquet(content)
    try:
        path.write_bytes(content.getvalue())
    except OSError as error:
        raise TurnledgerError(f"{path} cannot be written: {error.strerror}") from error


def write_outputs(
    console: "Console",
    frame: "pl.DataFrame",
    to: Path | None,
    figure: Path | None,
    draw: Callable[[Path], None],
) -> None:
    """Writes the files that a user asked for, and says where they are.

    Args:
        console: Where it is said.
        frame: Rows for `to`.
        to: Parquet file; null where none is asked for.
        figure: PNG file; null likewise.
        draw: Draws the figure into a file.

    Raises:
        TurnledgerError: If one cannot be written.
    """
    if to is not None:
        write_frame(frame, to)
        console.print(f"rows    {to}", markup=False, highlight=False, soft_wrap=True)
    if figure is not None:
        try:
            draw(figure)
        except OSError as error:
            raise TurnledgerError(f"{figure} cannot be written: {error.strerror}") from error
        console.print(f"figure  {figure}", markup=False, highlight=False, soft_wrap=True)
