"""What comes from outside the store: problems, policies, models, conversations; by content.

A run that has stored what it made of them needs them no more. They may be moved, and are not
there where the run was imported; then the stored result says what their content was. It stands in
only for the very file that the run's settings name: another path that leads nowhere is an error.
"""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from flows.binding import Place
from flows.task_inputs import foreign_ref
from schemas.config import ExecutionConfig, ProblemsConfig, RunConfig, SimilarityConfig
from schemas.errors import (
    ConfigError,
    EmbeddingError,
    PolicyError,
    ProblemFileError,
    TrajectoryFileError,
)
from schemas.refs import FOREIGN, Ref
from storage import Fingerprint
from storage.digests import files_below, folder_digest
from storage.problem_sources import find_source
from storage.trajectory_files import find_trajectories

PROBLEM_PATHS = ("problems.path", "evaluation.path")
"""Settings that name the problem files of the splits, in the order of `problem_sections`."""
PATHS = (*PROBLEM_PATHS, "policy.path", "cold_start.path")
"""Settings that name something outside; a run may go on with another place of the same content."""
_PATH_OF = dict(zip(("train", "evaluation"), PROBLEM_PATHS, strict=True))
"""Split to the setting that names its problem file."""
_INPUT_OF = {"policy.path": "policy", "cold_start.path": "file"}
"""Setting that names something for the cold start to the input that it is."""


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
        ProblemFileError: If it cannot be used, or is missing and its problems are not stored.
    """
    if config.path is None:
        raise ValueError("embedded problems are drawn by the prompts stage")
    try:
        source = find_source(Path(config.path))
    except ProblemFileError:
        stored = _stand_in(place, "problems", config.path)
        if stored is None or not _is_read_alike(stored, config):
            raise
        return str(stored.config["source"]), _named(config.path, stored.inputs["file"])
    return source.name, foreign_ref(config.path, source.files)


def given_policy(place: Place | None, path: str) -> Ref:
    """Returns the reference of a policy folder.

    Args:
        place: Where the policy may be stored already, after its cold start; null as above.
        path: The folder.

    Raises:
        PolicyError: If it is no model folder, or is missing and the policy is not stored.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        return foreign_ref(path, [folder / name for name in files_below(folder)])
    stored = _stand_in(place, "cold_start", path)
    if stored is None:
        raise PolicyError(f"policy.path: {path} is no model folder: config.json is missing")
    return _named(path, stored.inputs["policy"])


def imitated_file(place: Place | None, path: str) -> Ref:
    """Returns the reference of a file of conversations.

    Args:
        place: Where the policy may be stored already, after its cold start; null as above.
        path: The file.

    Raises:
        TrajectoryFileError: If it cannot be used, or is missing and the policy is not stored.
    """
    try:
        source = find_trajectories(Path(path))
    except TrajectoryFileError as error:
        stored = _stand_in(place, "cold_start", path)
        if stored is None:
            raise TrajectoryFileError(f"cold_start.path: {error}") from error
        return _named(path, stored.inputs["file"])
    return foreign_ref(path, source.files)


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


def embedding_model(config: SimilarityConfig) -> dict[str, Ref]:
    """Returns the embedding model of the measure, as input of the shaping; none without one.

    Raises:
        EmbeddingError: If the folder is no sentence-transformers model.
    """
    path = config.embedding_path
    if config.measure != "embedding" or path is None:
        return {}
    from storage.embeddings import check_embedding_folder

    folder = Path(path)
    try:
        check_embedding_folder(folder)
    except EmbeddingError as error:
        raise EmbeddingError(f"similarity.embedding_path: {error}") from error
    status = {name: (folder / name).stat() for name in files_below(folder)}
    stamps = tuple((name, found.st_size, found.st_mtime_ns) for name, found in status.items())
    return {"embedding": _named(path, _digest_of_stamped(folder, stamps))}


@lru_cache(maxsize=8)
def _digest_of_stamped(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Digests a folder once, not for each of its many stage runs, while sizes and times stay."""
    return folder_digest(folder)


def contents(
    place: Place | None, config: RunConfig, keys: Collection[str] = PATHS
) -> dict[str, tuple[str, str]]:
    """Returns name and content digest of what is outside, by the setting that names it.

    Args:
        place: Iteration 0 of the run; null for one that has stored nothing.
        config: Its settings.
        keys: Settings to look at, some of `PATHS`.

    Raises:
        ProblemFileError: If a problem file is missing, and its problems are not stored.
        PolicyError: The same of the policy folder.
        TrajectoryFileError: The same of the file of conversations.
    """
    found = {}
    for split, section in problem_sections(config).items():
        key = _PATH_OF[split]
        if key in keys and section.path is not None:
            at = None if place is None else place.model_copy(update={"split": split})
            try:
                name, ref = problem_file(at, section)
            except ProblemFileError as error:
                raise ProblemFileError(f"{key}: {error}") from error
            found[key] = (name, ref.content)
    if "policy.path" in keys and config.policy.path is not None:
        found["policy.path"] = ("", given_policy(place, config.policy.path).content)
    if "cold_start.path" in keys and config.cold_start.path is not None:
        found["cold_start.path"] = ("", imitated_file(place, config.cold_start.path).content)
    return found


def stored_contents(place: Place) -> dict[str, tuple[str, str]]:
    """Returns what `contents` gave when a run stored what it made of it.

    Args:
        place: Iteration 0 of the run.
    """
    found = {}
    for split, key in _PATH_OF.items():
        stored = _stored(place.model_copy(update={"split": split}), "problems")
        if stored is not None:
            found[key] = (str(stored.config["source"]), stored.inputs["file"])
    stored = _stored(place, "cold_start")
    for key, name in _INPUT_OF.items():
        if stored is not None and name in stored.inputs:
            found[key] = ("", stored.inputs[name])
    return found


def _stand_in(place: Place | None, stage: str, path: str) -> Fingerprint | None:
    """Returns what decided the stored result of something that is gone; null if it is not."""
    if place is None or Path(path).exists() or not place.open().has_run(place.run):
        return None
    settings = place.open().run_record(place.run).config
    if stage == "problems" and place.split not in _PATH_OF:
        return None  # the file of a benchmark, which no setting names
    keys = _INPUT_OF if stage == "cold_start" else (_PATH_OF[place.split],)
    named = [settings[section].get(name) for section, name in (key.split(".") for key in keys)]
    return _stored(place, stage) if path in named else None


def _is_read_alike(stored: Fingerprint, config: ProblemsConfig) -> bool:
    """Says whether the problems of a file were read as a section says, wherever the file was."""
    fields = config.model_dump(exclude={"path", "levels"})
    return fields == {key: stored.config.get(key) for key in fields}


def _stored(place: Place, stage: str) -> Fingerprint | None:
    manifest = place.open().manifest(place.slot(stage))
    return None if manifest is None else manifest.fingerprint


def _named(path: str, content: str) -> Ref:
    return Ref(uri=path, name=FOREIGN, digest=content, content=content)
