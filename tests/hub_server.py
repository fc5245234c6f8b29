"""A small stand-in for the Hugging Face hub on this machine, which can be told to misbehave."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOGIN_PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
COMMIT = "0" * 40


@dataclass
class Hub:
    """What the server gives, and what was asked of it.

    ``mode`` is one of: "right"; "breaks off" (half of what is asked for, then silence); "shorter", "longer"
    (the listing says so many bytes as there are, others come); "other" (as many bytes, not the same); "lists
    other" (another sha256); "login" (a web page for everything); "login later" (a right listing, then the
    page); "forbidden"; "gone"; "unsigned" (no sha256 in the listing).
    """

    content: bytes
    mode: str = "right"
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server for the length of a block; ``hub.url`` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            _answer(self, hub, with_body=False)

        def do_GET(self) -> None:
            _answer(self, hub, with_body=True)

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, hub: Hub, with_body: bool) -> None:
    hub.paths.append(request.path)
    if hub.mode in ("forbidden", "gone"):
        request.send_response(403 if hub.mode == "forbidden" else 404)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    if hub.mode == "login" or (hub.mode == "login later" and with_body):
        _send(request, 200, LOGIN_PAGE, {"Content-Type": "text/html"}, with_body)
        return
    sha256 = "f" * 64 if hub.mode == "lists other" else hub.sha256
    headers = {"X-Repo-Commit": COMMIT, "ETag": '"small-file"' if hub.mode == "unsigned" else f'"{sha256}"'}
    body, status = hub.content, 200
    if with_body:
        body = {
            "shorter": body[:-100],
            "longer": body + b"more",
            "other": body[:-1] + bytes([body[-1] ^ 1]),
        }.get(hub.mode, body)
        asked = request.headers.get("Range")
        hub.ranges.append(asked)
        if asked and hub.mode != "no ranges":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
    _send(request, status, body, headers, with_body, breaks_off=hub.mode == "breaks off")


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str],
    with_body: bool,
    breaks_off: bool = False,
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
        request.send_header(name, value)
    request.end_headers()
    if with_body:
        request.wfile.write(body[: len(body) // 2] if breaks_off else body)
        if breaks_off:
            request.wfile.flush()
            request.close_connection = True
            request.connection.close()
