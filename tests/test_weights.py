"""Reading weights: every format gives the same tensors, hostile files run nothing, damaged ones say what is
wrong.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm import weights
from ldm.weight_formats import open_weights
from ldm.weights import (
    WeightsError,
    is_finite,
    load_file_into,
    load_into,
    map_state_dict,
    read_state_dict,
    save_state_dict,
)


def make_state() -> dict[str, Tensor]:
    return {
        "model.weight": torch.randn(8, 5),
        "model.bias": torch.randn(8),
        "half": torch.randn(3, 3).half(),
        "steps": torch.arange(4),
        "one": torch.tensor(2.5),
    }


def write_index(state: dict[str, Tensor], folder: Path) -> Path:
    keys = list(state)
    shards = {"model-00001-of-00002.safetensors": keys[:2], "model-00002-of-00002.safetensors": keys[2:]}
    for name, part in shards.items():
        save_file({key: state[key] for key in part}, folder / name)
    weight_map = {key: name for name, part in shards.items() for key in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def recompress(
    path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    """Write a zip checkpoint anew with changed records."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records:
            archive.writestr(name, change(name, content))


def write(kind: str, state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / f"{kind}.ckpt"
    match kind:
        case "bare":
            torch.save(state, path)
        case "wrapped":
            torch.save({"state_dict": OrderedDict(state), "epoch": 3, "lr_schedulers": []}, path)
        case "legacy":
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)
        case "compressed":
            torch.save(state, path)
            recompress(path, lambda _name, content: content, zipfile.ZIP_DEFLATED)
        case "parameters":
            torch.save(
                {key: nn.Parameter(t) if t.is_floating_point() else t for key, t in state.items()}, path
            )
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file(state, path)
        case "misnamed safetensors":
            save_file(state, path)
        case "misnamed pickle":
            path = path.with_suffix(".safetensors")
            torch.save(state, path)
        case "index":
            path = write_index(state, folder)
        case _:
            raise AssertionError(kind)
    return path


KINDS = [
    "bare",
    "wrapped",
    "legacy",
    "compressed",
    "parameters",
    "safetensors",
    "misnamed safetensors",
    "misnamed pickle",
    "index",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_tensors(kind: str, tmp_path: Path):
    state = make_state()
    path = write(kind, state, tmp_path)
    for read in (read_state_dict, map_state_dict):
        found = read(path)
        assert found.keys() == state.keys()
        for key, tensor in state.items():
            assert found[key].dtype == tensor.dtype
            assert not found[key].requires_grad
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_that_were_read_do_not_hang_on_the_file(kind: str, tmp_path: Path):
    state = make_state()
    path = write(kind, state, tmp_path)
    found = read_state_dict(path)
    for file in tmp_path.iterdir():
        os.truncate(file, 0)  # touching a page of a map of it would now be a bus error
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_only_floating_point_tensors_are_cast(kind: str, tmp_path: Path):
    state = make_state()
    found = read_state_dict(write(kind, state, tmp_path), dtype=torch.bfloat16)
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor.bfloat16() if tensor.is_floating_point() else tensor)
        assert found[key].dtype == (torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)


# --- what Stable Diffusion's and the detector's own files carry ---


def lightning_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    from pytorch_lightning.callbacks.model_checkpoint import ModelCheckpoint

    return {
        "epoch": 4,
        "global_step": np.int64(840000),
        "pytorch-lightning_version": "1.4.2",
        "state_dict": state,
        "callbacks": {ModelCheckpoint: {"monitor": None, "best_model_score": np.float64(0.25)}},
        "meta": {
            "CLASSES": ("wall", "sky"),
            "PALETTE": np.zeros((2, 3), np.uint8),
            "kind": np.float32(1).dtype,
        },
    }


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("numpy_core", [b"numpy.core", b"numpy._core"])
def test_checkpoints_with_lightning_classes_and_numpy_values_load(
    zip_format: bool, numpy_core: bytes, tmp_path: Path
):
    path, state = tmp_path / "sd.ckpt", make_state()
    torch.save(lightning_checkpoint(state), path, _use_new_zipfile_serialization=zip_format)
    if zip_format:
        recompress(path, lambda _name, content: content.replace(b"numpy._core", numpy_core))
    else:
        path.write_bytes(path.read_bytes().replace(b"numpy._core", numpy_core))
    assert numpy_core + b".multiarray\nscalar" in path.read_bytes()
    allowed_before = set(torch.serialization.get_safe_globals())
    found = read_state_dict(path)
    assert set(torch.serialization.get_safe_globals()) == allowed_before
    assert {key: tensor.tolist() for key, tensor in found.items()} == {
        k: t.tolist() for k, t in state.items()
    }


