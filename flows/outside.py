"""What comes from outside the store: problem files and given policies, named by their content.

A run that has stored what it made of them needs them no more. They may be moved, and are not
there where the run was imported; then the stored result says what their content was.
"""

from pathlib import Path

from flows.binding import Place
from flows.task_inputs import foreign_ref
from schemas.config import ExecutionConfig, ProblemsConfig, RunConfig
from schemas.errors import ConfigError, PolicyError, ProblemFileError
from schemas.refs import FOREIGN, Ref
from storage import Fingerprint
from storage.digests import files_below, folder_digest
from storage.problem_sources import find_source

PATHS = ("problems.path", "evaluation.path", "policy.path")
"""Settings that name something outside; a run may go on with another place of the same content."""


def problem_sections(config: RunConfig) -> dict[str, ProblemsConfig]:
    """Returns how the problems of each split are read; the held-out ones may have another file."""
    held_out = config.problems.model_copy(update={"path": config.evaluation.path})
    return {"train": config.problems, "evaluation": held_out}


def problem_file(place: Place | None, config: ProblemsConfig) -> tuple[str, Ref]:
    """Returns the name of a problem file, which is part of its rows, and its reference.

    Args:
        place: Where its problems may be stored already; null for a run that has stored nothing.
        config: Names the file.

    Raises:
        ProblemFileError: If it is missing, and its problems are not stored.
    """
    if config.path is None:
        raise ValueError("embedded problems are drawn by the prompts stage")
    try:
        source = find_source(Path(config.path))
    except ProblemFileError:
        stored = _stored(place, "problems")
        if stored is None:
            raise
        return str(stored.config["source"]), _named(config.path, stored.inputs["file"])
    return source.name, foreign_ref(config.path, source.files)


def given_policy(place: Place | None, path: str) -> Ref:
    """Returns the reference of a policy folder.

    Args:
        place: Where the policy may be stored already, after its cold start; null as above.
        path: The folder.

    Raises:
        PolicyError: If it is missing, and the policy is not stored.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return foreign_ref(path, [folder / name for name in files_below(folder)])
    stored = _stored(place, "cold_start")
    if stored is None or "policy" not in stored.inputs:
        raise PolicyError(f"policy.path: {path} is no model folder: config.json is missing")
    return _named(path, stored.inputs["policy"])


def readable_files(config: ExecutionConfig) -> dict[str, Ref]:
    """Returns the folder that snippets can read, as input of their execution; none without one.

    Raises:
        ConfigError: If it is no folder.
    """
    path = config.files_path
    if path is None:
        return {}
    if not Path(path).is_dir():
        raise ConfigError(f"execution.files_path: {path} is no folder")
    return {"files": _named(path, folder_digest(Path(path)))}


def contents(place: Place | None, config: RunConfig) -> dict[str, tuple[str, str]]:
    """Returns name and content digest of everything from outside, by the setting that names it.

    Args:
        place: Iteration 0 of the run; null for one that has stored nothing.
        config: Its settings.

    Raises:
        ProblemFileError: If a problem file is missing, and its problems are not stored.
        PolicyError: The same of the policy folder.
    """
    found = {}
    for split, section in problem_sections(config).items():
        if section.path is not None:
            key = "problems.path" if split == "train" else "evaluation.path"
            at = None if place is None else place.model_copy(update={"split": split})
            try:
                name, ref = problem_file(at, section)
            except ProblemFileError as error:
                raise ProblemFileError(f"{key}: {error}") from error
            found[key] = (name, ref.content)
    if config.policy.path is not None:
        found["policy.path"] = ("", given_policy(place, config.policy.path).content)
    return found


def _stored(place: Place | None, stage: str) -> Fingerprint | None:
    manifest = None if place is None else place.open().manifest(place.slot(stage))
    return None if manifest is None else manifest.fingerprint


def _named(path: str, content: str) -> Ref:
    return Ref(uri=path, name=FOREIGN, digest=content, content=content)
