"""Whether a policy's code is Python at all. It is parsed, never run."""

import ast
import warnings

# A policy writes literals such as `3if`; what Python thinks of them is not for our terminal. Up to
# Python 3.11 the category is DeprecationWarning. Where warnings are errors it would be no Python.
warnings.filterwarnings("ignore", module="<turn>")


def is_no_python(code: str) -> bool:
    """Says whether a code has no meaning as Python, of the version that runs here."""
    try:
        ast.parse(code, filename="<turn>")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return False
