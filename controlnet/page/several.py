"""More controls beside the first: a folded list to add to, to switch off and to take away from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from controlnet.conditions import Condition, all_conditions, find_condition
from controlnet.generation.generator import Generator
from controlnet.generation.packing import read_hint
from controlnet.generation.request import Request, RequestError
from controlnet.generation.result import Result
from controlnet.generation.several import MAX_FURTHER, MODES, FurtherControl, said_of
from controlnet.generation.several_files import read_region
from controlnet.page.events import ASIDE, INSTANT
from controlnet.page.panels import Panel
from controlnet.page.uploads import opened, picture_file, picture_of, still_there

SAME, OTHER, HINT = "same", "picture", "hint"
SOURCES = [("The picture above", SAME), ("Another picture", OTHER), ("A hint", HINT)]
_FRESH = (True, SAME, None, None, 1.0, 0.0, 1.0, "balanced", None)
"""Values of a slot that was just added, after its condition."""


@dataclass
class Slot:
    """The components of one control; it is in use where it has a condition."""

    group: gr.Accordion
    condition: gr.Dropdown
    on: gr.Checkbox
    source: gr.Dropdown
    file_box: gr.Group
    file: gr.Image
    region: gr.Image
    strength: gr.Slider
    start: gr.Slider
    end: gr.Slider
    mode: gr.Dropdown
    hint: gr.State
    """(condition, hint) of a picture that was restored, until a file takes its place."""
    shown: gr.Image
    remove: gr.Button

    @property
    def inputs(self) -> list[Any]:
        """What `control_of` takes, in its order."""
        return [
            self.condition, self.on, self.source, self.file, self.region, self.strength, self.start, self.end,
            self.mode, self.hint,
        ]  # fmt: skip

    @property
    def outputs(self) -> list[Any]:
        """The same, with what only shows."""
        return [self.group, self.file_box, *self.inputs, self.shown]


class SeveralPanel(Panel):
    """The list of controls, and where the first one acts.

    Args:
        fold: that holds it.
        first_region: a picture that is white where the first control acts.
        slots: for the others.
        add: shows the next slot.
        offered: the condition that a new slot has.
    """

    def __init__(
        self, fold: gr.Accordion, first_region: gr.Image, slots: Sequence[Slot], add: gr.Button, offered: str
    ):
        self.first_region, self.slots, self.add, self.offered = first_region, slots, add, offered
        self.inputs = [first_region, *(part for slot in slots for part in slot.inputs)]
        self.outputs = [fold, first_region, *(part for slot in slots for part in slot.outputs), add]

    def fields(self, values: Sequence[Any], input_image: str | None) -> dict[str, Any]:
        """``region`` and ``further`` of a request, of which those count that are switched on."""
        region, *rest = values
        fields: dict[str, Any] = {} if region is None else {"region": read_region(opened(region))}
        further: list[FurtherControl] = []
        for own in _by_slot(rest):
            if own[0] is not None and own[1]:
                with said_of(len(further), own[0]):
                    further.append(control_of(own, input_image))
        return {**fields, "further": tuple(further)}

    def filled(self, request: Request | None) -> Sequence[Any]:
        """A slot for each further control of the request; the fold is open where there is one."""
        further = () if request is None else request.further
        region = None if request is None or request.region is None else _white(request.region)
        slots: list[Any] = []
        for index in range(MAX_FURTHER):
            slots += _slot_of(further[index] if index < len(further) else None)
        fold = gr.update(open=bool(further) or region is not None)
        return [fold, region, *slots, gr.update(visible=len(further) < MAX_FURTHER)]

    def kept(self, values: Sequence[Any]) -> Sequence[Any]:
        """What the browser kept; files come back where they are still on the server."""
        region, *rest = values
        slots: list[Any] = []
        for own in _by_slot(rest):
            condition, on, source, file, mask, *others = own[:-1]
            if condition is not None:
                find_condition(str(condition))
            slots += [
                gr.update(visible=condition is not None, label=title_of(condition, on)),
                gr.update(visible=source != SAME), condition, bool(on), source, still_there(file),
                still_there(mask), *others, None, None,
            ]  # fmt: skip
        conditions = [own[0] for own in _by_slot(rest)]
        fold = gr.update(open=any(conditions) or region is not None)
        return [fold, still_there(region), *slots, gr.update(visible=None in conditions)]

    def follow(self, running: Any, result: Any) -> None:
        """Each slot that took part shows its hint."""
        used = [part for slot in self.slots for part in (slot.condition, slot.on)]
        running.then(_hints_of, [result, *used], [slot.shown for slot in self.slots], **ASIDE)


def _by_slot(values: Sequence[Any]) -> list[list[Any]]:
    width = len(_FRESH) + 1
    if len(values) != width * MAX_FURTHER:
        raise ValueError("controls of another version")
    return [list(values[start : start + width]) for start in range(0, len(values), width)]


def control_of(values: Sequence[Any], input_image: str | None) -> FurtherControl:
    """The control that a slot says, from the values of `Slot.inputs`.

    Raises:
        RequestError, PictureError, ConditionError: a picture is missing or cannot be used.
    """
    name, _, source, file, region, strength, start, end, mode, restored = values
    pictures: dict[str, Any] = {} if region is None else {"region": read_region(opened(region))}
    if source == HINT:
        if file is not None:
            pictures["hint"] = read_hint(find_condition(name)(), opened(file)).hint
        elif restored is not None and restored[0] == name:
            pictures["hint"] = restored[1]
        else:
            raise RequestError("it has no hint yet: give one, or choose another source.")
    else:
        picture = input_image if source == SAME else file
        if picture is None:
            where = "above" if source == SAME else "in its place"
            raise RequestError(f"it has no picture to find its hint in: give one {where}.")
        pictures["input_image"] = picture_of(picture)
    return FurtherControl(name, strength=strength, start=start, end=end, mode=mode, **pictures)


def _slot_of(control: FurtherControl | None) -> list[Any]:
    """The values of a slot's outputs for a control that is restored, or none."""
    if control is None:
        return [gr.update(visible=False), gr.update(visible=False), None, *_FRESH, None]
    condition = find_condition(control.condition)()
    hint = control.hint
    return [
        gr.update(visible=True, label=title_of(control.condition, True)),
        gr.update(visible=hint is not None),
        control.condition,
        True,
        SAME if hint is None else HINT,
        None,
        None if control.region is None else _white(control.region),
        control.strength,
        control.start,
        control.end,
        control.mode,
        None if hint is None else (control.condition, hint),
        None if hint is None else condition.show(hint),
    ]


