"""Scores that several steps share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex


class MeanIoU(MulticlassJaccardIndex):
    """Intersection over union of all pixels of a data set, averaged over the classes that occur in its true
    maps.

    torchmetrics' own average also counts a class that was predicted somewhere and occurs nowhere: its score
    is 0, so one wrong pixel costs a whole share of the average. Here that pixel costs only what it takes from
    the classes that do occur.
    """

    def __init__(self, num_classes: int = 256) -> None:
        super().__init__(num_classes=num_classes, average="none", validate_args=False)

    def update(self, predicted: Tensor | np.ndarray, true: Tensor | np.ndarray) -> None:
        """Add maps of class indices, integers of one shape."""
        super().update(torch.as_tensor(predicted).long().flatten(), torch.as_tensor(true).long().flatten())

    def compute(self) -> Tensor:
        """The score in [0, 1], a scalar."""
        return super().compute()[self.occurs].mean()

    def per_class(self) -> dict[int, float]:
        """The score of each class that occurs."""
        scores = super().compute()
        return {int(label): float(scores[label]) for label in self.occurs.nonzero()}

    @property
    def occurs(self) -> Tensor:
        """bool ``[num_classes]``: the classes of the true maps so far."""
        return self.confmat.sum(1) > 0
