"""Many controls over one base: each is loaded when its condition is first asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from cldm.cldm import ControlNet
from controlnet.generation.request import RequestError


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
        if condition in self.own or (condition not in self.files and self.serves_all):
            return None
        if condition not in self.files or self.load is None:
            there = ", ".join(self.conditions) or "nothing"
            raise RequestError(f"The model has no control for {condition}; it can be steered by {there}.")
        path = self.files[condition]
        with self._lock:
            if path not in self._networks:
                while len(self._networks) >= self.keep:
                    self._networks.popitem(last=False)
                self._networks[path] = self.load(path)
            self._networks.move_to_end(path)
            return self._networks[path]

    def remark(self, condition: str) -> str | None:
        """What a person should know who steers by this condition."""
        if not self.own or condition in self.conditions:
            return None
        return f"This model learned to be steered by {', '.join(self.conditions)}, and not by {condition}."
