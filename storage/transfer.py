"""Runs as stores of their own: one run out as a self-contained folder, and runs in from another.

Every byte is verified on its way, and the record comes last: what was killed halfway has no run.
Fingerprints and contents stay as they are, so a rerun in the new store finds everything stored.
"""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from schemas.errors import ConfigError, StoreError
from storage.backend import Backend
from storage.files import (
    disk_errors,
    remove_unheld,
    staging_folder,
    staging_folders,
    sync_path,
)
from storage.folder import Folder
from storage.garbage import is_dropped
from storage.layout import Slot, is_address, run_uri
from storage.manifests import Manifest
from storage.opening import refuse_partitions
from storage.runs import RunRecord, save_run
from storage.store import Store

Progress = Callable[[int, int], None]
"""Takes the number of results that are copied, and that of all."""

Results = list[tuple[str, Manifest]]


def export_run(store: Store, run: str, folder: Path, progress: Progress) -> None:
    """Writes a new store that holds one run and shares no file with the old one.

    It is written beside the folder and renamed at the end.

    Args:
        store: Where the run is.
        run: Name of the run.
        folder: Folder to make; one that exists must be empty.
        progress: Told of every result.

    Raises:
        StoreError: If the run is not known or being trained, one of its results is damaged,
            naming it, or the folder cannot be used.
    """
    if is_address(folder):
        raise StoreError(f"{folder} is no folder: export to a folder, then import that one there")
    folder = folder.absolute()
    record = _finished(store, run)
    with disk_errors("write", folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is there and not empty: name another folder")
        refuse_partitions(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}."
        for left in staging_folders(folder.parent, prefix):
            remove_unheld(left)  # by an export of this name that was killed
        with staging_folder(folder.parent, prefix) as aside:
            whole = Folder.open(aside / folder.name, create=True, verify="full")
            advice = "run its stage again, then export"
            _copy(store.backend, whole, _results(store.backend, run, advice), run, progress, advice)
            whole.write_record(run, record.model_dump(mode="json"))
            shutil.rmtree(whole.layout.tmp)
            whole.layout.root.rename(folder)
            sync_path(folder.parent)


def import_runs(source: Store, target: Store, name: str | None, progress: Progress) -> list[str]:
    """Takes the runs of a store into another one.

    Killed halfway, it leaves results without a run, and importing again finishes.

    Args:
        source: Where the runs are, such as an exported folder. Only read.
        target: Where they shall be as well.
        name: Another name for the run; null keeps the names.
        progress: Told of every result, for each run from 0.

    Returns:
        The names that the runs have in the target.

    Raises:
        ConfigError: If one name is given for several runs.
        StoreError: If the source holds no run, a run is being trained or its name taken, or a
            result is damaged, naming it.
    """
    names = source.run_names()
    if not names:
        raise StoreError(f"no run in {source.url}: `turnledger export` makes a folder with one")
    if name is not None and len(names) > 1:
        raise ConfigError(f"{source.url} holds several runs ({', '.join(names)}): leave out --as")
    records = {name or run: _finished(source, run) for run in names}
    for new in records:
        _refuse_taken(target, new)
    for new, record in records.items():
        _import(source.backend, target, record, new, progress)
    return list(records)


def _import(
    source: Backend, target: Store, record: RunRecord, name: str, progress: Progress
) -> None:
    advice = "export its run again"
    results = _results(source, record.name, advice)
    with target.lock_run(name):
        _refuse_taken(target, name)
        ours = {_place(manifest, name).uri for _, manifest in results}
        with target.backend.errors("read", ""):
            foreign = [uri for uri in target.backend.slots(name) if uri not in ours]
        if foreign:
            raise StoreError(
                f"{target.backend.address(foreign[0])} is left of another run {name}: "
                "`turnledger gc` removes it, or take another name with --as"
            )
        with target.backend.errors("write", run_uri(name)):
            target.backend.mark_incomplete(name)
        _copy(source, target.backend, results, name, progress, advice)
        save_run(target.backend, record.model_copy(update={"name": name}))


def _finished(store: Store, run: str) -> RunRecord:
    """Returns the record of a run that nobody trains."""
    record = store.run_record(run)
    if record.status == "running":
        raise StoreError(f"run {run} is being trained: wait for it, or stop it")
    return record


def _refuse_taken(target: Store, name: str) -> None:
    if target.has_run(name):
        raise StoreError(f"run {name} is in {target.url} already: take another name with --as")
    if is_dropped(target, name):
        raise StoreError(
            f"run {name} of {target.url} was dropped and is still there: `turnledger gc` removes "
            "it, or take another name with --as"
        )


def _results(source: Backend, run: str, advice: str) -> Results:
    """Returns slot uri and manifest of every result of a run; a damaged one is an error."""
    with source.errors("read", ""):
        uris = source.slots(run)
        inspections = source.inspect_all(uris)
    results = []
    for uri, here in zip(uris, inspections, strict=True):
        if here.manifest is None or here.manifest.slot.uri != uri:
            problem = here.problem or "manifest of another slot"
            raise StoreError(f"{problem} in {source.address(uri)}: {advice}")
        results.append((uri, here.manifest))
    return results


def _copy(
    source: Backend,
    target: Backend,
    results: Results,
    name: str,
    progress: Progress,
    advice: str,
) -> None:
    for number, (uri, manifest) in enumerate(results, start=1):
        _copy_result(source, target, uri, manifest, _place(manifest, name), advice)
        progress(number, len(results))
    runs = {manifest.slot.run for _, manifest in results}
    if any(_results(source, run, advice) != results for run in runs):
        raise StoreError(f"run {name} was changed by another process meanwhile: do the same again")


def _copy_result(
    source: Backend, target: Backend, uri: str, manifest: Manifest, place: Slot, advice: str
) -> None:
    with target.errors("write", place.uri):
        here = target.inspect(place.uri).manifest
        if (
            here is not None
            and here.fingerprint_digest == manifest.fingerprint_digest
            and here.files == manifest.files
            and target.content_problem(place.uri, here) is None
        ):
            return  # by an import that was killed
        with target.staging() as staged:
            problem = source.copy_files(uri, manifest, staged)
            if problem is not None:
                raise StoreError(f"{problem} in {source.address(uri)}: {advice}")
            values = {"slot": place, "adopted_from": uri, "adopted_at": datetime.now(UTC)}
            target.publish(staged, manifest.model_copy(update=values), replace=True)


def _place(manifest: Manifest, run: str) -> Slot:
    return manifest.slot.model_copy(update={"run": run})
