"""What is where on the page: source, hint and settings on the left; words, run and results on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from annotator.ade20k import PALETTE
from controlnet.conditions import Condition, all_conditions
from controlnet.generation.generator import Generator
from controlnet.generation.samplers import FAST
from controlnet.generation.world import World
from controlnet.page import view
from controlnet.page.advanced import lay_out_settings
from controlnet.page.browser import browser_part
from controlnet.page.class_prompts import lay_out_class_prompts
from controlnet.page.editors.draw import drawing_board, show_drawing
from controlnet.page.editors.label_map import label_map_editor, show_map
from controlnet.page.examples import Example
from controlnet.page.folder import FolderParts, lay_out_folder
from controlnet.page.from_source import lay_out_from_source
from controlnet.page.grid import GridParts, lay_out_grid, lay_out_sheet
from controlnet.page.panels import Panel
from controlnet.page.settings import SETTINGS
from controlnet.page.several import lay_out_several
from controlnet.page.token_count import lay_out_token_count
from controlnet.page.uploads import picture_file

SHAPES = ("square", "landscape", "portrait")


@dataclass
class Parts:
    """The components that events connect."""

    condition: gr.Radio
    input_image: gr.Image
    settings: dict[str, gr.components.Component]
    """By name, as in ``settings.SETTINGS``."""
    options: dict[tuple[str, str], gr.components.Component]
    """By condition and name."""
    option_groups: dict[str, gr.Group]
    own_seeds: gr.Checkbox
    fast: gr.Checkbox
    label_map: gr.HTML
    drawing: gr.HTML
    hint_picture: gr.Image
    kept_hint: gr.State
    detect: gr.Button
    upload: gr.UploadButton
    shape: gr.Dropdown
    empty: gr.Button
    generate: gr.Button
    cancel: gr.Button
    loading: gr.HTML
    """Says so, until the model is there."""
    arrival_clock: gr.Timer
    """Asks whether it is."""
    waiting: gr.HTML
    clock: gr.Timer
    """Asks for the place in the line while a job waits."""
    status: gr.HTML
    sheet: gr.Image
    gallery: gr.Gallery
    scores: gr.HTML
    compare: gr.ImageSlider
    departures: gr.Checkbox
    use_seed: gr.Button
    use_picture: gr.Button
    copy_link: gr.Button
    examples: gr.Dataset
    grid: GridParts
    folder: FolderParts
    desk: gr.HTML
    history: gr.HTML
    save_map: gr.Button
    save_indices: gr.Button
    token_count: gr.HTML
    panels: list[Panel]
    """Folded parts that add to requests."""

    @property
    def panel_inputs(self) -> list[gr.components.Component]:
        """The components of all panels whose values requests are made of."""
        return [component for panel in self.panels for component in panel.inputs]

    @property
    def panel_outputs(self) -> list[Any]:
        """The components of all panels that come back with a request."""
        return [component for panel in self.panels for component in panel.outputs]

    @property
    def hint(self) -> list[gr.components.Component]:
        """The four components that show or keep a hint, in the order of ``actions.Shown``."""
        return [self.label_map, self.drawing, self.hint_picture, self.kept_hint]

    @property
    def setting_list(self) -> list[gr.components.Component]:
        """The settings in the order of ``settings.SETTINGS``."""
        return [self.settings[name] for name in SETTINGS]


def lay_out(
    heading: tuple[str, str, str, str],
    generator: Generator,
    condition: type[Condition],
    examples: Sequence[Example],
    first: Example | None = None,
) -> Parts:
    """All parts, for a generator's size, guidance and world, opened on a condition and perhaps an example."""
    parts: dict = {}
    with gr.Row(elem_id="top", equal_height=False):
        with gr.Column(scale=5, min_width=240):
            gr.HTML(view.heading_html(*heading), elem_id="title")
        with gr.Column(scale=1, min_width=120):
            parts["desk"] = browser_part(
                "desk",
                ("store", "files", "runs", "roving"),
                palette=PALETTE.tolist(),
                examples=[example.prompt for example in examples],
                page=f"{condition.name} {generator.name}",  # each keeps its own work
                elem_id="desk",
            )
    choices = [(known.title, name) for name, known in all_conditions().items()]
    prompt_text = first.prompt if first else ""
    with gr.Row(equal_height=False, elem_id="bench"):
        with gr.Column(scale=6, min_width=340, elem_id="making"):
            parts["condition"] = gr.Radio(
                choices, value=condition.name, label="Steer by", elem_id="condition"
            )
            parts |= lay_out_source(condition, examples, first)
            parts |= lay_out_hint(condition, generator.world, first)
            parts["panels"] = [
                lay_out_class_prompts(), lay_out_from_source(), lay_out_several(generator, condition),
            ]  # fmt: skip
            settings = lay_out_settings(generator.resolution, generator.guidance, condition)
            parts["grid"] = lay_out_grid()
            parts["folder"] = lay_out_folder()
        with gr.Column(scale=5, min_width=340, elem_id="outcome"):
            prompt = gr.Textbox(
                prompt_text, label="Prompt", lines=2, placeholder="a red house by a lake", elem_id="prompt"
            )
            parts["token_count"] = lay_out_token_count()
            lay_out_words(generator.world, prompt_text)
            parts |= lay_out_run()
            parts |= lay_out_results()
    settings["settings"]["prompt"] = prompt
    return Parts(**parts, **settings)


