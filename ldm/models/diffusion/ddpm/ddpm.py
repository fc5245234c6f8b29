"""Denoising diffusion on pictures: the noise, the loss, and the training step that latent diffusion shares.

Sources: DDPM (arXiv 2006.11239), progressive distillation (2202.00512) for v, and
ldm/models/diffusion/ddpm.py of the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ldm.models.diffusion.ancestral import ancestral_sampling, ancestral_step
from ldm.models.diffusion.ddpm.wrapper import DiffusionWrapper
from ldm.models.diffusion.guidance import takes_joined_conditions
from ldm.models.diffusion.objective import TrainingObjective
from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.trained_module import TrainedModule
from ldm.modules.diffusionmodules.util import extract_into_tensor
from ldm.modules.distributions.distributions import Purpose, SampleNoise
from ldm.modules.ema import LitEma
from ldm.util import default

PARAMETERIZATIONS = ("eps", "x0", "v")


class DDPM(TrainedModule):
    """Denoising diffusion on pictures. Shapes: x ``[B, C, H, W]``, t int64 ``[B]``.

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
        scheduler_config: see `TrainedModule`.
        learn_logvar: learn a variance for each time step.
        logvar_init: its start.
        conditioning_key: see `DiffusionWrapper`.
        min_snr_gamma: see `TrainingObjective`.

    Attributes:
        objective: which time steps and places count in the loss; a trainer may set another.
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
        self.scheduler_config = scheduler_config
        self.learn_logvar = learn_logvar
        self.monitor = monitor
        self.objective = TrainingObjective(min_snr_gamma)

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

    def register_schedule(
        self,
        given_betas: Sequence[float] | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Compute the noise schedule in float64, and keep it as float32 buffers."""
        schedule = NoiseSchedule.of(
            given_betas, beta_schedule, timesteps, linear_start, linear_end, cosine_s, self.v_posterior
        )
        self.num_timesteps = len(schedule)
        self.linear_start, self.linear_end = linear_start, linear_end
        bound = {"lvlb_weights": schedule.variational_weights(self.parameterization)}
        for name, values in (schedule.buffers() | bound).items():
            # The device is named so that a skeleton on the meta device has its schedule all the same.
            buffer = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(name, buffer, persistent=name not in bound)

    @property
    def device(self) -> torch.device:
        """Where the schedule lies, and with it what the model computes."""
        return self.betas.device

    def ema_scope(self, context: str | None = None) -> AbstractContextManager[None]:
        """Within, the network has its averaged weights (where there are any).

        ``context`` is kept from the original, which printed it.
        """
        return self.model_ema.lent_to(self.model) if self.use_ema else nullcontext()

    # ---- a training step, from top to bottom

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

    def shared_step(self, batch: Mapping[str, Any], **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of a batch, and its parts for the log."""
        return self(self.get_input(batch, self.first_stage_key), **SampleNoise.argument_of(batch))

    def get_input(self, batch: Mapping[str, Any], k: str) -> torch.Tensor:
        """Pictures ``[B, H, W, C]`` or ``[B, H, W]`` of a batch -> float32 ``[B, C, H, W]``."""
        x = torch.as_tensor(batch[k]).to(self.device)
        x = x[..., None] if x.ndim == 3 else x
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def forward(
        self, x: torch.Tensor, c: Any = None, *args, random: SampleNoise | None = None, **kwargs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`p_losses` at random time steps, with the other arguments.

        Args:
            random: where time steps and noise come from; None is torch's global stream.
        """
        first, end = self.objective.first_time_step, self.num_timesteps
        if random is None:
            t = torch.randint(first, end, (x.shape[0],), device=self.device).long()
        else:
            t = first + random.time_steps(end - first, self.device)
            kwargs["noise"] = random.normal(Purpose.NOISE, like=x)
        return self.p_losses(x, self.condition_at(c, t), t, *args, **kwargs)

    def condition_at(self, c: Any, t: torch.Tensor) -> Any:
        """What `apply_model` takes of a condition in training, at time steps ``t``."""
        return c

    def p_losses(
        self, x_start: torch.Tensor, cond: Any, t: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss at time steps ``t``, and its parts by name for the log.

        Args:
            x_start: clean samples.
            cond: condition for `apply_model`.
            noise: like x_start; drawn where it is not given.
        """
        noise = default(noise, lambda: torch.randn_like(x_start))
        model_output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        target = self.loss_target(x_start, t, noise)
        errors = self.get_loss(model_output, target, mean=False)  # [B, C, H, W]
        per_sample = errors.mean(dim=(1, 2, 3))  # [B]

        stage = "train" if self.training else "val"
        log = {f"{stage}/loss_simple": per_sample.mean()}
        weigh_places = self.objective.place_weights
        places = None if weigh_places is None else weigh_places(cond)  # [B, 1, H, W]
        loss = per_sample if places is None else (errors * places).mean(dim=(1, 2, 3))
        if self.objective.min_snr_gamma is not None:
            loss = loss * self.min_snr_weight(t, self.objective.min_snr_gamma)
        logvar = self.logvar[t]
        loss = loss / torch.exp(logvar) + logvar
        if self.learn_logvar:
            log[f"{stage}/loss_gamma"] = loss.mean()
            log["logvar"] = self.logvar.data.mean()
        bound = (self.lvlb_weights[t] * per_sample).mean()
        log[f"{stage}/loss_vlb"] = bound
        loss = self.l_simple_weight * loss.mean() + self.original_elbo_weight * bound
        log[f"{stage}/loss"] = loss
        return loss, {name: value.detach() for name, value in log.items()}

    @takes_joined_conditions
    def apply_model(self, x_noisy: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """The network's output for noisy samples."""
        return self.model(x_noisy, t)

    def loss_target(self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the network should have said."""
        if self.parameterization == "x0":
            return x_start
        return self.get_v(x_start, noise, t) if self.parameterization == "v" else noise

    def get_loss(self, pred: torch.Tensor, target: torch.Tensor, mean: bool = True) -> torch.Tensor:
        """l1 or l2 distance, as one number or for each element."""
        reduction = "mean" if mean else "none"
        return (F.l1_loss if self.loss_type == "l1" else F.mse_loss)(pred, target, reduction=reduction)

    def min_snr_weight(self, t: torch.Tensor, gamma: float) -> torch.Tensor:
        """Weights ``[B]`` that keep steps of little noise from dominating (min-SNR, arXiv 2303.09556)."""
        alphas = self.alphas_cumprod[t].double()
        ratio = alphas / (1 - alphas)
        per_error = {"x0": 1.0, "eps": ratio, "v": ratio + 1}[self.parameterization]
        return (ratio.clamp(max=gamma) / per_error).float()

    def trained_modules(self) -> list[nn.Module]:
        """The modules that `configure_optimizers` trains."""
        return [self.model]

    def trained_parameters(self) -> list[nn.Parameter]:
        logvar = [self.logvar] if self.learn_logvar else []
        return [p for module in self.trained_modules() for p in module.parameters()] + logvar

    def on_train_batch_end(self, *args, **kwargs) -> None:
        if self.use_ema:
            self.model_ema(self.model)

    # ---- between a sample x_0, the noisy x_t, the noise and the velocity v

    def q_sample(
        self, x_start: torch.Tensor, t: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x_t from x_0 (DDPM, equation 4); the noise is drawn where it is not given."""
        noise = default(noise, lambda: torch.randn_like(x_start))
        return _at(t, self.sqrt_alphas_cumprod, x_start) + _at(t, self.sqrt_one_minus_alphas_cumprod, noise)

    def get_v(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v = sqrt(a) noise - sqrt(1 - a) x_0."""
        return _at(t, self.sqrt_alphas_cumprod, noise) - _at(t, self.sqrt_one_minus_alphas_cumprod, x)

    def predict_start_from_noise(
        self, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """x_0 from x_t and its noise."""
        return _at(t, self.sqrt_recip_alphas_cumprod, x_t) - _at(t, self.sqrt_recipm1_alphas_cumprod, noise)

    def predict_start_from_z_and_v(self, x_t: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """x_0 from x_t and its velocity."""
        return _at(t, self.sqrt_alphas_cumprod, x_t) - _at(t, self.sqrt_one_minus_alphas_cumprod, v)

    def predict_eps_from_z_and_v(self, x_t: torch.Tensor, t: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Noise from x_t and its velocity."""
        return _at(t, self.sqrt_alphas_cumprod, v) + _at(t, self.sqrt_one_minus_alphas_cumprod, x_t)

    def predict_start(self, x_t: torch.Tensor, t: torch.Tensor, model_output: torch.Tensor) -> torch.Tensor:
        """x_0 from x_t and the model's output, whichever parameterization it has."""
        if self.parameterization == "x0":
            return model_output
        if self.parameterization == "v":
            return self.predict_start_from_z_and_v(x_t, t, model_output)
        return self.predict_start_from_noise(x_t, t, model_output)

    def q_posterior(
        self, x_start: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean ``[B, ...]``, variance and its clipped logarithm ``[B, 1, ...]`` of x_{t-1} (equation 6)."""
        mean = _at(t, self.posterior_mean_coef1, x_start) + _at(t, self.posterior_mean_coef2, x_t)
        variance = extract_into_tensor(self.posterior_variance, t, x_t.shape)
        return mean, variance, extract_into_tensor(self.posterior_log_variance_clipped, t, x_t.shape)

    # ---- ancestral sampling

    def p_sample(
        self, x: torch.Tensor, t: torch.Tensor, cond: Any = None, clip_denoised: bool = False
    ) -> torch.Tensor:
        """One step x_t -> x_{t-1}; see `ancestral_step`."""
        return ancestral_step(self, x, t, cond, clip_denoised)

    def p_sample_loop(
        self, shape: Sequence[int], cond: Any = None, x_T: torch.Tensor | None = None, verbose: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Samples through every time step; see `ancestral_sampling`."""
        return ancestral_sampling(self, shape, cond, x_T, verbose)

    def sample(
        self, batch_size: int = 16, return_intermediates: bool = False, cond: Any = None, verbose: bool = True
    ) -> Any:
        """``batch_size`` samples of the model's own size, and with ``return_intermediates`` the way there."""
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        samples, intermediates = self.p_sample_loop(shape, cond, verbose=verbose)
        return (samples, intermediates) if return_intermediates else samples


def _at(t: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Each sample of ``x`` times its time step's value: ``[B], [T], [B, ...] -> [B, ...]``."""
    return extract_into_tensor(values, t, x.shape) * x


def _rows(batch: Mapping[str, Any]) -> int:
    """Items in a batch."""
    return len(next(iter(batch.values())))
