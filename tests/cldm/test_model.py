"""Models from files: the released keys, one way in, little memory, and errors that say what a file is."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from golden_data import load_golden, recipe_state, relative_error, released_keys, tiny_config
from omegaconf import OmegaConf
from torch import Tensor, nn

from cldm.model import create_model, get_state_dict, load_model, load_state_dict, parameters_on_meta
from ldm.weights import WeightsError, save_state_dict

REPOSITORY = Path(__file__).parents[2]
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def write_config(folder: Path, version: str = "unet_v15") -> Path:
    path = folder / f"{version}.yaml"
    OmegaConf.save({"model": tiny_config(load_golden(version)[1])}, path)
    return path


def make_state(config: Path) -> dict[str, Tensor]:
    """The recipe's weights; schedules as the model computes them."""
    model = create_model(config)
    return {**model.state_dict(), **recipe_state(dict(model.named_parameters()))}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def state(config: Path) -> dict[str, Tensor]:
    return make_state(config)


def assert_equal(model: nn.Module, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    weights = dict(model.named_parameters()).keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key].to(dtype) if key in weights else state[key]), key


# --- the released files ---


@pytest.mark.parametrize("name", ["cldm_v15", "cldm_v21"])
def test_keys_and_shapes_are_the_released_ones_in_their_order(name: str):
    with parameters_on_meta():
        model = create_model(REPOSITORY / "models" / f"{name}.yaml")
    released = released_keys(name)
    released.pop(POSITION_IDS, None)  # accepted when it comes; libraries of today do not keep it
    ours = {
        key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in model.state_dict().items()
    }
    assert ours == released
    assert list(ours) == list(released)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


# --- loading ---


@pytest.mark.parametrize(
    ("version", "suffix", "dtype"),
    [
        ("unet_v15", ".ckpt", None),
        ("unet_v15", ".safetensors", torch.float16),
        ("unet_v21", ".pth", torch.float16),
    ],
)
def test_a_file_gives_a_whole_model_in_eval_mode(
    version: str, suffix: str, dtype: torch.dtype | None, tmp_path: Path
):
    config, path = write_config(tmp_path, version), tmp_path / f"weights{suffix}"
    state = make_state(config)
    save_state_dict(state, path)
    model = load_model(config, path, dtype=dtype)
    assert not model.training
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert_equal(model, state, dtype or torch.float32)
    for key, tensor in create_model(config).named_buffers():
        assert torch.equal(model.get_buffer(key), tensor), (
            "also those that no file holds, and schedules in float32"
        )


def test_a_loaded_file_computes_what_the_original_computed(
    config: Path, state: dict[str, Tensor], tmp_path: Path
):
    """From a file, through this module, to the recorded output: nothing on the way is lost or mixed up."""
    golden, _ = load_golden("unet_v15")
    save_state_dict(state, tmp_path / "weights.ckpt")
    model = load_model(config, tmp_path / "weights.ckpt")
    cond = {"c_concat": [golden["hint"]], "c_crossattn": [golden["context"]], "control_scales": [0.7] * 5}
    with torch.no_grad():
        eps = model.apply_model(golden["x"], golden["t"], cond)
    assert relative_error(eps, golden["eps.apply"]) <= 1e-5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_file_goes_to_the_gpu(config: Path, state: dict[str, Tensor], tmp_path: Path):
    save_state_dict(state, tmp_path / "weights.ckpt")
    model = load_model(config, tmp_path / "weights.ckpt", device="cuda", dtype=torch.float16)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}
    assert_equal(model.cpu(), state, torch.float16)


