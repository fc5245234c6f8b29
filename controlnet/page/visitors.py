"""Bounds for what the page keeps for its visitors, so that nobody pushes out another by asking often.

Gradio keeps the state of the last N sessions, whoever they belong to, and a session is whatever a request
says it is. Here those go first that nobody listens to, and of the rest those of the visitor who has the most.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from gradio.state_holder import StateHolder
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

MAX_BODY = 48_000_000  # bytes of one request: a picture of 20 MB as text in JSON, and what goes with it

_address: ContextVar[str] = ContextVar("address", default="")


class Sessions(StateHolder):
    """The state of at most ``capacity`` sessions, and of those the results that nobody has fetched yet."""

    def __init__(self, page: gr.Blocks):
        super().__init__()
        self.addresses: dict[str, str] = {}
        self.listeners: Counter[str] = Counter()
        self.set_blocks(page)

    def update(self, session_id: str) -> None:
        """A session was used: it is now the youngest; when there are too many, one goes."""
        with self.lock:
            if session_id in self.session_data:
                self.session_data.move_to_end(session_id)
                self.addresses.setdefault(session_id, self._address_of(session_id))
            while len(self.session_data) > self.capacity:
                self._forget(self.first_to_go(session_id))

    def first_to_go(self, in_use: str) -> str:
        """The session to forget: never the one in use, and the oldest of those that are equal otherwise."""
        counts = Counter(self.addresses.values())
        return max(
            (session for session in self.session_data if session != in_use),
            key=lambda session: (not self.listeners[session], counts[self.addresses.get(session, "")]),
        )

    def answered(self, event_id: str) -> None:
        """A call's answer was fetched: a session that was made for this call alone is needed no more."""
        with self.lock:
            waits = self.blocks._queue.pending_event_ids_session.get(event_id)
            if event_id in self.session_data and not waits and not self.listeners[event_id]:
                self._forget(event_id)

    def _address_of(self, session_id: str) -> str:
        """Where a session comes from. The queue works outside the request, but remembers it."""
        event = self.blocks._queue.event_ids_to_events.get(session_id)
        client = event.request.client if event is not None else None
        return _address.get() or (client.host if client else "")

    def _forget(self, session_id: str) -> None:
        self.delete_state(session_id)  # cancels what still runs
        self.session_data.pop(session_id)
        self.time_last_used.pop(session_id, None)
        self.addresses.pop(session_id, None)
        queue = self.blocks._queue
        queue.pending_messages_per_session.pop(session_id, None)
        queue.pending_event_ids_session.pop(session_id, None)


class Reception:
    """Middleware that sees every request first: it remembers where it comes from and which session listens,
    and refuses bodies larger than `MAX_BODY`.
    """

    def __init__(self, app: ASGIApp, page: gr.Blocks):
        self.app, self.page = app, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"Requests may have {MAX_BODY // 1_000_000} MB at most.")
            return message

        _address.set((scope.get("client") or ("",))[0])
        state: Any = self.page.state_holder
        listeners, session = state.listeners, listening_session(scope)
        listeners[session] += 1
        try:
            await self.app(scope, limited, send)
        finally:
            listeners[session] -= 1
            listeners += Counter()  # forgets those at zero
            if "/call/" in scope["path"]:
                state.answered(session)


def listening_session(scope: Scope) -> str:
    """The session that a request stays connected for, or nothing."""
    match scope["path"].strip("/").split("/"):
        case [*_, "heartbeat", session] | [*_, "call", _, session]:
            return session
        case [*_, "queue", "data"]:
            return parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
    return ""


async def unknown_endpoint(request: Request, error: Exception) -> JSONResponse:
    """What a request is told that asks for a function which is not there: gradio would answer with a 500."""
    logger.info("%s asks for %s", request.url.path, error)
    return JSONResponse({"detail": "There is no such endpoint; /gradio_api/info lists them all."}, 404)


async def wrong_arguments(request: Request, error: Exception) -> JSONResponse:
    """The same for arguments by name that are missing or unknown."""
    logger.info("%s: %s", request.url.path, error)
    return JSONResponse({"detail": " ".join(str(error).split())}, 422)


@asynccontextmanager
async def own_sessions(app: Any) -> AsyncIterator[None]:
    """The lifespan of gradio's server: it begins with `Sessions` in the place of gradio's own."""
    app.state_holder = Sessions(app.get_blocks())
    yield


def own_server(page: gr.Blocks) -> dict[str, Any]:
    """What gradio's server is made with."""
    return {
        # The page itself is 270 kB of text, which gradio sends as it is; pictures and streams are left alone.
        "middleware": [Middleware(Reception, page=page), Middleware(GZipMiddleware, compresslevel=6)],
        "lifespan": own_sessions,
        "exception_handlers": {
            FnIndexInferError: unknown_endpoint,
            KeyError: unknown_endpoint,
            TypeError: wrong_arguments,
        },
    }
