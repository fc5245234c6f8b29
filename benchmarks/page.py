"""What a visitor waits for: bytes, requests and seconds of a first load, in headless Chromium, and which
other machines it asks (none). The page runs in this process over the embedded model. ``--start`` times
instead how long a page that is started needs until it answers, and until it has drawn a picture of one step.

make bench BENCH=page
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch

from benchmarks.measure import machine
from controlnet.files import EXAMPLES
from controlnet.generation.loading import load_generator
from controlnet.generation.models import find_model

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Load:
    """One load of the page. ``usable`` is when Generate can be pressed and the first map is there."""

    files: dict[str, int] = field(default_factory=dict)
    """Bytes over the wire, by address."""
    hosts: set[str] = field(default_factory=set)
    usable: float = 0.0

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def load_page(browser: Any, url: str) -> Load:
    """Open the page in a fresh profile: nothing is cached, nothing is kept."""
    load, addresses = Load(), {}
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    protocol = context.new_cdp_session(tab)
    protocol.send("Network.enable")
    protocol.on(
        "Network.requestWillBeSent",
        lambda event: addresses.update({event["requestId"]: event["request"]["url"]}),
    )

    def finished(event: dict[str, Any]) -> None:
        address = addresses[event["requestId"]]
        if not address.startswith(("data:", "blob:")):
            load.files[address] = load.files.get(address, 0) + int(event["encodedDataLength"])

    protocol.on("Network.loadingFinished", finished)
    started = time.perf_counter()
    tab.goto(url, wait_until="commit")
    tab.wait_for_selector("#generate:enabled")
    tab.wait_for_selector("#editor [data-state=ready]")
    load.usable = time.perf_counter() - started
    tab.wait_for_timeout(2000)  # what comes after that counts as bytes, not as waiting
    load.hosts = {urlsplit(address).hostname or "" for address in addresses.values()} - {""}
    context.close()
    return load


def report(loads: Sequence[Load], host: str) -> list[str]:
    """The figures, and the five largest files."""
    first = loads[0]
    others = sorted(set.union(*(load.hosts for load in loads)) - {host})
    lines = [
        f"first load: {first.bytes / 1000:.0f} kB in {len(first.files)} requests",
        f"other hosts: {len(others)}{' ' + ', '.join(others) if others else ''}",
        f"usable after {median(load.usable for load in loads):.2f} s (median of {len(loads)})",
    ]
    largest = sorted(first.files.items(), key=lambda item: -item[1])[:5]
    return lines + [f"  {size / 1000:7.0f} kB  {urlsplit(address).path[:80]}" for address, size in largest]


def start_seconds() -> tuple[float, float]:
    """Seconds from the start of the command to the first answer, and to the first picture."""
    from gradio_client import Client, handle_file

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [
        sys.executable,
        "gradio_seg2image.py",
        "--model",
        "tiny",
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not answers(url):
                if process.poll() is not None:
                    raise RuntimeError(f"the page ended with status {process.returncode}")
                time.sleep(0.02)
            answered = time.perf_counter() - started
            client = Client(url, verbose=False)
            picture = handle_file(EXAMPLES / "lake.png")
            client.predict(picture, "a lake", settings={"ddim_steps": 1}, api_name="/generate")
            return answered, time.perf_counter() - started
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Whether a server is there that answers."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=60).status_code == 200
    return False


def time_starts(repeats: int) -> None:
    """Print the medians; a start before them reads all files for the first time."""
    start_seconds()
    answered, drawn = zip(*(start_seconds() for _ in range(repeats)), strict=True)
    print(machine(torch.device("cpu")))
    print(
        f"first answer after {median(answered):.1f} s, first picture after {median(drawn):.1f} s ({repeats})"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; the status is 1 where the page asks another machine for something."""
    from playwright.sync_api import sync_playwright

    from controlnet.page import app
    from controlnet.page.examples import load_examples

    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--start", action="store_true", help="time the start of the page's command instead")
    options = parser.parse_args(arguments)
    if options.start:
        time_starts(options.repeats)
        return 0
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    with app.own_temporary_folder(), sync_playwright() as playwright:
        examples = [known for known in load_examples(EXAMPLES) if known.condition == "seg"]
        page = app.build_page(load_generator(find_model("tiny"), "cpu"), examples, first=examples[0])
        _, url, _ = app.serve(page, app.parse_arguments([]), prevent_thread_lock=True, quiet=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        load_page(browser, url)  # the server reads its files for the first time
        loads = [load_page(browser, url) for _ in range(options.repeats)]
        browser.close()
        page.close(verbose=False)
    host = urlsplit(url).hostname or ""
    print("\n".join(report(loads, host)))
    return int(any(load.hosts - {host} for load in loads))


if __name__ == "__main__":
    sys.exit(main())
