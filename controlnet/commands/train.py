"""Train a ControlNet; the settings of a run are options, and --config takes a YAML file of them."""

from __future__ import annotations

from collections.abc import Sequence

from controlnet.files import MODELS, find_file
from controlnet.training.faults import faults_reported
from controlnet.training.settings import Settings


def default_settings() -> Settings:
    """Those of ``tutorial_train.py``; the model's files are found wherever the package is."""
    return Settings(model=str(MODELS / "cldm_v15.yaml"), base=str(find_file("models/control_sd15_ini.ckpt")))


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    with faults_reported():
        settings = default_settings().from_command_line(arguments, description=__doc__, prog=prog)
        from controlnet.training.run import train  # Lightning takes seconds to import

        train(settings)
    return 0
