"""`make docs`: links lead somewhere, nothing comes from another host, the search works from the folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from front.in_browser import CHROMIUM, PATIENCE, browser_test
from PIL import Image

from controlnet.conditions import all_conditions

pytest.importorskip("mkdocs", reason="the site's builder is not installed (extra `docs`)")

ROOT = Path(__file__).resolve().parents[1]
# What a browser fetches by itself; an <a> is followed by a person.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return folder


class Page(HTMLParser):
    """What a page loads and where it links to."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag in LOADS and LOADS[tag] in values:
            self.loads.append(values[LOADS[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_pages_load_only_what_lies_beside_them(site: Path, pages: dict[Path, Page]) -> None:
    assert len(pages) > 35
    for path, page in pages.items():
        base = site if path.name == "404.html" else path.parent
        for address in page.loads:
            assert not re.match(r"(?:[a-z]+:)?//", address), f"{path.name} loads {address}"
            file = address.partition("?")[0].partition("#")[0].lstrip("/" if base == site else "")
            assert (base / file).exists(), f"{path.name} loads {address}, which is not there"


def test_styles_and_scripts_name_no_host(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".css", ".js", ".map")]
    assert len(files) > 5
    for path in files:
        if path.name == "search_index.js":  # the words of the pages
            continue
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        addresses = re.findall(r"[\"'`(]((?:https?:)?//[a-z0-9][^\s\"'`)]*)", text)
        assert {address for address in addresses if "://www.w3.org/" not in address} == set(), path.name


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.links:
            file, _, anchor = address.partition("#")
            if re.match(r"[a-z]+:", address) or path.name == "404.html":
                continue
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name} links to {address}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{path.name} links to {address}"


def test_the_reference_has_the_docstrings(site: Path) -> None:
    text = (site / "reference" / "ldm.models.diffusion.html").read_text(encoding="utf-8")
    for name in ("DDIMSampler.sample", "PLMSSampler", "guidance.join_conditions"):
        assert f'id="ldm.models.diffusion.{name}"' in text or re.search(rf'id="ldm[\w.]*\.{name}"', text)
    assert "for the batch, or one for each sample" in text


def test_the_gallery_shows_all_conditions() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(gallery/(\w+)\.webp\)", text)
    assert sorted(shown) == sorted(all_conditions())
    files = list((ROOT / "docs" / "gallery").iterdir())
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for path in files:
        with Image.open(path) as picture:
            assert picture.height == 320, path.name


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@browser_test
@pytest.mark.parametrize("size", [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_the_search_works_from_the_folder(site: Path, browser, size: tuple[int, int]) -> None:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(PATIENCE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file:", "data:", "blob:", "about:")) or problems.append(request.url)
        ),
    )
    page.goto((site / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.keyboard.press("/")
    page.keyboard.type("hough", delay=20)
    result = page.locator(".md-search-result__link[href*='/conditions.html']").first
    result.wait_for()
    result.click()
    page.wait_for_url("**/conditions.html*")
    assert problems == []
