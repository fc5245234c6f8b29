"""Many pictures at once on the page: a ZIP with maps, pictures and manifest; what is broken is named."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from front.in_browser import browser_test, set_number
from front.small_page import draw
from PIL import Image

from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import RequestError
from controlnet.page.folder import FolderRun, jobs_of_uploads
from controlnet.page.settings import MAX_FILES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three pictures and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate("abc"):
        save_png(folder / f"{name}.png", np.roll(draw(), 7 * index, axis=1))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 cut off")
    return folder


def begin(tab, folder: Path, steps: int) -> None:
    set_number(tab, "Steps", steps)
    tab.locator("#prompt textarea").fill("a house")
    tab.locator("#many-pictures > button").click()
    tab.locator("#pictures input[type=file]").set_input_files(sorted(folder.iterdir()))
    tab.wait_for_selector("#pictures :text('broken')")
    tab.locator("#make-all").click()


def saved(tab) -> zipfile.ZipFile:
    tab.wait_for_selector("#archive")
    with tab.expect_download() as download:
        tab.locator("#archive").click()
    assert download.value.suggested_filename == "results.zip"
    return zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))


@browser_test
@pytest.mark.parametrize("tab", [(1280, 900), (390, 800)], indirect=True)
def test_pictures_become_a_zip_and_a_broken_one_is_named(tab, folder):
    begin(tab, folder, 1)
    tab.wait_for_selector("#status :text('3 of 4 done')")
    status = tab.locator("#status").inner_text()
    assert "broken.jpg" in status and "/" not in status, "by the visitor's name for it, not the server's"
    assert tab.locator("#results .thumbnail-item").count() == 3
    archive = saved(tab)
    names = {f"{name}{ending}.png" for name in "abc" for ending in ("", "_map")}
    assert set(archive.namelist()) == {*names, "manifest.jsonl"}
    entries = [json.loads(line) for line in archive.read("manifest.jsonl").splitlines()]
    assert [entry["name"] for entry in entries] == ["a", "b", "broken", "c"]
    assert entries[0]["files"] == ["a_map.png", "a.png"]
    assert {"asked", "request", "seeds", "scores", "model", "precision", "seconds"} <= set(entries[0])
    request = read_request(io.BytesIO(archive.read("b.png")))
    assert request.prompt == "a house" and request.ddim_steps == 1
    assert np.asarray(Image.open(io.BytesIO(archive.read("b_map.png")))).shape == (64, 64, 3)
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]


@browser_test
def test_what_was_done_is_kept_when_the_rest_is_cancelled(tab, folder):
    begin(tab, folder, 100)
    tab.wait_for_selector("#results .thumbnail-item img")
    tab.locator("#cancel").click()
    tab.wait_for_selector("#status :text('Cancelled: ')")
    assert 1 <= len(saved(tab).namelist()) < 8


def test_pictures_of_one_name_are_numbered_and_odd_files_left_out(tmp_path):
    paths = [
        str(tmp_path / place) for place in ("1/a.png", "2/A.jpg", "3/a.webp", "4/notes.txt", "5/a_map.png")
    ]
    names = [job.name for job in jobs_of_uploads(paths, {})]
    assert names == ["a", "A-2", "a-3", "a_map-2"], "none writes over what another writes"


@pytest.mark.parametrize(("paths", "said"), [([], "no pictures"), (["a.png"] * (MAX_FILES + 1), "Up to 60")])
def test_no_and_too_many_pictures_are_told(paths, said):
    with pytest.raises(RequestError, match=said):
        jobs_of_uploads(paths, {})


def test_nothing_of_a_run_stays_when_its_session_ends(tmp_path):
    run = FolderRun(folder=tmp_path / "run")
    (run.folder / "results").mkdir(parents=True)
    save_png(run.folder / "results" / "a.png", draw())
    save_png(run.folder / "results" / "a_map.png", draw())
    run.add({"name": "a", "files": ["a_map.png", "a.png"]})
    run.finish()
    left = {path.name for path in run.folder.rglob("*") if path.is_file()}
    assert left == {"results.zip", "a.png"}, "what the page shows"
    run.forget()
    assert not run.folder.exists()
