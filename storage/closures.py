"""Which code a module is made of: digests of its own source and of what it imports.

The sources are parsed, never imported. Modules of most packages count whole. Those of `schemas`
hold declarations that many stages share, so they count by the definitions that are used: a new
table or setting concerns the stages that use it, and no others.
"""

import ast
import functools
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from storage.digests import json_digest

PROJECT_PACKAGES = ("stages", "schemas")
DECLARATIONS = "schemas"
"""Package whose modules count by the definitions that are used."""

_WHOLE = "*"
"""In place of a name: everything that a module holds."""
_LOADED = ""
"""In place of a name: the module is loaded, and no name of it is used."""

_Use = tuple[str, str]
"""Module, and a name in it that is imported; the name may also be that of a submodule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statement:
    """One statement of a module's top level; an import of several names is several."""

    names: frozenset[str]
    """What it defines; empty if it is no definition."""
    dump: str
    """Its syntax tree as text."""
    uses: tuple[_Use, ...]
    """What it imports, inside functions too."""
    refers_to: frozenset[str]
    """Names of the same module that it mentions."""


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

    Of a module of `DECLARATIONS` count the names that are imported from it, the definitions that
    these refer to, there and in other such modules, and every statement of its top level that is
    no definition. `import schemas.tables`, `from schemas import tables`, a star and a name that
    is not found at its top level count it whole. Not seen are effects that one definition has on
    another, as by a decorator that registers.

    Args:
        module: Dotted name, such as `stages.advantages`.
        packages: Top-level packages to follow; all others are left out.
        search_paths: Folders that hold the packages; null for the import path.

    Returns:
        Module name to digest, sorted by name. A module of which nothing counts is left out.

    Raises:
        ModuleNotFoundError: If `module` itself is not found.
        SyntaxError: If a source is no Python.
    """
    if search_paths is None:
        find = _find_installed
    else:
        find = functools.cache(functools.partial(_find_source, search_paths=search_paths))
        PathFinder.invalidate_caches()
    if find(module) is None:
        raise ModuleNotFoundError(f"no source of module {module}", name=module)
    counted: dict[str, set[int]] = {}
    sources: dict[str, tuple[_Statement, ...]] = {}
    waiting: list[_Use] = [(module, _WHOLE)]
    seen: set[_Use] = set()
    while waiting:
        use = waiting.pop()
        name, wanted = use
        if use in seen or name.partition(".")[0] not in packages:
            continue
        seen.add(use)
        path = find(name)
        if path is None:  # a name that a module defines, or a package without __init__
            continue
        if name not in sources:
            status = path.stat()
            sources[name] = _parsed(name, path, status.st_mtime_ns, status.st_size)
            counted[name] = set()
            waiting += [(parent, _LOADED) for parent in _parent_packages(name)]
        if wanted not in (_WHOLE, _LOADED):  # it may be a submodule
            waiting.append((f"{name}.{wanted}", _WHOLE))
        new = _statements_of(name, sources[name], wanted) - counted[name]
        counted[name] |= new
        waiting += _uses_of(sources[name], new)
    return {
        name: json_digest([statements[i].dump for i in sorted(counted[name])])
        for name, statements in sorted(sources.items())
        if counted[name] or name.partition(".")[0] != DECLARATIONS
    }


def _statements_of(module: str, statements: Sequence[_Statement], wanted: str) -> set[int]:
    """Returns the positions of the statements that a name of a module is made of."""
    everything = set(range(len(statements)))
    if wanted == _WHOLE or module.partition(".")[0] != DECLARATIONS:
        return everything
    places: dict[str, set[int]] = {}
    for i, statement in enumerate(statements):
        for name in statement.names:
            places.setdefault(name, set()).add(i)
    if wanted not in (_LOADED, *places):
        return everything
    waiting = {i for i in everything if not statements[i].names} | places.get(wanted, set())
    found: set[int] = set()
    while waiting:
        found |= waiting
        referred = {name for i in waiting for name in statements[i].refers_to}
        waiting = {i for name in referred for i in places.get(name, ())} - found
    return found


def _uses_of(statements: Sequence[_Statement], counted: Iterable[int]) -> Iterator[_Use]:
    """Yields what counted statements import; what the others import is loaded all the same."""
    for i in counted:
        yield from statements[i].uses
    for statement in statements:
        for module, name in statement.uses:
            yield from ((module, _LOADED), (f"{module}.{name}", _LOADED))


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
def _find_installed(module: str) -> Path | None:
    """Returns the same on the import path, looked for once: stages share most of their modules."""
    return _find_source(module, None)


@functools.lru_cache(maxsize=4096)
def _parsed(module: str, path: Path, mtime_ns: int, size: int) -> tuple[_Statement, ...]:
    """Returns the statements of a source's top level.

    `mtime_ns` and `size` are part of the cache's key: an edited file is parsed again.
    """
    tree = ast.parse(path.read_bytes(), filename=str(path))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    body = [part for node in _WithoutBareStrings().visit(tree).body for part in _parts(node)]
    defined = [frozenset(_names_of(node)) for node in body]
    all_defined = frozenset().union(*defined)
    return tuple(
        _Statement(
            names=names,
            dump=ast.dump(node),
            uses=tuple(_imported(parts, package)),
            refers_to=frozenset(_mentioned(parts, all_defined)),
        )
        for node, names in zip(body, defined, strict=True)
        for parts in [_telling_parts(node)]
    )


def _parts(node: ast.stmt) -> Iterator[ast.stmt]:
    """Splits an import of several names, for each is a definition of its own."""
    if isinstance(node, ast.Import):
        yield from (ast.Import(names=[alias]) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (ast.ImportFrom(node.module, [alias], node.level) for alias in node.names)
    else:
        yield node


def _names_of(node: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement defines; none if it does anything else."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            return  # it decides how the whole module is read
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        parts = [part for target in targets for part in _unpacked(target)]
        if all(isinstance(part, ast.Name) for part in parts):
            yield from (part.id for part in parts if isinstance(part, ast.Name))


def _unpacked(target: ast.expr) -> list[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        return [part for inner in target.elts for part in _unpacked(inner)]
    return [target]


def _telling_parts(node: ast.stmt) -> list[ast.AST]:
    """Returns what tells of names in a statement, in one walk through it."""
    kinds = (ast.Name, ast.Constant, ast.Import, ast.ImportFrom)
    return [part for part in ast.walk(node) if isinstance(part, kinds)]


def _mentioned(parts: Iterable[ast.AST], defined: frozenset[str]) -> Iterator[str]:
    """Yields the defined names that a statement refers to, in strings that are code as well."""
    for part in parts:
        if isinstance(part, ast.Name) and part.id in defined:
            yield part.id
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            if defined.isdisjoint(re.findall(r"\w+", part.value)):
                continue
            try:  # a forward reference, such as "list[Turns]"
                code = ast.parse(part.value, mode="eval")
            except (SyntaxError, ValueError):
                continue
            yield from (n.id for n in ast.walk(code) if isinstance(n, ast.Name))


def _imported(parts: Iterable[ast.AST], package: str) -> Iterator[_Use]:
    """Yields what a statement imports; with `import a.b` the whole of `a` as well."""
    for node in parts:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from ((name, _WHOLE) for name in (*_parent_packages(alias.name), alias.name))
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, package)
            yield from ((source, alias.name) for alias in node.names)


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
