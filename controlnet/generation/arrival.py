"""What takes long to load, for those who ask for it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from controlnet.generation.watcher import GenerationError

T = TypeVar("T")


class Arrival(Generic[T]):
    """Something that one thread loads while others wait: they get the whole of it, or learn that it failed.

    Args:
        load: makes it.
    """

    def __init__(self, load: Callable[[], T]):
        self._load, self._future = load, Future[T]()

    @classmethod
    def of(cls, thing: T) -> Arrival[T]:
        """Something that is there already."""
        arrival = cls(lambda: thing)
        arrival.bring()
        return arrival

    @property
    def is_there(self) -> bool:
        """Whether nobody waits any more; False where loading failed, too."""
        return self._future.done() and self._future.exception() is None

    def bring(self) -> None:
        """Load it on this thread; to be called once.

        Raises:
            Exception: whatever ``load`` raises. Who waits is not told its text, which may name folders.
        """
        try:
            thing = self._load()
        except BaseException:
            self._future.set_exception(
                GenerationError("The model could not be loaded; the server's log says why.")
            )
            raise
        self._future.set_result(thing)

    def wait(self) -> T:
        """The thing itself, as soon as it is there.

        Raises:
            GenerationError: it could not be loaded.
        """
        return self._future.result()
