"""What programs are told that call the page in a wrong or a hostile way: always a sentence, never a file."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from front.conftest import ROOT
from front.small_page import ColorDetector, draw
from gradio_client import Client, handle_file
from PIL import Image, ImageFile

from annotator.ade20k import colorize
from controlnet.conditions import find_condition
from controlnet.generation.packing import read_hint
from controlnet.generation.png import read_request, save_png
from controlnet.generation.request import RequestError
from controlnet.page.links import read_fragment
from controlnet.page.uploads import is_uploaded
from controlnet.pictures import PictureError

META = {"_type": "gradio.FileData"}
NOT_OURS = "The picture is not one that was uploaded here: upload it first."


class Program:
    """Calls the page over plain HTTP, as curl would."""

    def __init__(self, url: str):
        self.url = f"{url}gradio_api"
        self.http = httpx.Client(timeout=120)
        config = httpx.get(f"{url}config").json()
        self.functions = config["dependencies"]
        self.kinds = {component["id"]: component["type"] for component in config["components"]}
        self.values = {component["id"]: component["props"].get("value") for component in config["components"]}

    def upload(self, path: Path) -> dict[str, Any]:
        files = {"files": (path.name, path.read_bytes())}
        return {"path": self.http.post(f"{self.url}/upload", files=files).json()[0], "meta": META}

    def call(self, name: str, data: list[Any]) -> tuple[str, Any]:
        """The last event of the answer, and what came with it."""
        answer = self.http.post(f"{self.url}/call/{name}", json={"data": data})
        assert answer.status_code == 200, answer.text
        events = self.http.get(f"{self.url}/call/{name}/{answer.json()['event_id']}").text
        kind, data = events.strip().split("\n\n")[-1].split("\n")
        return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def event(self, index: int, data: list[Any], session: str = "programs") -> dict[str, Any]:
        """What an event of the page itself says, if it is called by hand."""
        body = {"data": data, "fn_index": index, "session_hash": session}
        if self.functions[index]["queue"] is False:
            return self.http.post(f"{self.url}/run/predict", json=body).json()
        self.http.post(f"{self.url}/queue/join", json=body).raise_for_status()
        with self.http.stream("GET", f"{self.url}/queue/data", params={"session_hash": session}) as lines:
            for line in filter(None, lines.iter_lines()):
                message = json.loads(line.removeprefix("data: "))
                if message["msg"] == "process_completed":
                    return message["output"]
        raise AssertionError("no answer")


@pytest.fixture(scope="module")
def program(server) -> Program:
    return Program(server)


@pytest.fixture(scope="module")
def house(program, tmp_path_factory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("pictures") / "house.png"
    save_png(path, draw())
    return program.upload(path)


def thirteen(picture: Any) -> list[Any]:
    return [picture, "a house", "", "", 1, 64, 64, 1, False, 1.0, 9.0, 5, 0.0]


# Values -----------------------------------------------------------------------------------------------------


def test_thirteen_values_in_their_order_are_enough(program, house):
    kind, (gallery,) = program.call("process", thirteen(house))
    assert kind == "complete" and len(gallery) == 2


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, None, "There is no picture yet: give one."),
        (0, "house.png", "Picture must be a file, {"),
        (0, ["house.png"], "Picture must be a file, {"),
        (1, None, "Prompt must be text, got None."),
        (1, ["a house"], "Prompt must be text, got ['a house']."),
        (4, "1", "Images must be a number from 1 to 12, got '1'."),
        (4, 13, "Images must be a number from 1 to 12, got 13."),
        (5, None, "Image Resolution must be a number from 64 to 128, got None."),
        (7, True, "Steps must be a number from 1 to 100, got True."),
        (7, 2.5, "ddim_steps must be a whole number, got 2.5."),
        (7, 10**400, "Steps must be a number from 1 to 100, got a number of about 400 digits."),
        (8, "no", "guess_mode must be true or false, got 'no'."),
        (8, None, "guess_mode must be true or false, got None."),
        (11, {}, "Seed must be a number from -1 to 2147483647, got {}."),
        (13, "map.png", "Hint instead of detection must be a file, {"),
    ],
    ids=str,
)
def test_wrong_values_are_named(program, house, place, value, message):
    data = [*thirteen(house), None]
    data[place] = value
    kind, answer = program.call("process", data)
    assert kind == "error"
    assert answer["error"].startswith(message)


def test_what_follows_picture_and_prompt_may_be_left_out(server, program, house, tmp_path):
    kind, (gallery,) = program.call("generate", [house, "a house"])
    assert kind == "complete" and len(gallery) == 2
    assert program.call("detect", [house, 64])[0] == "complete"
    save_png(tmp_path / "house.png", draw())
    client = Client(server, verbose=False)
    picture = handle_file(tmp_path / "house.png")
    settings = {"ddim_steps": 1, "num_samples": 2}
    gallery = client.predict(picture, "a house", settings=settings, api_name="/generate")
    assert len(gallery) == 3


@pytest.mark.parametrize("count", [0, 1, 12, 15])
def test_too_few_or_too_many_values(program, house, count):
    kind, answer = program.call("process", [*thirteen(house), None, None][:count])
    assert kind == "error"
    assert answer["error"].startswith("Values wanted: 13 to 14 (Picture, Prompt, Added Prompt")
    assert answer["error"].endswith(f"got {count}.")


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("/call/nothing", {"data": []}, 404, "There is no such endpoint"),
        ("/call/v2/nothing", {}, 404, "There is no such endpoint"),
        ("/call/v2/process", {"prompt": "x"}, 422, "No value provided for required argument: input_image"),
        ("/call/process", {"data": "x"}, 422, "Input should be a valid list"),
        ("/call/process", {}, 422, "Field required"),
        ("/run/process", {"data": []}, 404, "Please join the queue"),
        ("/run/predict", {"data": [], "fn_index": 9999}, 404, "There is no such endpoint"),
        (
            "/queue/join",
            {"data": [], "fn_index": 9999, "session_hash": "x"},
            404,
            "There is no such endpoint",
        ),
        ("/queue/join", {"data": [], "session_hash": "x"}, 400, "No function index provided."),
    ],
    ids=str,
)
def test_wrong_requests_have_a_status_and_a_sentence(program, path, body, status, why):
    answer = program.http.post(f"{program.url}{path}", json=body)
    assert (answer.status_code, why in answer.text) == (status, True), answer.text


def test_a_body_that_is_too_large_is_not_read_to_its_end(program):
    answer = program.http.post(f"{program.url}/call/process", content=b'{"data":["' + bytes(50_000_000))
    assert answer.status_code == 413
    assert answer.json()["detail"] == "Requests may have 48 MB at most."


def test_no_event_of_the_page_answers_without_a_sentence(program):
    """Also those that only the page itself calls: ``{"error": null}`` says nothing."""
    asked = 0
    for function in program.functions:
        if not function["backend_fn"]:
            continue
        count = len(function["inputs"])
        for data in ([], ["x"] * count, [None] * count, [-1] * count, [{"path": "/etc/passwd"}] * count):
            answer = program.event(function["id"], data)
            asked += 1
            if "error" in answer:
                assert answer["error"] and "Traceback" not in answer["error"], (function, data)
    assert asked > 60


# Hints ------------------------------------------------------------------------------------------------------


def test_process_takes_a_hint_for_its_condition(server, tmp_path, generator):
    labels = np.full((64, 64), 21, np.uint8)
    save_png(tmp_path / "map.png", colorize(labels))
    save_png(tmp_path / "house.png", draw())
    client = Client(server, verbose=False)
    settings = {"prompt": "x", "ddim_steps": 1, "seed": 4, "hint": handle_file(tmp_path / "map.png")}
    for picture in (None, handle_file(tmp_path / "house.png")):
        gallery = client.predict(picture, **settings, api_name="/process")
        shown, result = (Path(item["image"]) for item in gallery)
        np.testing.assert_array_equal(np.asarray(Image.open(shown)), colorize(labels))
        request = read_request(result)
        np.testing.assert_array_equal(request.hint, labels)
        (expected,) = generator.generate(request).pictures
        np.testing.assert_array_equal(np.asarray(Image.open(result)), expected)


def test_hints_that_no_run_can_use_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("RGB", (5600, 5600)).save(tmp_path / "map.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    for name in ("seg", "canny", "normal"):
        with pytest.raises(PictureError, match=r"map.png: 5600x5600 pixels are more than the 8 megapixels"):
            read_hint(find_condition(name)(ColorDetector()), tmp_path / "map.png")


def test_hints_of_links_are_measured_before_they_are_unpacked(monkeypatch):
    packed = base64.urlsafe_b64encode(zlib.compress(bytes(8000 * 4000), 9)).decode()
    monkeypatch.setattr(zlib, "decompressobj", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(RequestError, match="8000x4000 pixels"):
        read_fragment(f"hint=8000x4000.{packed}")
    with pytest.raises(RequestError, match="too long"):
        read_fragment(f"hint=3000x60.{packed}")


# Files of the server ----------------------------------------------------------------------------------------


def test_no_file_of_the_server_is_opened_and_none_is_told_of(program, house, server):
    """A file that exists and one that does not are the same, in every event and every way to name them."""
    places = [
        str(ROOT / "examples" / "lake.png"),
        str(ROOT / "nothing" / "lake.png"),
        f"{house['path']}/../../../../../../../..{ROOT}/examples/lake.png",
        str(Path(house["path"]).parent),
        f"{house['path']}.png",
        "http://127.0.0.1:9/lake.png",
        f"{server}gradio_api/file={house['path']}",
        "file:///etc/passwd",
        "x\0y",
        "/tmp/" + "x" * 5000,
    ]
    for place in places:
        file = {"path": place, "meta": META}
        for name, data in (
            ("process", thirteen(file)),
            ("process", [*thirteen(house), file]),
            ("detect", [file, 64, "seg", {}]),
            ("generate", [file, "x", "seg", {}, None, {"ddim_steps": 1}]),
            ("generate", [house, "x", "seg", {}, file, {"ddim_steps": 1}]),
        ):
            assert program.call(name, data) == ("error", {"error": NOT_OURS, **ANY_TOAST}), place
    asked = 0
    for function in program.functions:  # the buttons of the page, of which one is an upload button
        kinds = [program.kinds[index] for index in function["inputs"]]
        for place in places[:2] if {"image", "uploadbutton"} & set(kinds) else []:
            file = {"path": place, "meta": META}
            data = [
                file if kind in ("image", "uploadbutton") else program.values[index]
                for index, kind in zip(function["inputs"], kinds, strict=True)
            ]
            says = program.event(function["id"], data)["error"]
            # What is for the browser alone has no function, and may stumble over a value before the file.
            assert says == NOT_OURS or (not function["backend_fn"] and says.endswith("got None."))
            asked += 1
    assert asked > 20


ANY_TOAST = {"duration": 10, "visible": True, "title": "Error"}


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", "meta": "gradio.FileData"},
        {"path": 5, "meta": META},
        {"url": "http://127.0.0.1:9/lake.png", "meta": META},
        {"url": "file:///etc/passwd", "meta": META},
    ],
    ids=str,
)
def test_files_without_their_mark_are_none(program, file):
    kind, answer = program.call("process", thirteen(file))
    assert kind == "error" and answer["error"].startswith("Picture must be a file, {")


def test_links_out_of_the_upload_folder_lead_nowhere(tmp_path, monkeypatch):
    folder, outside = tmp_path / "uploads", tmp_path / "secret.png"
    folder.mkdir()
    save_png(outside, draw())
    save_png(folder / "own.png", draw())
    (folder / "link.png").symlink_to(outside)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    assert is_uploaded(str(folder / "own.png"))
    for other in ("link.png", "loop.png", "../secret.png", "."):
        assert not is_uploaded(str(folder / other)), other
    (tmp_path / "moved").symlink_to(folder)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "moved"))  # as /tmp is a link on some systems
    assert is_uploaded(str(tmp_path / "moved" / "own.png")) and is_uploaded(str(folder / "own.png"))


def test_a_damaged_data_url_is_no_picture(program):
    for url in ("data:image/png;base64,", "data:image/png;base64,!!!", "data:,x"):
        kind, answer = program.call("process", thirteen({"url": url, "meta": META}))
        assert kind == "error" and ("empty" in answer["error"] or "damaged" in answer["error"]), url
    buffer = io.BytesIO()
    Image.fromarray(draw()).save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert program.call("process", thirteen({"url": url, "meta": META}))[0] == "complete"
