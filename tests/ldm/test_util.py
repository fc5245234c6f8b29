"""Objects from YAML: what is built, and what a file from a stranger must not reach."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from ldm.util import count_params, default, exists, instantiate_from_config, log_txt_as_img


def test_builds_the_class_with_its_parameters() -> None:
    block = instantiate_from_config(
        OmegaConf.create({"target": "ldm.modules.attention.FeedForward", "params": {"dim": 8, "mult": 2}})
    )
    assert block(torch.zeros(1, 3, 8)).shape == (1, 3, 8)
    assert count_params(block) == 8 * 16 + 16 + 16 * 8 + 8


def test_placeholders_of_the_original_are_no_model() -> None:
    assert instantiate_from_config("__is_first_stage__") is None
    assert instantiate_from_config("__is_unconditional__") is None
    with pytest.raises(KeyError, match="target"):
        instantiate_from_config({"params": {}})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "ldm.util.importlib",
        "ldm.util.importlib.import_module",
        "ldm.util.inspect",
        "ldm.util.Image",
        "ldm.util.DictConfig",
        "ldm.weights.tqdm",
        "cldm.model.threading",
        "ldmx.util.default",
        "torch.nnx.Identity",
        "",
        None,
        3,
    ],
)
def test_targets_outside_the_allow_list_are_refused(target: object) -> None:
    with pytest.raises(ValueError, match="target"):
        instantiate_from_config({"target": target, "params": {"name": "os"}})


def test_a_function_is_no_target() -> None:
    with pytest.raises(ValueError, match="expected a class"):
        instantiate_from_config(
            {"target": "ldm.util.get_obj_from_str", "params": {"string": "ldm.util.exists"}}
        )


def test_errors_name_target_and_yaml_key() -> None:
    config = OmegaConf.create(
        {
            "model": {
                "unet": {"target": "ldm.modules.attention.FeedForward", "params": {"dim": 8, "wide": 2}},
                "vae": {"target": "ldm.models.autoencoder.Missing"},
                "loss": {"target": "ldm.nowhere.Loss"},
            }
        }
    )
    with pytest.raises(
        ValueError, match=r"model\.unet\.params: ldm\.modules\.attention\.FeedForward .*'wide'.*mult"
    ):
        instantiate_from_config(config.model.unet)
    with pytest.raises(ValueError, match=r"model\.vae\.target: .*autoencoder\.Missing"):
        instantiate_from_config(config.model.vae)
    with pytest.raises(ValueError, match=r"model\.loss\.target: .*ldm\.nowhere"):
        instantiate_from_config(config.model.loss)


def test_unknown_parameters_are_found_behind_keyword_arguments() -> None:
    """LatentDiffusion hands its keyword arguments on to DDPM."""
    with pytest.raises(
        ValueError, match=r"ldm\.models\.diffusion\.ddpm\.LatentDiffusion takes no parameter 'betas'"
    ):
        instantiate_from_config(
            {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {"betas": 3}}
        )
    # torch.nn.Identity, the loss of released files, takes anything.
    instantiate_from_config({"target": "torch.nn.Identity", "params": {"anything": 3}})


def test_defaults() -> None:
    assert default(0, 1) == 0
    assert default(None, lambda: 1) == 1
    assert exists(0) and not exists(None)


def test_captions_become_pictures() -> None:
    pictures = log_txt_as_img((64, 32), ["a house", ""], size=12)
    assert pictures.shape == (2, 3, 32, 64) and pictures.dtype == torch.float32
    assert pictures[0].min() < -0.5  # ink
    assert (pictures[1] == 1).all()  # paper
