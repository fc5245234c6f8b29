"""Runs that tell about themselves: a blocking function with callbacks becomes a stream to follow and to
stop.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from controlnet.generation.request import Request, definite
from controlnet.generation.result import Result
from controlnet.generation.watcher import Cancelled, Step

PREVIEW_INTERVAL = 0.7  # seconds; decoding a preview takes time from the sampling
_FIRST_GUESS = 5.0  # seconds that a job takes, before one has been seen
_AROUND = 4  # steps' worth of time for text, decoding and the detector
ATTENTION = 0.2  # seconds between two looks at whether the run was cancelled


class Job:
    """A run that can be stopped, from the click on: also while it waits in the queue.

    It lives in the session of the visitor who began it, so that nobody's jobs take the place of another's.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._made = time.monotonic()
        self.begun = 0.0
        """When the model's turn came to it, by ``time.monotonic``; 0 while it waits."""
        self.expected: float | None = None
        """Seconds that it will take, where that is known to differ from what jobs usually take."""
        self.is_typical = True
        """Whether the seconds that it took tell how long others will take."""

    @property
    def waited(self) -> float:
        """Seconds since the click."""
        return time.monotonic() - self._made

    def begin(self) -> None:
        """It is the job's turn."""
        self.begun = time.monotonic()

    def cancel(self) -> None:
        """Ask the run to stop; one that is over is left alone."""
        self._stop.set()

    @property
    def is_over(self) -> bool:
        """Whether it was cancelled, or has ended."""
        return self._stop.is_set()

    def follow(self, work: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
        """Follow ``work(on_step=…, should_stop=…)``.

        Yields:
            ``("step", (Step, preview or None))`` as the run goes on, and at the end ``("done", result)``. Of
            work that is an iterator ``("part", item)`` for each item, and at the end ``("done", None)``.

        Raises:
            Cancelled: at once when the job is cancelled; the work itself ends with the step it is at.
            Exception: whatever ``work`` raises.
        """
        events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        thread = threading.Thread(target=_work, args=(work, self._stop, events), daemon=True)
        try:
            if not self._stop.is_set():
                thread.start()
            while not self._stop.is_set():
                try:
                    kind, value = events.get(timeout=ATTENTION)
                except queue.Empty:
                    continue
                if kind == "error":
                    raise value
                yield kind, value
                if kind == "done":
                    return
            raise Cancelled("Cancelled.")
        finally:  # also where the reader goes away in the middle: then nobody wants the rest
            self._stop.set()


class Line:
    """The jobs of all visitors in the order in which they came, to tell each of them its place.

    Args:
        is_ready: whether jobs can begin; how long one takes that waits for that says nothing of the others.
    """

    def __init__(self, is_ready: Callable[[], bool] = lambda: True) -> None:
        self._is_ready = is_ready
        self._jobs: list[Job] = []
        self._seconds: deque[float] = deque([_FIRST_GUESS], maxlen=8)
        self._lock = threading.Lock()

    def enter(self, job: Job) -> None:
        """A job's turn has come; it may come before it has ever asked for its place."""
        with self._lock:
            job.begin()
            job.is_typical = self._is_ready()
            self._jobs = [job, *(other for other in self._jobs if other is not job)]

    def leave(self, job: Job) -> None:
        """A job has ended, after a turn that counts for the time that the others are told."""
        with self._lock:
            if job.begun and job.is_typical and job.expected is None:
                self._seconds.append(time.monotonic() - job.begun)
            job.cancel()

    def place(self, job: Job) -> tuple[int, float]:
        """How many others come before a job, and about how many seconds they will take. A job that is not
        in the line joins its end.
        """
        with self._lock:
            self._jobs = [waiting for waiting in self._jobs if not waiting.is_over]
            if job not in self._jobs:
                self._jobs.append(job)
            others = self._jobs[: self._jobs.index(job)]
            turn = sum(self._seconds) / len(self._seconds)
            now = time.monotonic()
            left = [
                max((other.expected or turn) - (now - other.begun if other.begun else 0.0), 0.0)
                for other in others
            ]
            return len(others), sum(left)


class Pace:
    """How long pictures take, learned from those that were made."""

    def __init__(self) -> None:
        self._rates: deque[float] = deque(maxlen=8)

    def learn(self, result: Result) -> None:
        """A result tells seconds."""
        self._rates.append(result.seconds / _work_of(result.request))

    def guess(self, requests: Sequence[Request]) -> float | None:
        """Seconds for requests with definite sizes, or None where nothing has been made yet."""
        if not self._rates:
            return None
        return median(self._rates) * sum(map(_work_of, requests))


def _work_of(request: Request) -> float:
    """In proportion to the seconds: steps, and what goes around them, by pixels."""
    return request.num_samples * (request.ddim_steps + _AROUND) * definite(request.image_resolution) ** 2


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
        outcome = work(on_step=on_step, should_stop=stop.is_set)
        if isinstance(outcome, Iterator):
            for part in outcome:
                events.put(("part", part))
            outcome = None
        events.put(("done", outcome))
    except BaseException as error:
        events.put(("error", error))