def _white(region: np.ndarray) -> np.ndarray:
    return np.repeat(region[:, :, None], 3, axis=2)


def title_of(condition: str | None, on: bool) -> str:
    """The heading of a slot, which tells when it is folded."""
    title = "A control" if condition is None else find_condition(condition).title
    return title if on else f"{title} (off)"


# ---- layout ----


def lay_out_several(generator: Generator, condition: type[Condition]) -> SeveralPanel:
    """The folded list. A new control is offered another condition that the model learned, if there is one."""
    learned = [name for name in generator.controls.conditions if name != condition.name]
    with gr.Accordion("More controls", open=False, elem_id="more-controls") as fold:
        gr.Markdown(
            "Controls that steer together with the one above, each in a part of the steps and of the picture "
            "if you like: a region is a picture that is white where its control acts. The scores stay those "
            "of the first."
        )
        region = _small_file("Region of the first")
        slots = [_lay_out_slot(index) for index in range(MAX_FURTHER)]
        add = gr.Button("Add a control", size="sm", elem_id="add-control")
    panel = SeveralPanel(fold, region, slots, add, learned[0] if learned else condition.name)
    _wire_list(panel)
    return panel


def _small_file(label: str) -> gr.Image:
    return picture_file(label=label, sources=["upload", "clipboard"], height=140, buttons=[])


def _lay_out_slot(index: int) -> Slot:
    choices = [(known.title, name) for name, known in all_conditions().items()]
    modes = [(title, name) for name, title in MODES.items()]
    with gr.Accordion(
        title_of(None, True), open=True, visible=False, elem_id=f"control-{index + 2}"
    ) as group:
        with gr.Row():
            condition = gr.Dropdown(choices, value=None, label="Steer by", min_width=140)
            source = gr.Dropdown(SOURCES, value=SAME, label="Hint from", min_width=140)
        with gr.Row():
            with gr.Group(visible=False) as file_box:
                file = _small_file("Picture or hint")
            region = _small_file("Region")
            shown = gr.Image(
                label="Last hint",
                format="png",
                interactive=False,
                height=140,
                buttons=["fullscreen"],
            )
        strength = gr.Slider(0.0, 2.0, value=1.0, step=0.01, label="Strength")
        with gr.Row():
            start = gr.Slider(0.0, 1.0, value=0.0, step=0.05, label="From", info="share of the steps")
            end = gr.Slider(0.0, 1.0, value=1.0, step=0.05, label="To", info="no work outside")
        mode = gr.Dropdown(modes, value="balanced", label="Mode")
        with gr.Row():
            on = gr.Checkbox(True, label="On", container=False, min_width=80)
            remove = gr.Button("Remove", size="sm", min_width=90)
    return Slot(
        group, condition, on, source, file_box, file, region, strength, start, end, mode, gr.State(None),
        shown, remove,
    )  # fmt: skip


def _wire_list(panel: SeveralPanel) -> None:
    conditions = [slot.condition for slot in panel.slots]

    def add(*names: str | None) -> list[Any]:
        """The first slot without a condition gets one."""
        free = next((index for index, name in enumerate(names) if name is None), None)
        updates = [
            [gr.update(visible=True, open=True, label=title_of(panel.offered, True)), panel.offered]
            if index == free
            else [gr.skip(), gr.skip()]
            for index in range(len(names))
        ]
        left = sum(name is None for name in names) - 1
        return [value for update in updates for value in update] + [gr.update(visible=left > 0)]

    groups = [part for slot in panel.slots for part in (slot.group, slot.condition)]
    panel.add.click(add, conditions, [*groups, panel.add], **INSTANT)
    for slot in panel.slots:
        slot.remove.click(
            lambda: [*_slot_of(None), gr.update(visible=True)], None, [*slot.outputs, panel.add], **INSTANT
        )
        gr.on(
            [slot.condition.input, slot.on.input],
            lambda name, on: gr.update(label=title_of(name, on)),
            [slot.condition, slot.on],
            slot.group,
            **INSTANT,
        )
        slot.source.input(
            lambda source: [gr.update(visible=source != SAME), None, None],
            slot.source,
            [slot.file_box, slot.hint, slot.shown],
            **INSTANT,
        )


def _hints_of(result: Result | None, *slots: Any) -> list[Any]:
    shown = iter(() if result is None else result.shown_further)
    used = [name is not None and on for name, on in zip(slots[::2], slots[1::2], strict=True)]
    return [next(shown, None) if use else None for use in used]
