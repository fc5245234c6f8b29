"""What a folded part of the page has in common with others: it adds fields to requests, and comes back with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradio.components import Component

from controlnet.generation.request import Request


class Panel:
    """A part of the page that adds to requests.

    Attributes:
        inputs: the components whose values make the fields, in order.
        outputs: the components that `filled` gives values for.
    """

    inputs: Sequence[Component] = ()
    outputs: Sequence[Any] = ()

    def fields(self, values: Sequence[Any], input_image: str | None) -> dict[str, Any]:
        """Fields of a request.

        Args:
            values: of ``inputs``.
            input_image: the page's picture, an uploaded file, if there is one.

        Raises:
            RequestError, PictureError: values that cannot be used.
        """
        raise NotImplementedError

    def filled(self, request: Request | None) -> Sequence[Any]:
        """What ``outputs`` become for a request that is restored, or None for an empty page."""
        raise NotImplementedError

    def kept(self, values: Sequence[Any]) -> Sequence[Any]:
        """What ``outputs`` become for values that the browser kept; they may come from anyone.

        Raises:
            ValueError, LookupError, TypeError: they are none of ``inputs``.
        """
        raise NotImplementedError

    def follow(self, running: Any, result: Component) -> None:
        """Show what came of a run: ``running`` is its event, ``result`` the state with its result."""


def split(panels: Sequence[Panel], values: Sequence[Any]) -> list[list[Any]]:
    """The values of all panels, by panel."""
    parts, start = [], 0
    for panel in panels:
        parts.append(list(values[start : start + len(panel.inputs)]))
        start += len(panel.inputs)
    return parts
