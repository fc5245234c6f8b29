"""What is where on the page: source, hint and settings on the left, results on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from controlnet.conditions import Condition, Option, all_conditions
from controlnet.generation.request import (
    DEFAULT_A_PROMPT,
    DEFAULT_N_PROMPT,
    RANGES,
    default_detect_resolution,
)
from controlnet.generation.samplers import FAST, SAMPLERS, USUAL
from controlnet.page.editors.draw import drawing_board
from controlnet.page.editors.label_map import label_map_editor
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
    status: gr.HTML
    gallery: gr.Gallery
    scores: gr.HTML
    compare: gr.ImageSlider
    departures: gr.Checkbox
    use_seed: gr.Button
    use_picture: gr.Button
    copy_link: gr.Button
    examples: gr.Dataset

    @property
    def hint(self) -> list[gr.components.Component]:
        """The four components that show or keep a hint, in the order of ``actions.Shown``."""
        return [self.label_map, self.drawing, self.hint_picture, self.kept_hint]

    @property
    def setting_list(self) -> list[gr.components.Component]:
        """The settings in the order of ``settings.SETTINGS``."""
        return [self.settings[name] for name in SETTINGS]


def lay_out(
    resolution: int, guidance: float, condition: type[Condition], examples: Sequence[Example]
) -> Parts:
    """All parts, for a model of this size and guidance, opened on a condition."""
    parts: dict = {}
    choices = [(known.title, name) for name, known in all_conditions().items()]
    parts["condition"] = gr.Radio(choices, value=condition.name, label="Steer by", elem_id="condition")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=340):
            parts |= lay_out_source(condition, examples)
            parts |= lay_out_hint(condition)
            prompt = gr.Textbox(
                label="Prompt", lines=2, placeholder="a red house by a lake", elem_id="prompt"
            )
            with gr.Row():
                parts["generate"] = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
                parts["cancel"] = gr.Button(
                    "Cancel", variant="stop", interactive=False, elem_id="cancel", scale=1
                )
            parts["fast"] = gr.Checkbox(
                False, label="Fast", info=f"{FAST.title}, instead of {USUAL.title}", elem_id="fast"
            )
            parts |= lay_out_settings(resolution, guidance, condition, prompt)
        with gr.Column(scale=5, min_width=340):
            parts |= lay_out_results()
    return Parts(**parts)


def lay_out_source(condition: type[Condition], examples: Sequence[Example]) -> dict:
    """The picture, the examples beside it, and the ways to a hint."""
    parts: dict = {}
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
            samples_per_page=16,
            visible=bool(examples),
            elem_id="examples",
        )
    with gr.Row():
        parts["detect"] = gr.Button(f"Detect {condition.noun}", elem_id="detect", min_width=120)
        parts["upload"] = gr.UploadButton(
            f"Upload {condition.noun}", file_types=["image"], elem_id="upload-map", min_width=120
        )
        has_canvas = condition.editor is not None
        parts["empty"] = gr.Button("Empty canvas", elem_id="empty", min_width=120, visible=has_canvas)
        parts["shape"] = gr.Dropdown(
            SHAPES, value=SHAPES[0], label="Shape", container=False, min_width=100, visible=has_canvas
        )
    return parts


def lay_out_hint(condition: type[Condition]) -> dict:
    """The three ways in which a hint is shown; one of them is visible."""
    return {
        "label_map": label_map_editor(elem_id="editor", visible=condition.editor == "label_map"),
        "drawing": drawing_board(elem_id="drawing", visible=condition.editor == "draw"),
        "hint_picture": gr.Image(
            label="Hint",
            format="png",
            interactive=False,
            elem_id="hint",
            buttons=["download", "fullscreen"],
            visible=condition.editor is None,
        ),
        "kept_hint": gr.State(None),
    }


def lay_out_settings(
    resolution: int, guidance: float, condition: type[Condition], prompt: gr.Textbox
) -> dict:
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
        settings = {
            "prompt": prompt,
            "num_samples": gr.Slider(*ranges["num_samples"], value=1, step=1, label="Images"),
        }
        own_seeds = gr.Checkbox(
            False, label="A seed for each image", info="Image k gets seed + k, and can be made again alone."
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
            "guidance_start": gr.Slider(*RANGES["guidance_start"], value=0.0, step=0.05, label="From"),
            "guidance_end": gr.Slider(
                *RANGES["guidance_end"], value=1.0, step=0.05, label="To",
                info="Steps outside take half the time",
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
        False, label="Show where the picture departs from the hint", elem_id="departures"
    )
    return parts
