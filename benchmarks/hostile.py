"""What hostile visitors of the page try, one function each. See ``benchmarks.soak``."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import numpy as np
from PIL import Image

META = {"_type": "gradio.FileData"}


class Unanswered(Exception):
    """The page did what it should not have done, or said nothing about what it did not do."""


@dataclass
class Answer:
    """The last event of an answer, or the refusal to listen."""

    status: int
    kind: str
    content: Any

    @property
    def busy(self) -> bool:
        """Whether the queue was full."""
        return self.status == 503

    def files(self) -> list[str]:
        """The addresses of a gallery's pictures."""
        if self.kind != "complete":
            raise Unanswered(f"refused: {self.content}")
        return [entry["image"]["url"] for entry in self.content[0]]

    def refusal(self) -> str:
        """ "refused", where the page said why in words."""
        text = self.content.get("error", self.content.get("detail")) if isinstance(self.content, dict) else ""
        if not (400 <= self.status < 500 or self.kind == "error" or self.busy) or not text:
            raise Unanswered(f"status {self.status}, {self.kind} {str(self.content)[:200]}")
        return "refused"


class Caller:
    """A client of the page over plain HTTP, with a session of its own."""

    def __init__(self, url: str, session: str):
        self.url, self.session = f"{url}gradio_api", session
        self.http = httpx.Client(timeout=240)
        config = self.http.get(f"{url}config").json()
        self.functions = config["dependencies"]
        self.components = {c["id"]: c["props"].get("elem_id") for c in config["components"]}

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def values(self, picture: Any, prompt: str = "", seed: int = 0, resolution: Any = 64) -> list[Any]:
        """The thirteen inputs of ``/process``."""
        return [picture, prompt, "", "", 1, resolution, 64, 1, False, 1.0, 9.0, seed, 0.0]

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        """Send a file; what stands for it in calls."""
        answer = self.http.post(f"{self.url}/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": META}

    def post(self, path: str, **body: Any) -> Answer:
        """One request, and its answer where that is no stream."""
        answer = self.http.post(f"{self.url}{path}", **body)
        try:
            return Answer(answer.status_code, "", answer.json())
        except ValueError:
            raise Unanswered(f"status {answer.status_code}: {answer.text[:200]}") from None

    def call(self, name: str, values: list[Any]) -> Answer:
        """An endpoint's last event."""
        started = self.post(f"/call/{name}", json={"data": values})
        if started.status != 200:
            return started
        events = self.http.get(f"{self.url}/call/{name}/{started.content['event_id']}").text
        kind, data = events.strip().split("\n\n")[-1].split("\n")
        return Answer(200, kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))

    def event(self, target: tuple[str, str], values: list[Any], session: str, data: Any = None) -> Answer:
        """What the page itself sends when something happens to a component (its id, and what), with what
        comes with the event, and the end of the answer.
        """
        (function,) = (
            f
            for f in self.functions
            if f["backend_fn"] and (self.components.get(f["targets"][0][0]), f["targets"][0][1]) == target
        )
        body = {"data": values, "fn_index": function["id"], "session_hash": session, "event_data": data}
        if function["queue"] is False:
            return self.post("/run/predict", json=body)
        joined = self.post("/queue/join", json=body)
        if joined.status != 200:
            return joined
        with self.http.stream("GET", f"{self.url}/queue/data", params={"session_hash": session}) as lines:
            for line in filter(None, lines.iter_lines()):
                message = json.loads(line.removeprefix("data: "))
                if message["msg"] == "process_completed":
                    return Answer(200, "complete" if message["success"] else "error", message["output"])
        raise Unanswered("the stream ended")


