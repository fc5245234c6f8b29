"""Reading, checking and cutting of data sets, and the order of batches."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from annotator.ade20k import PALETTE
from controlnet.generation.png import save_png
from controlnet.training.data.buckets import assign_buckets, fit, make_buckets
from controlnet.training.data.dataset import ControlDataset, Draw
from controlnet.training.data.loader import BatchStream, make_loader
from controlnet.training.data.records import DataSetError, read_records
from tutorial_dataset import MyDataset


def write_set(root: Path, sizes: list[tuple[int, int]], list_name: str = "prompt.json") -> Path:
    """A data set of one-coloured pictures with (height, width), hints of noise, in either layout."""
    names = (
        ("source", "target", "prompt")
        if list_name == "prompt.json"
        else ("conditioning_image", "file_name", "text")
    )
    root.mkdir(exist_ok=True)
    rows = []
    for number, (height, width) in enumerate(sizes):
        hint = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"hint{number}.png"), hint)
        cv2.imwrite(str(root / f"{number}.png"), np.full((height, width, 3), (30, 20, 10), np.uint8))
        rows.append(dict(zip(names, (f"hint{number}.png", f"{number}.png", f"prompt {number}"), strict=True)))
    (root / list_name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


@pytest.mark.parametrize("list_name", ["prompt.json", "metadata.jsonl"])
def test_items_are_those_of_the_original(tmp_path: Path, list_name: str) -> None:
    dataset = MyDataset(write_set(tmp_path, [(64, 128), (64, 128)], list_name))
    assert len(dataset) == 2
    item = dataset[1]
    assert set(item) == {"jpg", "hint", "txt"} and item["txt"] == "prompt 1"
    assert item["jpg"].shape == item["hint"].shape == (64, 128, 3)
    assert item["jpg"].dtype == item["hint"].dtype == np.float32
    np.testing.assert_allclose(item["jpg"][5, 5], np.array([10, 20, 30]) / 127.5 - 1, atol=1e-6)  # RGB
    stored = cv2.imread(str(tmp_path / "hint1.png"))[:, :, ::-1]
    np.testing.assert_allclose(item["hint"], stored / 255.0, atol=1e-6)


def test_every_fault_is_reported_with_file_and_line(tmp_path: Path) -> None:
    write_set(tmp_path, [(64, 64)] * 5)
    (tmp_path / "1.png").unlink()
    (tmp_path / "hint2.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "hint3.png"), np.zeros((32, 64, 3), np.uint8))
    path = tmp_path / "prompt.json"
    with pytest.raises(DataSetError) as error:
        MyDataset(tmp_path)
    assert [fault.line for fault in error.value.faults] == [2, 3, 4]
    text = str(error.value)
    assert f"{path}:2: {tmp_path / '1.png'}: no such file" in text
    assert f"{path}:3: {tmp_path / 'hint2.png'}" in text
    assert "64x64" in text and "64x32" in text

    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], "{not json", '["a list"]', '{"source": "a.png", "prompt": ""}', lines[4]])
    )
    with pytest.raises(DataSetError) as error:
        read_records(tmp_path)
    assert [fault.line for fault in error.value.faults] == [2, 3, 4]
    assert "'target'" in error.value.faults[2].reason


def test_a_missing_list_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make_fill50k"):
        MyDataset(tmp_path)


def test_class_index_hints_are_painted(tmp_path: Path) -> None:
    write_set(tmp_path, [(64, 64)])
    indices = np.full((64, 64), 149, np.uint8)
    indices[:10] = 255
    cv2.imwrite(str(tmp_path / "hint0.png"), indices)
    dataset = ControlDataset(tmp_path, 128, hint_kind="class-index")
    hint = dataset[0]["hint"]
    assert hint.shape == (128, 128, 3)
    colors = {tuple(color) for color in np.rint(hint * 255).astype(int).reshape(-1, 3)}
    assert colors == {(0, 0, 0), tuple(PALETTE[149])}  # nearest: no third colour at the border

    cv2.imwrite(str(tmp_path / "hint0.png"), np.full((64, 64), 150, np.uint8))
    with pytest.raises(DataSetError, match="149"):
        ControlDataset(tmp_path, 128, hint_kind="class-index")


def test_color_maps_get_no_new_colors_and_pictures_are_averaged(tmp_path: Path) -> None:
    write_set(tmp_path, [(128, 128)])
    stored = cv2.imread(str(tmp_path / "hint0.png")).reshape(-1, 3)[:, ::-1]
    known = {tuple(color) for color in stored}
    for kind, keeps_colors in {"color-map": True, "picture": False}.items():
        hint = ControlDataset(tmp_path, 64, hint_kind=kind)[0]["hint"]
        colors = {tuple(color) for color in np.rint(hint * 255).astype(int).reshape(-1, 3)}
        assert (colors <= known) == keeps_colors


def test_buckets_keep_aspects(tmp_path: Path) -> None:
    buckets = make_buckets(512)
    assert (512, 512) in buckets and all(h % 64 == w % 64 == 0 and h * w <= 512**2 for h, w in buckets)
    assert {(w, h) for h, w in buckets} == set(buckets)
    sizes = np.array([(1000, 1000), (300, 600), (600, 300), (90, 1000)])
    assert [buckets[i] for i in assign_buckets(sizes, buckets)] == [
        (512, 512),
        (384, 640),
        (640, 384),
        (384, 640),
    ]

    dataset = ControlDataset(write_set(tmp_path, [(100, 200), (128, 128), (64, 128)]), 192, buckets=True)
    assert (
        [dataset[i]["jpg"].shape[:2] for i in range(3)]
        == dataset.shapes
        == [(128, 256), (192, 192), (128, 256)]
    )


def test_fit_scales_then_cuts_evenly() -> None:
    columns = np.tile(np.arange(90, dtype=np.uint8)[None, :, None], (30, 1, 3))
    cut = fit(columns, 30, 30)
    assert cut[0, 0, 0] == 30 and cut[0, -1, 0] == 59
    assert fit(columns, 64, 64).shape == (64, 64, 3)


def test_odd_sizes_ask_for_a_resolution(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 pictures.*50x64.*resolution"):
        MyDataset(write_set(tmp_path, [(64, 64), (64, 50)]))


def test_chance_follows_from_seed_and_position_alone(tmp_path: Path) -> None:
    dataset = ControlDataset(write_set(tmp_path, [(64, 64)] * 2), flip=0.5, empty_prompts=0.25, seed=3)
    draws = [dataset.augmentation(Draw(0, position)) for position in range(2000)]
    assert draws == [dataset.augmentation(Draw(0, position)) for position in range(2000)]
    assert abs(np.mean([mirrored for mirrored, _, _ in draws]) - 0.5) < 0.05
    assert abs(np.mean([prompt == "" for _, prompt, _ in draws]) - 0.25) < 0.05
    assert len({seed for _, _, seed in draws}) == 2000

    mirrored = next(place for place, draw in enumerate(draws) if draw[0])
    upright = next(place for place, draw in enumerate(draws) if not draw[0])
    for key in ("jpg", "hint"):
        np.testing.assert_array_equal(
            dataset[Draw(0, mirrored)][key], dataset[Draw(0, upright)][key][:, ::-1]
        )


def test_batches_hold_one_shape_and_every_item() -> None:
    shapes = ["wide"] * 5 + ["tall"] * 2 + ["wide"] * 4
    stream = BatchStream(shapes, batch_size=2, seed=1)
    for epoch in range(3):
        stream.set_epoch(epoch)
        batches = [[draw.index for draw in batch] for batch in stream]
        assert len(batches) == len(stream) == 6
        assert all(len({shapes[index] for index in batch}) == 1 for batch in batches)
        assert {index for batch in batches for index in batch} == set(range(11))


def test_every_step_accumulates_as_many_batches() -> None:
    batches = list(BatchStream([None] * 10, batch_size=4, seed=5, accumulate=2))
    assert len(batches) == 4 and [d.index for d in batches[3]] == [d.index for d in batches[0]]
    assert [draw.position for batch in batches for draw in batch] == list(range(16))


def test_two_processes_share_the_batches_of_one() -> None:
    whole = BatchStream([None] * 10, batch_size=4, seed=5)
    halves = [BatchStream([None] * 10, batch_size=2, seed=5, rank=rank, world_size=2) for rank in range(2)]
    assert list(whole) == [first + second for first, second in zip(*halves, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_resumes_at_the_next_batch(workers: int) -> None:
    items = _Positions(7)
    uninterrupted = make_loader(items, 2, seed=1)
    expected = []
    for epoch in range(2):
        uninterrupted.stream.set_epoch(epoch)
        expected += [batch.tolist() for batch in uninterrupted]

    stopped = make_loader(items, 2, seed=1, workers=workers)
    iterator = iter(stopped)
    got = [next(iterator).tolist() for _ in range(3)]
    state = json.loads(
        json.dumps(stopped.state_dict())
    )  # plain data, whatever the workers have fetched in advance

    resumed = make_loader(items, 2, seed=1, workers=workers)
    resumed.load_state_dict(state)
    for epoch in range(2):
        resumed.stream.set_epoch(epoch)
        got += [batch.tolist() for batch in resumed]
    assert got == expected

    with pytest.raises(ValueError, match="global batch size 2 then, 3 now"):
        make_loader(items, 3, seed=1).load_state_dict(state)


class _Positions:
    """A data set that answers with the draw itself."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: Draw) -> np.ndarray:
        return np.array(draw)


