"""The page: picture and prompt to a segmentation map, and the map to pictures that keep its layout."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from controlnet.files import EXAMPLES
from controlnet.generation.generator import Generator
from controlnet.generation.models import add_model_arguments, generator_or_exit, known_models
from controlnet.generation.request import DEFAULT_A_PROMPT, DEFAULT_N_PROMPT
from controlnet.page.actions import Actions, picture_file
from controlnet.page.examples import Example, load_examples
from controlnet.page.map_editor import map_editor

HERE = Path(__file__).resolve().parent
HOUR = 3600  # seconds that temporary files and sessions live
MAX_UPLOAD = "20mb"
SHAPES = ("square", "landscape", "portrait")

THEME = gr.themes.Soft(
    primary_hue="teal",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],  # no font is fetched from anywhere
    font_mono=["ui-monospace", "monospace"],
)

ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one job at a time, whatever it is
QUIET = {"api_visibility": "private", "show_progress": "hidden"}
INSTANT = {**QUIET, "queue": False}

TAKE_LINK = "() => [window.location.hash]"
SHOW_LINK = "(link) => { if (link) history.replaceState(null, '', '#' + link); }"
SHOW_STATUS = (
    "() => { if (innerWidth < 800) document.querySelector('#status').scrollIntoView({ block: 'center' }); }"
)
COPY_LINK = "() => { navigator.clipboard.writeText(window.location.href); }"


@dataclass
class Parts:
    """The components that events connect. The first thirteen are the original's inputs, in its order."""

    input_image: gr.Image
    prompt: gr.Textbox
    a_prompt: gr.Textbox
    n_prompt: gr.Textbox
    num_samples: gr.Slider
    image_resolution: gr.Slider
    detect_resolution: gr.Slider
    ddim_steps: gr.Slider
    guess_mode: gr.Checkbox
    strength: gr.Slider
    scale: gr.Slider
    seed: gr.Slider
    eta: gr.Number
    own_seeds: gr.Checkbox
    editor: gr.HTML
    detect: gr.Button
    upload: gr.UploadButton
    shape: gr.Dropdown
    empty: gr.Button
    generate: gr.Button
    cancel: gr.Button
    status: gr.HTML
    gallery: gr.Gallery
    scores: gr.HTML
    compare: gr.ImageSlider
    departures: gr.Checkbox
    use_seed: gr.Button
    use_picture: gr.Button
    copy_link: gr.Button
    examples: gr.Dataset

    def inputs(self) -> list[gr.components.Component]:
        """The original's thirteen."""
        return [getattr(self, field.name) for field in fields(self)[:13]]