def test_many_threads_can_read_such_checkpoints_at_once(tmp_path: Path):
    path = tmp_path / "sd.ckpt"
    torch.save(lightning_checkpoint(make_state()), path)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: len(read_state_dict(path)), range(64)))
    assert sizes == [5] * 64


# --- hostile files ---


class Runs:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(marker: Path) -> dict[str, tuple[Any, str]]:
    """Objects that make ``marker`` when they are unpickled by Python's own unpickler, and what is named in
    them.
    """
    touch = f"touch '{marker}'"
    system = Runs(os.system, touch)
    return {
        "os.system": (system, "posix.system"),
        "eval": (Runs(eval, f"open({str(marker)!r}, 'w')"), "builtins.eval"),
        "exec": (Runs(exec, f"open({str(marker)!r}, 'w')"), "builtins.exec"),
        "open": (Runs(open, str(marker), "w"), "io.open"),
        "getattr": (Runs(getattr, Runs(builtins.__import__, "os"), "system"), "builtins.getattr"),
        "in a state dict": ({"state_dict": {"weight": torch.ones(2), "bias": system}}, "posix.system"),
        "beside a state dict": ({"state_dict": {"weight": torch.ones(2)}, "epoch": system}, "posix.system"),
        "inside a numpy scalar": ([Runs(np.dtype, system), np.float64(1)], "posix.system"),
        "a class that weights never need": (
            {"state_dict": {"weight": torch.ones(2)}, "path": Path()},
            "pathlib.",
        ),
    }


def write_hostile(container: str, content: Any, path: Path) -> None:
    match container:
        case "zip":
            torch.save(content, path)
        case "legacy":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case "plain pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
        case "pickle protocol 5":
            path.write_bytes(pickle.dumps(content, protocol=5))
        case "zip of protocol 4":
            torch.save(content, path, pickle_protocol=4)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "container", ["zip", "legacy", "plain pickle", "pickle protocol 5", "zip of protocol 4"]
)
@pytest.mark.parametrize("kind", payloads(Path()).keys())
def test_hostile_pickles_are_refused_by_name_and_run_nothing(
    kind: str, container: str, suffix: str, tmp_path: Path
):
    marker, path = tmp_path / "ran", tmp_path / f"hostile{suffix}"
    content, name = payloads(marker)[kind]
    write_hostile(container, content, path)
    for read in (read_state_dict, map_state_dict):
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        if suffix == ".ckpt" or container.startswith("zip"):
            assert name in str(caught.value)
    assert not marker.exists()


def test_the_payloads_would_run_in_pythons_own_unpickler(tmp_path: Path):
    """Or the test above could not fail."""
    marker = tmp_path / "ran"
    for kind in ("os.system", "eval", "exec", "open"):
        pickle.loads(pickle.dumps(payloads(marker)[kind][0]))
        assert marker.exists(), kind
        marker.unlink()


def test_a_tar_checkpoint_is_refused_and_runs_nothing(tmp_path: Path):
    """torch's oldest format, by which files once got past weights-only reading (CVE-2025-32434)."""
    marker, path = tmp_path / "ran", tmp_path / "old.pth"
    evil = pickle.dumps(Runs(os.system, f"touch '{marker}'"), protocol=2)
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(evil)
            archive.addfile(info, io.BytesIO(evil))
    with pytest.raises(WeightsError, match=r"old\.pth.*tar"):
        read_state_dict(path)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file that looks like a TorchScript")
def test_a_torchscript_archive_is_refused(tmp_path: Path):
    path = tmp_path / "script.pth"
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("script/constants.pkl", pickle.dumps((), protocol=2))
    with pytest.raises(WeightsError, match=r"script\.pth.*TorchScript"):
        read_state_dict(path)


