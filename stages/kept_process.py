"""Programs that live no longer than this process, however it ends: each is started by a keeper."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_KEEPER = Path(__file__).with_name("keeper.py")


class KeptProcess:
    """A program below its keeper, which ends it with all its processes; see `stages.keeper`."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str],
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
    ) -> None:
        """Starts a program.

        Args:
            command: Program and arguments.
            folder: What the keeper removes where the program still runs as this process ends, or at
                `end`.
            environment: All its variables.
            stdout: Where its output goes, as `subprocess.Popen` takes it.
            stderr: Likewise its errors.
        """
        reading, self._held = os.pipe()
        keeper = [sys.executable, "-I", "-S", str(_KEEPER), str(reading), str(folder)]
        try:
            self.keeper = subprocess.Popen(
                [*keeper, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                text=True,
                pass_fds=(reading,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._held)
            raise
        finally:
            os.close(reading)

    def end(self) -> int:
        """Ends the program where it still runs; to be called once.

        Returns:
            Its status as a shell has it.
        """
        os.close(self._held)
        return self.keeper.wait()
