"""What a snippet finds and how it ends: code is run as a main module, as an interpreter would.

Standard library only: this runs in a bare interpreter, also on a server that is sent its text.
"""

import ast
import atexit
import builtins
import contextlib
import importlib.util
import io
import linecache
import os
import random
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

_SNIPPET_NAME = "<snippet>"
_exit = os._exit
"""As it was: a snippet may bind the name to something else."""


def run_cells(
    cells: list[str],
    *,
    show_last_value: bool,
    on_ready: Callable[[], None] = lambda: None,
    on_memory_error: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Runs code as a main module and ends the process as a Python interpreter would.

    Expects the standard streams in place; never returns.

    Args:
        cells: The code, and before it the cells whose state it finds; what those print is lost.
        show_last_value: Whether the value of a last expression is printed if nothing else was.
        on_ready: Called before any of the code runs.
        on_memory_error: Called where a MemoryError was not caught.
    """
    exit_code = 1
    try:
        stdout, raw = _replace_streams()
        sys.argv = [_SNIPPET_NAME]
        module = types.ModuleType("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        on_ready()
        for cell in cells[:-1]:
            _seed(cell)
            _replay(cell, module)
            stdout, raw = _replace_streams()  # it may have closed or changed its own
        _seed(cells[-1])
        before = raw.count

        def show(value: object) -> None:
            if value is None or not show_last_value:
                return
            with contextlib.suppress(ValueError):  # the snippet closed it
                stdout.flush()
            if raw.count == before:
                line = f"{value!r}\n"  # may raise: then that is how the snippet ended
                with contextlib.suppress(ValueError):
                    stdout.write(line)

        exit_code = _exit_code_of(cells[-1], module, show, on_memory_error)
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads of the snippet
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        _exit(exit_code)


def _seed(code: str) -> None:
    """Seeds the shared generators by the code: the same code draws the same numbers again."""
    random.seed(code)
    number = random.getrandbits(32)
    random.seed(code)
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(number)
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        _seed_numpy(numpy_random, number)
        return
    waiting = [finder for finder in sys.meta_path if isinstance(finder, _SeedsWhenImported)]
    if waiting:
        waiting[0].number = number
    else:
        sys.meta_path.insert(0, _SeedsWhenImported(number))


def _seed_numpy(numpy_random: Any, number: int) -> None:
    numpy_random.seed(number)
    # Generators without a seed of their own draw from the system's randomness: each gets one.
    make = getattr(numpy_random.default_rng, "__wrapped__", numpy_random.default_rng)
    seeds: list[Any] = []

    def default_rng(seed: Any = None) -> Any:
        if seed is not None:
            return make(seed)
        if not seeds:  # made when it is needed, for most snippets draw nothing
            seeds.append(numpy_random.SeedSequence(number))
        return make(seeds[0].spawn(1)[0])

    default_rng.__wrapped__ = make  # type: ignore[attr-defined]
    numpy_random.default_rng = default_rng


class _SeedsWhenImported:
    """Finder that seeds `numpy.random` once it has been imported, by whomever."""

    def __init__(self, number: int) -> None:
        self.number = number

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "numpy.random":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)  # who looks for it need not import it
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_seed(module: types.ModuleType) -> None:
                run(module)
                _seed_numpy(module, self.number)

            spec.loader.exec_module = run_and_seed  # type: ignore[method-assign]
        return spec


def _replay(cell: str, module: types.ModuleType) -> None:
    """Runs a cell of an earlier turn for its state, with its output thrown away."""
    kept = [os.dup(fd) for fd in (1, 2)]
    nothing = os.open("/dev/null", os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nothing, fd)
    os._exit = _stop  # type: ignore[assignment]
    # It ended as it did in its own turn: what it left behind is what counts.
    with contextlib.suppress(BaseException):
        exec(compile(cell, _SNIPPET_NAME, "exec"), module.__dict__)
    os._exit = _exit
    atexit._run_exitfuncs()  # as at the end of its turn; they print no more in this one
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    for fd, was in zip((1, 2), kept, strict=True):
        os.dup2(was, fd)
    for fd in (nothing, *kept):
        os.close(fd)


def _stop(code: int) -> NoReturn:
    raise SystemExit(code)


class _Counted(io.FileIO):
    """Counts how often something is written to a descriptor."""

    count = 0

    def write(self, data: Any) -> int:
        self.count += 1
        return super().write(data) or 0


def _replace_streams() -> tuple[io.TextIOWrapper, _Counted]:
    """Puts fresh standard streams in place; returns the standard output and what it writes to."""
    # Lines are passed on as they are printed, so that a snippet killed later has shown them.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    raw = _Counted(1, "wb", closefd=False)
    stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", line_buffering=True)
    sys.stdout = stdout
    sys.stderr = _error_stream()
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, f"__{name}__", getattr(sys, name))
    return stdout, raw


def _error_stream() -> io.TextIOWrapper:
    raw = open(2, "wb", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _exit_code_of(
    code: str,
    module: types.ModuleType,
    show: Callable[[object], None],
    on_memory_error: Callable[[], None],
) -> int:
    linecache.cache[_SNIPPET_NAME] = (len(code), None, code.splitlines(True), _SNIPPET_NAME)
    try:
        tree = ast.parse(code, _SNIPPET_NAME)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, _SNIPPET_NAME, "exec"), module.__dict__)
        if isinstance(last, ast.Expr):
            expression = compile(ast.Expression(last.value), _SNIPPET_NAME, "eval")
            show(eval(expression, module.__dict__))
    except SystemExit as stop:
        return _exit_code(stop.code)
    except MemoryError as error:
        on_memory_error()
        _print_error(error)
        return 1
    except BaseException as error:  # noqa: BLE001  # as the interpreter: report it, end with 1
        _print_error(error)
        return 1
    return 0


def _exit_code(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(OSError, ValueError):
        _error_stream().write(f"{code}\n")
    return 1


def _print_error(error: BaseException) -> None:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != _SNIPPET_NAME:
        frames = frames.tb_next  # ours, and those of the parser
    # The snippet may have closed or replaced sys.stderr; descriptor 2 is what is read.
    with contextlib.suppress(OSError, ValueError, MemoryError):
        traceback.print_exception(type(error), error, frames, file=_error_stream())
