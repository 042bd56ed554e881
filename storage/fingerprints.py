"""What decides the result of a stage run, and why two stage runs differ.

A fingerprint holds digests, never data. Its code is found by `storage.closures`. It does not see
code that is loaded by a name computed at run time (`importlib.import_module(name)`), nor
third-party packages beyond the few versions that are handed in.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.digests import json_digest


class Fingerprint(BaseModel):
    """Everything that decides what a stage run computes; equal digests mean equal results."""

    model_config = ConfigDict(frozen=True)

    stage: str
    """Name of the stage."""
    code: dict[str, str]
    """Module name to digest of its normalised source; see `storage.closures.module_closure`."""
    config: dict[str, Any]
    """The stage's own configuration, as JSON."""
    inputs: dict[str, str]
    """Input name (a table, a policy) to digest of its content."""
    seed: int | None
    """Seed of a stage that draws at random; null for the others."""
    libraries: dict[str, str]
    """Versions of the few libraries that change results."""

    @property
    def digest(self) -> str:
        """SHA-256 over all parts, hexadecimal."""
        return json_digest(self.model_dump(mode="json"))


def explain(new: Fingerprint, old: Fingerprint | None) -> list[str]:
    """Returns why a stage run with fingerprint `new` cannot use the result of `old`.

    Example:
        `["config gamma: 0.9 -> 0.95", "data turn_rewards changed"]`

    Args:
        new: Fingerprint of the stage run that is asked for.
        old: Fingerprint of the stored result; null if there is none.

    Returns:
        One reason a difference, in fixed order: stage, code, config, data, seed, libraries.
        Empty if the fingerprints are equal.
    """
    if old is None:
        return ["first run"]
    reasons = [] if new.stage == old.stage else [f"stage {old.stage} -> {new.stage}"]
    reasons += _digest_changes("code", new.code, old.code)
    reasons += _value_changes("config", _flat(new.config), _flat(old.config))
    reasons += _digest_changes("data", new.inputs, old.inputs)
    if new.seed != old.seed:
        reasons.append(f"seed {_shown(old.seed)} -> {_shown(new.seed)}")
    for name in _differing(new.libraries, old.libraries):
        before, after = (versions.get(name, "unset") for versions in (old.libraries, new.libraries))
        reasons.append(f"library {name} {before} -> {after}")
    return reasons


def _differing(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    missing = object()
    return sorted(k for k in {*new, *old} if new.get(k, missing) != old.get(k, missing))


def _digest_changes(kind: str, new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    def change(name: str) -> str:
        if name not in old:
            return "added"
        return "changed" if name in new else "removed"

    return [f"{kind} {name} {change(name)}" for name in _differing(new, old)]


def _value_changes(kind: str, new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    def shown(values: Mapping[str, Any], name: str) -> str:
        return _shown(values[name]) if name in values else "unset"

    return [f"{kind} {k}: {shown(old, k)} -> {shown(new, k)}" for k in _differing(new, old)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            # A tuple and the list that JSON makes of it are the same value.
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
