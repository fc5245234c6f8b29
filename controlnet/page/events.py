"""What the events of the page have in common: their queues, a visitor's state, and what surrounds a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from controlnet.page.actions import Actions

if TYPE_CHECKING:
    from controlnet.page.layout import Parts

HOUR = 3600  # seconds that temporary files and sessions live
ON_MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
}  # one job at a time, whatever it is
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# What takes memory and seconds, but no network: in a queue beside the runs, so that it waits for none.
ASIDE: dict[str, Any] = {**QUIET, "concurrency_id": "aside", "concurrency_limit": 1}
INSTANT: dict[str, Any] = {**QUIET, "queue": False}  # what takes no time at all, and cannot fail

SHOW_RUN = """() => {
  if (innerWidth < 1000) document.querySelector("#generate").scrollIntoView({ block: "start" });
  else document.querySelector("#outcome").scrollTo({ top: 0 });
}"""


def emit(name: str, *more: str) -> str:
    """The script that tells the parts in the browser of an event, with the values of its inputs and more."""
    detail = ", ".join(["...values", *map(repr, more)])
    return f"(...values) => {{ dispatchEvent(new CustomEvent('{name}', {{ detail: [{detail}] }})); }}"


@dataclass
class Session:
    """What the page remembers for a visitor, beside what is shown."""

    job: gr.State
    """The run or detection that goes on."""
    result: gr.State
    chosen: gr.State
    """Which picture of the gallery."""
    link: gr.Textbox
    """To the result."""


def asked(parts: Parts) -> list[gr.components.Component]:
    """The components whose values `Actions.request` takes."""
    return [
        parts.condition, parts.input_image, parts.label_map, parts.drawing, parts.kept_hint, parts.own_seeds,
        *parts.setting_list, *parts.options.values(),
    ]  # fmt: skip


def wire_waiting(parts: Parts, actions: Actions, session: Session, begun) -> None:
    """A visitor who waits is told the place in the line, every second until the turn comes."""
    shown = [parts.waiting, parts.clock]
    begun.then(actions.wait, session.job, shown, **INSTANT)
    parts.clock.tick(actions.wait, session.job, shown, **INSTANT)


def wire_end(parts: Parts, actions: Actions, session: Session, event) -> None:
    """Where nothing runs any more, or the queue was full, there is nothing to cancel."""
    event.then(actions.can_cancel, session.job, parts.cancel, **INSTANT)
    event.failure(actions.refused, session.job, parts.cancel, **INSTANT)
