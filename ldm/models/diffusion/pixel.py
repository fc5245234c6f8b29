"""Denoising diffusion on pictures as a Lightning module; ddpm.py builds latent diffusion on it.

Sources: DDPM (arXiv 2006.11239), and ldm/models/diffusion/ddpm.py of the original, under which name users
import this.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ldm.models.diffusion.process import GaussianProcess
from ldm.models.diffusion.sample_noise import Purpose, SampleNoise
from ldm.modules.ema import LitEma
from ldm.util import OptimizerFactory, default, instantiate_from_config, with_schedule
from ldm.weights import load_into, read_state_dict

logger = logging.getLogger(__name__)

PARAMETERIZATIONS = ("eps", "x0", "v")
CONDITIONING_KEYS = (None, "concat", "crossattn", "hybrid", "adm")


class DiffusionWrapper(nn.Module):
    """The network and how a condition enters it.

    Args:
        diff_model_config: YAML node of the network.
        conditioning_key: None; "concat" (channels beside x); "crossattn" (context); "hybrid" (both); "adm"
            (labels).
    """

    def __init__(self, diff_model_config: Mapping[str, Any], conditioning_key: str | None):
        super().__init__()
        if conditioning_key not in CONDITIONING_KEYS:
            raise ValueError(
                f"conditioning_key {conditioning_key!r} unknown; expected one of {CONDITIONING_KEYS}"
            )
        self.diffusion_model = instantiate_from_config(diff_model_config)
        self.conditioning_key = conditioning_key

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: Sequence[torch.Tensor] | None = None,
        c_crossattn: Sequence[torch.Tensor] | None = None,
        c_adm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x ``[B, C, H, W]``, t ``[B]`` -> ``[B, out_channels, H, W]``."""
        key = self.conditioning_key
        if key in ("concat", "hybrid"):
            x = torch.cat([x, *c_concat], dim=1)
        if key in ("crossattn", "hybrid"):
            return self.diffusion_model(x, t, context=torch.cat(list(c_crossattn), dim=1))
        if key == "adm":
            return self.diffusion_model(x, t, y=c_adm)
        return self.diffusion_model(x, t)


