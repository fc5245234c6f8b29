"""Runs that tell about themselves: a blocking function with callbacks becomes a stream to follow and to
stop.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from controlnet.generation.watcher import Cancelled, Step

PREVIEW_INTERVAL = 0.7  # seconds; decoding a preview takes time from the sampling
_MAX_JOBS = 1000


class Jobs:
    """The runs that can be stopped, each from the click on: also one that still waits in the queue."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self) -> str:
        """A new job; returns its secret name."""
        name = secrets.token_hex(16)
        with self._lock:
            self._stops[name] = threading.Event()
            while len(self._stops) > _MAX_JOBS:  # jobs that never ran: their page was closed
                self._stops.pop(next(iter(self._stops)))
        return name

    def cancel(self, name: str | None) -> None:
        """Ask a job to stop; one that is over or unknown is left alone."""
        stop = self._stops.get(name or "")
        if stop is not None:
            stop.set()

    def run(self, name: str | None, work: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
        """Follow ``work(on_step=…, should_stop=…)``.

        Yields:
            ``("step", (Step, preview or None))`` as the run goes on, and at the end ``("done", result)``.

        Raises:
            Cancelled: the job was cancelled.
            Exception: whatever ``work`` raises.
        """
        stop = self._stops.setdefault(name or self.begin(), threading.Event())
        events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        thread = threading.Thread(target=_work, args=(work, stop, events), daemon=True)
        try:
            if stop.is_set():
                raise Cancelled("Cancelled before it began.")
            thread.start()
            while True:
                kind, value = events.get()
                if kind == "error":
                    raise value
                yield kind, value
                if kind == "done":
                    return
        finally:  # also where the reader goes away in the middle: then nobody wants the rest
            stop.set()
            with self._lock:
                self._stops.pop(name or "", None)


def _work(work: Callable[..., Any], stop: threading.Event, events: queue.SimpleQueue) -> None:
    last_preview = 0.0

    def on_step(step: Step) -> None:
        nonlocal last_preview
        picture = None
        if time.monotonic() - last_preview >= PREVIEW_INTERVAL and step.index + 1 < step.total:
            picture = step.preview()
            last_preview = time.monotonic()
        events.put(("step", (step, picture)))

    try:
        events.put(("done", work(on_step=on_step, should_stop=stop.is_set)))
    except BaseException as error:
        events.put(("error", error))
