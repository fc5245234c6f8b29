"""A page that answers before its model is there: what it says, who waits, and how it ends without one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from front.in_browser import browser_test, choose_hint, legend, set_number, visit, wait_for_result
from front.small_page import ColorDetector, draw, start
from gradio_client import Client, handle_file

from cldm.cldm import ControlLDM
from controlnet.generation.arrival import Arrival
from controlnet.generation.generator import Generator
from controlnet.generation.png import save_png
from controlnet.generation.watcher import GenerationError
from controlnet.page import app
from controlnet.page.jobs import Job, Line
from ldm.weights import WeightsError, read_state_dict, save_state_dict


class Held:
    """A model that arrives when the test says so, and a page over it."""

    def __init__(self, model: ControlLDM, fault: Exception | None = None):
        self.model, self.fault, self.gate = model, fault, threading.Event()
        self.detector = ColorDetector()
        self.generator = Generator(
            Arrival(self._load), {"seg": self.detector}, name="small", resolution=64, device="cpu",
            known_precision="fp32",
        )  # fmt: skip
        self.thread = threading.Thread(target=self._bring)
        self.thread.start()

    def _load(self) -> ControlLDM:
        assert self.gate.wait(120)
        if self.fault is not None:
            raise self.fault
        return self.model

    def _bring(self) -> None:
        with contextlib.suppress(WeightsError):
            self.generator.arrival.bring()

    def let_go(self) -> None:
        self.gate.set()
        self.thread.join()


@contextlib.contextmanager
def held(model: ControlLDM, fault: Exception | None = None) -> Iterator[tuple[Held, str]]:
    held = Held(model, fault)
    with contextlib.closing(start(held.generator)) as pages:
        try:
            yield held, next(pages)
        finally:
            held.let_go()


@pytest.fixture
def house(tmp_path: Path) -> Path:
    save_png(tmp_path / "house.png", draw())
    save_png(tmp_path / "map.png", ColorDetector().labels(draw()))
    return tmp_path / "house.png"


@browser_test
def test_the_page_says_that_it_loads_and_what_was_asked_for_meanwhile_is_made(browser, small_model, house):
    with held(small_model) as (loading, url):
        errors: list[str] = []
        tab = visit(browser, url, errors=errors)
        tab.locator("#loading", has_text="Loading the model …").wait_for()
        assert "small" in tab.locator("#title").inner_text() and "fp32" in tab.locator("#title").inner_text()
        choose_hint(tab, house.with_name("map.png"))  # what needs no network is there at once
        tab.wait_for_selector("#editor [data-state=ready]")
        assert legend(tab)["house"] == "13%"
        set_number(tab, "Steps", 1)
        tab.locator("#prompt textarea").fill("a red house")
        tab.locator("#generate").click()
        tab.locator("#status .running", has_text="Working …").wait_for()
        assert not loading.detector.calls and tab.locator("#token-count p").count() == 0
        loading.let_go()
        assert wait_for_result(tab).startswith(b"\x89PNG")
        tab.wait_for_selector("#loading .run-status", state="detached")
        tab.locator("#token-count p", has_text="tokens").wait_for()
        late = visit(browser, url, errors=errors)
        late.locator("#generate").click()
        late.locator("#status .error").wait_for()
        assert late.locator("#loading .run-status").count() == 0
        for page in (tab, late):
            page.context.close()
        assert not errors


@browser_test
def test_a_run_that_waits_for_the_model_is_cancelled_at_once(browser, small_model, house):
    with held(small_model) as (loading, url):
        tab = visit(browser, url)
        choose_hint(tab, house.with_name("map.png"))
        tab.wait_for_selector("#editor [data-state=ready]")
        tab.locator("#generate").click()
        tab.locator("#status .running", has_text="Working …").wait_for()
        tab.locator("#cancel").click()
        tab.locator("#status .note", has_text="Cancelled.").wait_for()
        assert not loading.gate.is_set()
        tab.context.close()


def test_programs_wait_for_the_model(small_model, house, tmp_path):
    settings = {"ddim_steps": 1, "image_resolution": 64, "seed": 3}
    with held(small_model) as (loading, url):
        client = Client(url, verbose=False, download_files=tmp_path / "answers")
        picture = handle_file(house)
        jobs = [
            client.submit(picture, "a house", settings=settings, api_name="/generate"),
            client.submit(picture, 64, api_name="/detect"),
        ]
        assert httpx.get(url).status_code == 200
        assert not any(job.done() for job in jobs) and not loading.detector.calls
        loading.let_go()
        hint, drawn = jobs[0].result(60)
        _, classes = jobs[1].result(60)
        assert Path(hint["image"]).is_file() and Path(drawn["image"]).is_file()
        assert {entry["class"] for entry in classes} == {"sky", "grass", "house"}
        assert client.predict(picture, 64, api_name="/detect")[1] == classes


def test_those_who_wait_for_a_model_that_does_not_come_are_told_so_without_its_folder(small_model, house):
    fault = WeightsError("/home/me/models/small.safetensors: the file is damaged")
    with held(small_model, fault) as (loading, url):
        client = Client(url, verbose=False)
        job = client.submit(handle_file(house), "a house", api_name="/generate")
        loading.let_go()
        with pytest.raises(Exception, match=r"The model could not be loaded; the server's log says why\.$"):
            job.result(60)
        assert not loading.generator.arrival.is_there


def test_waiting_is_not_counted_as_what_jobs_take(monkeypatch):
    now, is_ready = [100.0], [False]
    monkeypatch.setattr("controlnet.page.jobs.time.monotonic", lambda: now[0])
    line, (waits, works, next_one, last) = Line(lambda: is_ready[0]), (Job() for _ in range(4))
    line.enter(waits)
    now[0] += 60
    line.leave(waits)
    is_ready[0] = True
    line.enter(works)
    now[0] += 1
    line.leave(works)
    assert [line.place(job) for job in (next_one, last)] == [(0, 0.0), (1, 3.0)], "of a guess of 5 and 1"


def test_an_arrival_is_whole_or_an_error():
    things: list[Any] = []
    arrival = Arrival(lambda: things)
    assert not arrival.is_there
    waiting = [threading.Thread(target=lambda: arrival.wait().append(1)) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert not things
    arrival.bring()
    for thread in waiting:
        thread.join(10)
    assert things == [1, 1, 1] and arrival.is_there and arrival.wait() is things
    broken = Arrival[int](lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        broken.bring()
    with pytest.raises(GenerationError, match="could not be loaded"):
        broken.wait()
    assert not broken.is_there


# The command ------------------------------------------------------------------------------------------------


def test_a_file_of_another_kind_ends_the_start_before_there_is_a_page(model_options, tmp_path, monkeypatch):
    monkeypatch.setattr(app, "serve", lambda *_, **__: pytest.fail("the page was announced"))
    files = read_state_dict(model_options[model_options.index("--detector-weights") + 1])
    save_state_dict(files, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("<html>not found</html>")
    options = model_options[:]
    for name, message in (
        ("other.safetensors", "this is a segmentation network"),
        ("text.safetensors", "a web page or XML"),
        ("gone.safetensors", "there is no "),
    ):
        options[options.index("--weights") + 1] = str(tmp_path / name)
        with pytest.raises(SystemExit) as ended:
            app.main(options)
        text = str(ended.value)
        assert text.startswith("error: ") and message in text and name in text and "\n" not in text


def test_a_file_whose_numbers_are_broken_ends_the_page_with_its_sentence(
    model_files, model_options, tmp_path, capsys
):
    weights = read_state_dict(model_files.weights)
    name = next(key for key in weights if key.startswith("control_model.") and key.endswith("weight"))
    weights[name].fill_(float("nan"))
    save_state_dict(weights, tmp_path / "broken.safetensors")
    options = model_options[:]
    options[options.index("--weights") + 1] = str(tmp_path / "broken.safetensors")
    with pytest.raises(SystemExit, match=r"^error: .*broken\.safetensors: 1 weights hold NaN") as ended:
        app.main(options)
    assert "\n" not in str(ended.value)
    url = capsys.readouterr().out.split("URL:")[1].split()[0]
    with pytest.raises(httpx.TransportError):
        httpx.get(url)