class DDPM(GaussianProcess, pl.LightningModule):
    """Denoising diffusion on pictures, and the training that `LatentDiffusion` and `ControlLDM` share.

    Args:
        unet_config: YAML node of the network.
        timesteps, beta_schedule, linear_start, linear_end, cosine_s, given_betas: the noise schedule.
        loss_type: "l1" or "l2".
        ckpt_path: weights to start from, without the keys that begin with one of ``ignore_keys``.
        load_only_unet: take only the network from there.
        monitor: metric that checkpoints are ranked by.
        use_ema: keep an average of the network's weights.
        first_stage_key: key of the picture in a batch, ``[B, H, W, C]`` in [-1, 1].
        image_size: side of a sample.
        channels: channels of a sample.
        log_every_t: distance of the intermediate results that samplers keep.
        clip_denoised: clamp x_0 to [-1, 1] in `p_sample`.
        original_elbo_weight: weight of the variational bound in the loss.
        v_posterior: mixes beta into the posterior's variance.
        l_simple_weight: weight of the simple loss.
        parameterization: what the network predicts: "eps", "x0" or "v".
        scheduler_config: YAML node of a learning-rate function for ``LambdaLR``, with an attribute
            ``schedule``.
        learn_logvar: learn a variance for each time step.
        logvar_init: its start.
        conditioning_key: see `DiffusionWrapper`.
        min_snr_gamma: weigh the loss by min-SNR with this bound, 5 in the paper; None weighs all steps alike.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str | None = "val/loss",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int = 256,
        channels: int = 3,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        min_snr_gamma: float | None = None,
    ):
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization {parameterization!r} unknown; expected one of {PARAMETERIZATIONS}"
            )
        if loss_type not in ("l1", "l2"):
            raise ValueError(f"loss_type {loss_type!r} unknown; expected l1 or l2")
        self.parameterization = parameterization
        self.loss_type = loss_type
        self.first_stage_key = first_stage_key
        self.image_size = image_size
        self.channels = channels
        self.log_every_t = log_every_t
        self.clip_denoised = clip_denoised
        self.original_elbo_weight = original_elbo_weight
        self.l_simple_weight = l_simple_weight
        self.v_posterior = v_posterior
        self.min_snr_gamma = min_snr_gamma
        self.first_time_step = 0
        self.scheduler_config = scheduler_config
        self.make_optimizer: OptimizerFactory | None = None
        self.learn_logvar = learn_logvar
        self.monitor = monitor
        self.learning_rate = 1e-4

        self.model = DiffusionWrapper(unet_config, conditioning_key)
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self.model)
        self.register_schedule(given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        logvar = torch.full((self.num_timesteps,), float(logvar_init), device="cpu")
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys, load_only_unet)

    @property
    def device(self) -> torch.device:
        """Where the schedule lies, and with it what the model computes."""
        return self.betas.device

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = (), only_model: bool = False) -> None:
        """Load weights from a file; what it lacks keeps its values."""
        state = read_state_dict(path)
        prefix = "model.diffusion_model." if only_model else ""
        state = {
            k: v for k, v in state.items() if k.startswith(prefix) and not k.startswith(tuple(ignore_keys))
        }
        load_into(self, state, path, strict=False)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Iterator[None]:
        """Within, the network has its averaged weights (where there are any); ``context`` is named in the
        log.
        """
        if not self.use_ema:
            yield
            return
        self.model_ema.store(self.model.parameters())
        self.model_ema.copy_to(self.model)
        logger.debug("%s: averaged weights", context)
        try:
            yield
        finally:
            self.model_ema.restore(self.model.parameters())
            logger.debug("%s: training weights again", context)

    # ---- the network and its loss

    def apply_model(self, x_noisy: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """The network's output for noisy samples ``[B, C, H, W]`` at time steps ``[B]``."""
        return self.model(x_noisy, t)

    def get_loss(self, pred: torch.Tensor, target: torch.Tensor, mean: bool = True) -> torch.Tensor:
        """l1 or l2 distance, as one number or for each element."""
        reduction = "mean" if mean else "none"
        return (F.l1_loss if self.loss_type == "l1" else F.mse_loss)(pred, target, reduction=reduction)

    def loss_target(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the network should have said."""
        if self.parameterization == "x0":
            return x_start
        return self.get_v(x_start, noise, t) if self.parameterization == "v" else noise

    def place_weights(self, cond: Any) -> torch.Tensor | None:
        """Weights ``[B, 1, H, W]`` of the places of a sample in the loss, 1 on average; None where all count
        alike.
        """
        return None

    def p_losses(
        self, x_start: torch.Tensor, cond: Any, t: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss at time steps ``t``, and its parts by name for the log.

        Args:
            x_start: clean samples ``[B, C, H, W]``.
            cond: condition for `apply_model`.
            t: int64 ``[B]``.
            noise: like x_start; drawn where it is not given.
        """
        noise = default(noise, lambda: torch.randn_like(x_start))
        model_output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        target = self.loss_target(x_start, t, noise)
        errors = self.get_loss(model_output, target, mean=False)  # [B, C, H, W]
        per_sample = errors.mean(dim=(1, 2, 3))  # [B]

        stage = "train" if self.training else "val"
        log = {f"{stage}/loss_simple": per_sample.mean()}
        logvar = self.logvar[t]
        places = self.place_weights(cond)
        loss = per_sample if places is None else (errors * places).mean(dim=(1, 2, 3))
        loss = loss if self.min_snr_gamma is None else loss * self.min_snr_weight(t, self.min_snr_gamma)
        loss = loss / torch.exp(logvar) + logvar
        if self.learn_logvar:
            log[f"{stage}/loss_gamma"] = loss.mean()
            log["logvar"] = self.logvar.data.mean()
        bound = (self.lvlb_weights[t] * per_sample).mean()
        log[f"{stage}/loss_vlb"] = bound
        loss = self.l_simple_weight * loss.mean() + self.original_elbo_weight * bound
        log[f"{stage}/loss"] = loss
        return loss, {name: value.detach() for name, value in log.items()}

    def forward(
        self, x: torch.Tensor, c: Any = None, random: SampleNoise | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`p_losses` at random time steps from ``first_time_step`` on, drawn from ``random`` or torch's
        own.
        """
        if random is not None:
            count = self.num_timesteps - self.first_time_step
            t = self.first_time_step + random.time_steps(count, self.device)
            return self.p_losses(x, c, t, random.normal(Purpose.NOISE, like=x))
        t = torch.randint(self.first_time_step, self.num_timesteps, (x.shape[0],), device=self.device).long()
        return self.p_losses(x, c, t)

    # ---- training

    def get_input(self, batch: Mapping[str, Any], k: str) -> torch.Tensor:
        """Pictures ``[B, H, W, C]`` or ``[B, H, W]`` of a batch -> float32 ``[B, C, H, W]``."""
        x = torch.as_tensor(batch[k]).to(self.device)
        x = x[..., None] if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def shared_step(self, batch: Mapping[str, Any], **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch, and its parts for the log."""
        return self(self.get_input(batch, self.first_stage_key), random=SampleNoise.of_batch(batch))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> torch.Tensor:
        loss, log = self.shared_step(batch)
        self.log_dict(
            log, prog_bar=True, on_step=True, on_epoch=False, batch_size=_rows(batch), sync_dist=True
        )
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        options = {"on_step": False, "on_epoch": True, "batch_size": _rows(batch), "sync_dist": True}
        _, log = self.shared_step(batch)
        self.log_dict(log, **options)
        if self.use_ema:
            with self.ema_scope():
                _, log = self.shared_step(batch)
            self.log_dict({f"{name}_ema": value for name, value in log.items()}, **options)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        if self.use_ema:
            self.model_ema(self.model)

    def trained_modules(self) -> list[nn.Module]:
        """The modules that `configure_optimizers` trains."""
        return [self.model]

    def freeze_untrained(self) -> None:
        """Take gradients for what is trained only, so that the rest costs no memory and lies in no bucket of
        DDP.
        """
        wanted = {id(p) for module in self.trained_modules() for p in module.parameters()}
        for parameter in self.parameters():
            if parameter is not getattr(self, "logvar", None):
                parameter.requires_grad_(id(parameter) in wanted)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.freeze_untrained()

    def configure_optimizers(self) -> Any:
        """``make_optimizer``'s, or AdamW, over `trained_modules`, with the schedule of
        ``scheduler_config``.
        """
        self.freeze_untrained()
        parameters = [p for module in self.trained_modules() for p in module.parameters()]
        if self.learn_logvar:
            parameters.append(self.logvar)
        make = self.make_optimizer or partial(torch.optim.AdamW, fused=True)
        return with_schedule(make(parameters, lr=self.learning_rate), self.scheduler_config)

    # ---- ancestral sampling

    @torch.no_grad()
    def p_sample(
        self, x: torch.Tensor, t: torch.Tensor, cond: Any = None, clip_denoised: bool = False
    ) -> torch.Tensor:
        """One step x_t -> x_{t-1} of DDPM's own sampler (algorithm 2)."""
        x_start = self.predict_start(x, t, self.apply_model(x, t, cond))
        if clip_denoised:
            x_start = x_start.clamp(-1.0, 1.0)
        mean, _, log_variance = self.q_posterior(x_start, x, t)
        noise = torch.randn_like(x)
        not_last = (t > 0).float().reshape(-1, *(1,) * (x.ndim - 1))
        return mean + not_last * (0.5 * log_variance).exp() * noise

    @torch.no_grad()
    def p_sample_loop(
        self, shape: Sequence[int], cond: Any = None, x_T: torch.Tensor | None = None, verbose: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Samples ``shape`` from noise through every time step, and the results after each ``log_every_t``
        steps.
        """
        x = default(x_T, lambda: torch.randn(*shape, device=self.device))
        intermediates = [x]
        for i in tqdm(
            reversed(range(self.num_timesteps)), "Sampling t", self.num_timesteps, disable=not verbose
        ):
            t = torch.full((shape[0],), i, device=self.device, dtype=torch.long)
            x = self.p_sample(x, t, cond, clip_denoised=self.clip_denoised)
            if i % self.log_every_t == 0:
                intermediates.append(x)
        return x, intermediates

    def sample(
        self, batch_size: int = 16, return_intermediates: bool = False, cond: Any = None, verbose: bool = True
    ) -> Any:
        """``batch_size`` samples of the model's own size; with ``return_intermediates`` also the way to
        them.
        """
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        samples, intermediates = self.p_sample_loop(shape, cond, verbose=verbose)
        return (samples, intermediates) if return_intermediates else samples


def _rows(batch: Mapping[str, Any]) -> int:
    """Items in a batch."""
    return len(next(iter(batch.values())))
