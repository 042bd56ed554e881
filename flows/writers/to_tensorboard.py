"""Figures as event files of TensorBoard, which it reads from a folder."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flows.writers.points import Header, Key, Point


class TensorboardWriter:
    """Adds to the event files of one run; a folder of its own below the given one."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Opens no file yet: nothing new, nothing written."""
        self._folder, self._header = folder / f"{header.run}-{header.identity[:6]}", header
        self._writer: Any = None

    def known(self) -> Collection[Key]:
        """Returns the figures in all event files of the folder."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        if not self._folder.exists():
            return set()
        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        files = EventAccumulator(str(self._folder), size_guidance={"scalars": 0})  # 0 keeps all
        files.Reload()
        names = files.Tags()["scalars"]
        return {(name, scalar.step) for name in names for scalar in files.Scalars(name)}

    def write(self, points: Sequence[Point]) -> None:
        """Adds figures, and the settings of the run before the first one."""
        if self._writer is None:
            self._writer = self._opened()
        for point in points:
            self._writer.add_scalar(
                point.name, point.value, point.step, walltime=point.at.timestamp()
            )
        self._writer.flush()

    def _opened(self) -> Any:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        is_new = not self._folder.exists()
        writer = SummaryWriter(str(self._folder))
        if is_new:
            settings = self._header.settings
            lines = [f"| {name} | `{value}` |" for name, value in settings.items()]
            table = "\n".join(["| setting | value |", "|---|---|", *lines])
            writer.add_text("settings", table, 0)
            usable = {name: "null" if value is None else value for name, value in settings.items()}
            for summary in hparams(usable, {}):
                writer._get_file_writer().add_summary(summary)
        return writer

    def close(self, status: str) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def open_target(place: str, header: Header) -> TensorboardWriter:
    """Opens a folder of event files."""
    return TensorboardWriter(Path(place), header)
