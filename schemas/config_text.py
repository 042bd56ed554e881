"""Configurations from TOML text and `--set section.key=value`, and what differs between two.

A TOML file has the shape of `RunConfig`, a section a stage; an override changes one value.
Unknown keys and impossible values are refused by name before anything runs.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from schemas.config import RunConfig
from schemas.errors import ConfigError


def parse_config(
    toml_text: str = "", overrides: Iterable[str] = (), *, name: str = "config"
) -> RunConfig:
    """Builds a run's configuration from TOML text and `key=value` overrides.

    Args:
        toml_text: Content of a TOML file; empty for the defaults.
        overrides: `section.key=value` each; values are read as TOML, and as a bare string
            where they are no TOML.
        name: What errors call the text, such as its file.

    Raises:
        ConfigError: On malformed TOML, unknown keys and impossible values, naming each.
    """
    try:
        values: dict[str, Any] = tomllib.loads(toml_text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}") from error
    return _validated(_with_overrides(values, overrides, None))


def override_config(
    config: RunConfig, overrides: Iterable[str], *, section: str | None = None
) -> RunConfig:
    """Returns the configuration with `key=value` overrides.

    Args:
        config: What to change.
        overrides: As in `parse_config`.
        section: Section that a key without a dot belongs to, unless it is a section itself.

    Raises:
        ConfigError: As `parse_config`.
    """
    return _validated(_with_overrides(config.model_dump(mode="json"), overrides, section))


def changed_keys(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the dotted keys whose values differ, each with the old and the new value."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return {k: (before[k], after[k]) for k in before if before[k] != after[k]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _with_overrides(
    values: dict[str, Any], overrides: Iterable[str], section: str | None
) -> dict[str, Any]:
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: write it as section.key=value")
        path = _resolve(key.strip(), section)
        target = values
        for part in path[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: {part} is no section")
        target[path[-1]] = _read_value(text.strip())
    return values


def _resolve(key: str, section: str | None) -> list[str]:
    if section is not None and "." not in key and key not in RunConfig.model_fields:
        return [section, key]
    return key.split(".")


def _read_value(text: str) -> Any:
    if text in ("null", "none"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _validated(values: dict[str, Any]) -> RunConfig:
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_one_line(e) for e in error.errors())) from error


def _one_line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _flat(RunConfig().model_dump()), n=1)
        hint = f"did you mean {near[0]}?" if near else "`turnledger train --show-config` lists all"
        return f"config key {key} is unknown; {hint}"
    if error["type"] == "model_type":
        return f"config key {key} is a section: set {key}.NAME"
    if not key:
        return str(error["msg"]).removeprefix("Value error, ")
    given = json.dumps(error["input"], default=str)
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"config key {key}: {message[:1].lower() + message[1:]}, got {given[:80]}"