def test_half_precision_files_load_as_float32(config: Path, state: dict[str, Tensor], tmp_path: Path):
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_state_dict(half, tmp_path / "half.safetensors")
    model = load_model(config, tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_harmless_keys_may_come_and_schedules_may_be_missing(
    config: Path, state: dict[str, Tensor], tmp_path: Path
):
    schedules = dict(create_model(config).named_buffers())
    file = {key: tensor for key, tensor in state.items() if key not in schedules}
    file |= {
        "model_ema.decay": torch.ones(()),
        POSITION_IDS: torch.arange(77)[None],
        "first_stage_model.loss.x": file["control_model.zero_convs.0.0.bias"],
    }
    torch.save({"state_dict": file}, tmp_path / "weights.ckpt")
    model = load_model(config, tmp_path / "weights.ckpt")
    assert_equal(model, state)
    assert torch.equal(model.alphas_cumprod, schedules["alphas_cumprod"])


def test_a_control_alone_joins_a_base(config: Path, state: dict[str, Tensor], tmp_path: Path):
    control = {key: tensor + 1 for key, tensor in state.items() if key.startswith("control_model.")}
    base = {key: tensor for key, tensor in state.items() if not key.startswith("control_model.")}
    save_state_dict(base, tmp_path / "sd.safetensors")
    save_state_dict(control, tmp_path / "control.pth")
    model = load_model(config, tmp_path / "sd.safetensors", control=tmp_path / "control.pth")
    assert_equal(model, {**base, **control})
    save_state_dict(state, tmp_path / "whole.ckpt")
    model = load_model(config, tmp_path / "whole.ckpt", control=tmp_path / "control.pth")
    assert_equal(model, {**base, **control})
    changed = {key: tensor + 1 for key, tensor in state.items()}
    save_state_dict(changed, tmp_path / "other.safetensors")
    model = load_model(config, tmp_path / "sd.safetensors", control=tmp_path / "other.safetensors")
    assert_equal(model, {**base, **control})
    with pytest.raises(WeightsError, match=r"sd\.safetensors: this is .*, not a control; give it"):
        load_model(config, tmp_path / "whole.ckpt", control=tmp_path / "sd.safetensors")
    with pytest.raises(WeightsError, match=r"^\S*nowhere\.pth: there is no such file"):
        load_model(config, tmp_path / "whole.ckpt", control=tmp_path / "nowhere.pth")


def test_the_names_of_the_original(state: dict[str, Tensor], tmp_path: Path):
    torch.save({"state_dict": state}, tmp_path / "weights.ckpt")
    loaded = load_state_dict(tmp_path / "weights.ckpt", location="cpu")
    assert loaded.keys() == state.keys()
    assert get_state_dict({"state_dict": state, "epoch": 1}) is state
    assert get_state_dict(state) is state


def test_only_this_threads_modules_go_to_meta():
    built: list[nn.Module] = []
    with parameters_on_meta():
        thread = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        mine = nn.BatchNorm1d(2)
    assert mine.weight.is_meta
    assert not mine.running_mean.is_meta
    assert not built[0].weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta


# --- broken definitions; weights that do not fit are in tests/weights ---


@pytest.mark.parametrize(
    "content",
    [None, "", "[1, 2]", "model: 3", "model: {params: {}}", "a: [", "model: {target: os.system}", "\xff"],
)
def test_a_broken_definition_is_named(content: str | None, tmp_path: Path):
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"broken\.yaml|os\.system"):
        create_model(path)


# --- memory ---


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path):
    """The peak of a fresh process, mapped pages included, over the size of the file: at most 1.35."""
    case = load_golden("unet_v15")[1]
    config = tiny_config(case)
    for stage in ("control_stage_config", "unet_config"):
        config.params[stage].params.model_channels = 128
    OmegaConf.save({"model": config}, tmp_path / "middle.yaml")
    script = """
        import gc, json, sys
        from pathlib import Path
        import torch
        from cldm.model import create_model, load_model
        from ldm.weights import save_state_dict

        def kilobytes(name):
            lines = Path("/proc/self/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith(name))
            return int(line.split()[1])

        folder = Path(sys.argv[1])
        config = folder / "middle.yaml"
        state = create_model(config).state_dict()
        for suffix in (".ckpt", ".safetensors"):
            save_state_dict(state, folder / f"weights{suffix}")
        del state
        peaks = {}
        for suffix, dtype in ((".ckpt", "float32"), (".ckpt", "bfloat16"), (".safetensors", "float16")):
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")
            before = kilobytes("VmRSS")
            model = load_model(config, folder / f"weights{suffix}", dtype=getattr(torch, dtype))
            used = kilobytes("VmHWM") - before
            peaks[f"{suffix} {dtype}"] = used * 1024 / (folder / f"weights{suffix}").stat().st_size
            del model
        print(json.dumps({"bytes": (folder / "weights.ckpt").stat().st_size, "peaks": peaks}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    assert 80e6 < found["bytes"] < 300e6
    for name, peak in found["peaks"].items():
        assert peak < (1.35 if "float32" in name else 0.85), found
