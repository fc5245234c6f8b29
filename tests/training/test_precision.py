"""What ``precision: auto`` is, on a processor or GPU with bf16 arithmetic and without."""

from __future__ import annotations

import pytest
import torch

from controlnet.generation import devices
from controlnet.training.precision import find_precision
from controlnet.training.run import make_trainer
from controlnet.training.settings import Settings


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
@pytest.mark.parametrize("accelerator", ["cpu", "auto", "gpu", "mps"])
def test_auto_is_what_the_device_computes_itself(native, expected, accelerator, monkeypatch):
    monkeypatch.setattr(devices, "computes_bf16", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "gpu")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert find_precision("auto", accelerator) == ("32-true" if accelerator == "mps" else expected)
    assert find_precision("16-mixed", accelerator) == "16-mixed"


def test_the_trainer_gets_it(tmp_path, monkeypatch):
    settings = Settings(precision="auto", accelerator="cpu", output=str(tmp_path), progress=False)
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(devices, "computes_bf16", lambda native=native: native)
        assert make_trainer(settings, torch.nn.Identity()).precision == expected
