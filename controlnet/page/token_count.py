"""Under the prompt: how many tokens it has, and what of it is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from controlnet.generation.generator import Generator
from controlnet.generation.words import fit_of
from controlnet.page import view
from controlnet.page.events import INSTANT

if TYPE_CHECKING:
    from controlnet.page.layout import Parts


def lay_out_token_count() -> gr.HTML:
    """A line that is empty until something is written."""
    return gr.HTML(elem_id="token-count")


def wire_token_count(parts: Parts, generator: Generator) -> None:
    """The line follows the prompt, the added prompt and the switch, and comes with the model; while one
    answer is on its way, only the last change after it asks again.
    """

    def count(prompt: str, added: str, syntax: bool) -> str:
        if not prompt or not generator.arrival.is_there:
            return ""
        fit = fit_of(generator.model, f"{prompt}, {added}", syntax)
        if fit is None:
            return ""
        cut = f" {view.SYNTAX_HELPS}" if fit.lost else ""
        return view.token_count_html(f"With the added prompt {fit.sentence()}.{cut}", bool(fit.lost))

    told = [parts.settings[name] for name in ("prompt", "a_prompt", "prompt_syntax")]
    gr.on(
        [parts.loading.change, *(part.change for part in told)],  # type: ignore[attr-defined]
        count,
        told,
        parts.token_count,
        trigger_mode="always_last",
        **INSTANT,
    )
