"""Branches that were refused or failed: their names are no free names."""

import shlex

from flows.policies import policy_slot
from flows.sessions import refuse_left_over
from schemas.config import RunConfig
from schemas.errors import StoreError, TurnledgerError
from storage import RunParent, RunRecord, Store


def note_refused_branch(
    store: Store, run: str, config: RunConfig, parent: RunParent, error: TurnledgerError
) -> None:
    """Keeps a record of a branch that was refused before it began, if its name is free.

    Else training a run of that name would quietly begin one of its own.
    """
    try:
        with store.lock_run(run):
            refuse_left_over(store, run)
            if not store.has_run(run):
                message = str(error).splitlines()[0]
                store.save_run(
                    RunRecord.new(run, config, status="failed", parent=parent, message=message)
                )
    except TurnledgerError:
        return  # the first error is the one to show


def refuse_failed_branch(store: Store, run: str) -> None:
    """Refuses to train a branch whose rerun failed before there was a policy to go on from.

    Raises:
        StoreError: If it is one, with the reason and the command that makes it.
    """
    record = store.run_record(run) if store.has_run(run) else None
    if record is None or record.parent is None or record.status not in ("failed", "interrupted"):
        return
    parent = record.parent
    made = store.manifest(policy_slot(run, parent.iteration))
    if made is not None and made.policy_version is not None:
        return
    command = [*("turnledger", "rerun", parent.stage, "--run", parent.run)]
    command += ["--iteration", str(parent.iteration), "--into", run]
    command += [] if parent.until is None else ["--until", parent.until]
    command += [part for override in parent.overrides for part in ("--set", override)]
    why = "was interrupted" if record.message is None else f"failed: {record.message}"
    raise StoreError(
        f"run {run} is a branch without a policy to go on from; its rerun, {shlex.join(command)}, "
        f"{why}"
    )
