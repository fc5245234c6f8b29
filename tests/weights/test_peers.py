"""The programs that share these files: diffusers itself, and the key tables of ComfyUI and webui."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_data import load_golden, relative_error, released_keys
from weight_samples import CONTROL, UNET, VAE, State, only, renamed, save, save_empty

from cldm.convert_files import Form, convert_file
from cldm.ddim_hacked import DDIMSampler
from cldm.model import load_control, load_model
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.sampling import Control, Start, guided_conditions, sample_latents
from ldm.layouts import diffusers as layout
from ldm.layouts.recognise import recognise
from ldm.weights import read_state_dict

SCHEDULERS = [name for name in SAMPLERS if name not in ("ddim", "plms")]
PROMPT, NEGATIVE, STEPS, SCALE = "a red house by the sea", "lowres", 5, 7.5


@pytest.fixture(scope="module")
def diffusers():
    """The library, without what it says."""
    import diffusers as library

    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


@pytest.fixture(scope="module")
def folder(config: Path, state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as a pipeline folder, written by us."""
    place = tmp_path_factory.mktemp("folder")
    convert_file(save(state, place / "a.safetensors"), place / "pipe", config, Form("diffusers"))
    return place / "pipe"


def pipeline_of(diffusers, folder: Path):
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_written_folder_samples_what_we_sample(
    diffusers, folder: Path, config: Path, state: State, tmp_path: Path
):
    """Text encoder, UNet, control, scheduler and guidance, all of diffusers: the same latents within 1e-4."""
    pipe = pipeline_of(diffusers, folder)
    hint, noise = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}
    theirs = pipe(
        PROMPT, image=hint, negative_prompt=NEGATIVE, latents=noise, height=64, width=64, **arguments
    ).images
    model = load_model(config, save(state, tmp_path / "a.ckpt"))
    with torch.no_grad():
        cond, uncond = (
            {"c_concat": [hint], "c_crossattn": [model.get_learned_conditioning([text])]}
            for text in (PROMPT, NEGATIVE)
        )
        guidance = {"unconditional_guidance_scale": SCALE, "unconditional_conditioning": uncond}
        ours, _ = DDIMSampler(model).sample(STEPS, 1, (4, 8, 8), cond, verbose=False, x_T=noise, **guidance)
        assert (ours - theirs).abs().max() <= 1e-4
        pictures = pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample
        assert relative_error(pictures, model.decode_first_stage(ours)) <= 1e-4


@pytest.mark.parametrize(
    ("starts", "ends"),
    [((0.0, 0.0), (1.0, 1.0)), ((0.0, 0.3), (0.6, 1.0)), ((0.25, 0.0), (0.9, 0.5))],
    ids=["whole", "one after the other", "odd"],
)
def test_two_controls_in_parts_of_the_run(
    starts: tuple[float, float],
    ends: tuple[float, float],
    diffusers,
    folder: Path,
    config: Path,
    state: State,
    tmp_path: Path,
):
    """``MultiControlNetModel`` with ``control_guidance_start`` and ``end``: the same latents within 1e-4."""
    pipe, model = pipeline_of(diffusers, folder), load_model(config, save(state, tmp_path / "a.ckpt"))
    other = {key: value.roll(1, 0) * 1.1 for key, value in only(state, CONTROL).items()}
    network = load_control(config, save(other, tmp_path / "control_other.ckpt"))
    convert_file(
        save({**state, **other}, tmp_path / "b.ckpt"), tmp_path / "second", config, Form("diffusers")
    )
    nets = [pipe.controlnet, pipeline_of(diffusers, tmp_path / "second").controlnet]
    pipe.controlnet = diffusers.MultiControlNetModel(nets)
    noise, strengths, scale = torch.randn(1, 4, 8, 8), [0.5, 0.7], 4.0
    pictures = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in (1, 2)]
    hints = [torch.from_numpy(picture).permute(2, 0, 1)[None] / 255.0 for picture in pictures]
    theirs = pipe(
        PROMPT, image=hints, negative_prompt=NEGATIVE, latents=noise, height=64, width=64,
        num_inference_steps=STEPS, guidance_scale=scale, controlnet_conditioning_scale=strengths,
        control_guidance_start=list(starts), control_guidance_end=list(ends), output_type="latent",
    ).images  # fmt: skip
    second = Control(pictures[1], [strengths[1]] * 5, network=network, window=(starts[1], ends[1]))
    with torch.no_grad():
        cond, uncond = guided_conditions(
            model, pictures[0], [PROMPT], [NEGATIVE], [strengths[0]] * 5, window=(starts[0], ends[0]),
            further=[second],
        )  # fmt: skip
        guidance = {"unconditional_guidance_scale": scale, "unconditional_conditioning": uncond}
        ours, _ = DDIMSampler(model).sample(STEPS, 1, (4, 8, 8), cond, verbose=False, x_T=noise, **guidance)
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_its_schedulers_sample_alike_in_its_pipeline_and_here(
    name: str, diffusers, folder: Path, config: Path, state: State, tmp_path: Path
):
    """Two pictures with a seed each: the same latents within 1e-3."""
    pipe = pipeline_of(diffusers, folder)
    sampler = SAMPLERS[name].make(load_model(config, save(state, tmp_path / "a.ckpt")))
    kind = getattr(diffusers, sampler.scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **sampler.options)
    hint, noise = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 8, 8)
    arguments = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "latent"}

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    theirs = pipe(
        [PROMPT] * 2, image=hint, negative_prompt=[NEGATIVE] * 2, latents=noise, height=64, width=64,
        generator=seeds(), **arguments,
    ).images  # fmt: skip
    with torch.no_grad():
        cond, uncond = (
            {"c_concat": [hint], "c_crossattn": [sampler.model.get_learned_conditioning([text] * 2)]}
            for text in (PROMPT, NEGATIVE)
        )
    guidance = {"unconditional_guidance_scale": SCALE, "unconditional_conditioning": uncond}
    ours, _ = sampler.sample(
        STEPS, 2, (4, 8, 8), cond, verbose=False, x_T=noise, generator=seeds(), **guidance
    )
    assert relative_error(ours, theirs) <= 1e-3