@cache
def png(kind: str) -> bytes:
    """A picture of a kind that is made once."""
    side = {"large": 5600, "noise": 1500}.get(kind, 64)
    image = Image.new("L", (side, side))
    if kind == "noise":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    if kind == "bomb":  # the same file, but its header says 60,000 x 60,000
        header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + buffer.getvalue()[24:29]
        return (
            buffer.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + buffer.getvalue()[33:]
        )
    return buffer.getvalue()[: len(buffer.getvalue()) // (2 if kind == "half" else 1)]


def with_file(content: Callable[[], bytes], as_hint: bool = False) -> Callable[[Caller, int], str]:
    """Send a file as the picture, or as the hint."""

    def attack(caller: Caller, number: int) -> str:
        file = caller.upload(content(), f"hostile-{number}.png")
        values = caller.values(caller.upload(png("plain"), "plain.png") if as_hint else file)
        return caller.call("process", [*values, file] if as_hint else values).refusal()

    return attack


def with_values(make: Callable[[Caller], list[Any]]) -> Callable[[Caller, int], str]:
    """Call ``/process`` with wrong values."""
    return lambda caller, number: caller.call("process", make(caller)).refusal()


def with_body(path: str, content: bytes) -> Callable[[Caller, int], str]:
    """Send raw bytes."""
    headers = {"content-type": "application/json"}
    return lambda caller, number: caller.post(path, content=content, headers=headers).refusal()


def damaged_link(caller: Caller, number: int) -> str:
    """A link that unpacks to 32 million pixels."""
    packed = base64.urlsafe_b64encode(zlib.compress(bytes(8000 * 4000), 9)).decode()
    data = {"link": f"#hint=8000x4000.{packed}"}
    answer = caller.event(("desk", "open"), [], f"link-{number}", data)
    if not answer.busy and "cannot be read" not in str(answer.content):
        raise Unanswered(str(answer.content)[:200])
    return "refused"


def many_sessions(caller: Caller, number: int) -> str:
    """As if twenty tabs were opened, each pressing Detect."""
    for tab in range(20):
        caller.event(("detect", "click"), [None], f"tab-{number}-{tab}")
    return "borne"


def result_left_behind(caller: Caller, number: int) -> str:
    """A run whose result nobody fetches."""
    values = caller.values(caller.upload(png("plain"), "plain.png"), "nobody", number)
    caller.post("/call/process", json={"data": values})
    return "borne"


def stream_left(caller: Caller, number: int) -> str:
    """A run that is left in the middle."""
    values = caller.values(caller.upload(png("plain"), "plain.png"), "nobody", number)
    started = caller.post("/call/process", json={"data": [*values[:7], 20, *values[8:]]})
    if started.status == 200:
        with caller.http.stream("GET", f"{caller.url}/call/process/{started.content['event_id']}"):
            pass
    return "borne"


def noise_as_map(caller: Caller, number: int) -> str:
    """A map of two million colours: slow to check, but a map."""
    file = caller.upload(png("noise"), "noise.png")
    answer = caller.call("process", [*caller.values(None, "noise", number), file])
    return answer.refusal() if answer.busy else "borne" if answer.files() else ""


ATTACKS: dict[str, Callable[[Caller, int], str]] = {
    "text as a picture": with_file(lambda: b"<html>no picture</html>"),
    "half a picture": with_file(lambda: png("half")),
    "a bomb": with_file(lambda: png("bomb")),
    "a map of 5600 x 5600": with_file(lambda: png("large"), as_hint=True),
    "noise as a map": noise_as_map,
    "a file of the server": with_values(lambda c: c.values({"path": "/etc/passwd", "meta": META})),
    "texts": with_values(lambda c: ["x"] * 13),
    "nulls": with_values(lambda c: [None] * 13),
    "too few values": with_values(lambda c: ["x"]),
    "a picture of 4096 pixels": with_values(lambda c: c.values(None, resolution=4096)),
    "an endpoint that is not there": with_body("/call/nothing", b'{"data": []}'),
    "deep JSON": with_body("/call/process", b"[" * 100_000),
    "a body of 50 MB": with_body("/call/process", b'{"data": ["' + b"x" * 50_000_000),
    "a damaged link": damaged_link,
    "many sessions": many_sessions,
    "a result that is left behind": result_left_behind,
    "a stream that is left": stream_left,
}
"""By what they are: each returns "refused", or "borne" where the page has no reason to refuse."""
