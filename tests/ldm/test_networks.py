"""UNet, ControlNet, VAE and text encoder against the original's outputs, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_data import fill_by_recipe as fill
from golden_data import load_golden, relative_error, released_keys, tiny_config
from omegaconf import OmegaConf

from cldm.cldm import ControlLDM
from ldm.modules.attention import SpatialTransformer, attend, set_attention_slice
from ldm.modules.diffusionmodules.openaimodel import AttentionBlock, Downsample, ResBlock, UNetModel, Upsample
from ldm.util import instantiate_from_config

TOLERANCE = 1e-5


def golden_model(name: str) -> tuple[ControlLDM, dict[str, torch.Tensor], dict]:
    tensors, case = load_golden(name)
    return fill(instantiate_from_config(tiny_config(case))).eval(), tensors, case


@pytest.mark.parametrize("name", ["unet_v15", "unet_v21"])
@torch.no_grad()
def test_unet_and_control_equal_the_original(name: str) -> None:
    model, golden, _ = golden_model(name)
    x, t, context, hint = (golden.pop(key) for key in ("x", "t", "context", "hint"))
    control = model.control_model(x, hint, t, context)
    for i, output in enumerate(control):
        assert relative_error(output, golden.pop(f"control.{i:02d}")) <= TOLERANCE
    unet = model.model.diffusion_model
    assert relative_error(unet(x, t, context), golden.pop("eps.none")) <= TOLERANCE
    assert relative_error(unet(x, t, context, control=control), golden.pop("eps.full")) <= TOLERANCE
    mid = unet(x, t, context, control=control, only_mid_control=True)
    assert relative_error(mid, golden.pop("eps.mid")) <= TOLERANCE
    assert len(control) == 5, "the caller's list must not be consumed"

    cond = {"c_concat": [hint], "c_crossattn": [context]}
    model.control_scales = [0.7] * 13
    expected = golden.pop("eps.apply")
    assert relative_error(model.apply_model(x, t, cond), expected) <= TOLERANCE
    model.control_scales = [0.0] * 13
    assert (
        relative_error(model.apply_model(x, t, {**cond, "control_scales": [0.7] * 5}), expected) <= TOLERANCE
    )
    assert not golden, f"unchecked: {list(golden)}"


@torch.no_grad()
def test_autoencoder_equals_the_original() -> None:
    model, golden, _ = golden_model("autoencoder")
    posterior = model.encode_first_stage(golden.pop("image"))
    assert relative_error(posterior.mean, golden.pop("mean")) <= TOLERANCE
    assert relative_error(posterior.logvar, golden.pop("logvar")) <= TOLERANCE
    z = golden.pop("z")
    assert relative_error(model.first_stage_model.decode(z), golden.pop("image.decoded")) <= TOLERANCE
    assert relative_error(model.decode_first_stage(z), golden.pop("image.decode_first_stage")) <= TOLERANCE
    assert not golden, f"unchecked: {list(golden)}"


@pytest.mark.parametrize("version", ["v15", "v21"])
def test_keys_and_shapes_equal_the_released_files(version: str) -> None:
    with torch.device("meta"):
        model = instantiate_from_config(OmegaConf.load(f"models/cldm_{version}.yaml").model)
    ours = {
        key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in model.state_dict().items()
    }
    released = released_keys(f"cldm_{version}")
    released.pop("cond_stage_model.transformer.text_model.embeddings.position_ids", None)
    assert list(ours.items()) == list(released.items())


@torch.no_grad()
def test_sliced_attention_equals_one_call() -> None:
    q, k, v = torch.randn(3, 2, 5, 12, 8)
    torch.testing.assert_close(attend(q, k, v, slice_size=3), attend(q, k, v))
    model, golden, _ = golden_model("unet_v15")
    set_attention_slice(model, 1)
    out = model.model.diffusion_model(golden["x"], golden["t"], golden["context"])
    assert relative_error(out, golden["eps.none"]) <= TOLERANCE
    with pytest.raises(ValueError, match="slice size of 0"):
        attend(q, k, v, slice_size=0)


@torch.no_grad()
def test_control_for_the_first_rows_only() -> None:
    """Guess mode: one batch whose second half is not controlled."""
    model, golden, _ = golden_model("unet_v15")
    x, t, context, hint = (golden[key] for key in ("x", "t", "context", "hint"))
    both = model.apply_model(x, t, {"c_concat": [hint[:1]], "c_crossattn": [context]})
    steered = model.apply_model(x[:1], t[:1], {"c_concat": [hint[:1]], "c_crossattn": [context[:1]]})
    free = model.apply_model(x[1:], t[1:], {"c_concat": None, "c_crossattn": [context[1:]]})
    torch.testing.assert_close(both, torch.cat([steered, free]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="2 hints for a batch of 1"):
        model.apply_model(x[:1], t[:1], {"c_concat": [hint], "c_crossattn": [context[:1]]})


@torch.no_grad()
def test_wrong_shapes_are_named() -> None:
    model, golden, _ = golden_model("unet_v15")
    x, t, context, hint = (golden[key] for key in ("x", "t", "context", "hint"))
    cond = {"c_concat": [hint], "c_crossattn": [context]}
    with pytest.raises(ValueError, match=r"8 times the latent"):
        model.apply_model(x[..., :4], t, cond)
    with pytest.raises(ValueError, match=r"\(2, 1, 64, 64\); expected \[B, 3, H, W\]"):
        model.control_model(x, hint[:, :1], t, context)
    with pytest.raises(ValueError, match="3 control scales; expected 5"):
        model.apply_model(x, t, {**cond, "control_scales": [1.0] * 3})


@pytest.mark.parametrize("new_order", [False, True])
@torch.no_grad()
def test_attention_block_equals_torchs_own(new_order: bool) -> None:
    """Ours against torch.nn.MultiheadAttention with the same weights."""
    block = AttentionBlock(64, num_heads=4, use_new_attention_order=new_order)
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    peer = torch.nn.MultiheadAttention(64, 4, batch_first=True)
    qkv = block.qkv.weight[..., 0], block.qkv.bias
    if not new_order:  # heads alternate in ours, so put all queries, keys and values together
        qkv = [part.unflatten(0, (4, 3, 16)).transpose(0, 1).flatten(0, 2) for part in qkv]
    peer.in_proj_weight.copy_(qkv[0])
    peer.in_proj_bias.copy_(qkv[1])
    peer.out_proj.weight.copy_(block.proj_out.weight[..., 0])
    peer.out_proj.bias.copy_(block.proj_out.bias)
    x = torch.randn(2, 64, 4, 5)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    expected = x + peer(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, (4, 5))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def small_unet(**changes) -> UNetModel:
    options = {
        "image_size": 8,
        "in_channels": 4,
        "model_channels": 32,
        "out_channels": 4,
        "num_res_blocks": 1,
        "attention_resolutions": [2],
        "channel_mult": [1, 2],
        "num_heads": 2,
    }
    return UNetModel(**{**options, **changes}).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_res_blocks": [1, 2], "num_attention_blocks": [1, 1]},
        {"resblock_updown": True, "use_scale_shift_norm": True},
        {"conv_resample": False, "num_heads_upsample": 4},
        {"num_heads": -1, "num_head_channels": 16, "use_new_attention_order": True},
        {"use_spatial_transformer": True, "context_dim": 16, "disable_self_attentions": [True, False]},
        {"use_spatial_transformer": True, "context_dim": [16, 16], "transformer_depth": 2},
        {"num_classes": 3},
        {"num_classes": "continuous"},
        {"n_embed": 10},
        {"dims": 1},
    ],
)
@torch.no_grad()
def test_every_option_builds_a_working_unet(changes: dict) -> None:
    unet = small_unet(**changes)
    for parameter in unet.parameters():
        parameter.normal_(std=0.1)
    shape = (2, 4, 8) if changes.get("dims") == 1 else (2, 4, 8, 8)
    context = torch.randn(2, 5, 16) if "context_dim" in changes else None
    labels = {3: torch.tensor([0, 2]), "continuous": torch.rand(2, 1)}.get(changes.get("num_classes"))
    out = unet(torch.randn(shape), torch.tensor([1, 900]), context, y=labels)
    assert out.shape == (2, changes.get("n_embed", 4), *shape[2:]) and out.isfinite().all()


def test_impossible_unets_are_named() -> None:
    with pytest.raises(ValueError, match="context_dim is 16"):
        small_unet(context_dim=16)
    with pytest.raises(ValueError, match="num_heads or num_head_channels"):
        small_unet(num_heads=-1)
    with pytest.raises(ValueError, match="num_res_blocks has 3 values"):
        small_unet(num_res_blocks=[1, 1, 1])
    with pytest.raises(ValueError, match="num_classes=None"):
        small_unet()(torch.zeros(1, 4, 8, 8), torch.tensor([1]), y=torch.tensor([1]))
    with pytest.raises(ValueError, match="2 values for context_dim; expected one for each of 3"):
        SpatialTransformer(32, 2, 16, depth=3, context_dim=[8, 8])


@torch.no_grad()
def test_up_and_down() -> None:
    x = torch.randn(1, 32, 4, 6)
    torch.testing.assert_close(Upsample(32, False)(x)[..., ::2, ::2], x)
    torch.testing.assert_close(Downsample(32, False)(x), torch.nn.functional.avg_pool2d(x, 2))
    assert Downsample(32, True, dims=3)(torch.randn(1, 32, 3, 4, 4)).shape == (1, 32, 3, 2, 2)
    with pytest.raises(ValueError, match="got 16 channels to upsample, expected 32"):
        Upsample(32, True)(x[:, :16])


def test_checkpointing_changes_no_gradient() -> None:
    def gradients(use_checkpoint: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        unet = small_unet(use_spatial_transformer=True, context_dim=16, use_checkpoint=use_checkpoint).train()
        for parameter in unet.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 5, 16)).square().mean().backward()
        return [parameter.grad for parameter in unet.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_checkpointing_stays_out_of_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("checkpointed outside training")

    monkeypatch.setattr("ldm.modules.diffusionmodules.util.torch_checkpoint", refuse)
    block = ResBlock(32, 8, 0.0, use_checkpoint=True)
    block.eval()(torch.randn(1, 32, 4, 4), torch.randn(1, 8))
    with torch.no_grad():
        block.train()(torch.randn(1, 32, 4, 4), torch.randn(1, 8))
    with pytest.raises(AssertionError, match="checkpointed"):
        block(torch.randn(1, 32, 4, 4), torch.randn(1, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_type_follows_the_weights(dtype: torch.dtype) -> None:
    model, golden, _ = golden_model("unet_v15")
    x, t, context, hint = (golden[key] for key in ("x", "t", "context", "hint"))
    out = model.to(dtype).apply_model(x, t, {"c_concat": [hint], "c_crossattn": [context]})
    assert out.dtype == torch.float32, "the sampler's latents keep their type"
    model.control_scales = [0.7] * 13
    out = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [context]})
    assert relative_error(out, golden["eps.apply"]) <= (3e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-3), (torch.bfloat16, 3e-2), (torch.float16, 3e-2)]
)
@torch.no_grad()
def test_cuda_equals_cpu(dtype: torch.dtype, tolerance: float) -> None:
    model, golden, _ = golden_model("unet_v15")
    x, t, context, hint = (golden[key].cuda() for key in ("x", "t", "context", "hint"))
    model = model.to("cuda", dtype)
    model.control_scales = [0.7] * 13
    out = model.apply_model(x, t, {"c_concat": [hint], "c_crossattn": [context]})
    assert out.isfinite().all()
    assert relative_error(out, golden["eps.apply"]) <= tolerance


def test_low_vram_shift_keeps_a_cpu_model_where_it_is(golden: Callable) -> None:
    model, _, _ = golden_model("unet_v15")
    model.low_vram_shift(is_diffusing=True)
    model.low_vram_shift(is_diffusing=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
