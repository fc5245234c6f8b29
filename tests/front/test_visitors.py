"""What one visitor can do to another: nothing. Sessions, jobs, folders."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from front.conftest import ROOT
from front.small_page import ColorDetector, draw

from controlnet.files import EXAMPLES
from controlnet.generation.generator import Generator
from controlnet.generation.png import save_png
from controlnet.page import app
from controlnet.page.actions import Actions
from controlnet.page.examples import load_examples
from controlnet.page.jobs import Job, Line
from controlnet.page.view import place_html
from controlnet.page.visitors import listening_session

CAPACITY = 5


class Visitor:
    """Somebody with an address of this machine and a session."""

    def __init__(self, url: str, address: str, session: str):
        transport = httpx.HTTPTransport(local_address=address)
        self.http = httpx.Client(transport=transport, timeout=60)
        self.url, self.session = f"{url}gradio_api", session

    def begin(self, function: int) -> None:
        """What the page sends when Generate is pressed: the session gets a job."""
        body = {"data": [None], "fn_index": function, "session_hash": self.session}
        self.http.post(f"{self.url}/run/predict", json=body).raise_for_status()

    @contextlib.contextmanager
    def open_tab(self) -> Iterator[None]:
        """The connection that a page keeps open as long as its tab is."""
        with self.http.stream("GET", f"{self.url}/heartbeat/{self.session}") as answer:
            lines = answer.iter_lines()
            assert next(lines) == "data: ALIVE"
            yield


@pytest.fixture
def page(small_model, monkeypatch) -> Iterator[Any]:
    """A page that keeps few sessions."""
    monkeypatch.setattr(app, "SESSIONS", CAPACITY)
    page = app.build_page(Generator(small_model, {"seg": ColorDetector()}, name="small", resolution=64))
    app.serve(page, app.parse_arguments([]), prevent_thread_lock=True, quiet=True)
    yield page
    page.close(verbose=False)


def begin_function(page) -> int:
    """The event behind Detect, which gives the session a job."""
    (found,) = (f._id for f in page.fns.values() if f.targets and f.fn == Actions.begin)
    return found


def jobs_of(page, session: str) -> list[Job]:
    state = page.state_holder.session_data[session].state_data
    return [value for value in state.values() if isinstance(value, Job)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_many_sessions_of_one_visitor_leave_anothers_state_alone(page):
    begin = begin_function(page)
    victim = Visitor(page.local_url, "127.0.0.1", "victim")
    victim.begin(begin)
    (job,) = jobs_of(page, "victim")
    for number in range(3 * CAPACITY):
        Visitor(page.local_url, "127.0.0.2", f"hostile-{number}").begin(begin)
    assert jobs_of(page, "victim") == [job] and not job.is_over
    kept = list(page.state_holder.session_data)
    assert len(kept) == CAPACITY and kept[-1] == f"hostile-{3 * CAPACITY - 1}"
    assert set(page.state_holder.addresses) == set(kept)


def test_an_open_tab_is_kept_also_where_all_come_from_one_address(page):
    begin = begin_function(page)
    victim = Visitor(page.local_url, "127.0.0.1", "victim")
    victim.begin(begin)
    (job,) = jobs_of(page, "victim")
    with victim.open_tab():
        for number in range(2 * CAPACITY):
            Visitor(page.local_url, "127.0.0.1", f"other-{number}").begin(begin)
        assert jobs_of(page, "victim") == [job] and not job.is_over
    (last,) = jobs_of(page, f"other-{2 * CAPACITY - 1}")
    wait_until(lambda: not page.state_holder.listeners["victim"])
    for number in range(2 * CAPACITY, 3 * CAPACITY):
        Visitor(page.local_url, "127.0.0.1", f"other-{number}").begin(begin)
    assert "victim" not in page.state_holder.session_data and job.is_over, "its tab was closed"
    assert last.is_over


def test_calls_without_a_session_count_for_the_one_who_made_them_until_their_answer_is_fetched(page):
    victim = Visitor(page.local_url, "127.0.0.1", "victim")
    victim.begin(begin_function(page))
    other = Visitor(page.local_url, "127.0.0.2" if sys.platform == "linux" else "127.0.0.1", "")
    sessions, queue = page.state_holder, page._queue
    with victim.open_tab():
        calls = [other.http.post(f"{other.url}/call/detect", json={"data": []}) for _ in range(2 * CAPACITY)]
        last = calls[-1].json()["event_id"]
        wait_until(lambda: not len(queue) and last in sessions.session_data)
        assert "victim" in sessions.session_data and len(sessions.session_data) == CAPACITY
        assert set(queue.pending_messages_per_session) <= {*sessions.session_data, "victim"}
        for event in set(sessions.session_data) - {"victim"}:
            assert "event: error" in other.http.get(f"{other.url}/call/detect/{event}").text
        wait_until(lambda: set(sessions.session_data) == {"victim"})
        assert not queue.pending_messages_per_session


def wait_until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize(
    ("path", "query", "session"),
    [
        ("/gradio_api/heartbeat/abc", "", "abc"),
        ("/gradio_api/queue/data", "session_hash=abc", "abc"),
        ("/gradio_api/call/process/abc", "", "abc"),
        ("/gradio_api/call/process", "", ""),
        ("/gradio_api/queue/data", "", ""),
        ("/", "session_hash=abc", ""),
    ],
)
def test_who_listens(path, query, session):
    assert listening_session({"path": path, "query_string": query.encode()}) == session


def test_thousands_of_begun_jobs_stop_nobody_elses():
    running, ended = Job(), threading.Event()

    def work(on_step, should_stop):
        while not should_stop():
            time.sleep(0.002)
        ended.set()

    follower = threading.Thread(target=lambda: list_until_cancelled(running, work))
    follower.start()
    other: Job | None = None
    for _ in range(5000):
        before, (other, *_) = other, Actions.begin(other)
        assert before is None or before.is_over, "a visitor has one job at a time"
    assert not running.is_over and not ended.is_set()
    Actions.cancel(running)
    follower.join(5)
    assert ended.wait(5)


def test_the_place_in_the_line_and_how_long_it_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("controlnet.page.jobs.time.monotonic", lambda: now[0])
    line, jobs = Line(), [Job() for _ in range(4)]
    assert [line.place(job) for job in jobs] == [(0, 0.0), (1, 5.0), (2, 10.0), (3, 15.0)], "5 s is a guess"
    line.enter(jobs[0])
    now[0] += 2
    assert line.place(jobs[1]) == (1, 3.0)
    now[0] += 5
    assert line.place(jobs[1]) == (1, 0.0), "it takes longer than thought"
    line.leave(jobs[0])  # after 7 s
    assert line.place(jobs[2]) == (1, 6.0)
    jobs[1].cancel()
    assert line.place(jobs[3]) == (1, 6.0), "who has gone is not waited for"
    early = Job()
    line.enter(early)
    assert line.place(jobs[2])[0] == 1, "its turn came before it had asked"


@pytest.mark.parametrize(
    ("before", "waited", "text"),
    [
        (0, 0.2, ""),
        (0, 3, "You are next."),
        (1, 0, "2nd, about 6 s"),
        (2, 0, "3rd"),
        (11, 0, "12th"),
        (21, 0, "22nd"),
    ],
)
def test_what_those_who_wait_are_told(before, waited, text):
    said = place_html(before, 6.4, waited)
    assert text in said and bool(text) == bool(said)


def list_until_cancelled(job: Job, work) -> None:
    with contextlib.suppress(Exception):
        list(job.follow(work))


# Folders ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def instances(model_options, tmp_path_factory) -> Iterator[list[tuple[subprocess.Popen, str, Path]]]:
    """Two pages at once, each in a process of its own, as ``make demo`` starts it."""
    folder = tmp_path_factory.mktemp("temporary")
    environment = {**os.environ, "TMPDIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("GRADIO_TEMP_DIR", None)
    started = []
    for _ in range(2):
        port = free_port()
        command = [sys.executable, "gradio_seg2image.py", *model_options, "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        started.append((process, f"http://127.0.0.1:{port}/", folder))
    try:
        for process, url, _ in started:
            wait_for_page(process, url)
        yield started
    finally:
        for process, *_ in started:
            process.kill()
            process.wait(20)


def wait_for_page(process: subprocess.Popen, url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        assert process.poll() is None, shlex.join(process.args)
        time.sleep(0.3)
    raise AssertionError("the page did not start")


def test_each_instance_has_its_own_folder_that_no_other_user_can_list(instances, tmp_path):
    (_, first, folder), (process, second, _) = instances
    folders = sorted(folder.glob("controlnet-page-*"))
    assert len(folders) == 2
    assert {stat.S_IMODE(place.stat().st_mode) for place in folders} == {0o700}
    save_png(tmp_path / "house.png", draw())
    files = {"files": ("house.png", (tmp_path / "house.png").read_bytes())}
    place = httpx.post(f"{first}gradio_api/upload", files=files).json()[0]
    assert any(Path(place).is_relative_to(own) for own in folders)
    assert httpx.get(f"{first}gradio_api/file={place}").content == (tmp_path / "house.png").read_bytes()
    assert httpx.get(f"{second}gradio_api/file={place}").status_code == 403
    shared = folder / "gradio"
    assert not any(place.is_file() for place in shared.rglob("*")), (
        "a file lies where all programs put theirs"
    )
    for url in (first, second):
        thumbnails = [sample[0]["url"] for sample in samples(url)]
        assert len(thumbnails) == sum(example.condition == "seg" for example in load_examples(EXAMPLES))
        assert all(httpx.get(thumbnail).content.startswith(b"\x89PNG") for thumbnail in thumbnails), url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert len(list(folder.glob("controlnet-page-*"))) == 1, "the other's is gone with it"


def samples(url: str) -> list[list[dict[str, Any]]]:
    components = httpx.get(f"{url}config").json()["components"]
    (examples,) = (c["props"]["samples"] for c in components if c["type"] == "dataset")
    return examples
