"""Which numbers networks compute in: by themselves, as it is told, and how far bf16 is from the original."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, tiny_config

from cldm.ddim_hacked import DDIMSampler
from controlnet.generation import devices
from controlnet.generation.devices import ModelError, find_precision, precision_name
from controlnet.generation.generator import Generator
from controlnet.generation.request import Request
from controlnet.generation.sampling import control_scales
from controlnet.page.app import model_note
from ldm.packing import pack_weights
from ldm.util import instantiate_from_config

COMPUTES_BF16 = devices.computes_bf16  # before a fixture takes its place
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def small():
    """The model of the golden samplings."""
    _, case = load_golden("sampling")
    return fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()


def in_bf16(model: torch.nn.Module) -> None:
    """As a file is loaded: the weights alone, while schedules stay what they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_the_processor_computes_it(native, expected, monkeypatch):
    monkeypatch.setattr(devices, "computes_bf16", lambda: native)
    assert precision_name(find_precision("auto", CPU)) == expected
    assert precision_name(find_precision("auto", GPU)) == "fp16"
    assert find_precision("fp32", CPU) == torch.float32, "what is asked for is what is taken"
    with pytest.raises(ModelError, match="fp8 is not known; choose auto, fp32, fp16, bf16"):
        find_precision("fp8", CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx2": True}, False),
        ({"neon": True, "bf16": True}, False),  # ARM: not measured, so not promised
    ],
)
def test_torch_is_asked_what_the_processor_can(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices, "can_pack", lambda: True)
    assert COMPUTES_BF16() is expected
    monkeypatch.setattr(devices, "can_pack", lambda: False)
    assert not COMPUTES_BF16(), "without oneDNN torch has no fast way"


def test_no_test_depends_on_the_processor():
    assert not devices.computes_bf16()


def test_page_and_metadata_say_which(small, tmp_path):
    in_bf16(small)
    generator = Generator(small, name="small", resolution=64)
    assert "in bf16" in model_note(generator)[0]
    result = generator.generate(Request(None, "a house", hint=np.zeros((64, 64), np.uint8), ddim_steps=1))
    assert result.precision == "bf16" and json.loads(result.metadata(0))["precision"] == "bf16"
    assert result.pictures[0].std() > 0


# Guidance multiplies what rounding leaves of the difference of its halves: this model's weights are random.
# Processors add in orders of their own: one of them gave 4.5e-2, 2.9e-2 and 0.6e-2.
@pytest.mark.parametrize(("number", "tolerance"), [(0, 9e-2), (2, 6e-2), (3, 2e-2)])
@pytest.mark.parametrize("packed", [False, True])
def test_sampling_in_bf16_stays_near_the_original(small, packed, number, tolerance):
    golden, recorded = load_golden("sampling")
    in_bf16(small)
    if packed:
        pack_weights(small)
    with torch.no_grad():
        text, negative = map(small.get_learned_conditioning, (recorded["prompt"], recorded["negative"]))
    case = recorded["cases"][number]
    scales = control_scales(case["strength"], 13, case["guess"])
    hint = {"c_concat": [golden["hint"]], "control_scales": scales}
    without = {**hint, "c_crossattn": [negative], **({"c_concat": None} if case["guess"] else {})}
    torch.manual_seed(123 + number)
    samples, _ = DDIMSampler(small).sample(
        case["S"], 2, (4, 8, 8), {**hint, "c_crossattn": [text]}, eta=case["eta"], x_T=golden["x_T"],
        unconditional_guidance_scale=case["scale"], unconditional_conditioning=without, verbose=False,
    )  # fmt: skip
    assert samples.dtype == torch.float32
    assert 1e-4 < relative_error(samples, golden[f"sample.{number}"]) <= tolerance
