"""What all models that Lightning trains have in common: weights to start from, an optimizer, and gradients
for what the optimizer holds alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from ldm.util import OptimizerFactory, with_schedule
from ldm.weights import load_into, read_state_dict


class TrainedModule(pl.LightningModule):
    """A model with one optimizer over `trained_parameters`; subclasses may override `configure_optimizers`.

    Before a training run whatever the optimizers do not hold is frozen: it then costs no gradients, and lies
        in
    no bucket of DDP.

    Attributes:
        learning_rate: of the optimizer.
        make_optimizer: called with the parameters and ``lr=``; None for the model's own kind.
        scheduler_config: YAML node of an object whose ``schedule(step)`` is the factor for the learning rate.
    """

    def __init__(self) -> None:
        super().__init__()
        self.learning_rate = 1e-4
        self.make_optimizer: OptimizerFactory | None = None
        self.scheduler_config: Mapping[str, Any] | None = None
        self._frozen_for_training: set[str] = set()

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> None:
        """Load weights from a file; what it lacks keeps its values.

        Args:
            ignore_keys: beginnings of keys to leave out.
            only_model: take the UNet alone.
        """
        prefix = "model.diffusion_model." if only_model else ""
        state = {
            key: tensor
            for key, tensor in read_state_dict(path).items()
            if key.startswith(prefix) and not key.startswith(tuple(ignore_keys))
        }
        load_into(self, state, path, strict=False)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What `configure_optimizers` trains, in the order in which resumed optimizer states are matched."""
        raise NotImplementedError

    def default_optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The model's own kind of optimizer."""
        return torch.optim.AdamW(parameters, lr=lr, fused=True)

    def configure_optimizers(self) -> Any:
        """``make_optimizer``'s, or the model's own kind, with the schedule of ``scheduler_config``."""
        make = self.make_optimizer or self.default_optimizer
        return with_schedule(make(self.trained_parameters(), lr=self.learning_rate), self.scheduler_config)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.freeze_untrained()

    def freeze_untrained(self) -> None:
        """Take gradients for what `configure_optimizers` puts into optimizers, and for nothing else.

        Raises:
            ValueError: an optimizer holds weights that somebody has frozen, which would never change.
        """
        held = held_parameters(self.configure_optimizers())
        if held:  # without an optimizer, a model trains itself in its own way
            self.freeze_all_but(held)

    def freeze_all_but(self, trained: Iterable[nn.Parameter]) -> None:
        """Freeze the other weights, and take gradients again for what an earlier call froze."""
        trained = set(map(id, trained))
        parameters = dict(self.named_parameters())
        dead = [
            name
            for name, parameter in parameters.items()
            if id(parameter) in trained
            and not parameter.requires_grad
            and name not in self._frozen_for_training
        ]
        if dead:
            raise ValueError(
                f"the optimizer holds {len(dead)} frozen weights, which would never change: {dead[0]} ... "
                f"{dead[-1]}; call requires_grad_(True) on them, or leave them out in configure_optimizers"
            )
        for name, parameter in parameters.items():
            if id(parameter) in trained:
                parameter.requires_grad_(True)
                self._frozen_for_training.discard(name)
            elif parameter.requires_grad:
                parameter.requires_grad_(False)
                self._frozen_for_training.add(name)


def held_parameters(optimizers: Any) -> list[nn.Parameter]:
    """The parameters of all optimizers in what a ``configure_optimizers`` returned, in any of Lightning's
    forms.
    """
    if isinstance(optimizers, torch.optim.Optimizer):
        return [parameter for group in optimizers.param_groups for parameter in group["params"]]
    if isinstance(optimizers, Mapping):
        return held_parameters(optimizers.get("optimizer"))
    if isinstance(optimizers, list | tuple):
        return [parameter for each in optimizers for parameter in held_parameters(each)]
    return []