@pytest.mark.parametrize(
    ("name", "strength"), [("ddim", 0.3), ("ddim", 1.0), *((name, 0.75) for name in ("ddim", *SCHEDULERS))]
)
def test_image_to_image_begins_where_its_pipeline_does(
    name: str, strength: float, diffusers, folder: Path, config: Path, state: State, tmp_path: Path
):
    """Latents, noise and steps of diffusers' image to image, in ten steps: the same latents within 1e-3."""
    pipe = diffusers.StableDiffusionControlNetImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    model = load_model(config, save(state, tmp_path / "a.ckpt"))
    if name != "ddim":
        sampler = SAMPLERS[name].make(model)
        kind = getattr(diffusers, sampler.scheduler)
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **sampler.options)
    hint, source = torch.rand(2, 3, 64, 64), torch.randn(2, 4, 8, 8)

    def seeds() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    theirs = pipe(
        [PROMPT] * 2, image=source, control_image=hint, negative_prompt=[NEGATIVE] * 2, generator=seeds(),
        strength=strength, num_inference_steps=10, guidance_scale=SCALE, output_type="latent",
        controlnet_conditioning_scale=1.0,
    ).images  # fmt: skip
    with torch.no_grad():
        cond, uncond = (
            {"c_concat": [hint], "c_crossattn": [model.get_learned_conditioning([text] * 2)]}
            for text in (PROMPT, NEGATIVE)
        )
        ours = sample_latents(
            model, cond, uncond, steps=10, scale=SCALE, generator=seeds(), sampler=name,
            start=Start(source, strength),
        )  # fmt: skip
    assert relative_error(ours, theirs) <= 1e-3


def test_sd_2_in_a_written_folder_samples_what_we_sample(
    diffusers, config_v21: Path, state_v21: State, tmp_path: Path
):
    """open_clip's encoder under transformers' names, without its last block: the same embedding."""
    source = save(state_v21, tmp_path / "a.ckpt")
    convert_file(source, tmp_path / "pipe", config_v21, Form("diffusers"))
    pipe, model = pipeline_of(diffusers, tmp_path / "pipe"), load_model(config_v21, source)
    tokens = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tokens, model.cond_stage_model.tokenize(PROMPT)[:, 0])
    golden, _ = load_golden("unet_v21")
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    step = (golden["x"], golden["t"])
    with torch.no_grad():
        text = pipe.text_encoder(tokens).last_hidden_state
        assert relative_error(text, model.get_learned_conditioning([PROMPT])) <= 1e-5
        *down, middle = pipe.controlnet(
            *step, golden["context"], golden["hint"], conditioning_scale=0.7, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down[0], "mid_block_additional_residual": middle}
        eps = pipe.unet(*step, golden["context"], **residuals).sample
        assert relative_error(eps, model.apply_model(*step, cond)) <= 1e-5


