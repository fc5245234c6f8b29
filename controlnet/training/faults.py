"""What may end a training that its user can mend; nothing here takes long to import."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from controlnet.conditions import ConditionError
from controlnet.pictures import PictureError
from controlnet.training.data.records import DataError
from ldm.definitions import DefinitionError
from ldm.weights import WeightsError


class SettingsError(ValueError):
    """Settings that do not go with the model or with each other; the text says which."""


class CheckpointError(OSError):
    """A checkpoint could not be saved."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. The weights are still those of the step before."""


@contextmanager
def faults_reported() -> Iterator[None]:
    """End the program with a message, and no traceback, for errors that its user can correct."""
    try:
        yield
    except (
        DataError,
        SettingsError,
        DefinitionError,
        PictureError,
        ConditionError,
        WeightsError,
        CheckpointError,
        NonFiniteError,
        FileNotFoundError,
        FileExistsError,
    ) as error:
        sys.exit(f"{error}")