def build_page(generator: Generator, examples: Sequence[Example] = ()) -> gr.Blocks:
    """Lay out the page over a generator. Nothing is loaded here but the examples' names."""
    with gr.Blocks(title="Segmentation to image", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as page:
        gr.Markdown(
            "# Segmentation to image\nA picture becomes a map of what is where; map and words become "
            "pictures.",
            elem_id="title",
        )
        gr.Markdown(model_note(generator), elem_id="model-note")
        parts = lay_out(generator.resolution, generator.guidance, examples)
        wire(page, parts, Actions(generator), examples)
    return page


def lay_out(resolution: int, guidance: float, examples: Sequence[Example]) -> Parts:
    """Source, map and settings on the left, results on the right."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=340):
            parts = lay_out_source(examples)
            parts["editor"] = map_editor(elem_id="editor")
            parts["prompt"] = gr.Textbox(
                label="Prompt", lines=2, placeholder="a red house by a lake", elem_id="prompt"
            )
            with gr.Row():
                parts["generate"] = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                parts["cancel"] = gr.Button(
                    "Cancel", variant="stop", interactive=False, elem_id="cancel", scale=1
                )
            parts |= lay_out_settings(resolution, guidance)
        with gr.Column(scale=5, min_width=340):
            parts |= lay_out_results()
    return Parts(**parts)


def lay_out_source(examples: Sequence[Example]) -> dict[str, gr.components.Component]:
    """The picture, the examples beside it, and the ways to a map."""
    parts = {}
    with gr.Row(equal_height=True):
        parts["input_image"] = picture_file(
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            height=230,
            elem_id="picture",
            buttons=["fullscreen"],
        )
        parts["examples"] = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[str(example.picture)] for example in examples],
            label="Examples: click one, see a result",
            type="index",
            samples_per_page=12,
            visible=bool(examples),
            elem_id="examples",
        )
    with gr.Row():
        parts["detect"] = gr.Button("Detect map", elem_id="detect", min_width=120)
        parts["upload"] = gr.UploadButton(
            "Upload a map", file_types=["image"], elem_id="upload-map", min_width=120
        )
        parts["empty"] = gr.Button("Empty canvas", elem_id="empty", min_width=120)
        parts["shape"] = gr.Dropdown(SHAPES, value=SHAPES[0], label="Shape", container=False, min_width=100)
    return parts


def lay_out_settings(resolution: int, guidance: float) -> dict[str, gr.components.Component]:
    """The original's controls with its ranges and defaults, but the model's own size and guidance; and one of
    ours.
    """
    half, most = max(64, resolution // 2), -(-resolution * 3 // 128) * 64
    with gr.Accordion("Advanced options", open=False, elem_id="advanced"):
        return {
            "num_samples": gr.Slider(1, 12, value=1, step=1, label="Images"),
            "own_seeds": gr.Checkbox(
                False,
                label="A seed for each image",
                info="Image k gets seed + k, and can be made again alone.",
            ),
            "image_resolution": gr.Slider(half, most, value=resolution, step=64, label="Image Resolution"),
            "strength": gr.Slider(0.0, 2.0, value=1.0, step=0.01, label="Control Strength"),
            "guess_mode": gr.Checkbox(False, label="Guess Mode"),
            "detect_resolution": gr.Slider(
                max(64, resolution // 4),
                2 * resolution,
                value=resolution,
                step=1,
                label="Segmentation Resolution",
            ),
            "ddim_steps": gr.Slider(1, 100, value=20, step=1, label="Steps"),
            "scale": gr.Slider(0.1, 30.0, value=guidance, step=0.1, label="Guidance Scale"),
            "seed": gr.Slider(
                -1, 2147483647, value=-1, step=1, label="Seed", info="-1 draws one", elem_id="seed"
            ),
            "eta": gr.Number(0.0, label="eta (DDIM)", minimum=0.0, maximum=1.0),
            "a_prompt": gr.Textbox(DEFAULT_A_PROMPT, label="Added Prompt"),
            "n_prompt": gr.Textbox(DEFAULT_N_PROMPT, label="Negative Prompt"),
        }


def lay_out_results() -> dict[str, gr.components.Component]:
    """The run, its pictures, and what can be done with them."""
    parts = {
        "status": gr.HTML(elem_id="status"),
        "gallery": gr.Gallery(
            label="Results",
            format="png",
            columns=2,
            height="auto",
            object_fit="contain",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id="results",
        ),
        "scores": gr.HTML(elem_id="scores"),
    }
    with gr.Row():
        parts["use_seed"] = gr.Button("Use this seed", size="sm", min_width=110, elem_id="use-seed")
        parts["use_picture"] = gr.Button("Use as input", size="sm", min_width=110, elem_id="use-picture")
        parts["copy_link"] = gr.Button("Copy link", size="sm", min_width=110)
    parts["compare"] = gr.ImageSlider(
        label="Source and result", format="png", interactive=False, elem_id="compare"
    )
    parts["departures"] = gr.Checkbox(
        False, label="Show where the picture departs from the map", elem_id="departures"
    )
    return parts


def wire(page: gr.Blocks, parts: Parts, actions: Actions, examples: Sequence[Example]) -> None:
    """Connect the components to the functions behind them."""
    result = gr.State(None, time_to_live=HOUR)
    chosen = gr.State(0)  # which picture of the gallery
    job = gr.State(None, delete_callback=actions.jobs.cancel)
    link = gr.Textbox(visible="hidden", elem_id="link")
    settings = parts.inputs()[1:]

    wire_api(parts, actions)
    wire_map(parts, actions)

    begin = {
        "fn": lambda: (actions.jobs.begin(), 0, gr.update(interactive=True)),
        "outputs": [job, chosen, parts.cancel],
    }
    run = {
        "fn": actions.run,
        "inputs": [job, parts.input_image, parts.editor, parts.own_seeds, *settings],
        "outputs": [parts.status, parts.gallery, parts.scores, parts.editor, result],
        **ON_MODEL,
        **QUIET,
    }
    compare = {
        "fn": actions.compare,
        "inputs": [result, chosen, parts.departures, parts.input_image],
        "outputs": parts.compare,
        **INSTANT,
    }

    def then_run(started) -> None:
        done = started.then(**begin, **INSTANT, js=SHOW_STATUS).then(**run)
        done.then(lambda: gr.update(interactive=False), None, parts.cancel, **INSTANT)
        done.then(**compare).then(actions.link, result, link, **INSTANT).then(None, link, None, js=SHOW_LINK)

    then_run(gr.on([parts.generate.click, parts.prompt.submit], lambda: None, **INSTANT))
    parts.cancel.click(actions.jobs.cancel, job, None, **INSTANT)
    loaded = parts.examples.click(
        lambda index: examples[index].values(),
        parts.examples,
        [parts.input_image, parts.editor, parts.prompt],
        **INSTANT,
    )
    then_run(loaded)

    def choose(event: gr.SelectData) -> int:
        return event.index

    parts.gallery.select(choose, None, chosen, **INSTANT).then(**compare)
    parts.departures.change(**compare)
    parts.use_seed.click(actions.seed_of, [result, chosen], parts.seed, **INSTANT)
    parts.use_picture.click(
        actions.use_as_input,
        [result, chosen, parts.input_image],
        [parts.input_image, parts.editor],
        **INSTANT,
    )
    parts.copy_link.click(None, js=COPY_LINK)
    page.load(
        actions.restore,
        link,
        [*settings, parts.own_seeds, parts.editor, parts.status],
        js=TAKE_LINK,
        **INSTANT,
    )


def wire_map(parts: Parts, actions: Actions) -> None:
    """Where maps come from. A new picture puts the old map away."""
    parts.input_image.input(lambda: None, None, parts.editor, **INSTANT)
    parts.detect.click(
        actions.detect_map,
        [parts.input_image, parts.image_resolution, parts.detect_resolution],
        [parts.editor, parts.status],
        show_progress_on=parts.status,
        api_visibility="private",
        **ON_MODEL,
    )
    parts.upload.upload(
        actions.upload_map,
        [parts.upload, parts.input_image, parts.image_resolution],
        [parts.editor, parts.status],
        **INSTANT,
    )
    parts.empty.click(
        actions.empty_map, [parts.shape, parts.image_resolution], [parts.editor, parts.status], **INSTANT
    )


def wire_api(parts: Parts, actions: Actions) -> None:
    """Two endpoints for programs: /process as the original has it, and /detect."""
    process, detect = gr.Button(visible=False), gr.Button(visible=False)
    pictures = gr.Gallery(format="png", visible=False, label="Map and pictures")
    map_picture = gr.Image(format="png", visible=False, label="Map")
    classes = gr.JSON(visible=False, label="Classes")
    process.click(actions.process, parts.inputs(), pictures, api_name="process", **ON_MODEL)
    detect.click(
        actions.detect,
        [parts.input_image, parts.detect_resolution],
        [map_picture, classes],
        api_name="detect",
        **ON_MODEL,
    )


def model_note(generator: Generator) -> str:
    """Which model serves the page, and how to get a larger one."""
    if generator.name != "tiny":
        return f"Model: **{generator.name}**, {generator.resolution} pixels."
    how = known_models()["sd15"].how_to_get
    return (
        f"Model: **tiny**, the embedded one, {generator.resolution} pixels, for picture-book landscapes. "
        f"For Stable Diffusion 1.5 run `{how}` in the project's folder and start again."
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the page.")
    add_model_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for every one (default: %(default)s)",
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument(
        "--share", action="store_true", help="also make a public link through gradio's tunnel"
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask visitors for this")
    parser.add_argument(
        "--queue-size",
        type=int,
        default=32,
        help="jobs that may wait; more are refused (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.auth and ":" not in options.auth:
        parser.error("--auth must be USER:PASSWORD")
    return options


def main(arguments: Sequence[str] | None = None, save_memory: bool = False) -> None:
    """Load the model and serve the page until interrupted. ``save_memory`` is the default of that option."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parse_arguments(arguments)
    options.save_memory = options.save_memory or save_memory
    page = build_page(generator_or_exit(options), load_examples(EXAMPLES))
    serve(page, options)


def serve(page: gr.Blocks, options: argparse.Namespace, **more: Any) -> tuple[Any, str, str | None]:
    """Start the server, with limits on what visitors may send and leave; ``more`` goes to gradio's
    ``launch``.
    """
    page.queue(max_size=options.queue_size)
    return page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=tuple(options.auth.split(":", 1)) if options.auth else None,
        max_file_size=MAX_UPLOAD,
        show_error=False,  # unexpected errors stay in the log
        state_session_capacity=200,
        allowed_paths=[str(EXAMPLES)],
        footer_links=["api"],
        theme=THEME,
        css_paths=HERE / "style.css",
        **more,
    )
