"""A lineage as a tree for the terminal; shards and turns of one stage share a line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from storage.lineage import Lineage, Node

Kind = tuple[str, ...]


def lineage_lines(lineage: Lineage) -> Iterator[str]:
    """Yields the tree: what was asked about first, its inputs below it, each explained once."""
    members: dict[Kind, list[Node]] = {}
    for node in lineage.nodes.values():
        members.setdefault(_kind(node), []).append(node)
    inputs = {
        kind: list(
            dict.fromkeys(
                other
                for node in nodes
                for parent in lineage.parents.get(node.key, [])
                # Each turn is made from those before it, which stand on the same line.
                if (other := _kind(parent)) != kind
            )
        )
        for kind, nodes in members.items()
    }
    told: set[Kind] = set()
    for kind in dict.fromkeys(_kind(node) for node in lineage.roots):
        yield from _lines(kind, members, inputs, told, "", "")


def _lines(
    kind: Kind,
    members: Mapping[Kind, list[Node]],
    inputs: Mapping[Kind, list[Kind]],
    told: set[Kind],
    lead: str,
    below: str,
) -> Iterator[str]:
    is_new = kind not in told
    told.add(kind)
    yield f"{lead}{_described(members[kind]) if is_new else f'{_named(members[kind])}, as above'}"
    if not is_new:
        return
    for number, parent in enumerate(inputs[kind]):
        is_last = number == len(inputs[kind]) - 1
        branch, trunk = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _lines(parent, members, inputs, told, below + branch, below + trunk)


def _kind(node: Node) -> Kind:
    if node.slot is None:
        return ("outside", node.ref.uri)
    slot = node.slot
    return (node.state, slot.run, f"{slot.iteration:08d}", slot.split, slot.stage, node.ref.name)


def _named(nodes: list[Node]) -> str:
    node = nodes[0]
    if node.slot is None:
        return f"{node.ref.uri} (outside the store)"
    of_evaluation = "" if node.slot.split == "train" else f", {node.slot.split}"
    parts = f" x{len(nodes)}" if len(nodes) > 1 else ""
    return (
        f"{node.ref.name}{parts} of {node.slot.run}, iteration {node.slot.iteration}{of_evaluation}"
    )


def _described(nodes: list[Node]) -> str:
    node = nodes[0]
    digest = node.ref.content[:12]
    if node.manifest is None:
        gone = ", replaced or removed since" if node.state == "gone" else ""
        return f"{_named(nodes)}{gone}  [{digest}]"
    manifests = [n.manifest for n in nodes if n.manifest is not None]
    seconds = sum(m.seconds for m in manifests)
    facts = [f"{seconds:.2f} s", f"{manifests[0].created_at:%Y-%m-%d %H:%M:%S} UTC"]
    if node.ref.name == "policy":
        facts.insert(0, f"version {node.manifest.policy_version}")
    else:
        facts.insert(0, f"{sum(m.tables[node.ref.name].rows for m in manifests)} rows")
    seed = node.manifest.fingerprint.seed
    if seed is not None:
        facts.append(f"seed {seed}")
    settings = _settings(node.manifest.fingerprint.config)
    return f"{_named(nodes)}: {', '.join(facts)}  [{digest}]{'  ' if settings else ''}{settings}"


def _settings(config: Mapping[str, Any]) -> str:
    """Writes the settings of a stage, without those that tell its shard and turn apart."""
    shown = {key: value for key, value in config.items() if key not in ("index", "of", "turn")}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in shown.items())
