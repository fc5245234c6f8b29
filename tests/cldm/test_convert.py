"""Conversions of state dicts, on tensors small enough to check by hand, and on the released keys."""

from __future__ import annotations

import pytest
import torch
from golden_data import released_keys
from torch import Tensor

from cldm.convert import add_control, counterpart, get_node_name, merge_control, transfer_control
from ldm.weights import WeightsError


def full(value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape or (2, 3), value, dtype=dtype)


SD = {
    "betas": full(9, 4),
    "model.diffusion_model.input.weight": full(1),
    "model.diffusion_model.out.weight": full(2),
    "first_stage_model.encoder.weight": full(3),
    "cond_stage_model.text.weight": full(4),
}
CONTROL = {"control_model.input.weight": full(1), "control_model.zero_convs.0.weight": full(0)}
SCRATCH = {key: torch.empty_like(tensor, device="meta") for key, tensor in {**SD, **CONTROL}.items()} | {
    "betas": full(8, 4),
    "control_model.zero_convs.0.weight": full(0.5),
}


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.startswith(prefixes)}


def values(state: dict[str, Tensor]) -> dict[str, float]:
    """Each tensor's one value."""
    assert all((tensor == tensor.flatten()[0]).all() for tensor in state.values())
    return {key: tensor.flatten()[0].item() for key, tensor in state.items()}


def test_names():
    assert get_node_name("control_model.input.weight", "control_") == (True, "model.input.weight")
    assert get_node_name("model.input.weight", "control_") == (False, "")
    assert counterpart("control_model.input.weight") == "model.diffusion_model.input.weight"
    assert counterpart("first_stage_model.encoder.weight") == "first_stage_model.encoder.weight"


# --- add ---


def test_a_new_control_is_the_encoders_copy_with_fresh_ends():
    state, new = add_control(SD, SCRATCH)
    assert list(state) == list(SCRATCH)
    assert values(state) == {
        **values(SD),
        "control_model.input.weight": 1,
        "control_model.zero_convs.0.weight": 0.5,
    }
    assert new == ["control_model.zero_convs.0.weight"]


def test_files_without_schedules_get_the_definitions():
    state, new = add_control(without(SD, "betas"), SCRATCH)
    assert state["betas"][0] == 8
    assert new == ["betas", "control_model.zero_convs.0.weight"]


def test_a_new_control_is_of_the_definitions_type_and_ignores_what_it_has_no_place_for():
    half = {key: tensor.half() for key, tensor in SD.items()} | {
        "model_ema.decay": full(1),
        "control_model.x": full(1),
    }
    state, _ = add_control(half, SCRATCH)
    assert list(state) == list(SCRATCH)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_incomplete_or_other_models_get_no_control():
    for lost in without(SD, "betas"):
        with pytest.raises(WeightsError, match=f"lack .* keys of Stable Diffusion .*{lost}"):
            add_control(without(SD, lost), SCRATCH)
    with pytest.raises(WeightsError, match=r"input\.weight: \[2, 9\], not \[2, 3\]"):
        add_control({**SD, "model.diffusion_model.input.weight": full(1, 2, 9)}, SCRATCH)


@pytest.mark.parametrize("name", ["cldm_v15", "cldm_v21"])
def test_the_new_keys_of_the_released_models_are_zero_convolutions_and_the_hint_block(name: str):
    released = released_keys(name)
    scratch = {
        key: torch.empty(shape, device="meta" if not key.startswith(("control_model.", "betas")) else None)
        for key, (shape, _) in released.items()
    }
    state, new = add_control(without(scratch, "control_model."), scratch)
    assert list(state) == list(released)
    assert {key.split(".")[1] for key in new} == {"zero_convs", "input_hint_block", "middle_block_out"}
    assert len(new) == 2 * (12 + 8 + 1)


# --- transfer ---

TRAINED = {**SD, "control_model.input.weight": full(1.5), "control_model.zero_convs.0.weight": full(0.25)}
OTHER = {key: tensor + 10 for key, tensor in SD.items()}


def test_a_transferred_control_keeps_its_offset():
    state, borrowed = transfer_control(SD, TRAINED, OTHER)
    assert list(state) == list(TRAINED)
    assert values(state) == {
        **values(OTHER),
        "control_model.input.weight": 11.5,  # 1.5 + (11 - 1)
        "control_model.zero_convs.0.weight": 0.25,
    }
    assert borrowed == []


def test_a_unet_that_was_trained_too_keeps_its_offset():
    state, _ = transfer_control(SD, {**TRAINED, "model.diffusion_model.out.weight": full(2.5)}, OTHER)
    assert values(state)["model.diffusion_model.out.weight"] == 12.5


