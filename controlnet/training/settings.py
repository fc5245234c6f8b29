"""The settings of a training run: from a script, a YAML file and the command line, each overruling the one
before.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from controlnet.training.data.records import HINT_KINDS
from ldm.definitions import one_line_errors, read_yaml

CHECKPOINTING = ("none", "control", "all")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "auto")
SAVE_KINDS = ("whole", "control-only")
"""``whole``: the full model, usable as it is. ``control-only``: just the weights that are trained;
``tool_merge_control.py`` puts them together with their base again, and ``--resume`` takes the base from
``--base``."""


def _setting(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": tuple(choices)})


@dataclass
class Settings:
    """All settings with their defaults; the help texts are those of the command line."""

    # What is trained
    model: str = _setting(
        "models/cldm_v15.yaml", "model definition: of a ControlLDM, LatentDiffusion or AutoencoderKL"
    )
    base: str | None = _setting(None, "weights to start from; without, they are random")
    control: str | None = _setting(None, "a control to start from, instead of the base's own")
    vae: str | None = _setting(None, "a VAE instead of the base's own")
    lora: list[str] = field(
        default_factory=list,
        metadata={"help": "FILE or FILE:WEIGHT, to merge into the base; may be repeated", "choices": ()},
    )
    sd_locked: bool = _setting(True, "train the control copy alone, not the UNet's decoder")
    train_text: bool = _setting(False, "train the text encoder too, even where the model's YAML freezes it")
    decoder_only: bool = _setting(
        False, "train only the decoder of an autoencoder, so that its latents stay the same"
    )
    area_balance: float = _setting(
        0.0, "weight each place in the loss by (area of its class)^-area_balance; for maps as hints"
    )
    only_mid_control: bool = _setting(False, "steer the middle block only: cheaper, for a first try")
    # Data
    data: str = _setting(
        "training/fill50k", "folder with prompt.json or metadata.jsonl, or YAML of a data set"
    )
    val: str | None = _setting(None, "held-out data, as above, for validation")
    resolution: int | None = _setting(None, "size in pixels, a multiple of 64; without, the pictures' own")
    buckets: bool = _setting(False, "train at several aspect ratios instead of squares")
    condition: str = _setting(
        "", "make hints of the pictures on the fly, such as canny; the data set then needs none"
    )
    hint_kind: str = _setting("picture", "what hints are; maps are resized without averaging", HINT_KINDS)
    empty_prompts: float = _setting(0.0, "share of prompts to drop, for guidance (ControlNet's paper: 0.5)")
    dropped_prompt: str = _setting("", "text in place of dropped prompts, such as a page's negative prompt")
    flip: float = _setting(0.0, "share of pictures to mirror")
    check: bool = _setting(True, "decode all pictures before training begins")
    workers: int = _setting(4, "processes that load data")
    cache_latents: bool = _setting(
        False, "encode each picture once, and each prompt if the text encoder is frozen"
    )
    cache: str | None = _setting(
        None, "folder of the encoded data, which several runs may share; without, OUTPUT/cache"
    )
    latent_crop: int | None = _setting(
        None, "side of random crops of cached latents: cheap steps, to begin with"
    )
    # Optimization
    first_time_step: int = _setting(
        0, "train the time steps from this one on: noisy ones decide layout and colours"
    )
    batch_size: int = _setting(4, "items per device and batch")
    accumulate: int = _setting(1, "batches per optimizer step")
    optimizer: str = _setting("adamw", "muon learns small networks from nothing in fewer steps", OPTIMIZERS)
    learning_rate: float = _setting(1e-5, "of the optimizer")
    warmup_steps: int = _setting(0, "steps in which the learning rate rises from 0")
    cosine_decay: bool = _setting(False, "let the learning rate fall to 0 at max_steps")
    gradient_clip: float | None = _setting(None, "greatest norm of the gradient")
    ema: float = _setting(0.0, "decay of a moving average of the trained weights; 0 for none")
    max_steps: int = _setting(-1, "optimizer steps; -1 for no end")
    max_epochs: int = _setting(-1, "rounds through the data; -1 for no end")
    precision: str = _setting(
        "32-true", "arithmetic; auto is bf16-mixed where the device computes that itself", PRECISIONS
    )
    channels_last: bool = _setting(False, "another order of the weights in memory: faster on some machines")
    checkpointing: str = _setting(
        "control",
        "whose activations are computed again instead of kept: less memory, more time",
        CHECKPOINTING,
    )
    seed: int = _setting(0, "of everything that is random")
    # Machines
    accelerator: str = _setting("auto", "cpu, gpu, …")
    devices: str = _setting("1", "how many per machine, or auto, or a list such as 0,2")
    num_nodes: int = _setting(1, "machines")
    strategy: str = _setting("auto", "auto, ddp, fsdp, …")
    # Output
    output: str = _setting("outputs/control", "folder for checkpoints, logs and pictures")
    resume: str | None = _setting(
        None, "checkpoint to continue from; without a path, OUTPUT/checkpoints/last.ckpt"
    )
    save: str = _setting("whole", "what checkpoints hold: the whole model, or what is trained", SAVE_KINDS)
    save_every: int = _setting(1000, "optimizer steps between checkpoints")
    save_best: int = _setting(3, "how many of the checkpoints with the best validation loss to keep as well")
    val_every: int = _setting(1000, "optimizer steps between validations")
    logger_freq: int = _setting(300, "batches between pictures in OUTPUT/image_log; 0 for none")
    log_every: int = _setting(10, "optimizer steps between lines of the log")
    progress: bool = _setting(True, "show progress bars")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value, choices = getattr(self, spec.name), spec.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{spec.name} must be one of {', '.join(choices)}, got {value!r}.")
        for name in ("batch_size", "accumulate", "num_nodes", "save_every", "val_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.latent_crop is not None and (self.latent_crop < 1 or not self.cache_latents):
            raise ValueError(
                f"latent_crop must be at least 1 and needs cache_latents, got {self.latent_crop}."
            )
        if self.first_time_step < 0:
            raise ValueError(f"first_time_step must be 0 or more, got {self.first_time_step}.")
        if not 0 <= self.area_balance <= 1:
            raise ValueError(
                f"area_balance must be from 0 (none) to 1 (all classes alike), got {self.area_balance}."
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be a number above 0, got {self.learning_rate}.")
        if self.cosine_decay and self.max_steps < 1:
            raise ValueError("cosine_decay needs max_steps, the step at which the learning rate reaches 0.")
        if self.gradient_clip is not None and self.precision == "16-mixed":
            raise ValueError(
                "gradient_clip does not go with precision 16-mixed and a fused optimizer; use bf16-mixed."
            )
        if self.ema and self.strategy.startswith("fsdp"):
            raise ValueError(
                "ema does not go with strategy fsdp: Lightning's average needs the weights unsharded."
            )

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def last_checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def resume_path(self) -> Path | None:
        """The checkpoint to continue from.

        Raises:
            FileNotFoundError: there is none.
            FileExistsError: a new run would write over the checkpoints of an earlier one.
        """
        if self.resume is None:
            if self.last_checkpoint.exists():
                raise FileExistsError(
                    f"{self.last_checkpoint} is there from an earlier run: continue it with --resume, "
                    "or give another --output."
                )
            return None
        path = self.last_checkpoint if self.resume == "last" else Path(self.resume)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no checkpoint to resume from.")
        return path

    def from_yaml(self, path: str | Path) -> Settings:
        """A copy with the settings of a YAML file.

        Raises:
            DefinitionError: the file cannot be read, or a setting is unknown or of another type; the text
                names both.
        """
        values = read_yaml(path)
        with one_line_errors(path):
            return cast(Settings, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(self), values)))

    def from_command_line(
        self,
        arguments: Sequence[str] | None = None,
        description: str | None = None,
        prog: str | None = None,
    ) -> Settings:
        """A copy with the settings of ``--config FILE``, if it is given, and of the other options.

        Options are spelled with hyphens or underscores; ``none`` unsets those that may be unset. Errors end
        the program, as usual with argparse.
        """
        parser = argparse.ArgumentParser(prog=prog, description=description)
        parser.add_argument(
            "--config", metavar="YAML", help="file with any of these settings; see configs/train"
        )
        types = get_type_hints(type(self))
        for spec in dataclasses.fields(self):
            _add_option(parser, spec, types[spec.name], getattr(self, spec.name))
        given = vars(parser.parse_args(arguments))
        config = given.pop("config", None)
        try:
            settings = self.from_yaml(config) if config else self
            return dataclasses.replace(settings, **given)
        except ValueError as error:
            parser.error(str(error))


def _add_option(parser: argparse.ArgumentParser, spec: dataclasses.Field, kind: Any, default: Any) -> None:
    """Add one setting as an option; the parsed result has it only where it was given."""
    names = list(dict.fromkeys([f"--{spec.name.replace('_', '-')}", f"--{spec.name}"]))
    options: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS}
    optional, is_list = type(None) in get_args(kind), get_origin(kind) is list
    kind = next((part for part in get_args(kind) if part is not type(None)), kind)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif is_list:
        options |= {"action": "append", "metavar": "FILE"}
    elif spec.name == "resume":
        options |= {"nargs": "?", "const": "last", "metavar": "PATH"}
    else:
        convert = (lambda text: None if text == "none" else kind(text)) if optional else kind
        options |= {"type": convert, "choices": spec.metadata["choices"] or None}
        options["metavar"] = None if spec.metadata["choices"] else kind.__name__.upper()
    parser.add_argument(*names, help=f"{spec.metadata['help']} ({default})".replace("%", "%%"), **options)
