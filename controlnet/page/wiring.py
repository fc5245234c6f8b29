"""Which function stands behind which part of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from controlnet.conditions import Condition, find_condition
from controlnet.generation.request import default_detect_resolution
from controlnet.page.actions import Actions
from controlnet.page.api import make_detect, make_generate, make_process, process_options, process_settings
from controlnet.page.examples import Example
from controlnet.page.layout import Parts
from controlnet.pictures import read_picture

HOUR = 3600  # seconds that temporary files and sessions live
# One job at a time, whatever it is.
ON_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
INSTANT: dict[str, Any] = {**QUIET, "queue": False}

TAKE_LINK = "(link, condition) => [window.location.hash, condition]"
SHOW_LINK = "(link) => { if (link) history.replaceState(null, '', '#' + link); }"
SHOW_STATUS = (
    "() => { if (innerWidth < 800) document.querySelector('#status').scrollIntoView({ block: 'center' }); }"
)
COPY_LINK = "() => { navigator.clipboard.writeText(window.location.href); }"


def wire(
    page: gr.Blocks,
    parts: Parts,
    actions: Actions,
    condition: type[Condition],
    examples: Sequence[Example],
) -> None:
    """Connect the components to the functions behind them."""
    result = gr.State(None, time_to_live=HOUR)
    chosen = gr.State(0)  # which picture of the gallery
    link = gr.Textbox(visible="hidden", elem_id="link")
    wire_api(parts, actions, condition)
    wire_condition(parts, actions)
    wire_hint(parts, actions)
    then_run = wire_runs(parts, actions, result, chosen, link)
    loaded = parts.examples.click(
        lambda index: example_values(actions, examples[index]),
        parts.examples,
        [parts.condition, parts.input_image, *parts.hint, parts.settings["prompt"]],
        **INSTANT,
    )
    then_run(loaded)
    wire_results(parts, actions, result, chosen)
    page.load(
        actions.restore,
        [link, parts.condition],
        [
            parts.condition,
            *parts.setting_list,
            parts.own_seeds,
            *parts.options.values(),
            *parts.hint,
            parts.status,
        ],
        js=TAKE_LINK,
        **INSTANT,
    )


def wire_runs(
    parts: Parts, actions: Actions, result: gr.State, chosen: gr.State, link: gr.Textbox
) -> Callable[[Any], None]:
    """Generate and Cancel; returns the function that lets a run follow an event."""
    job = gr.State(None, delete_callback=actions.jobs.cancel)
    begin = {
        "fn": lambda: (actions.jobs.begin(), 0, gr.update(interactive=True)),
        "outputs": [job, chosen, parts.cancel],
    }
    run = {
        "fn": actions.run,
        "inputs": [
            job, parts.condition, parts.input_image, parts.label_map, parts.drawing, parts.kept_hint,
            parts.own_seeds, *parts.setting_list, *parts.options.values(),
        ],
        "outputs": [parts.status, parts.gallery, parts.scores, *parts.hint, result],
        **ON_MODEL,
        **QUIET,
    }  # fmt: skip
    compare = compare_event(parts, actions, result, chosen)

    def then_run(started: Any) -> None:
        done = started.then(**begin, **INSTANT, js=SHOW_STATUS).then(**run)
        done.then(lambda: gr.update(interactive=False), None, parts.cancel, **INSTANT)
        shown = done.then(**compare).then(actions.link, result, link, **INSTANT)
        shown.then(None, link, None, js=SHOW_LINK)

    prompt: Any = parts.settings["prompt"]
    then_run(gr.on([parts.generate.click, prompt.submit], lambda: None, **INSTANT))
    parts.cancel.click(actions.jobs.cancel, job, None, **INSTANT)
    return then_run


def compare_event(parts: Parts, actions: Actions, result: gr.State, chosen: gr.State) -> dict:
    """What brings the slider up to date."""
    inputs = [result, chosen, parts.departures, parts.input_image]
    return {"fn": actions.compare, "inputs": inputs, "outputs": parts.compare, **INSTANT}


def wire_results(parts: Parts, actions: Actions, result: gr.State, chosen: gr.State) -> None:
    """What can be done with a result."""
    compare = compare_event(parts, actions, result, chosen)

    def choose(event: gr.SelectData) -> int:
        return event.index

    parts.gallery.select(choose, None, chosen, **INSTANT).then(**compare)
    parts.departures.change(**compare)
    parts.use_seed.click(actions.seed_of, [result, chosen], parts.settings["seed"], **INSTANT)
    parts.use_picture.click(
        actions.use_as_input,
        [result, chosen, parts.input_image],
        [parts.input_image, *parts.hint],
        **INSTANT,
    )
    parts.copy_link.click(None, js=COPY_LINK)


def wire_condition(parts: Parts, actions: Actions) -> None:
    """Another condition: its options, its editor, its names for things. The old hint is put away."""

    def choose(name: str) -> list[Any]:
        condition = find_condition(name)
        resolution = default_detect_resolution(condition, actions.generator.resolution)
        has_canvas = condition.editor is not None
        return [
            gr.update(
                value=resolution,
                label=condition.detect_label,
                visible=condition.detect_resolution is not None,
            ),
            gr.update(value=f"Detect {condition.noun}"),
            gr.update(label=f"Upload {condition.noun}"),
            gr.update(visible=has_canvas),
            gr.update(visible=has_canvas),
            gr.update(visible=condition.editor == "label_map"),
            gr.update(visible=condition.editor == "draw"),
            gr.update(visible=condition.editor is None),
            *(
                gr.update(visible=other == name and bool(find_condition(other).options))
                for other in parts.option_groups
            ),
        ]

    parts.condition.input(lambda: (None, None), None, [parts.hint_picture, parts.kept_hint], **INSTANT)
    parts.condition.change(
        choose,
        parts.condition,
        [
            parts.settings["detect_resolution"], parts.detect, parts.upload, parts.empty, parts.shape,
            parts.label_map, parts.drawing, parts.hint_picture, *parts.option_groups.values(),
        ],
        **INSTANT,
    )  # fmt: skip


def wire_hint(parts: Parts, actions: Actions) -> None:
    """Where hints come from. A new picture puts the old hint away."""
    parts.input_image.input(lambda: [None] * 4, None, parts.hint, **INSTANT)
    parts.detect.click(
        actions.detect_hint,
        [
            parts.condition, parts.input_image, parts.settings["image_resolution"],
            parts.settings["detect_resolution"], *parts.options.values(),
        ],
        [*parts.hint, parts.status],
        show_progress_on=parts.status,
        api_visibility="private",
        **ON_MODEL,
    )  # fmt: skip
    parts.upload.upload(
        actions.upload_hint,
        [parts.condition, parts.upload, parts.input_image, parts.settings["image_resolution"]],
        [*parts.hint, parts.status],
        **ON_MODEL,
        **QUIET,
    )
    parts.empty.click(
        actions.empty_hint,
        [parts.condition, parts.shape, parts.settings["image_resolution"]],
        [*parts.hint, parts.status],
        **ON_MODEL,
        **QUIET,
    )


def wire_api(parts: Parts, actions: Actions, condition: type[Condition]) -> None:
    """Endpoints for programs: /process as the original has it, /generate and /detect for every condition."""
    generator = actions.generator
    with gr.Group(visible=False):
        buttons = [gr.Button(visible=False) for _ in range(3)]
        pictures = [gr.Gallery(format="png", label="Hint and pictures") for _ in range(2)]
        hint_picture = gr.Image(format="png", label="Hint")
        classes = gr.JSON(label="Classes")
        name = gr.Textbox(condition.name, label="Condition")
        options, settings = gr.JSON({}, label="Options"), gr.JSON({}, label="Settings")
        brought = gr.Image(type="filepath", label="Hint instead of detection")
    process = [parts.settings[name] for name in process_settings(condition)]
    own = [parts.options[condition.name, name] for name in process_options(condition)]
    buttons[0].click(
        make_process(generator, condition),
        [parts.input_image, *process, *own],
        pictures[0],
        api_name="process",
        **ON_MODEL,
    )
    buttons[1].click(
        make_generate(generator, condition.name),
        [parts.input_image, parts.settings["prompt"], name, options, brought, settings],
        pictures[1],
        api_name="generate",
        **ON_MODEL,
    )
    buttons[2].click(
        make_detect(generator, condition.name),
        [parts.input_image, parts.settings["detect_resolution"], name, options],
        [hint_picture, classes],
        api_name="detect",
        **ON_MODEL,
    )


def example_values(actions: Actions, example: Example) -> list:
    """What an example puts into the page: condition, picture, the four values of the hint, prompt."""
    shown: Sequence = (None,) * 4
    if example.hint is not None:
        condition = actions.generator.condition(example.condition)
        hint = condition.read(str(example.hint)).hint
        shown = actions.show(condition, hint, read_picture(example.picture))
    return [example.condition, str(example.picture), *shown, example.prompt]
