"""The average of its weights that a diffusion model carries within itself, where ``use_ema`` is set in its
YAML.

It averages the UNet (``model.*``) at every batch, and its buffers are part of the model: the ``model_ema.*``
of released checkpoints. The average that a training run asks for with ``--ema`` is another, kept outside of
the model and of all that is trained: `controlnet.training.ema.TrainedWeightsEMA`.

Source: ldm/modules/ema.py of the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


class LitEma(nn.Module):
    """Keeps an average of a model's trainable parameters in buffers named like them, without the dots.

    Args:
        model: whose weights are averaged.
        decay: share of the old average that each update keeps, in [0, 1].
        use_num_upates: at first keep less: (1 + updates) / (10 + updates). (The original's spelling.)
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_upates: bool = True):
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"got an EMA decay of {decay}; expected a number in [0, 1]")
        # Named devices keep these two numbers real in a skeleton on the meta device.
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32, device="cpu"))
        self.register_buffer(
            "num_updates", torch.tensor(0 if use_num_upates else -1, dtype=torch.int, device="cpu")
        )
        self.m_name2s_name = {
            name: name.replace(".", "")
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        for name, parameter in model.named_parameters():
            if name in self.m_name2s_name:
                self.register_buffer(self.m_name2s_name[name], parameter.detach().clone())
        self.collected_params: list[torch.Tensor] = []

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the average towards the model's present weights."""
        decay = self.decay
        if self.num_updates >= 0:
            self.num_updates += 1
            decay = torch.minimum(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for parameter, average in self._averages(model):
            average.lerp_(parameter.detach().to(average.dtype), (1 - decay).to(average))

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give the model the averaged weights."""
        for parameter, average in self._averages(model):
            parameter.copy_(average)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep the present weights for `restore`."""
        self.collected_params = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give back the weights that `store` kept."""
        for kept, parameter in zip(self.collected_params, parameters, strict=True):
            parameter.copy_(kept)
        self.collected_params = []

    @contextmanager
    def lent_to(self, model: nn.Module) -> Iterator[None]:
        """Within, ``model`` has the averaged weights; afterwards its own again."""
        self.store(model.parameters())
        self.copy_to(model)
        try:
            yield
        finally:
            self.restore(model.parameters())

    def _averages(self, model: nn.Module) -> list[tuple[nn.Parameter, torch.Tensor]]:
        parameters = dict(model.named_parameters())
        buffers = dict(self.named_buffers())
        return [(parameters[name], buffers[kept]) for name, kept in self.m_name2s_name.items()]
