"""What decides the result of a stage run, and why two stage runs differ.

A fingerprint holds digests, never data. It does not see code that is loaded by a name
computed at run time (`importlib.import_module(name)`), nor third-party packages beyond the
few versions that are handed in.
"""

import ast
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.digests import json_digest

PROJECT_PACKAGES = ("stages", "schemas")


class Fingerprint(BaseModel):
    """Everything that decides what a stage run computes; equal digests mean equal results."""

    model_config = ConfigDict(frozen=True)

    stage: str
    """Name of the stage."""
    code: dict[str, str]
    """Module name to digest of its normalised source; see `module_closure`."""
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


def module_closure(
    module: str,
    packages: Sequence[str] = PROJECT_PACKAGES,
    *,
    search_paths: Sequence[Path] | None = None,
) -> dict[str, str]:
    """Returns the digests of a module and of all project modules that it imports.

    The sources are parsed, never imported. Imports are followed wherever they stand, inside
    functions too, and with every module come the `__init__` files of its packages. A digest
    is that of the syntax tree without bare strings: comments, formatting and docstrings
    change nothing.

    Args:
        module: Dotted name, such as `stages.advantages`.
        packages: Top-level packages to follow; all others are left out.
        search_paths: Folders that hold the packages; null for the import path.

    Returns:
        Module name to digest, sorted by name.

    Raises:
        ModuleNotFoundError: If `module` itself is not found.
        SyntaxError: If a source is no Python.
    """
    find = functools.partial(_find_source, search_paths=search_paths)
    if find(module) is None:
        raise ModuleNotFoundError(f"no source of module {module}", name=module)
    digests: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in digests or name.partition(".")[0] not in packages:
            continue
        path = find(name)
        if path is None:  # a name that a module defines, or a package without __init__
            continue
        status = path.stat()
        digests[name], imported = _parsed(name, path, status.st_mtime_ns, status.st_size)
        waiting += imported
        waiting += _parent_packages(name)
    return dict(sorted(digests.items()))


def _parent_packages(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _find_source(module: str, search_paths: Sequence[Path] | None) -> Path | None:
    """Returns the source file of a module, without importing its packages."""
    top, *rest = module.split(".")
    spec: ModuleSpec | None
    if search_paths is None:
        spec = importlib.util.find_spec(top)
    else:
        PathFinder.invalidate_caches()
        spec = PathFinder.find_spec(top, [str(path) for path in search_paths])
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


@functools.lru_cache(maxsize=4096)
def _parsed(module: str, path: Path, mtime_ns: int, size: int) -> tuple[str, tuple[str, ...]]:
    """Returns the digest of a source and the modules that it may import.

    `mtime_ns` and `size` are part of the cache's key: an edited file is parsed again.
    """
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    imported = tuple(_imported(tree, package))
    stripped = _WithoutBareStrings().visit(tree)
    return json_digest(ast.dump(stripped)), imported


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yields every dotted name that may be a module: `from a import b` may mean `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, package)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if node.level == 0:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


class _WithoutBareStrings(ast.NodeTransformer):
    """Drops docstrings and the strings under attributes, which do nothing when run."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if is_text else node


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
