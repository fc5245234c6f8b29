"""Many controls over one base: each is loaded when its condition is first asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from controlnet.generation.request import RequestError

if TYPE_CHECKING:
    from cldm.cldm import ControlNet


class Controls:
    """Control networks by condition, beside the one that the model itself holds.

    Args:
        files: by condition.
        load: reads a file.
        own: the conditions that the model's own control was trained for.
        serves_all: whether the model's own control also steers by conditions that it was not trained for.
        keep: how many networks stay in memory; the one that was not used for longest goes.
    """

    def __init__(
        self,
        files: Mapping[str, Path] | None = None,
        load: Callable[[Path], ControlNet] | None = None,
        own: tuple[str, ...] = (),
        serves_all: bool = True,
        keep: int = 2,
    ):
        self.files, self.load, self.own, self.serves_all, self.keep = files or {}, load, own, serves_all, keep
        self._networks: OrderedDict[Path, ControlNet] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that some control was trained for."""
        return tuple(dict.fromkeys([*self.own, *self.files]))

    def network(self, condition: str) -> ControlNet | None:
        """The network for a condition; None where it is the model's own.

        Raises:
            RequestError: the model has no control for it.
            WeightsError: its file cannot be used.
        """
        return self.networks([condition])[0]

    def networks(self, conditions: Sequence[str]) -> list[ControlNet | None]:
        """The networks that work together in a run, one for each condition; see `network`. Those of one file
        are one. More than are kept otherwise stay until a run does without them.
        """
        paths = [self._path(condition) for condition in conditions]
        wanted = list(dict.fromkeys(path for path in paths if path is not None))
        with self._lock:
            idle = [path for path in self._networks if path not in wanted]
            while idle and len(idle) + len(wanted) > self.keep:
                del self._networks[idle.pop(0)]
            for path in wanted:
                if path not in self._networks:
                    assert self.load is not None
                    self._networks[path] = self.load(path)
                self._networks.move_to_end(path)
            return [None if path is None else self._networks[path] for path in paths]

    def _path(self, condition: str) -> Path | None:
        if condition in self.own or (condition not in self.files and self.serves_all):
            return None
        if condition not in self.files or self.load is None:
            there = ", ".join(self.conditions) or "nothing"
            raise RequestError(f"The model has no control for {condition}; it can be steered by {there}.")
        return self.files[condition]

    def remark(self, condition: str) -> str | None:
        """What a person should know who steers by this condition."""
        if not self.own or condition in self.conditions:
            return None
        return f"This model learned to be steered by {', '.join(self.conditions)}, and not by {condition}."
