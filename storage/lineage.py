"""Where a result came from: its parents, and theirs, back to files from outside the store.

Read from the manifests alone. A manifest names the inputs by content, so lineage does not depend
on what is in their slots today: an input that was replaced or removed since is told as such.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import polars as pl
from pydantic import ValidationError

from schemas.errors import StoreError
from schemas.refs import FOREIGN, Ref
from storage.layout import Slot
from storage.manifests import Manifest
from storage.store import Store

Key = tuple[str, str, str]
State = Literal["stored", "gone", "outside"]

EDGES_SCHEMA = {
    "child": pl.String,
    "child_content": pl.String,
    "parent": pl.String,
    "parent_content": pl.String,
    "parent_state": pl.String,
}
"""Columns of a lineage as frame: a row an input of a result."""


@dataclass(frozen=True, slots=True)
class Node:
    """One table or policy of a lineage."""

    ref: Ref
    """As its child names it."""
    state: State
    """`stored`, `gone` (replaced or removed since), or `outside` of every store."""
    slot: Slot | None = None
    """Where it is, or was; null outside."""
    manifest: Manifest | None = None
    """Of the result that holds it; null unless it is stored."""

    @property
    def key(self) -> Key:
        """What makes it the same node wherever it is named: its place and its content.

        Content alone is not enough: all empty tables of a kind are equal.
        """
        place = self.ref.uri if self.slot is None else self.slot.uri
        return place, self.ref.name, self.ref.content


@dataclass(slots=True)
class Lineage:
    """A graph of tables and policies."""

    roots: list[Node]
    """What was asked about."""
    nodes: dict[Key, Node] = field(default_factory=dict)
    """Every node by its key."""
    parents: dict[Key, list[Node]] = field(default_factory=dict)
    """Inputs of each node, in the order in which its stage run named them."""

    def frame(self) -> pl.DataFrame:
        """Returns the graph as rows; see `EDGES_SCHEMA`."""
        rows = [
            {
                "child": self.nodes[key].ref.uri,
                "child_content": key[2],
                "parent": parent.ref.uri,
                "parent_content": parent.ref.content,
                "parent_state": parent.state,
            }
            for key, parents in self.parents.items()
            for parent in parents
        ]
        return pl.DataFrame(rows, schema=EDGES_SCHEMA)


def slot_of(uri: str) -> Slot | None:
    """Returns the slot that a place in the store belongs to; null for one that is no slot's."""
    parts = dict(part.split("=", 1) for part in uri.split("/") if "=" in part)
    try:
        slot = Slot.model_validate(parts)
    except ValidationError:
        return None
    return slot if f"{uri}/".startswith(f"{slot.uri}/") else None


def find_table(
    store: Store, run: str, table: str, *, iteration: int | None = None, split: str = "train"
) -> list[Ref]:
    """Returns the references of a table, or of `policy`, of one iteration of a run.

    Args:
        store: Where to look.
        run: Name of the run.
        table: Name of the table, or `policy`.
        iteration: Iteration; null for the last that holds the table.
        split: `train` or `evaluation`.

    Raises:
        StoreError: If there is none.
    """
    found: dict[int, list[Ref]] = {}
    for uri, manifest in store.results(store.run_record(run).name):
        slot = slot_of(uri)
        output = manifest.output(uri)
        ref = output.checkpoint if table == "policy" else output.tables.get(table)
        if ref is not None and slot is not None and slot.split == split:
            found.setdefault(slot.iteration, []).append(ref)
    wanted = max(found, default=None) if iteration is None else iteration
    if wanted is None or wanted not in found:
        place = "" if iteration is None else f" of iteration {iteration}"
        raise StoreError(f"run {run} has no {table}{place}, {split}")
    return sorted(found[wanted], key=lambda ref: ref.uri)


def trace(store: Store, refs: Iterable[Ref], *, through_policies: bool = False) -> Lineage:
    """Follows references back to their inputs.

    Args:
        store: Where they are.
        refs: What to ask about.
        through_policies: Whether to go on behind a policy, to the iteration that made it, and so
            back to the cold start; otherwise a policy is named with its version and left there.
    """
    roots = [_node(store, ref, None) for ref in refs]
    lineage = Lineage(roots)
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node.key in lineage.nodes:
            continue
        lineage.nodes[node.key] = node
        is_end = node.ref.name == "policy" and node not in roots and not through_policies
        inputs = [] if node.manifest is None or is_end else node.manifest.parents
        lineage.parents[node.key] = [_node(store, ref, node.slot) for ref in inputs]
        waiting += lineage.parents[node.key]
    return lineage


def _node(store: Store, ref: Ref, child: Slot | None) -> Node:
    # What comes from outside may lie anywhere, in a slot of this or another store too.
    slot = None if ref.name == FOREIGN else slot_of(ref.uri)
    if slot is None:
        return Node(ref, "outside")
    places = [slot]
    if child is not None:
        # A result that was taken over names inputs of the run it came from. They were taken over
        # with it, and may have outlived that run here.
        places.append(slot.model_copy(update={"run": child.run}))
    for place in places:
        try:
            manifest = store.manifest(place)
        except StoreError:
            continue
        if manifest is not None and _holds(manifest, place, ref):
            return Node(ref, "stored", place, manifest)
    return Node(ref, "gone", slot)


def _holds(manifest: Manifest, slot: Slot, ref: Ref) -> bool:
    output = manifest.output(slot.uri)
    held = output.checkpoint if ref.name == "policy" else output.tables.get(ref.name)
    return held is not None and held.content == ref.content