def test_what_diffusers_saves_is_read(diffusers, folder: Path, config: Path, state: State, tmp_path: Path):
    """Saved again by diffusers and by transformers 5, which leaves text_model. out of the names."""
    pipe = pipeline_of(diffusers, folder)
    text = type(pipe.text_encoder)(pipe.text_encoder.config)  # made here, not loaded: with today's names
    text.load_state_dict(pipe.text_encoder.state_dict())
    pipe.text_encoder = text
    pipe.save_pretrained(tmp_path / "again")
    assert not any(
        "text_model" in key for key in read_state_dict(tmp_path / "again/text_encoder/model.safetensors")
    )
    model = load_model(config, tmp_path / "again")
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


@pytest.mark.parametrize("form", [Form("original", "control"), Form("diffusers", "control")])
def test_a_control_in_one_file(form: Form, diffusers, folder: Path, config: Path, tmp_path: Path):
    """``from_single_file`` on the original's layout and on diffusers' own, against ``from_pretrained``."""
    convert_file(folder, tmp_path / "c.safetensors", config, form)
    convert_file(folder, tmp_path / "c", config, Form("diffusers", "control"))
    whole = diffusers.ControlNetModel.from_pretrained(tmp_path / "c").state_dict()
    single = diffusers.ControlNetModel.from_single_file(
        tmp_path / "c.safetensors", config=str(tmp_path / "c"), local_files_only=True
    ).state_dict()
    assert whole.keys() == single.keys()
    assert all(torch.equal(tensor, single[key]) for key, tensor in whole.items())