def lay_out_words(world: World | None, prompt: str) -> None:
    """Chips for the words that a small model knows."""
    known = world.summary() if world else {}
    browser_part(
        "words",
        ("roving",),
        choices=known.get("choices"),
        prompt=prompt,
        words=known.get("words"),
        elem_id="words",
        visible=bool(known),
    )


def lay_out_run() -> dict:
    """The buttons, and right below them what they bring about."""
    parts: dict = {}
    with gr.Row():
        parts["generate"] = gr.Button(
            "Generate", variant="primary", elem_id="generate", scale=3, min_width=160
        )
        parts["cancel"] = gr.Button(
            "Cancel", variant="stop", interactive=False, elem_id="cancel", scale=1, min_width=90
        )
        parts["fast"] = gr.Checkbox(
            False, label=f"Fast: {FAST.steps} steps", container=False, scale=0, min_width=80, elem_id="fast"
        )
    parts["loading"] = gr.HTML(elem_id="loading")
    parts["arrival_clock"] = gr.Timer(1, active=False)
    parts["waiting"] = gr.HTML(elem_id="waiting")
    parts["status"] = gr.HTML(elem_id="status")
    parts["clock"] = gr.Timer(1, active=False)
    return parts


def lay_out_source(condition: type[Condition], examples: Sequence[Example], first: Example | None) -> dict:
    """The picture, the examples beside it, and the ways to a hint."""
    parts: dict = {}
    with gr.Row(equal_height=True):
        parts["input_image"] = picture_file(
            value=str(first.picture) if first and first.hint is None else None,
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            height=180,
            elem_id="picture",
            buttons=["fullscreen"],
        )
        parts["examples"] = gr.Dataset(
            components=[gr.Image(visible=False)],
            samples=[[str(example.picture)] for example in examples],
            label="Examples: click one, see a result",
            type="index",
            samples_per_page=24,
            visible=bool(examples),
            elem_id="examples",
        )
    has_canvas = condition.editor is not None
    with gr.Row(elem_id="ways"):
        parts["detect"] = gr.Button(detect_text(condition), elem_id="detect", size="md", min_width=110)
        parts["upload"] = gr.UploadButton(
            upload_text(condition), file_types=["image"], elem_id="upload-map", size="md", min_width=110
        )
        parts["empty"] = gr.Button(
            "Empty canvas", elem_id="empty", size="md", min_width=110, visible=has_canvas
        )
        parts["shape"] = gr.Dropdown(
            SHAPES, value=SHAPES[0], label="Shape of the empty canvas", show_label=False, container=False,
            min_width=100, visible=has_canvas,
        )  # fmt: skip
    return parts


def detect_text(condition: type[Condition]) -> str:
    """What the button says: the last word of the noun will do."""
    return f"Detect {condition.noun.split()[-1]}"


def upload_text(condition: type[Condition]) -> str:
    """The same for a hint of one's own."""
    return f"Upload {condition.noun.split()[-1]}"


def lay_out_hint(condition: type[Condition], world: World | None, first: Example | None) -> dict:
    """The three ways in which a hint is shown; one of them is visible."""
    hint = condition().read(first.hint).hint if first and first.hint else None
    is_map, is_drawing = condition.editor == "label_map", condition.editor == "draw"
    parts = {
        "label_map": label_map_editor(
            world.classes if world else (), world.icons if world else "", elem_id="editor", visible=is_map,
            value=show_map(hint) if hint is not None and is_map else None,
        ),
        "drawing": drawing_board(
            elem_id="drawing", visible=is_drawing,
            value=show_drawing(condition.name, hint) if hint is not None and is_drawing else None,
        ),
        "hint_picture": gr.Image(
            label="Hint",
            format="png",
            interactive=False,
            elem_id="hint",
            buttons=["download", "fullscreen"],
            visible=condition.editor is None,
        ),
        "kept_hint": gr.State(None),
    }  # fmt: skip
    with gr.Row(elem_id="saving"):
        parts["save_map"] = gr.Button(
            "Save as picture", size="sm", min_width=110, elem_id="save-map", visible=is_map or is_drawing
        )
        parts["save_indices"] = gr.Button(
            "Save class indices", size="sm", min_width=110, elem_id="save-indices", visible=is_map
        )
    return parts


def lay_out_results() -> dict:
    """The pictures of a run, what can be done with them, and those of earlier runs."""
    parts: dict = {
        "sheet": lay_out_sheet(),
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
    }
    with gr.Row(elem_id="further"):
        for name, text in (
            ("use_seed", "Use this seed"), ("use_picture", "Use as input"), ("copy_link", "Copy link"),
        ):  # fmt: skip
            parts[name] = gr.Button(
                text, size="sm", min_width=90, interactive=False, elem_id=name.replace("_", "-")
            )
    parts["scores"] = gr.HTML(elem_id="scores")
    parts["history"] = browser_part("history", ("store", "files"), elem_id="history")
    parts["compare"] = gr.ImageSlider(
        label="Source and result", format="png", interactive=False, elem_id="compare", buttons=["fullscreen"]
    )
    parts["departures"] = gr.Checkbox(
        False, label="Show where the picture departs from the hint", elem_id="departures", interactive=False
    )
    return parts
