"""Which function stands behind which part of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from controlnet.conditions import Condition, find_condition
from controlnet.generation.request import default_detect_resolution
from controlnet.generation.samplers import FAST, USUAL
from controlnet.page import results
from controlnet.page.actions import Actions
from controlnet.page.api import (
    make_detect,
    make_generate,
    make_grid,
    make_process,
    process_options,
    process_settings,
)
from controlnet.page.events import (
    ASIDE,
    HOUR,
    INSTANT,
    ON_MODEL,
    QUIET,
    SHOW_RUN,
    Session,
    asked,
    compare_event,
    emit,
    wire_after,
    wire_choice,
    wire_end,
    wire_waiting,
)
from controlnet.page.folder import wire_folder
from controlnet.page.from_source import wire_from_source
from controlnet.page.grid import wire_grid
from controlnet.page.layout import Parts, detect_text, upload_text
from controlnet.page.restoring import Restoring
from controlnet.page.token_count import wire_token_count
from controlnet.page.uploads import picture_file


def wire(
    page: gr.Blocks,
    parts: Parts,
    actions: Actions,
    condition: type[Condition],
) -> None:
    """Connect the components to the functions behind them."""
    session = Session(
        job=gr.State(None, delete_callback=actions.cancel),
        result=gr.State(None, time_to_live=HOUR),
        chosen=gr.State(0),
        batch=gr.State(None, time_to_live=HOUR),
        link=gr.Textbox(visible="hidden", elem_id="link"),
    )
    wire_api(parts, actions, condition)
    wire_condition(parts, actions)
    wire_fast(parts)
    wire_loading(page, parts, actions)
    wire_token_count(parts, actions.generator)
    detecting = wire_hint(parts, actions, session)
    loaded = parts.examples.click(
        actions.example,
        parts.examples,
        [
            parts.condition, parts.input_image, *parts.hint, *parts.panel_outputs, parts.settings["prompt"],
            parts.status,
        ],
        **ASIDE,
    )  # fmt: skip
    prompt: Any = parts.settings["prompt"]
    pressed = gr.on([parts.generate.click, prompt.submit], lambda: None, **INSTANT)
    running = [wire_run(parts, actions, session, started) for started in (pressed, loaded)]
    batches = [wire_grid(parts, actions, session), wire_folder(parts, actions, session)]
    cancelled = parts.cancel.click(
        actions.cancel,
        session.job,
        [parts.status, parts.cancel],
        cancels=[detecting, *running, *(event for event, _ in batches)],
        **INSTANT,
    )
    for _, keep in batches:
        keep(cancelled)
    # A visitor who waits is told the place in the line every second.
    parts.clock.tick(actions.wait, session.job, [parts.waiting, parts.clock], **INSTANT)
    wire_results(parts, session)
    wire_from_source(parts, session)
    wire_kept(parts, Restoring(actions))


def wire_kept(parts: Parts, restoring: Restoring) -> None:
    """What comes back: from the address or the browser's store when the page opens, from pictures of ours
    later. Every change of the work is told to the browser, and goes to no server.
    """
    own = [parts.condition, *parts.setting_list, parts.own_seeds, *parts.options.values()]
    filled = [
        *own, *parts.panel_outputs, parts.input_image, *parts.hint, parts.gallery, parts.status
    ]  # fmt: skip
    parts.desk.open(restoring.opened, None, filled, **ASIDE)
    parts.desk.restore(restoring.dropped, None, filled, **ASIDE)
    fresh = [part.value for part in own[1:]]
    emptied = [
        *own[1:], *parts.panel_outputs, parts.input_image, *parts.hint, parts.gallery, parts.scores,
        parts.status,
    ]  # fmt: skip
    parts.desk.new(
        lambda: ["", *fresh[1:], *restoring.panels_filled(None), None, *[None] * 4, None, "", ""],
        None,
        emptied,
        **INSTANT,
    )
    work = [parts.input_image, *own, parts.label_map, parts.drawing, *parts.panel_inputs]
    changes = [part.change for part in work if hasattr(part, "change") and not isinstance(part, gr.State)]
    gr.on(changes, None, work, js=emit("work"), **INSTANT)
    prompt: Any = parts.settings["prompt"]
    prompt.change(None, prompt, js=emit("prompt"), **INSTANT)
    shown = [parts.label_map, parts.drawing]
    for button, kind in ((parts.save_map, "colours"), (parts.save_indices, "indices")):
        button.click(None, shown, js=emit("hint-to-save", kind), **INSTANT)


def wire_run(parts: Parts, actions: Actions, session: Session, started):
    """Let a run follow an event; returns the event of the run itself, which can be cancelled."""
    begun = started.then(
        lambda before: (*actions.begin(before), 0, None),
        session.job,
        [session.job, parts.cancel, parts.status, session.chosen, session.batch],
        **INSTANT,
    )
    begun.then(None, js=SHOW_RUN)
    wire_waiting(parts, actions, session, begun)
    running = begun.then(
        actions.run,
        [session.job, *asked(parts)],
        [parts.status, parts.gallery, parts.scores, *parts.hint, session.result],
        trigger_mode="multiple",  # a new run takes the place of one that goes on
        **ON_MODEL,
        **QUIET,
    )
    wire_end(parts, actions, session, running)
    for panel in parts.panels:
        panel.follow(running, session.result)
    wire_after(parts, session, running)
    return running


def wire_results(parts: Parts, session: Session) -> None:
    """What can be done with a result."""
    compare = compare_event(parts, session)
    further = [parts.use_seed, parts.use_picture, parts.copy_link, parts.departures]
    for replaced in (parts.desk.new, parts.desk.restore):  # the gallery shows no result of this session then
        replaced(
            lambda: (None, None, *results.buttons(None)),
            None,
            [session.result, session.batch, *further],
            **INSTANT,
        )
    clicked = parts.gallery.select(results.chosen, session.batch, [session.chosen, session.result], **INSTANT)
    wire_choice(parts, session, clicked)
    parts.departures.change(**compare)
    picked = [session.result, session.chosen]
    seeded = [parts.settings["seed"], parts.settings["num_samples"], parts.own_seeds, parts.status]
    parts.use_seed.click(
        results.use_seed,
        [*picked, session.batch],
        [*seeded, *(parts.settings[name] for name in results.VARIED)],
        **INSTANT,
    )
    parts.use_picture.click(
        results.use_as_input, [*picked, parts.input_image], [parts.input_image, *parts.hint], **ASIDE
    )
    parts.copy_link.click(None, js=emit("link-to-copy"))


def wire_condition(parts: Parts, actions: Actions) -> None:
    """Another condition: its options, its editor, its names for things. The old hint is put away."""

    def choose(name: str) -> list[Any]:
        condition = find_condition(name)
        has_canvas = condition.editor is not None
        return [
            gr.update(label=condition.detect_label, visible=condition.detect_resolution is not None),
            gr.update(value=detect_text(condition)),
            gr.update(label=upload_text(condition)),
            gr.update(visible=has_canvas),
            gr.update(visible=has_canvas),
            gr.update(visible=condition.editor == "label_map"),
            gr.update(visible=condition.editor == "draw"),
            gr.update(visible=condition.editor is None),
            gr.update(visible=has_canvas),
            gr.update(visible=condition.editor == "label_map"),
            *(
                gr.update(visible=other == name and bool(find_condition(other).options))
                for other in parts.option_groups
            ),
        ]

    def put_away(name: str) -> tuple[None, None, int]:
        resolution = default_detect_resolution(find_condition(name), actions.generator.resolution)
        return None, None, resolution

    own = [parts.hint_picture, parts.kept_hint, parts.settings["detect_resolution"]]
    parts.condition.input(put_away, parts.condition, own, **INSTANT)
    parts.condition.change(
        choose,
        parts.condition,
        [
            parts.settings["detect_resolution"], parts.detect, parts.upload, parts.empty, parts.shape,
            parts.label_map, parts.drawing, parts.hint_picture, parts.save_map, parts.save_indices,
            *parts.option_groups.values(),
        ],
        **INSTANT,
    )  # fmt: skip


def wire_fast(parts: Parts) -> None:
    """The box sets sampler and steps, and shows whether they are the fast ones, whoever set them."""
    sampling: list[Any] = [parts.settings["sampler"], parts.settings["ddim_steps"]]

    def choose(fast: bool) -> tuple[str, int]:
        speed = FAST if fast else USUAL
        return speed.sampler, speed.steps

    parts.fast.input(choose, parts.fast, sampling, **INSTANT)
    gr.on(
        [component.change for component in sampling],
        lambda sampler, steps: (sampler, steps) == (FAST.sampler, FAST.steps),
        sampling,
        parts.fast,
        **INSTANT,
    )


def wire_loading(page: gr.Blocks, parts: Parts, actions: Actions) -> None:
    """A page that answers before its model is there says so, and asks every second whether it is."""
    if actions.generator.arrival.is_there:
        return
    shown = [parts.loading, parts.arrival_clock]
    gr.on([page.load, parts.arrival_clock.tick], actions.loading, None, shown, **INSTANT)


def wire_hint(parts: Parts, actions: Actions, session: Session):
    """Where hints come from. A new picture puts the old hint away. Returns the event of the detection itself,
    which can be cancelled.
    """
    parts.input_image.input(lambda: [None] * 4, None, parts.hint, **INSTANT)
    begun = parts.detect.click(
        actions.begin, session.job, [session.job, parts.cancel, parts.status], **INSTANT
    )
    detecting = begun.then(
        actions.detect_hint,
        [
            session.job, parts.condition, parts.input_image, parts.settings["image_resolution"],
            parts.settings["detect_resolution"], *parts.options.values(),
        ],
        [*parts.hint, parts.status],
        trigger_mode="multiple",
        **QUIET,
        **ON_MODEL,
    )  # fmt: skip
    wire_end(parts, actions, session, detecting)
    wire_waiting(parts, actions, session, begun)
    parts.upload.upload(
        actions.upload_hint,
        [parts.condition, parts.upload, parts.input_image, parts.settings["image_resolution"]],
        [*parts.hint, parts.status],
        **ASIDE,
    )
    parts.empty.click(
        actions.empty_hint,
        [parts.condition, parts.shape, parts.settings["image_resolution"]],
        [*parts.hint, parts.status],
        **ASIDE,
    )
    return detecting


def wire_api(parts: Parts, actions: Actions, condition: type[Condition]) -> None:
    """Endpoints for programs: /process as the original has it, /generate and /detect for every condition."""
    generator = actions.generator
    with gr.Group(visible=False):
        buttons = [gr.Button(visible=False) for _ in range(4)]
        pictures = [gr.Gallery(format="png", label="Hint and pictures") for _ in range(3)]
        sheet = gr.Image(format="png", label="Grid")
        rows, columns = gr.JSON({}, label="Rows"), gr.JSON({}, label="Columns")
        hint_picture = gr.Image(format="png", label="Hint")
        classes = gr.JSON(label="Classes")
        name = gr.Textbox(condition.name, label="Condition")
        options, settings = gr.JSON({}, label="Options"), gr.JSON({}, label="Settings")
        brought = picture_file(label="Hint instead of detection")
    process = [parts.settings[name] for name in process_settings(condition)]
    own = [parts.options[condition.name, name] for name in process_options(condition)]
    buttons[0].click(
        make_process(generator, condition),
        [parts.input_image, *process, *own, brought],
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
    buttons[3].click(
        make_grid(generator, condition.name),
        [parts.input_image, parts.settings["prompt"], rows, columns, name, options, brought, settings],
        [sheet, pictures[2]],
        api_name="grid",
        **ON_MODEL,
    )
