"""A page for detectors alone: one picture, and what each condition makes of it (``gradio_annotator.py``)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence

import gradio as gr

from controlnet.conditions import Condition, all_conditions
from controlnet.conditions.base import Option
from controlnet.page.advanced import option_component
from controlnet.page.app import add_server_arguments, own_temporary_folder, serve
from controlnet.page.checks import Page
from controlnet.page.uploads import picture_file, picture_of


def build_annotator(conditions: Sequence[Condition]) -> Page:
    """A row for each condition: its options, a button, and the hint. Detectors load with their first
    picture.
    """
    with Page(title="Detectors", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# Detectors\nWhat each condition makes of a picture.")
        picture = picture_file(label="Picture", height=320, elem_id="picture")
        for condition in conditions:
            with gr.Accordion(condition.title, open=False, elem_id=f"annotate-{condition.name}"):
                resolution = gr.Slider(
                    64,
                    2048,
                    value=condition.detect_resolution or 512,
                    step=64,
                    label=condition.detect_label,
                )
                options = [option_component(option) for option in condition.options]
                button = gr.Button(f"Detect {condition.noun}", variant="primary")
                with gr.Row():
                    shown = gr.Image(label=condition.noun.capitalize(), format="png", interactive=False)
                    remarks = gr.Markdown()
            button.click(
                detect_with(condition, condition.options),
                [picture, resolution, *options],
                [shown, remarks],
                api_name=condition.name,
                concurrency_id="detectors",
                concurrency_limit=1,
            )
    return page


def detect_with(condition: Condition, options: Sequence[Option]) -> Callable:
    """The function behind one button."""

    def detect(input_image, resolution, *values):
        """Picture to hint, as a person sees it, and what is to be said about it."""
        given = {option.name: value for option, value in zip(options, values, strict=True)}
        picture = picture_of(input_image)
        hint = condition.hint(picture, resolution, resolution, **condition.checked_options(given))
        return condition.show(hint), " ".join(condition.remarks(hint, picture))

    return detect


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the page of detectors until interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
    add_server_arguments(parser)
    options = parser.parse_args(arguments)
    with own_temporary_folder():
        conditions = [known(device=options.device) for known in all_conditions().values()]
        serve(build_annotator(conditions), options)
