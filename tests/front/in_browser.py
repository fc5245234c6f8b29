"""What people do on the page in a real browser, for the tests that drive one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import httpx
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000  # milliseconds: machines of tests are slow and busy


def browser_test(function: Callable) -> Callable:
    """Marks a test that drives a real browser; it is skipped where there is none."""
    skip = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
    return pytest.mark.browser(skip(function))


def visit(
    browser, url: str, size: tuple[int, int] = (1280, 900), errors: list[str] | None = None, **options: Any
):
    """The page in a session of its own; errors of its scripts go into the list."""
    width, height = size
    page = browser.new_context(viewport={"width": width, "height": height}, **options).new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: errors is not None and errors.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#generate")
    return page


def set_number(tab, label: str, value: int) -> None:
    field = tab.get_by_label(f"number input for {label}")
    if not field.is_visible():
        tab.locator("#advanced > button").click()
    field.fill(str(value))
    field.press("Tab")


def upload(tab, path) -> None:
    tab.locator("#picture input[type=file]").set_input_files(str(path))
    tab.wait_for_selector("#picture img")


def choose_hint(tab, path) -> None:
    """Bring a map of one's own."""
    with tab.expect_file_chooser() as chooser:
        tab.locator("#upload-map").click()
    chooser.value.set_files(str(path))


def legend(tab) -> dict[str, str]:
    rows = tab.locator("#editor .me-classes button").all_inner_texts()
    return {parts[0]: parts[1] for parts in (row.split("\n") for row in rows) if len(parts) == 2 and parts[1]}


def drag(tab, start: tuple[float, float], end: tuple[float, float], editor: str = "#editor") -> None:
    """A brush stroke between two places of the map or drawing, in shares of its sides."""
    canvas = tab.locator(f"{editor} canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    tab.mouse.move(*points[0])
    tab.mouse.down()
    tab.mouse.move(*points[1], steps=6)
    tab.mouse.up()


def wait_for_result(tab) -> bytes:
    """Press nothing; wait until the run is over, and fetch the first picture."""
    tab.wait_for_selector("#status .done:has-text('Done.')")
    source = tab.locator("#results img").first.get_attribute("src")
    return httpx.get(source).content


def generate(tab) -> bytes:
    tab.locator("#generate").click()
    tab.wait_for_selector("#status .done", state="detached")
    return wait_for_result(tab)
