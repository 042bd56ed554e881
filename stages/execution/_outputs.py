"""Reads the standard streams of a snippet, up to a limit that both have in common.

Standard library only, like the modules beside it.
"""

import os

_CHUNK_BYTES = 65536


class Outputs:
    """The reading ends of a snippet's standard output and error, and what came of them."""

    def __init__(self, stdout_fd: int, stderr_fd: int, output_kib: int) -> None:
        self.open_fds = {stdout_fd, stderr_fd}
        """Those that may still bring something."""
        self.is_exceeded = False
        """Whether there was more than is allowed; what is kept is as long as that."""
        self._stdout, self._stderr = stdout_fd, stderr_fd
        self._texts = {stdout_fd: bytearray(), stderr_fd: bytearray()}
        self._room = output_kib * 1024

    def read(self, fd: int) -> None:
        """Takes what one of them holds."""
        text = self._texts[fd]
        before = len(text)
        if not drain(fd, text, before + self._room + 1):
            self.open_fds.discard(fd)
        self._room -= len(text) - before
        if self._room < 0:
            del text[self._room :]
            self._room = 0
            self.is_exceeded = True

    def texts(self) -> tuple[str, str]:
        """Returns standard output and error."""
        stdout, stderr = (
            self._texts[fd].decode("utf-8", "replace") for fd in (self._stdout, self._stderr)
        )
        return stdout, stderr

    def close(self) -> None:
        """Closes both."""
        for fd in (self._stdout, self._stderr):
            os.close(fd)


def drain(fd: int, into: bytearray, most: int) -> bool:
    """Reads what is there, up to a total length; returns whether the pipe is still open."""
    os.set_blocking(fd, False)
    while len(into) < most:
        try:
            chunk = os.read(fd, min(_CHUNK_BYTES, most - len(into)))
        except BlockingIOError:
            break
        if not chunk:
            return False
        into += chunk
    return True
