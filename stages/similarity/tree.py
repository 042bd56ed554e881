"""The measure `tree`: which parts of the syntax tree two codes share; names and literals are free.

    sim(a, b) = 2 sum over t of min(n_a(t), n_b(t)) / (sum over t of n_a(t) + n_b(t))

where n(t) is how often a code holds the subtree t. It is Dice's coefficient of the two bags of
complete subtrees; CodeBLEU's syntax match (Ren et al., arXiv 2009.10297) is its one-sided form.
A subtree is a statement, or an expression with parts, down to its leaves. Names (of variables,
attributes, modules, arguments) and the values of literals do not count, operators do. So a renamed
variable changes nothing, nor does the order of statements of the outermost level.

What is compared is decided turn by turn, for one call that is no Python must not spoil the others:
- The subtrees of a trajectory are those of its turns together.
- Code that `parse` refuses has no tree. Each of its lines counts as a subtree, which only the same
  line of other refused code matches: it lowers the similarity to code that parses. So code without
  any tree has similarity 0 to code with one.

`parse` runs in this process. Code is never executed, and what is too long or too deep is refused.
"""

import ast
import warnings
from itertools import chain

import numpy as np
import polars as pl

from stages.similarity.ngrams import count_rows

MAX_CHARS = 20_000
"""Longest code that is parsed. The parser takes quadratic time for some texts (in Python 3.11 for
f-strings); up to here the worst text that was found takes a twentieth of a second."""
MAX_DEPTH = 300
"""Deepest syntax tree that is compared. The interpreter's own limit depends on how deep its caller
stands, so it would refuse other code in a flow than outside of it."""

_FREE_FIELDS = {
    *("id", "attr", "arg", "name", "asname", "module", "level", "rest"),  # names
    *("ctx", "kind", "type_comment", "conversion", "simple", "is_async"),
}
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {
    kind: tuple(name for name in kind._fields if name not in _FREE_FIELDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
"""Kind of node to its fields that count."""
_FIELDS |= {ast.Constant: (), ast.MatchSingleton: ()}
_END_OF_LIST = object()
"""Stands after the nodes of a field with several: `if a: b; c` is not `if a: b else: c`."""

_Node = tuple[ast.AST, list[object], bool]
"""A node, the values of its fields that count, and whether some are nodes."""

Numbering = dict[tuple[object, ...], int]
"""Subtree to number, from 0."""

# What Python thinks of a policy's literals is not for our terminal, nor is it a syntax error.
warnings.filterwarnings("ignore", module="<compared>")


class TreeSimilarity:
    """Compares codes by the measure `tree`."""

    def __init__(self, parts: pl.Series) -> None:
        """Takes the codes, each as the list of its turns' codes, [codes]."""
        self._parts = parts

    def __call__(self, codes: slice, peers: slice) -> np.ndarray:
        """Returns the similarity of each code to each peer; the peers follow the codes."""
        trajectories = self._parts[codes.start : peers.stop].to_list()
        numbering: Numbering = {}
        bags = {text: subtrees(text, numbering) for text in dict.fromkeys(chain(*trajectories))}
        joined = [list(chain.from_iterable(map(bags.__getitem__, t))) for t in trajectories]
        sizes = np.fromiter(map(len, joined), dtype=np.int64, count=len(joined))
        kinds = np.fromiter(chain(*joined), dtype=np.int64, count=int(sizes.sum()))
        counts = count_rows(kinds, sizes)
        split = codes.stop - codes.start
        # Row by row: codes times peers times subtrees at once would take too much memory.
        shared = [np.minimum(row, counts[split:]).sum(axis=1) for row in counts[:split]]
        both = sizes[:split, None] + sizes[None, split:]
        dice: np.ndarray = 2 * np.stack(shared) / both
        return dice


def subtrees(code: str, numbering: Numbering) -> list[int]:
    """Returns the number of every subtree that counts in one turn's code.

    Args:
        code: What the turn holds.
        numbering: Numbers known so far; new ones are added.
    """
    nodes = parse(code)
    if nodes is None:
        lines = [("line", line) for line in _lines_with_tokens(code)]
        return [numbering.setdefault(line, len(numbering)) for line in lines]
    counted = []
    numbers: dict[int, int] = {id(_END_OF_LIST): -1}
    number_of = numbers.get
    # From the leaves up, without recursion, so that depth costs no stack.
    for node, parts, has_children in reversed(nodes):
        subtree = (type(node), *map(number_of, map(id, parts)))
        number = numbers[id(node)] = numbering.setdefault(subtree, len(numbering))
        if has_children or isinstance(node, ast.stmt):
            counted.append(number)
    return counted


def parse(code: str) -> list[_Node] | None:
    """Returns the nodes of the syntax tree, those of a level before those of the next.

    Returns:
        Null for what is no Python, longer than `MAX_CHARS` or deeper than `MAX_DEPTH`.
    """
    if len(code) > MAX_CHARS:
        return None
    try:
        level: list[ast.AST] = [*ast.parse(code, filename="<compared>").body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # how the parser gives up
        return None
    nodes: list[_Node] = []
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            return None
        below: list[ast.AST] = []
        for node in level:
            parts: list[object] = []
            before = len(below)
            for name in _FIELDS[type(node)]:
                value = getattr(node, name)
                if type(value) is list:
                    parts += value
                    parts.append(_END_OF_LIST)
                    below += [child for child in value if isinstance(child, ast.AST)]
                else:
                    parts.append(value)
                    if isinstance(value, ast.AST):
                        below.append(value)
            nodes.append((node, parts, len(below) > before))
        level = below
    return nodes


def _lines_with_tokens(code: str) -> list[str]:
    lines = (line.strip() for line in code.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]
