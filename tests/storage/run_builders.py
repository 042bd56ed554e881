"""Runs with results, records and branches, for tests of what concerns whole runs."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage_builders import fingerprint, slot, updates

from schemas.refs import CheckpointRef, StageOutput
from storage import RunRecord, Slot, Store

POLICY_BYTES = 50_000
"""Of a policy's weights."""


def record(name: str = "demo", **parts: object) -> RunRecord:
    now = datetime.now(UTC)
    known = {"config": {"seed": 0}, "config_digest": "d", "status": "finished"}
    return RunRecord.model_validate(
        {"name": name, "created_at": now, "updated_at": now, **known, **parts}
    )


def put_result(store: Store, place: Slot, seed: int, *, replace: bool = False) -> StageOutput:
    """Stores updates and a policy that differ from seed to seed."""

    def write_policy(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "deep" / "weights").write_bytes(bytes([seed]) * 5000)

    return store.write(
        place,
        fingerprint(seed=seed),
        tables={"updates": updates(rows=3, loss=seed)},
        checkpoint_writer=write_policy,
        policy_version=1,
        seconds=0,
        parents=[],
        replace=replace,
    )


def write_policy(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "nested").mkdir()
    (folder / "nested" / "weights.bin").write_bytes(os.urandom(POLICY_BYTES))


def put_policy(store: Store, run: str = "demo", *, replace: bool = False) -> CheckpointRef:
    """Stores a policy that no other has the bytes of."""
    output = store.write(
        slot(run=run),
        fingerprint(),
        tables={"updates": updates()},
        checkpoint_writer=write_policy,
        policy_version=4,
        seconds=1.0,
        parents=[],
        replace=replace,
    )
    assert output.checkpoint is not None
    return output.checkpoint


def put_run(store: Store, run: str, seeds: Mapping[int, int], **parts: Any) -> None:
    """Stores results (iteration to seed) and the record of a run."""
    for iteration, seed in seeds.items():
        put_result(store, slot(run=run, iteration=iteration), seed)
    store.save_run(record(run, **parts))


def branch(store: Store, run: str, into: str, iterations: list[int]) -> None:
    """Makes a run that takes results of another one over."""
    for iteration in iterations:
        place = slot(run=run, iteration=iteration)
        assert store.adopt(place, place.model_copy(update={"run": into})) is not None
    store.save_run(record(into))


def state_of_run(store: Store, run: str) -> dict[str, str]:
    """Returns path to digest of every file of a run; in a bucket key to etag, blobs included."""
    if store.url.startswith("s3://"):
        from places import objects_of

        from storage.layout import blob_uri

        named = {
            blob_uri(digest)
            for _, manifest in store.results(run)
            for digest in (
                *(file.digest for file in manifest.files.values()),
                manifest.output("").checkpoint.digest,  # type: ignore[union-attr]
            )
        }
        keys = {*named, *objects_of(store, f"run={run}/")} - {f"run={run}/lease.json"}
        return {key: etag for key, etag in objects_of(store).items() if key in keys}
    from storage.digests import file_digest, files_below

    folder = store.root / f"run={run}"
    return {name: file_digest(folder / name) for name in files_below(folder)}


def verify(store: Store, run: str) -> int:
    """Reads every byte of every result of a run; returns how many there are."""
    results = list(store.results(run))
    assert len(results) == len(store.backend.slots(run))
    for uri, manifest in results:
        assert store.backend.content_problem(uri, manifest) is None, uri
    return len(results)
