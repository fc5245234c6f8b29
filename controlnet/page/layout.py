"""What is where on the page: source, hint and settings on the left; words, run and results on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from annotator.ade20k import PALETTE
from controlnet.conditions import Condition, Option, all_conditions
from controlnet.generation.generator import Generator
from controlnet.generation.request import (
    DEFAULT_A_PROMPT,
    DEFAULT_N_PROMPT,
    RANGES,
    default_detect_resolution,
)
from controlnet.generation.samplers import FAST, SAMPLERS, USUAL
from controlnet.generation.world import World
from controlnet.page import view
from controlnet.page.browser import browser_part
from controlnet.page.editors.draw import drawing_board, show_drawing
from controlnet.page.editors.label_map import label_map_editor, show_map
from controlnet.page.examples import Example
from controlnet.page.settings import SETTINGS, page_ranges
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
    waiting: gr.HTML
    clock: gr.Timer
    """Asks for the place in the line while a job waits."""
    status: gr.HTML
    gallery: gr.Gallery
    scores: gr.HTML
    compare: gr.ImageSlider
    departures: gr.Checkbox
    use_seed: gr.Button
    use_picture: gr.Button
    copy_link: gr.Button
    examples: gr.Dataset
    desk: gr.HTML
    history: gr.HTML
    save_map: gr.Button
    save_indices: gr.Button

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
            settings = lay_out_settings(generator.resolution, generator.guidance, condition)
        with gr.Column(scale=5, min_width=340, elem_id="outcome"):
            prompt = gr.Textbox(
                prompt_text, label="Prompt", lines=2, placeholder="a red house by a lake", elem_id="prompt"
            )
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
            samples_per_page=16,
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
            world.classes if world else (), elem_id="editor", visible=is_map,
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


def lay_out_settings(resolution: int, guidance: float, condition: type[Condition]) -> dict:
    """The original's controls with its ranges and defaults, but the model's own size and guidance; the
    options of every condition, of which those of one are visible; and a seed for each picture.
    """
    ranges = page_ranges(resolution)
    options, groups = {}, {}
    for name, known in all_conditions().items():
        with gr.Group(visible=name == condition.name and bool(known.options)) as groups[name]:
            for option in known.options:
                options[name, option.name] = option_component(option)
    with gr.Accordion("Advanced options", open=False, elem_id="advanced"):
        settings: dict[str, gr.components.Component] = {
            "num_samples": gr.Slider(*ranges["num_samples"], value=1, step=1, label="Images"),
        }
        own_seeds = gr.Checkbox(
            True,
            label="A seed for each image",
            info="Image k gets seed + k, and can be made again alone. Off: one for all, as the original.",
            elem_id="own-seeds",
        )
        settings |= {
            "image_resolution": gr.Slider(
                *ranges["image_resolution"], value=resolution, step=64, label="Image Resolution"
            ),
            "strength": gr.Slider(*ranges["strength"], value=1.0, step=0.01, label="Control Strength"),
            "guess_mode": gr.Checkbox(False, label="Guess Mode"),
            "detect_resolution": gr.Slider(
                *ranges["detect_resolution"],
                value=default_detect_resolution(condition, resolution),
                step=1,
                label=condition.detect_label,
                visible=condition.detect_resolution is not None,
            ),
            **lay_out_steps(ranges["ddim_steps"]),
            "scale": gr.Slider(*ranges["scale"], value=guidance, step=0.1, label="Guidance Scale"),
            **lay_out_guidance(),
            "seed": gr.Slider(
                *ranges["seed"], value=-1, step=1, label="Seed", info="-1 draws one", elem_id="seed"
            ),
            "eta": gr.Number(0.0, label="eta (DDIM)", minimum=ranges["eta"][0], maximum=ranges["eta"][1]),
            "a_prompt": gr.Textbox(DEFAULT_A_PROMPT, label="Added Prompt"),
            "n_prompt": gr.Textbox(DEFAULT_N_PROMPT, label="Negative Prompt"),
        }
    return {"settings": settings, "own_seeds": own_seeds, "options": options, "option_groups": groups}


def lay_out_steps(steps: tuple[float, float]) -> dict[str, gr.components.Component]:
    """The sampler and how many steps it takes, from a range."""
    samplers = [(kind.title, name) for name, kind in SAMPLERS.items()]
    return {
        "sampler": gr.Dropdown(samplers, value=USUAL.sampler, label="Sampler", elem_id="sampler"),
        "ddim_steps": gr.Slider(*steps, value=USUAL.steps, step=1, label="Steps"),
    }


def lay_out_guidance() -> dict[str, gr.components.Component]:
    """The interval of guidance, folded away."""
    with gr.Accordion("Guidance in a part of the steps", open=False), gr.Row():
        return {
            "guidance_start": gr.Slider(
                *RANGES["guidance_start"], value=0.0, step=0.05, label="From", info="share of the steps"
            ),
            "guidance_end": gr.Slider(
                *RANGES["guidance_end"], value=1.0, step=0.05, label="To", info="half the work outside"
            ),
        }  # fmt: skip


def option_component(option: Option) -> gr.components.Component:
    """A checkbox for a switch, a slider for every other option."""
    info = option.help or None
    if option.is_switch:
        return gr.Checkbox(bool(option.default), label=option.label, info=info)
    return gr.Slider(
        option.low, option.high, value=option.default, step=option.step, label=option.label, info=info
    )


def lay_out_results() -> dict:
    """The pictures of a run, what can be done with them, and those of earlier runs."""
    parts: dict = {
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
