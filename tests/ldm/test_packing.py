"""Packed weights: the same numbers, keys and threads' results as ordinary layers."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from golden_data import fill_by_recipe, load_golden, relative_error, tiny_config

from ldm import winograd
from ldm.modules.attention import GEGLU
from ldm.modules.diffusionmodules import blocks as unet_blocks
from ldm.modules.diffusionmodules import model as vae
from ldm.packing import PackedConv2d, PackedLinear, can_pack, pack_weights, unpack_weights
from ldm.util import instantiate_from_config

pytestmark = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


def computes_in_bfloat16() -> bool:
    return can_pack() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@torch.no_grad()
def test_a_packed_model_equals_the_original() -> None:
    golden, case = load_golden("unet_v15")
    model = fill_by_recipe(instantiate_from_config(tiny_config(case))).eval()
    keys = list(model.state_dict())
    before = copy.deepcopy(model.state_dict())
    assert pack_weights(model) > 50
    assert pack_weights(model) == 0, "packed layers stay as they are"
    model.control_scales = [0.7] * 13
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]]}
    assert relative_error(model.apply_model(golden["x"], golden["t"], cond), golden["eps.apply"]) <= 1e-5
    assert model.model.diffusion_model.dtype == torch.float32

    # The state dict is that of the ordinary model, and so is the model itself after unpacking.
    packed_state = model.state_dict()
    assert sorted(packed_state) == sorted(keys)
    assert all(torch.equal(packed_state[key], before[key]) for key in keys)
    with pytest.raises(ValueError, match="unpack_weights"):
        model.load_state_dict(before)
    assert unpack_weights(model) > 50
    assert list(model.state_dict()) == keys
    model.load_state_dict(before)
    assert relative_error(model.apply_model(golden["x"], golden["t"], cond), golden["eps.apply"]) <= 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "bias": False}, {"kernel_size": 1}]
)
@torch.no_grad()
def test_convolutions_at_changing_shapes(options: dict) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(**{"in_channels": 5, "out_channels": 7, "kernel_size": 3, **options})
    )
    plain = copy.deepcopy(model)
    assert pack_weights(model) == 1 and isinstance(model[0], PackedConv2d)
    for shape in [(1, 5, 8, 9), (2, 5, 16, 16), (1, 5, 8, 9)]:
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model(x.to(memory_format=torch.channels_last)), plain(x), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_linear_layers_at_changing_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(12, 20, bias=False), torch.nn.Linear(20, 3))
    plain = copy.deepcopy(model)
    assert pack_weights(model) == 2 and isinstance(model[0], PackedLinear)
    for shape in [(12,), (4, 12), (2, 3, 5, 12)]:
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)


def test_unusual_layers_stay_as_they_are() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 4, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3, padding="same"),
        torch.nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        torch.nn.Conv1d(4, 4, 3),
        torch.nn.Linear(4, 4, dtype=torch.float64),
        torch.nn.Linear(4, 4, device="meta"),
    )
    assert pack_weights(model) == 0


@torch.no_grad()
def test_bfloat16_is_packed_only_where_the_processor_has_it() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.Conv2d(6, 4, 1)).to(torch.bfloat16)
    model = copy.deepcopy(plain)
    assert pack_weights(model) == (2 if computes_in_bfloat16() else 0)
    x = torch.randn(1, 4, 8, 8).bfloat16()
    assert relative_error(model(x), plain(x)) <= 5e-3


def test_gradients_are_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    pack_weights(model)
    with pytest.raises(ValueError, match="take no gradients"):
        model(torch.randn(2, 4, requires_grad=True))


def test_packed_models_do_not_move() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    pack_weights(model)
    model.to("cpu")
    with pytest.raises(ValueError, match="float64 on cpu, call"):
        model.double()
    with pytest.raises(ValueError, match="on meta, call"):
        model.to("meta")


@torch.no_grad()
def test_threads_with_two_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1))
    plain = copy.deepcopy(model)
    pack_weights(model)
    faults: list[float] = []

    def work(size: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                x = torch.randn(1, 8, size, size)
                faults.append((model(x) - plain(x)).abs().max().item())

    threads = [threading.Thread(target=work, args=(size,)) for size in (6, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(faults) == 40 and max(faults) < 1e-4


packed_types = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-6),
        pytest.param(
            torch.bfloat16,
            5e-3,
            marks=pytest.mark.skipif(
                not computes_in_bfloat16(), reason="this processor's oneDNN has no bf16"
            ),
        ),
    ],
)


@packed_types
@torch.no_grad()
def test_doubling_is_folded_into_the_convolution_after_it(dtype: torch.dtype, tolerance: float) -> None:
    for plain in (unet_blocks.Upsample(8, True, out_channels=6), vae.Upsample(8, True)):
        plain = plain.to(dtype)
        packed = copy.deepcopy(plain)
        assert pack_weights(packed) == 1
        for shape in [(1, 8, 3, 5), (2, 8, 8, 8), (1, 8, 1, 1)]:
            x = torch.randn(shape).to(dtype)
            assert relative_error(packed(x), plain(x)) <= tolerance
        assert torch.equal(packed.state_dict()["conv.weight"], plain.state_dict()["conv.weight"])
        assert unpack_weights(packed) == 1 and torch.equal(packed(x), plain(x))
    wide = unet_blocks.Upsample(8, True, padding=2).to(dtype)
    expected = wide(x)
    assert pack_weights(wide) == 1 and relative_error(wide(x), expected) <= tolerance, "an unusual one, too"


@packed_types
@torch.no_grad()
def test_a_gate_computes_its_gelu_along(dtype: torch.dtype, tolerance: float) -> None:
    plain = GEGLU(8, 12).to(dtype)
    packed = copy.deepcopy(plain)
    assert pack_weights(packed) == 1 and pack_weights(packed) == 0
    x = torch.randn(2, 5, 8).to(dtype)
    assert relative_error(packed(x), plain(x)) <= tolerance
    assert relative_error(packed.proj(x), plain.proj(x)) <= tolerance
    states = plain.state_dict(), packed.state_dict()
    assert list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][k], states[1][k]) for k in states[0]
    )
    assert unpack_weights(packed) == 1 and torch.equal(packed(x), plain(x))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_large_pictures_in_float32_go_by_winograd(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kept = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *arguments: calls.append(1) or kept(*arguments))
    layer = torch.nn.Conv2d(128, 64, 3, padding=1, bias=bias)
    packed = torch.nn.Sequential(copy.deepcopy(layer))
    pack_weights(packed)
    before = packed[0].weight.clone()
    for size, expected in (((31, 32), 0), ((32, 32), 1), ((33, 50), 2), ((8, 8), 2)):
        x = torch.randn(2, 128, *size)
        residual = torch.randn(2, 64, *size)
        assert relative_error(packed(x), layer(x)) <= 1e-5
        assert len(calls) == expected
        assert relative_error(packed[0](x, residual=residual), layer(x) + residual) <= 1e-5
        calls[:] = [1] * expected
    assert torch.equal(packed.state_dict()["0.weight"], layer.weight) and torch.equal(
        packed[0].weight.to_dense() if packed[0].weight.is_mkldnn else packed[0].weight, before
    )
    with torch.enable_grad(), pytest.raises(ValueError, match="take no gradients"):
        packed(torch.randn(1, 128, 32, 32, requires_grad=True))
    assert unpack_weights(packed) == 1 and torch.equal(packed[0].weight, layer.weight)


@torch.no_grad()
def test_large_matrices_of_winograd_are_made_anew_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    kept = winograd.matrices_of
    monkeypatch.setattr(winograd, "matrices_of", lambda weight: made.append(1) or kept(weight))
    layer = torch.nn.Conv2d(128, 64, 3, padding=1)
    for most, many, times in ((64, 3000, 0), (64, 2048, 2), (128, 3000, 1)):
        monkeypatch.setattr(winograd, "MOST_CHANNELS", most)
        monkeypatch.setattr(winograd, "MANY_PIXELS", many)
        packed = torch.nn.Sequential(copy.deepcopy(layer))
        pack_weights(packed)
        x = torch.randn(2, 128, 32, 32)
        for _ in range(2):
            assert relative_error(packed(x), layer(x)) <= 1e-5
        assert len(made) == times
        made.clear()
