"""What steers a run: the original's controls, folded away, and the options of the conditions."""

from __future__ import annotations

import gradio as gr

from controlnet.conditions import Condition, Option, all_conditions
from controlnet.generation.request import (
    DEFAULT_A_PROMPT,
    DEFAULT_N_PROMPT,
    RANGES,
    default_detect_resolution,
)
from controlnet.generation.samplers import SAMPLERS, USUAL
from controlnet.generation.several import MODES
from controlnet.page.settings import page_ranges


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
            **lay_out_parts(),
            "seed": gr.Slider(
                *ranges["seed"], value=-1, step=1, label="Seed", info="-1 draws one", elem_id="seed"
            ),
            "eta": gr.Number(0.0, label="eta (DDIM)", minimum=ranges["eta"][0], maximum=ranges["eta"][1]),
            "a_prompt": gr.Textbox(DEFAULT_A_PROMPT, label="Added Prompt"),
            "n_prompt": gr.Textbox(DEFAULT_N_PROMPT, label="Negative Prompt"),
            "prompt_syntax": gr.Checkbox(
                False,
                label="Prompt syntax",
                info="(word:1.3) ((word)) [word] BREAK, and prompts of any length in chunks of 75 tokens.",
                elem_id="prompt-syntax",
            ),
        }
    return {"settings": settings, "own_seeds": own_seeds, "options": options, "option_groups": groups}


def lay_out_steps(steps: tuple[float, float]) -> dict[str, gr.components.Component]:
    """The sampler and how many steps it takes, from a range."""
    samplers = [(kind.title, name) for name, kind in SAMPLERS.items()]
    return {
        "sampler": gr.Dropdown(samplers, value=USUAL.sampler, label="Sampler", elem_id="sampler"),
        "ddim_steps": gr.Slider(*steps, value=USUAL.steps, step=1, label="Steps"),
    }


def lay_out_parts() -> dict[str, gr.components.Component]:
    """In which part of the run there is guidance and control, folded away, and how the control stands to the
    prompt.
    """
    parts: dict[str, gr.components.Component] = {}
    for name, said in (("guidance", "half the work outside"), ("control", "no work for it outside")):
        with gr.Accordion(f"{name.capitalize()} in a part of the steps", open=False), gr.Row():
            for end, value, info in (("start", 0.0, "share of the steps"), ("end", 1.0, said)):
                key = f"{name}_{end}"
                label = "From" if end == "start" else "To"
                parts[key] = gr.Slider(*RANGES[key], value=value, step=0.05, label=label, info=info)
    modes = [(title, mode) for mode, title in MODES.items()]
    parts["control_mode"] = gr.Dropdown(modes, value="balanced", label="Control Mode")
    return parts


def option_component(option: Option) -> gr.components.Component:
    """A checkbox for a switch, a slider for every other option."""
    info = option.help or None
    if option.is_switch:
        return gr.Checkbox(bool(option.default), label=option.label, info=info)
    return gr.Slider(
        option.low, option.high, value=option.default, step=option.step, label=option.label, info=info
    )
