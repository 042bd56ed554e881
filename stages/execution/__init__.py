"""Execution: runs the code of turns, isolated, and makes observations of what it did."""

from stages.execution.observation import observation_text
from stages.execution.protocol import SNIPPET_SCHEMA, Executor
from stages.execution.sandbox import SandboxExecutor
from stages.execution.stage import execute_turns, make_executor
from stages.execution.unsafe_local import UnsafeLocalExecutor

__all__ = [
    "SNIPPET_SCHEMA",
    "Executor",
    "SandboxExecutor",
    "UnsafeLocalExecutor",
    "execute_turns",
    "make_executor",
    "observation_text",
]
