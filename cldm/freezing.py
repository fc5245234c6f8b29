"""Which weights of a ControlNet model can be trained at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from cldm.cldm import ControlLDM

logger = logging.getLogger(__name__)


def trainable(model: ControlLDM, wanted: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Of the parameters that an optimizer holds those that can get a gradient; tells where others are held.

    With ``only_mid_control`` the zero convolutions of the other outputs are not used. And as in the original,
    `ControlledUnetModel` computes the UNet's encoder without gradients; a subclass's own forward may take
    them.
    """
    from cldm.cldm import ControlledUnetModel

    wanted = list(wanted)
    unet = model.model.diffusion_model
    if model.only_mid_control:
        wanted = _without(wanted, model.control_model.zero_convs)
    if type(unet).forward is ControlledUnetModel.forward:
        decoder = set(map(id, [*unet.output_blocks.parameters(), *unet.out.parameters()]))
        encoder = [p for p in unet.parameters() if id(p) not in decoder]
        left = len(wanted)
        wanted = _without(wanted, nn.ParameterList(encoder))
        if left > len(wanted):
            logger.warning(
                "The optimizer holds %d weights of the UNet's encoder, which will not change: as in the "
                "original, %s computes the encoder without gradients. Leave them out in "
                "configure_optimizers, or write a forward that takes them.",
                left - len(wanted), type(unet).__name__,
            )  # fmt: skip
    return wanted


def _without(parameters: list[nn.Parameter], module: nn.Module) -> list[nn.Parameter]:
    unused = set(map(id, module.parameters()))
    return [parameter for parameter in parameters if id(parameter) not in unused]