def test_tensors_bigger_than_their_memory_are_refused(tmp_path: Path):
    path = tmp_path / "bomb.pth"
    torch.save({"weight": torch.ones(1).expand(10**15)}, path)
    with pytest.raises(WeightsError, match=r"bomb\.pth: weight is not a plain dense tensor"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "odd", [torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse()], ids=["meta", "sparse"]
)
def test_tensors_without_plain_data_are_refused(odd: Tensor, tmp_path: Path):
    path = tmp_path / "odd.pth"
    torch.save({"fine": torch.ones(2), "odd.weight": odd}, path)
    with pytest.raises(WeightsError, match=r"odd\.pth: odd\.weight is not a plain dense tensor"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "name",
    [
        "../other.safetensors",
        "/etc/passwd",
        "a/../../other.safetensors",
        "..\\other.safetensors",
        "C:\\x",
        "",
        3,
    ],
)
def test_an_index_cannot_point_out_of_its_folder(name: Any, tmp_path: Path):
    save_file({"key": torch.ones(2)}, tmp_path / "other.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"key": name}}))
    with pytest.raises(WeightsError, match=r"index\.json"):
        read_state_dict(index)


def test_shards_may_be_links_to_another_folder(tmp_path: Path):
    """Hugging Face's cache is made of them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    index = write_index(make_state(), tmp_path / "snapshot")
    for shard in (tmp_path / "snapshot").glob("*.safetensors"):
        shard.rename(tmp_path / "blobs" / shard.name)
        shard.symlink_to(tmp_path / "blobs" / shard.name)
    assert len(read_state_dict(index)) == 5


# --- damaged and wrong files ---


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"\n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:2c77\nsize 5710753329\n", "git lfs pull"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (bytes(range(256)) * 8, "damaged"),
        (b"\x80\x02}q\x00.", "damaged"),
        (b"\x00" * 4096, "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_files_that_are_not_weights_say_what_they_are(content: bytes, says: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"downloaded{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_folders_are_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"nowhere\.ckpt: there is no such file"):
        read_state_dict(tmp_path / "nowhere.ckpt")
    with pytest.raises(WeightsError, match="this is a folder"):
        read_state_dict(tmp_path)
    index = write_index(make_state(), tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors: there is no such file"):
        read_state_dict(index)
    save_file({"other": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(
        WeightsError, match=r"00002\.safetensors: 3 keys of the index are missing \(half, steps, one\)"
    ):
        read_state_dict(index)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": [1]}}', "[" * 100_000]
)
def test_a_broken_index_is_named(content: str, tmp_path: Path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(WeightsError, match=r"index\.json: (not an index of weights|the index)"):
        read_state_dict(index)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], {"a": 1, "b": {}}, {}, torch.ones(3), {3: torch.ones(3)}]
)
def test_pickles_without_a_dictionary_of_tensors_are_named(content: Any, tmp_path: Path):
    path = tmp_path / "odd.ckpt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"odd\.ckpt: holds"):
        read_state_dict(path)


@pytest.mark.parametrize("kind", ["bare", "legacy", "compressed", "safetensors"])
def test_a_file_cut_anywhere_is_an_error_that_names_it(kind: str, tmp_path: Path):
    path = write(kind, make_state(), tmp_path)
    content = path.read_bytes()
    for length in sorted({*range(0, len(content), max(1, len(content) // 60)), 1, 7, 8, 9, len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError) as caught:
            read_state_dict(path)
        assert str(caught.value).startswith(str(path)), length


@pytest.mark.parametrize("kind", ["bare", "legacy", "safetensors", "index"])
def test_flipped_bits_give_tensors_or_an_error_that_names_the_file(kind: str, tmp_path: Path):
    path = write(kind, make_state(), tmp_path)
    content, chance = path.read_bytes(), random.Random(0)
    failed = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_state_dict(path)
        except WeightsError as error:
            assert str(tmp_path) in str(error)
            failed += 1
        else:
            assert all(isinstance(tensor, Tensor) for tensor in found.values())
    assert failed > 10


def test_a_bit_flipped_safetensors_header_says_fetch_again(tmp_path: Path):
    path = write("safetensors", make_state(), tmp_path)
    content = bytearray(path.read_bytes())
    content[3] ^= 0x40  # the header's length
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"safetensors: cannot be read as weights .* fetch it again"):
        read_state_dict(path)


def test_a_file_replaced_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import ldm.weights

    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = {str(i): torch.full((1024, 1024), float(i)) for i in range(10)}
    save_file(state, path)
    save_file({key: -tensor for key, tensor in state.items()}, other)
    opened = ldm.weights.open_weights

    def open_and_replace(file: Path):
        result = opened(file)
        if other.exists() and open_and_replace.calls:
            shutil.move(other, path)
        open_and_replace.calls += 1
        return result

    open_and_replace.calls = 0
    monkeypatch.setattr(ldm.weights, "open_weights", open_and_replace)
    with pytest.raises(WeightsError, match=r"a\.safetensors: the file was changed while it was being read"):
        read_state_dict(path)


# --- into a module ---


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_without_memory_takes_a_file(suffix: str, dtype: torch.dtype, tmp_path: Path):
    trained, path = network(), tmp_path / f"weights{suffix}"
    trained[1].running_mean.normal_()
    save_state_dict(trained.state_dict(), path)
    with torch.device("meta"):
        module = network().to(dtype)
    module[0].weight.requires_grad_(False)
    load_file_into(module, path)
    for key, tensor in trained.state_dict().items():
        wanted = tensor.to(dtype) if tensor.is_floating_point() else tensor
        assert torch.equal(module.state_dict()[key], wanted)
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, *weights.FLOAT8], ids=str
)
def test_one_number_that_is_none_is_found_wherever_it_is(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    assert is_finite(torch.full((99, 100), largest, dtype=dtype)), "their sum is infinite"
    assert is_finite(torch.empty(0, 3, dtype=dtype)) and is_finite(torch.full((), -largest, dtype=dtype))
    infinity = [] if dtype == torch.float8_e4m3fn else [float("inf"), -float("inf")]  # which has none
    for bad in (float("nan"), *infinity):
        for place in (0, 1, 31, 4097, 9899):
            tensor = torch.randn(9900).to(dtype)
            tensor[place] = torch.tensor(bad).to(dtype)
            assert not is_finite(tensor) and not is_finite(tensor.view(99, 100).T)


def test_whole_numbers_are_finite():
    assert is_finite(torch.arange(3)) and is_finite(torch.tensor([True, False]))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_small_file_is_opened_once(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    opened: list[Path] = []
    monkeypatch.setattr(weights, "open_weights", lambda path: (opened.append(path), open_weights(path))[1])
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    load_file_into(layer, tmp_path / "a.ckpt")
    assert opened == [tmp_path / "a.ckpt"] and not layer.weight.is_meta


def test_load_into_assigns_and_casts_to_the_modules_type():
    module, state = network(), {key: tensor.clone() for key, tensor in network().state_dict().items()}
    state["0.weight"] = state["0.weight"].double()
    load_into(module, state, "there")
    assert module[0].weight.dtype == torch.float32
    assert torch.equal(module[0].weight, state["0.weight"].float())
    assert module[2].weight.data_ptr() == state["2.weight"].data_ptr()


def test_what_does_not_fit_is_named_and_changes_nothing():
    module = network()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    state = {key: tensor + 1 for key, tensor in before.items()}
    del state["0.bias"]
    state |= {"2.weight": torch.zeros(2, 9), "lora.up": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_into(module, state, "my.ckpt", hint="Do this.")
    assert str(caught.value) == (
        "my.ckpt: these weights do not fit Sequential: 1 keys are missing (0.bias); 1 keys are unknown to "
        "the model "
        "(lora.up); 1 shapes differ (2.weight: [2, 9] in the file, [2, 8] in the model). Do this."
    )
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_ignored_and_lenient_keys():
    module = network()
    state = {key: tensor + 1 for key, tensor in module.state_dict().items()}
    state |= {"model_ema.decay": torch.ones(1), "model_ema.0weight": torch.ones(1)}
    load_into(module, state, "my.ckpt", ignore=("model_ema.*",))
    assert torch.equal(module[0].weight, state["0.weight"])
    load_into(module, {"0.bias": torch.ones(8), "unknown": torch.ones(1)}, "my.ckpt", strict=False)
    assert torch.equal(module[0].bias, torch.ones(8))
    with pytest.raises(WeightsError, match="1 shapes differ"):
        load_into(module, {"0.bias": torch.ones(9)}, "my.ckpt", strict=False)
