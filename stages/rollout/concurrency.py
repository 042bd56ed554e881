"""How calls on many threads meet: an event loop they share, and a gate for who must be alone."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """An event loop on a thread of its own, for callers on any thread."""

    def __init__(self, given_up: threading.Event) -> None:
        """Starts the loop.

        Args:
            given_up: While it is set, no work is waited for.
        """
        self._given_up = given_up
        self._loop = asyncio.new_event_loop()
        self._running: set[Future[Any]] = set()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work on the loop and waits for it; an interrupt ends the work too.

        Raises:
            CancelledError: If it was given up.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(future)
        # Looked at behind the adding: who sets it and then cancels all misses nothing.
        if self._given_up.is_set():
            future.cancel()
        try:
            return future.result()
        finally:
            self._running.discard(future)
            future.cancel()

    def cancel_all(self) -> None:
        """Cancels what runs now."""
        for future in self._running.copy():
            future.cancel()


class Gate:
    """Lets many calls pass together, or one alone; who wants to be alone goes before later ones."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._waiting = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Is inside with others."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_alone or self._waiting))
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Is inside when all others have left."""
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._is_alone or self._inside))
                self._is_alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()
