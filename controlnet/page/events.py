"""What the events of the page have in common: their queues, a visitor's state, and what surrounds a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from controlnet.page import results
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
    """Which picture of the result; with a batch its first."""
    batch: gr.State
    """The results behind the gallery's pictures where each has a request of its own, or None."""
    link: gr.Textbox
    """To the result."""


def asked(parts: Parts) -> list[gr.components.Component]:
    """The components whose values `Actions.request` takes."""
    return [
        parts.condition, parts.input_image, parts.label_map, parts.drawing, parts.kept_hint, parts.own_seeds,
        *parts.setting_list, *parts.options.values(), *parts.panel_inputs,
    ]  # fmt: skip


def wire_waiting(parts: Parts, actions: Actions, session: Session, begun) -> None:
    """A visitor who waits is told the place in the line; until the turn comes, the clock asks again."""
    shown = [parts.waiting, parts.clock]
    begun.then(actions.wait, session.job, shown, **INSTANT)


def wire_after(parts: Parts, session: Session, running) -> None:
    """What follows a run: its pictures in the history, the buttons under them, the slider and the link."""
    running.then(None, [parts.gallery, parts.settings["prompt"]], js=emit("results"), **INSTANT)
    running.then(
        results.buttons,
        session.result,
        [parts.use_seed, parts.use_picture, parts.copy_link, parts.departures],
        **INSTANT,
    )
    wire_choice(parts, session, running)


def wire_choice(parts: Parts, session: Session, event) -> None:
    """Another picture is looked at: the slider and the link go with it."""
    linked = event.then(**compare_event(parts, session)).then(
        results.link, session.result, session.link, **ASIDE
    )
    linked.then(None, session.link, None, js=emit("link"), **INSTANT)


def compare_event(parts: Parts, session: Session) -> dict:
    """What brings the slider up to date."""
    inputs = [session.result, session.chosen, parts.departures, parts.input_image]
    return {"fn": results.compare, "inputs": inputs, "outputs": parts.compare, **ASIDE}


def wire_end(parts: Parts, actions: Actions, session: Session, event) -> None:
    """Where nothing runs any more, or the queue was full, there is nothing to cancel."""
    event.then(actions.can_cancel, session.job, parts.cancel, **INSTANT)
    event.failure(actions.refused, session.job, parts.cancel, **INSTANT)