FOREIGN = {
    "ControlNetModel": ("a ControlNet of Stable Diffusion XL", {}),  # by the width that it has by default
    "ControlNetXSAdapter": ("a ControlNet-XS", {}),
    "FluxControlNetModel": ("a ControlNet of Flux", {"num_layers": 1, "num_single_layers": 1}),
    "FluxTransformer2DModel": ("Flux", {"num_layers": 1, "num_single_layers": 1}),
    "MotionAdapter": ("a module of AnimateDiff", {}),
    "QwenImageControlNetModel": ("a ControlNet of Qwen-Image", {"num_layers": 1}),
    "SD3ControlNetModel": ("a ControlNet of Stable Diffusion 3", {"num_layers": 1}),
    "SD3Transformer2DModel": ("Stable Diffusion 3", {"num_layers": 1}),
    "SparseControlNetModel": ("a module of AnimateDiff", {}),
    "T2IAdapter": ("a T2I-Adapter", {}),
    "UNet2DConditionModel": ("a latent consistency model", {"time_cond_proj_dim": 8}),
    "UNet3DConditionModel": ("a model of videos", {}),
    "AutoencoderKL": ("a VAE of 16 latent channels", {"latent_channels": 16}),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_networks_of_diffusers_that_have_no_use_here_are_named(name: str, diffusers, tmp_path: Path):
    """Built without weights: their true keys and shapes."""
    called, options = FOREIGN[name]
    with torch.device("meta"):
        network = getattr(diffusers, name)(**options)
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    kind = recognise(save_empty(shapes, tmp_path / "a.safetensors"))
    assert kind.role == "foreign"
    assert kind.what.startswith(called)


# --- key tables, written anew from the rules that ComfyUI and webui use for SD 1.x ---

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def sd_places(control: bool) -> dict[str, str]:
    """Original module -> diffusers module for SD 1.x's four levels of two blocks: 1 + 3 * level + block, and
    so on.
    """
    places = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
    }

    def resnet(ours: str, theirs: str) -> None:
        places.update((f"{ours}.{a}", f"{theirs}.{b}") for a, b in RESNET.items())

    for level, block in product(range(4), range(2)):
        number = 1 + 3 * level + block
        resnet(f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}")
        places[f"input_blocks.{number}.1"] = f"down_blocks.{level}.attentions.{block}"
    for level in range(3):
        places[f"input_blocks.{3 * level + 3}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    resnet("middle_block.0", "mid_block.resnets.0")
    resnet("middle_block.2", "mid_block.resnets.1")
    if control:
        places |= {f"zero_convs.{i}.0": f"controlnet_down_blocks.{i}" for i in range(12)}
        places |= {"middle_block_out.0": "controlnet_mid_block", "input_hint_block.0": f"{HINT}.conv_in"}
        places |= {f"input_hint_block.{2 * i + 2}": f"{HINT}.blocks.{i}" for i in range(6)}
        return {**places, "input_hint_block.14": f"{HINT}.conv_out"}
    for level, block in product(range(4), range(3)):
        number = 3 * level + block
        resnet(f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}")
        places[f"output_blocks.{number}.1"] = f"up_blocks.{level}.attentions.{block}"
    # The lowest level has no attention, so its upsampling is the second layer, elsewhere the third.
    for number, layer, level in ((2, 1, 0), (5, 2, 1), (8, 2, 2)):
        places[f"output_blocks.{number}.{layer}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return {**places, "out.0": "conv_norm_out", "out.2": "conv_out"}


HINT = "controlnet_cond_embedding"


def by_table(key: str, places: dict[str, str]) -> str:
    """The key by the longest place that it begins with."""
    place = max((p for p in places if key.startswith(f"{p}.")), key=len)
    return places[place] + key[len(place) :]


@pytest.mark.parametrize("version", ["cldm_v15", "cldm_v21"])
@pytest.mark.parametrize(("part", "prefix"), [("unet", UNET), ("control", CONTROL)])
def test_names_of_the_networks(version: str, part: str, prefix: str):
    keys = [key[len(prefix) :] for key in released_keys(version) if key.startswith(prefix)]
    assert len(keys) in (686, 340)
    names = layout.names(part, keys)
    assert names == {key: by_table(key, sd_places(part == "control")) for key in keys}
    assert len(set(names.values())) == len(keys)


VAE_NAMES = {
    "encoder.conv_in.weight": "encoder.conv_in.weight",
    "encoder.down.0.block.1.conv1.weight": "encoder.down_blocks.0.resnets.1.conv1.weight",
    "encoder.down.1.block.0.nin_shortcut.bias": "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
    "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
    "encoder.mid.block_1.norm1.weight": "encoder.mid_block.resnets.0.norm1.weight",
    "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
    "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    "decoder.mid.block_2.conv2.bias": "decoder.mid_block.resnets.1.conv2.bias",
    "decoder.mid.attn_1.norm.weight": "decoder.mid_block.attentions.0.group_norm.weight",
    "decoder.mid.attn_1.k.bias": "decoder.mid_block.attentions.0.to_k.bias",
    "decoder.mid.attn_1.v.bias": "decoder.mid_block.attentions.0.to_v.bias",
    "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
    "decoder.up.3.block.0.norm2.bias": "decoder.up_blocks.0.resnets.0.norm2.bias",
    "decoder.up.3.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
    "decoder.up.1.block.0.nin_shortcut.weight": "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
    "decoder.up.0.block.2.conv1.weight": "decoder.up_blocks.3.resnets.2.conv1.weight",
    "decoder.conv_out.bias": "decoder.conv_out.bias",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


def test_names_of_the_vae():
    keys = [key[len(VAE) :] for key in released_keys("cldm_v15") if key.startswith(VAE)]
    names = layout.names("vae", keys)
    assert {key: names[key] for key in VAE_NAMES} == VAE_NAMES
    assert len(set(names.values())) == len(keys) == 248


def test_a_written_control_has_the_keys_that_comfyui_and_webui_look_for(
    config: Path, state: State, tmp_path: Path
):
    """Both take ``control_model.`` off and load the rest into their ControlNet: its keys are the released
    ones.
    """
    convert_file(save(state, tmp_path / "a.ckpt"), tmp_path / "c.safetensors", config, Form(part="control"))
    found = read_state_dict(tmp_path / "c.safetensors")
    for sign in (
        "control_model.zero_convs.0.0.weight",  # ComfyUI: a .pth control
        "control_model.input_hint_block.0.weight",  # both: the hint's channels
        "control_model.input_blocks.0.0.weight",  # ComfyUI: the UNet's shape
        "control_model.middle_block_out.0.weight",
    ):
        assert sign in found
    assert not any("difference" in key or "lora" in key for key in found)
    released = {key for key in released_keys("cldm_v15") if key.startswith(CONTROL)}
    assert {key.split(".")[1] for key in found} == {key.split(".")[1] for key in released}
    assert renamed(only(state, CONTROL), CONTROL, "").keys() == renamed(found, CONTROL, "").keys()
