"""Sixty visitors at once, a third of them hostile: whether the page answers everyone, mixes nothing up, and
gives its memory back. Everything stays on this machine, and ends after four minutes at the latest.

make bench BENCH=soak

The page runs in a process of its own over the embedded model, at 64 pixels and one step: its pictures are not
the point. Each request has a picture, a prompt and a seed that no other has, and is to find them in what
comes back; some are asked before, when nobody else is there, and must give the same pixels again.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

import httpx
import numpy as np
from PIL import Image

from annotator.ade20k import CLASSES, PALETTE, colorize
from benchmarks.hostile import ATTACKS, Caller, Unanswered
from benchmarks.measure import process_memory
from controlnet.generation.png import read_request

SIDE = 64
SKY, HOUSE = (CLASSES.index(name) for name in ("sky", "house"))
ALONE = 8
"""So many requests are first asked when nobody else is there."""
MOST_GROWTH = 50_000_000  # bytes
REST = 3  # seconds before the memory is looked at


class NearestColor:
    """A detector without weights, so that what a map must be is known: sky and house in their own colours."""

    def labels(self, picture: np.ndarray) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]`` -> class indices uint8 ``[H, W]``."""
        is_house = [np.abs(picture.astype(int) - PALETTE[label]).sum(axis=2) for label in (SKY, HOUSE)]
        return np.where(is_house[0] <= is_house[1], SKY, HOUSE).astype(np.uint8)


def serve_page(link: Connection) -> None:
    """Serve until told to end; sends the address first. Runs in a process of its own."""
    from controlnet.generation.loading import load_generator
    from controlnet.generation.models import find_model
    from controlnet.page import app

    with app.own_temporary_folder():
        generator = load_generator(find_model("tiny"), "cpu")
        page = app.build_page(replace(generator, detectors={"seg": NearestColor()}, resolution=SIDE))
        _, url, _ = app.serve(page, app.parse_arguments([]), prevent_thread_lock=True, quiet=True)
        link.send(url)
        link.recv()
        page.close(verbose=False)


@dataclass
class Tally:
    """What became of the requests; threads share it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, fault: str = "") -> None:
        """One request more."""
        with self.lock:
            self.counts[outcome] += 1
            if fault:
                self.faults.append(fault)


@dataclass
class Honest:
    """Requests that are told apart by picture, prompt and seed, and their pictures where they are known."""

    tally: Tally
    until: float
    known: dict[int, np.ndarray] = field(default_factory=dict)

    def labels(self, number: int) -> np.ndarray:
        """The map of request ``number``: uint8 ``[64, 64]``, a house of its own size and place."""
        labels = np.full((SIDE, SIDE), SKY, np.uint8)
        column, height = divmod(number, SIDE - 1)
        labels[: height + 1, 8 * column : 8 * column + 8] = HOUSE
        return labels

    def ask(self, caller: Caller, number: int) -> None:
        """One request, asked again for as long as the page says that it is busy."""
        buffer = io.BytesIO()
        Image.fromarray(colorize(self.labels(number))).save(buffer, format="PNG")
        try:
            picture = caller.upload(buffer.getvalue(), f"{number}.png")
            values = caller.values(picture, prompt=f"visitor {number}", seed=number)
            while (answer := caller.call("process", values)).busy and time.monotonic() < self.until:
                self.tally.note("busy")
                time.sleep(0.5)
            self._check(caller, number, answer.files())
        except (httpx.HTTPError, Unanswered) as error:
            self.tally.note("failed", f"request {number}: {error!r}")

    def _check(self, caller: Caller, number: int, urls: list[str]) -> None:
        shown, result = (caller.http.get(url).content for url in urls)
        request = read_request(io.BytesIO(result))
        pixels = np.asarray(Image.open(io.BytesIO(result)))
        right = (
            np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), colorize(self.labels(number)))
            and (request.prompt, request.seed) == (f"visitor {number}", number)
            and np.array_equal(self.known.get(number, pixels), pixels)
        )
        self.tally.note("served" if right else "mixed up")
        self.known[number] = pixels


def attack(tally: Tally, caller: Caller, number: int) -> None:
    """One hostile request; the page is to refuse it with a sentence, or to bear it."""
    name = list(ATTACKS)[number % len(ATTACKS)]
    try:
        tally.note(ATTACKS[name](caller, number))
    except (httpx.HTTPError, Unanswered) as error:
        tally.note("failed", f"{name}: {error!r}")


def storm(url: str, clients: int, requests: int, honest: Honest) -> None:
    """All clients at once, each with its share of the requests; every third client is hostile."""

    def one(client: int) -> None:
        with Caller(url, f"client-{client}") as caller:
            for number in range(client, requests, clients):
                if time.monotonic() > honest.until:
                    honest.tally.note("not asked", "out of time")
                elif client % 3 == 2:
                    attack(honest.tally, caller, number // clients * (clients // 3) + client // 3)
                else:
                    honest.ask(caller, number)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))


def run(url: str, pid: int, options: argparse.Namespace) -> Tally:
    """Warm the page, let the storm pass, and print what became of it.

    The memory "before" is that of a page that has seen requests of each kind, alone and from all clients at
    once: threads and libraries then have what they always keep.
    """
    honest = Honest(Tally(), time.monotonic() + options.seconds)
    with Caller(url, "first") as caller:
        for number in range(ALONE):
            honest.ask(caller, number if number % 3 != 2 else number - 1)
        for number in range(len(ATTACKS)):
            attack(honest.tally, caller, number)
    storm(url, options.clients, options.clients, honest)
    time.sleep(REST)
    warmed, honest.tally = honest.tally, Tally(faults=honest.tally.faults)
    print(f"to warm it: {dict(warmed.counts)}")
    before, started = process_memory("VmRSS", pid), time.monotonic()
    storm(url, options.clients, options.requests, honest)
    seconds = time.monotonic() - started
    time.sleep(REST)
    after, peak = process_memory("VmRSS", pid), process_memory("VmHWM", pid)
    tally, counts, growth = honest.tally, honest.tally.counts, (after - before) / 1e6
    print(f"{options.requests} requests of {options.clients} clients in {seconds:.0f} s: {dict(counts)}")
    print(f"served {counts['served']}, refused {counts['refused']}, mixed up {counts['mixed up']}")
    print(
        f"memory: {before / 1e6:.0f} MB before, {after / 1e6:.0f} after ({growth:+.0f}), {peak / 1e6:.0f} "
        "at most"
    )
    if after - before > MOST_GROWTH:
        tally.faults.append(f"memory grew by {growth:.0f} MB")
    return tally


def main() -> int:
    """The status is 1 where anything was mixed up, unanswered, or kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument(
        "--seconds", type=int, default=200, help="after which no more is asked (default: %(default)s)"
    )
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    link, theirs = context.Pipe()
    page = context.Process(target=serve_page, args=(theirs,), daemon=True)
    page.start()
    theirs.close()
    try:
        tally = run(link.recv(), page.pid, options)
        link.send("end")
    finally:
        page.join(10)
        page.terminate()
    for fault in tally.faults:
        print(f"fault: {fault}", file=sys.stderr)
    return int(bool(tally.faults or tally.counts["mixed up"]))


if __name__ == "__main__":
    raise SystemExit(main())