def test_weights_that_training_left_alone_are_the_targets_to_the_bit():
    torch.manual_seed(0)
    base, other = ({key: torch.randn(50, 50) for key in SD} for _ in range(2))
    trained = {**base, "control_model.input.weight": base["model.diffusion_model.input.weight"]}
    state, _ = transfer_control(base, trained, other)
    for key in SD:
        assert torch.equal(state[key], other[key])
    assert torch.equal(state["control_model.input.weight"], other["model.diffusion_model.input.weight"])


def test_transferring_to_the_base_changes_nothing():
    state, _ = transfer_control(SD, TRAINED, SD)
    assert values(state) == values(TRAINED)


def test_parts_that_the_target_lacks_come_from_the_control():
    state, borrowed = transfer_control(SD, TRAINED, without(OTHER, "first_stage_model.", "cond_stage_model."))
    assert borrowed == ["first_stage_model.encoder.weight", "cond_stage_model.text.weight"]
    assert [values(state)[key] for key in borrowed] == [3, 4]


def test_a_control_alone_takes_the_rest_from_the_target():
    state, borrowed = transfer_control(SD, without(TRAINED, *SD), {**OTHER, "model_ema.decay": full(1)})
    whole, _ = transfer_control(SD, TRAINED, OTHER)
    assert values(state) == values(whole)
    assert borrowed == []


def test_half_precision_is_added_in_float32():
    """float16 has no 2049 and no 2051."""
    base = {**SD, "model.diffusion_model.input.weight": full(2048, dtype=torch.float16)}
    target = {**SD, "model.diffusion_model.input.weight": full(2050, dtype=torch.float16)}
    control = {**TRAINED, "control_model.input.weight": full(2049)}
    assert values(transfer_control(base, control, target)[0])["control_model.input.weight"] == 2051


@pytest.mark.parametrize(
    ("base", "control", "target", "says"),
    [
        (SD, SD, OTHER, "no ControlNet"),
        (
            without(SD, "model.diffusion_model.input"),
            TRAINED,
            OTHER,
            "the base lacks model.diffusion_model.input",
        ),
        (SD, TRAINED, without(OTHER, "model."), "the target lacks model.diffusion_model"),
        (
            SD,
            TRAINED,
            {**OTHER, "model.diffusion_model.out.weight": full(1, 2, 4)},
            r"\[2, 4\] in the target and \[2,",
        ),
        (
            SD,
            CONTROL,
            without(OTHER, "cond_stage_model."),
            "neither the target nor the control has cond_stage_model",
        ),
    ],
)
def test_transfers_that_cannot_be_are_errors(base: dict, control: dict, target: dict, says: str):
    with pytest.raises(WeightsError, match=says):
        transfer_control(base, control, target)


def test_a_control_with_an_unlocked_decoder_takes_the_rest_from_the_target():
    part = {**without(TRAINED, *SD), "model.diffusion_model.out.weight": full(2.5)}
    state, _ = transfer_control(SD, part, OTHER)
    assert values(state) == {
        **values(transfer_control(SD, TRAINED, OTHER)[0]),
        "model.diffusion_model.out.weight": 12.5,
    }


# --- merge ---


@pytest.mark.parametrize(
    "base", [SD, {**SD, "control_model.input.weight": full(7), "model_ema.decay": full(1)}]
)
@pytest.mark.parametrize(
    "control", [without(TRAINED, *SD), {**TRAINED, "model.diffusion_model.out.weight": full(7)}]
)
def test_base_and_control_make_a_whole_model(base: dict, control: dict):
    assert values(merge_control(base, control)) == values(TRAINED)
    assert list(merge_control(base, control)) == list(TRAINED)


def test_an_unlocked_decoder_comes_with_its_control():
    part = {**without(TRAINED, *SD), "model.diffusion_model.out.weight": full(2.5)}
    assert values(merge_control(SD, part)) == {**values(TRAINED), "model.diffusion_model.out.weight": 2.5}


def test_merges_that_cannot_be_are_errors():
    with pytest.raises(WeightsError, match="no whole Stable Diffusion"):
        merge_control(CONTROL, CONTROL)
    with pytest.raises(WeightsError, match="no ControlNet"):
        merge_control(SD, SD)
    with pytest.raises(WeightsError, match=r"different versions .*\[2, 4\], and \[2, 3\] in the base"):
        merge_control(SD, {"control_model.input.weight": full(1, 2, 4)})
