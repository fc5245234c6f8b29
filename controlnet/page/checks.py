"""Blocks that say in one sentence what is wrong with the values that arrive, in every event alike.

Gradio checks types, ranges and files too, but for other faults than a value out of range a visitor is told
nothing, and a program gets ``{"error": null}``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.state_holder import SessionState
from gradio_client import utils as client_utils

from controlnet.generation.memory import give_back_memory
from controlnet.generation.request import short_repr
from controlnet.page.uploads import is_uploaded, one_line

FILE = '{"path": what /upload answered, "meta": {"_type": "gradio.FileData"}}'


class Page(gr.Blocks):
    """Blocks whose functions may have defaults for their last inputs, which programs may then leave out."""

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Carry out an event.

        Raises:
            gr.Error: with one sentence for the person, whatever went wrong.
        """
        goes_on = False
        try:
            answer = await super().process_api(*arguments, **named)
            goes_on = answer["is_generating"]
            return answer
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            raise gr.Error(one_line(error), print_exception=False) from None
        finally:
            if not goes_on:  # nobody waits for it
                asyncio.get_running_loop().run_in_executor(None, give_back_memory)

    async def preprocess_data(
        self,
        block_fn: BlockFunction,
        inputs: list[Any],
        state: SessionState | None,
        explicit_call: bool = False,
    ) -> list[Any]:
        """What an event's function is called with. Values may come from anyone."""
        values = completed(block_fn, inputs)
        for block, value in zip(block_fn.inputs, values, strict=True):
            if not block.stateful:
                check_value(block, value)
        return await super().preprocess_data(block_fn, values, state, explicit_call)


def completed(block_fn: BlockFunction, values: Sequence[Any]) -> list[Any]:
    """The values of all inputs: those that are missing at the end are the function's defaults.

    Raises:
        gr.Error: too few or too many values.
    """
    labels = [str(getattr(block, "label", None) or type(block).__name__) for block in block_fn.inputs]
    function: Any = block_fn.fn or (lambda: None)  # what only scripts listen to has none
    parameters = inspect.signature(function).parameters.values()
    defaults = [p.default for p in parameters if p.default is not p.empty]
    most, fewest, missing = len(labels), len(labels) - len(defaults), len(labels) - len(values)
    if not fewest <= len(values) <= most:
        wanted = f"{fewest} to {most}" if defaults else f"{most}"
        raise gr.Error(f"Values wanted: {wanted} ({', '.join(labels)}), got {len(values)}.")
    return [*values, *defaults[len(defaults) - missing :]]


def check_value(block: Any, value: Any) -> None:
    """Refuse what a component cannot take.

    Raises:
        gr.Error: a number of another type or out of the component's range, text of another type, or a file
            that was not uploaded here.
    """
    label = block.label or type(block).__name__
    if isinstance(block, gr.Slider | gr.Number):
        low, high = block.minimum, block.maximum
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise gr.Error(
                f"{label} must be a number from {low:.10g} to {high:.10g}, got {short_repr(value)}."
            )
    elif isinstance(block, gr.Textbox) and not isinstance(value, str):
        raise gr.Error(f"{label} must be text, got {short_repr(value)}.")
    elif isinstance(block, gr.Image | gr.UploadButton | gr.File) and not are_files(block, value):
        raise gr.Error(f"{label} must be a file, {FILE}, got {short_repr(value)}.")
    client_utils.traverse(value, _check_file, client_utils.is_file_obj)


def are_files(block: Any, value: Any) -> bool:
    """Whether a value is a file, or as many as the component takes; there may be none."""
    if getattr(block, "file_count", "single") != "single" and isinstance(value, list):
        return all(map(is_file, value))
    return value is None or is_file(value)


def is_file(value: Any) -> bool:
    """Whether a value has the form of a file: with a path, or a ``data:`` URL in its place."""
    if not isinstance(value, dict) or not isinstance(value.get("meta"), dict):
        return False
    url = value.get("url")
    return isinstance(value.get("path"), str) or (isinstance(url, str) and url.startswith("data:"))


def _check_file(file: dict[str, Any]) -> dict[str, Any]:
    if not is_uploaded(file["path"]):
        raise gr.Error("The picture is not one that was uploaded here: upload it first.")
    return file
