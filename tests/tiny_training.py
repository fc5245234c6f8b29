"""A ControlLDM small enough to be trained within a test, and data for it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from controlnet.storybook import lesson
from controlnet.training.make_fill50k import make_fill50k
from controlnet.training.settings import Settings
from ldm.weights import read_state_dict

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "attention_resolutions": [1],
    "num_res_blocks": 1,
    "channel_mult": [1],
    "num_heads": 2,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 32,
    "use_checkpoint": True,
    "legacy": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}


def control_model() -> dict[str, Any]:
    """YAML node of a ControlLDM for pictures of 64 pixels; its VAE and text encoder have random weights."""
    return {
        "target": "cldm.cldm.ControlLDM",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.012,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "control_key": "hint",
            "image_size": 8,
            "channels": 4,
            "conditioning_key": "crossattn",
            "scale_factor": 3.0,
            "use_ema": False,
            "only_mid_control": False,
            "control_stage_config": {
                "target": "cldm.cldm.ControlNet",
                "params": {**UNET, "hint_channels": 3},
            },
            "unet_config": {"target": "cldm.cldm.ControlledUnetModel", "params": {**UNET, "out_channels": 4}},
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
            },
            "cond_stage_config": {
                "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
                "params": {"text_config": TEXT},
            },
        },
    }


def write_model(path: Path, node: dict[str, Any] | None = None) -> str:
    """Save a model definition, the ControlLDM's by default, and return its path."""
    OmegaConf.save(OmegaConf.create({"model": node or control_model()}), path)
    return str(path)


def tiny_settings(folder: Path, **changes: Any) -> Settings:
    """Settings of a run on 8 circles of 64 pixels, all of it in ``folder``; the data are drawn if they are
    missing.
    """
    data = folder / "circles"
    if not data.exists():
        make_fill50k(data, 8, size=64, workers=1, progress=False)
    settings = {
        "model": write_model(folder / "model.yaml"),
        "data": str(data),
        "output": str(folder / "output"),
        "sd_locked": False,  # a locked UNet of random weights would always say 0
        "batch_size": 2,
        "learning_rate": 1e-3,
        "workers": 0,
        "accelerator": "cpu",
        "checkpointing": "none",
        "logger_freq": 0,
        "log_every": 1,
        "progress": False,
    }
    return Settings(**{**settings, **changes})


def metrics(settings: Settings, name: str) -> list[float]:
    """A column of the log, over all versions."""
    rows = []
    for path in sorted((settings.folder / "metrics").glob("version_*/metrics.csv")):
        with path.open() as file:
            rows += [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
    return rows


def resumed_exactly(train: Callable[..., Path], settings: DictConfig, folder: Path) -> Path:
    """Train a single network to the end, and in two parts with a stop after step 3: the same weights.

    Returns the weights of the first.
    """
    whole = train(settings, folder / "whole")

    class Stop(lesson.SaveLast):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            trainer.should_stop = trainer.should_stop or trainer.global_step == 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesson, "SaveLast", Stop)
        train(settings, folder / "half")
    resumed = train(settings, folder / "resumed", resume=folder / "half" / "last.ckpt")
    a, b = read_state_dict(whole), read_state_dict(resumed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    return whole