@pytest.mark.parametrize("workers", [0, 1])
def test_sizes_that_differ_are_named_where_nobody_checked(tmp_path: Path, workers: int) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    lines = []
    for name, size in (("a", 64), ("b", 128)):
        for folder in ("source", "target"):
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.zeros((size, size, 3), np.uint8))
        lines.append(
            json.dumps({"source": f"source/{name}.png", "target": f"target/{name}.png", "prompt": name})
        )
    (tmp_path / "prompt.json").write_text("\n".join(lines))
    assert len(list(make_loader(ControlDataset(tmp_path), 2, workers=workers))) == 2  # one batch of each size
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) and \(128, 128, 3\).*--no-check"):
        list(make_loader(ControlDataset(tmp_path, check=False), 2, workers=workers))


def test_hints_are_made_on_the_fly(tmp_path: Path):
    """Canny edges of the item's own picture, mirrored with it; the list names no hints."""
    picture = np.full((128, 128, 3), 230, np.uint8)
    picture[30:80, 10:60] = 20
    save_png(tmp_path / "a.png", picture)
    (tmp_path / "prompt.json").write_text('{"target": "a.png", "prompt": "a box"}\n')
    plain = ControlDataset(tmp_path, 64, condition="canny")
    item, mirrored = plain[0], ControlDataset(tmp_path, 64, condition="canny", flip=1.0)[0]
    assert set(np.unique(item["hint"])) == {0.0, 1.0} and item["hint"].shape == (64, 64, 3)
    seen = ((item["jpg"] + 1) * 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(item["hint"][..., 0] * 255, cv2.Canny(seen, 100, 200))
    assert (mirrored["hint"][:, ::-1] == item["hint"]).mean() > 0.95
