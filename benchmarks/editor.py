"""What a stroke costs: milliseconds of the map editor's tools at 1024 x 1024, in headless Chromium.

A move counts from the event to the frame that shows it, with what the browser draws. The page runs in this
process over the embedded model.

make bench BENCH=editor
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from annotator.ade20k import CLASSES
from benchmarks.page import BROWSERS
from controlnet.generation.loading import load_generator
from controlnet.generation.models import find_model
from controlnet.page.editors.label_map import show_map

SIDE = 1024
GOALS = {"brush": 8, "fill": 40, "fill, gaps of 8 closed": 40, "highlight": 10, "undo": 20}
"""Milliseconds that are not noticed."""

# Frames wait until they are asked for, so that what a frame does is timed with what asked for it.
HOLD_FRAMES = """
window.frames_ = [];
const later = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (act) => window.held ? window.frames_.push(act) : later(act);
"""
TIME = """
async ([name, repeats]) => {
  const root = document.querySelector("#editor .map-editor"), canvas = root.querySelector("canvas");
  const press = (action) => root.querySelector(`[data-action=${action}]`).click();
  const use = (tool) => root.querySelector(`[data-tool=${tool}]`).click();
  const box = canvas.getBoundingClientRect(), context = canvas.getContext("2d");
  const at = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, { bubbles: true, pointerId: 1,
    pointerType: "mouse", button: 0, clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
  const gap = root.querySelector("[data-control=gap]");
  const times = [];
  canvas.setPointerCapture = () => {};
  const frame = () => {
    for (const act of window.frames_.splice(0)) act(0);
    context.getImageData(0, 0, 1, 1); // draws what was asked for
  };
  const time = (act) => {
    const start = performance.now();
    act();
    frame();
    times.push(performance.now() - start);
  };
  const rest = () => new Promise((done) => setTimeout(done, 50));
  await rest(); // no frame is under way
  window.held = true;
  const entry = (type) => root.querySelector(".me-classes button").dispatchEvent(
    new PointerEvent(type, { pointerType: "mouse" }));
  if (gap) gap.value = name.startsWith("fill,") ? 8 : 0;
  if (name === "brush") {
    use("brush");
    at("pointerdown", 0.1, 0.2);
    for (let k = 0, last = 4 * repeats; k < last; k++) {
      time(() => at("pointermove", 0.1 + (0.8 * k) / last, 0.2 + 0.3 * (k % 2)));
    }
    at("pointerup", 0.9, 0.3);
  }
  for (let k = 0; k < repeats && name !== "brush"; k++) {
    await rest();
    if (name === "highlight") {
      time(() => entry("pointerenter"));
      time(() => entry("pointerleave"));
    } else {
      use("fill");
      const fill = () => { at("pointerdown", 0.5, 0.97); at("pointerup", 0.5, 0.97); };
      name === "undo" ? (fill(), frame()) : time(fill);
      await rest();
      name === "undo" ? time(() => press("undo")) : press("undo");
      frame();
    }
  }
  frame();
  window.held = false;
  return times;
}
"""


def a_map() -> np.ndarray:
    """Sky over a large area of grass with scattered trees, uint8 ``[1024, 1024]``: fill has to go round."""
    rng = np.random.default_rng(0)
    labels = np.full((SIDE, SIDE), CLASSES.index("sky"), np.uint8)
    labels[SIDE // 4 :] = CLASSES.index("grass")
    for y, x in rng.integers((SIDE // 4, 0), (SIDE - 60, SIDE - 20), (400, 2)):
        labels[y : y + 14, x : x + 14] = CLASSES.index("tree")
    return labels


def measure(browser: Any, url: str, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each tool on a page whose map is `a_map`."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.add_init_script(HOLD_FRAMES)
    tab.goto(url)
    tab.wait_for_selector("#editor canvas[width='1024']")
    tab.wait_for_timeout(1000)
    tab.locator("#editor canvas").scroll_into_view_if_needed()
    tab.locator("#editor input[type=search]").fill("water")
    tab.locator("#editor input[type=search]").press("Enter")
    tab.locator("#editor input[type=search]").fill("")
    times = {}
    for name in GOALS:
        tab.evaluate(TIME, [name, 2])  # warm
        times[name] = tab.evaluate(TIME, [name, repeats])
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print median and worst beside the goal."""
    from playwright.sync_api import sync_playwright

    from controlnet.page import app, layout

    parser = argparse.ArgumentParser(prog="python -m benchmarks.editor", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    editor = layout.label_map_editor
    layout.label_map_editor = lambda *given, **more: editor(*given, **{**more, "value": show_map(a_map())})
    with app.own_temporary_folder(), sync_playwright() as playwright:
        page = app.build_page(load_generator(find_model("tiny"), "cpu"), [])
        _, url, _ = app.serve(page, app.parse_arguments([]), prevent_thread_lock=True, quiet=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        times = measure(browser, url, options.repeats)
        browser.close()
        page.close(verbose=False)
    print(f"{'':24}{'median':>10}{'worst':>10}{'goal':>10}   ms at {SIDE} x {SIDE}")
    for name, some in times.items():
        print(f"{name:24}{median(some):10.1f}{max(some):10.1f}{GOALS[name]:10}")


if __name__ == "__main__":
    main()
