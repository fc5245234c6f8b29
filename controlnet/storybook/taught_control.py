"""A control copy that learns hints of all kinds from one that knows maps already."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from annotator.ade20k import CLASSES
from cldm.cldm import ControlLDM, ControlNet
from cldm.steering import steering
from controlnet.conditions.seg.areas import area_weights
from ldm.util import default
from ldm.weights import load_file_into


class Reader(nn.Module):
    """Reads the class of every place off what a control copy says: a linear layer for each of its outputs.

    So the copy is asked what a thing is, and not only how the teacher would answer: from lines that is the
    hard part, and a small share of the other losses. (Deep supervision: Lee et al.,
    https://arxiv.org/abs/1409.5185.)

    Args:
        channels: of each output, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, width), nn.Conv2d(width, len(CLASSES), 1)) for width in channels
        )

    def forward(self, control: Sequence[torch.Tensor]) -> torch.Tensor:
        """Outputs ``[B, C, h, w]`` of any sizes -> logits ``[B, classes, H, W]`` of the first one's."""
        size = control[0].shape[2:]
        logits = [
            F.interpolate(layer(output), size) for layer, output in zip(self.layers, control, strict=True)
        ]
        return torch.stack(logits).sum(0).float()


class TaughtControl(ControlLDM):
    """ControlNet whose target is partly what its own control copy said of the map, before training began.

    Diffusion's own target holds a noise that nothing can predict, and most of a gradient comes from it. The
    teacher's answer is free of it, so that fewer steps suffice; and hints that are maps stay what they were.
    The rest of the target is the picture's, for what a hint tells beyond the map: windows, a cow's spots.
    (Knowledge distillation: Hinton et al., https://arxiv.org/abs/1503.02531.) The control copy's outputs are
    compared as well, so that each block has a target of its own (Romero et al., FitNets,
    https://arxiv.org/abs/1412.6550).

    Batches have the ``map`` ``[B, H, W, 3]`` in [0, 1] and its ``labels`` ``[B, H/8, W/8]``, ADE20K indices,
    beside the ``hint``. The UNet must stay as it is
    (``sd_locked``): teacher and pupil share it.

    Args:
        taught: share of the teacher in the target, in [0, 1].
        outputs_first: share of the run, in [0, 1], in which the UNet is not computed: a step takes half of
            the time, and the copy learns what the teacher says sooner. What is unsure becomes a mean of all
            that it could be, which is fog in pictures, so the rest of the run needs the UNet.
        features: weight of the control copies' outputs in the loss, as shares of what was taught; 1 while the
            UNet is not computed.
        classes: weight of the classes that a `Reader` finds in the control copy's outputs.
        teacher_weights: a file with the control that teaches, where the copy begins as another one.
        area_balance: small classes of the map count for more in the loss; see `area_weights`.
        others: of `ControlLDM`.

    Raises:
        ValueError: a share beyond [0, 1].
    """

    teacher: ControlNet | None

    def __init__(
        self,
        *args: Any,
        taught: float = 0.7,
        outputs_first: float = 0.0,
        features: float = 0.1,
        classes: float = 0.0,
        area_balance: float = 0.0,
        teacher_weights: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if not (0 <= taught <= 1 and 0 <= outputs_first <= 1):
            raise ValueError(
                f"taught is {taught} and outputs_first {outputs_first}; shares between 0 and 1 are wanted."
            )
        self.teacher_weights = teacher_weights
        self.taught, self.features, self.classes = taught, features, classes
        self.outputs_first = outputs_first
        self.area_balance = area_balance
        self.__dict__["teacher"] = None  # no part of the module: nobody trains, averages or exports it

    @cached_property
    def reader(self) -> Reader:
        """Like the teacher no part of the module, but trained: no file of weights has it."""
        outputs = [*self.control_model.zero_convs, self.control_model.middle_block_out]
        return Reader([convolution[0].out_channels for convolution in outputs]).to(self.device)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [*super().trained_parameters(), *self.reader.parameters()]

    def on_fit_start(self) -> None:
        """Before the first step the teacher takes over what the control copy knows; a resumed one has it."""
        super().on_fit_start()
        if self.teacher is None:
            teacher = self._copy_of_control()
            if self.teacher_weights is not None:
                holder = nn.ModuleDict({"control_model": teacher})
                load_file_into(holder, self.teacher_weights, self.device, ignore=("*",))
            self.__dict__["teacher"] = teacher

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Teacher and reader go with the checkpoint: the control copy is another one by then."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reader"] = self.reader.state_dict()
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.reader.load_state_dict(checkpoint["reader"])
        teacher = self._copy_of_control()
        teacher.load_state_dict(checkpoint["teacher"])
        self.__dict__["teacher"] = teacher

    def _copy_of_control(self) -> ControlNet:
        return copy.deepcopy(self.control_model).eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def get_input(self, batch: Mapping[str, Any], k: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """As `ControlLDM.get_input`; the condition has ``map`` ``[B, 3, H, W]`` and ``labels`` too."""
        latent, cond, *others = super().get_input(batch, k, *args, **kwargs)
        hint = cond["c_concat"][0]
        maps = torch.as_tensor(batch["map"])[: len(hint)].to(hint).permute(0, 3, 1, 2).contiguous()
        labels = torch.as_tensor(batch["labels"])[: len(hint)].to(hint.device, torch.long)
        return latent, {**cond, "map": maps, "labels": labels}, *others

    def p_losses(
        self,
        x_start: torch.Tensor,
        cond: Mapping[str, Any],
        t: torch.Tensor,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss at time steps ``t``, and its parts by name for the log."""
        noise = default(noise, lambda: torch.randn_like(x_start))
        noisy, maps = self.q_sample(x_start, t, noise), cond["map"]
        context = torch.cat(list(cond["c_crossattn"]), dim=1)
        of_map = {**cond, "c_concat": [maps]}
        teacher = self.teacher or self.control_model  # outside of a run there is no lesson yet
        with torch.no_grad():
            taught_control = steering(teacher, noisy, t, context, of_map, self.control_scales)
            places = area_weights(maps, self.area_balance)
        control = steering(self.control_model, noisy, t, context, cond, self.control_scales)
        features = _relative_error(control, taught_control)
        unread = F.cross_entropy(self.reader(control), cond["labels"], reduction="none")[:, None]
        classes = (unread * places).mean()
        loss = self.classes * classes
        log = {"features": features.detach(), "classes": classes.detach()}
        if self._learns_outputs_alone():
            loss = loss + features
        else:
            with torch.no_grad():
                taught = self._steered(noisy, t, context, taught_control)
            output = self._steered(noisy, t, context, control)
            target = torch.lerp(self.loss_target(x_start, t, noise), taught, self.taught)
            of_picture = (self.get_loss(output, target, mean=False) * places).mean()
            loss = loss + self.features * features + of_picture
            log["lesson"] = self.get_loss(output.detach(), taught)
        stage = "train" if self.training else "val"
        log["loss"] = loss.detach()
        return loss, {f"{stage}/{name}": value for name, value in log.items()}

    def _learns_outputs_alone(self) -> bool:
        """Whether the run is in its first part; outside of a run nothing is left out."""
        steps = 0 if self._trainer is None else self.trainer.max_steps
        return steps > 0 and self.global_step < self.outputs_first * steps

    def _steered(
        self, noisy: torch.Tensor, t: torch.Tensor, context: torch.Tensor, control: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The UNet's output, float32."""
        unet = self.model.diffusion_model
        return unet(x=noisy, timesteps=t, context=context, control=list(control)).float()


def _relative_error(control: Sequence[torch.Tensor], taught: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over the outputs of a control copy of their squared error, in shares of what was taught."""
    errors = [
        (mine.float() - right.float()).square().mean() / right.float().square().mean().clamp_min(1e-8)
        for mine, right in zip(control, taught, strict=True)
    ]
    return torch.stack(errors).mean()
