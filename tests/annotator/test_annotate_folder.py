"""The folder tool on real files: names, batches, restarts, unreadable pictures and the list for training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotator.ade20k import colorize
from annotator.uniformer import UniformerDetector
from controlnet import annotate as module
from controlnet.annotate import FolderReport, annotate_folder, prompt_of
from controlnet.commands import annotate as tool_annotate
from controlnet.conditions.seg import Seg
from controlnet.listing import MARK
from controlnet.pictures import read_index_map, read_picture


@pytest.fixture(scope="module")
def detector(tiny) -> UniformerDetector:
    return tiny.detector()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three kinds and two sizes, two of them with the same stem, and files that are no
    pictures.
    """
    random = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, shape, options in (
        ("red house-01.png", (48, 64), {}),
        ("turned.jpg", (64, 48), {"exif": exif}),
        ("more/a.PNG", (48, 64), {}),
        ("more/b.png", (32, 32), {}),
        ("more/b.webp", (32, 32), {"lossless": True}),
    ):
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, **options)
    (folder / "red house-01.txt").write_text("\ufeffa red house,\nby the sea\n", encoding="utf-8")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != MARK
    )


MAPS = ["more/a.png", "more/b.png.png", "more/b.webp.png", "red house-01.png", "turned.png"]


def test_maps_are_those_of_the_detector_under_the_same_names(detector, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    report = annotate_folder(folder, out, Seg(detector), batch_size=3, progress=False)
    assert report == FolderReport(annotated=5)
    assert files_of(out) == [*(f"colors/{name}" for name in MAPS), *(f"labels/{name}" for name in MAPS)]
    upright = read_picture(folder / "turned.jpg")
    labels = read_index_map(out / "labels" / "turned.png")
    assert labels.shape == upright.shape[:2] == (48, 64)
    assert np.mean(labels == detector.labels(upright)) > 0.999
    for name in MAPS:
        np.testing.assert_array_equal(
            read_picture(out / "colors" / name), colorize(read_index_map(out / "labels" / name))
        )
        assert Image.open(out / "colors" / name).format == "PNG"


def test_maps_of_an_earlier_run_are_no_pictures_of_the_next(detector, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64), "green").save(photos / "a.png")
    for out in (photos / "first", photos / "second"):
        report = annotate_folder(photos, out, Seg(detector), resolution=64, progress=False)
        assert report == FolderReport(annotated=1)
        assert files_of(out) == ["colors/a.png", "labels/a.png", "pictures/a.png"]


def test_pictures_of_one_size_go_together(
    detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes, labels_of = [], detector.labels_of
    monkeypatch.setattr(detector, "labels_of", lambda batch: sizes.append(len(batch)) or labels_of(batch))
    annotate_folder(folder, tmp_path / "out", Seg(detector), batch_size=4, progress=False)
    assert sorted(sizes) == [2, 3]


def test_at_most_so_many_pixels_wait_for_their_batch(
    detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_PIXELS", 1)
    assert annotate_folder(folder, tmp_path / "out", Seg(detector), progress=False).annotated == 5


def test_second_run_does_only_what_is_missing(detector, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    annotate_folder(folder, out, Seg(detector), progress=False)
    (out / "labels" / "turned.png").unlink()
    untouched = (out / "labels" / "more" / "a.png").stat().st_mtime_ns
    report = annotate_folder(folder, out, Seg(detector), progress=False)
    assert (report.annotated, report.skipped) == (1, 4)
    assert (out / "labels" / "more" / "a.png").stat().st_mtime_ns == untouched


def test_a_kill_while_writing_leaves_nothing_that_counts_as_done(
    detector, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = Image.Image.save

    def killed(picture: Image.Image, path: Path, **options) -> None:
        if Path(path).parent.name == "colors":
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save(picture, path, **options)

    monkeypatch.setattr(Image.Image, "save", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        annotate_folder(folder, out, Seg(detector), progress=False)
    monkeypatch.undo()
    assert not list((out / "colors").glob("*.png"))
    report = annotate_folder(folder, out, Seg(detector), progress=False)
    assert report.annotated + report.skipped == 5
    assert all(read_picture(out / "colors" / name).size for name in MAPS)


def test_unreadable_and_unfit_pictures_are_reported_and_stop_no_other(detector, folder: Path, tmp_path: Path):
    (folder / "broken.png").write_bytes((folder / "more" / "a.PNG").read_bytes()[:200])
    (folder / "page.jpg").write_text("<html>404</html>")
    Image.new("RGB", (4000, 1)).save(folder / "thread.png")
    report = annotate_folder(folder, tmp_path / "out", Seg(detector), progress=False)
    assert report.annotated == 5
    reasons = {path.name: reason for path, reason in report.failed}
    assert sorted(reasons) == ["broken.png", "page.jpg", "thread.png"]
    assert "web page" in reasons["page.jpg"]
    assert "4000x1 pixels is too narrow" in reasons["thread.png"]


def test_resolution_resizes_first_and_keeps_the_resized_pictures(detector, folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    annotate_folder(folder, out, Seg(detector), resolution=64, prompts=True, progress=False)
    for line in (out / "prompt.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        source, target = read_picture(out / row["source"]), read_picture(out / row["target"])
        assert source.shape == target.shape
        assert row["target"].startswith("pictures/")
        assert all(side % 64 == 0 for side in source.shape[:2])


def test_prompt_list_is_a_data_set_that_training_reads(detector, folder: Path, tmp_path: Path):
    from controlnet.training.data.records import check_pictures, read_records

    out = tmp_path / "out"
    annotate_folder(folder, out, Seg(detector), prompts=True, progress=False)
    records = read_records(out)
    assert check_pictures(out, records, "color-map", progress=False).tolist().count([48, 64]) == 3
    prompts = {record.target.name: record.prompt for record in records}
    told = "a red house, by the sea"
    assert prompts == {
        "a.PNG": "a",
        "b.png": "b",
        "b.webp": "b",
        "red house-01.png": told,
        "turned.jpg": "turned",
    }


@pytest.mark.parametrize(
    ("name", "prompt"), [("red_car-02.jpg", "red car"), ("0001.png", ""), ("IMG 20 b2.png", "IMG b2")]
)
def test_prompt_from_the_name(tmp_path: Path, name: str, prompt: str):
    assert prompt_of(tmp_path / name) == prompt


def test_prompt_that_is_no_text_is_reported(detector, folder: Path, tmp_path: Path):
    (folder / "turned.txt").write_bytes(b"\xff\xfe\x00")
    report = annotate_folder(folder, tmp_path / "out", Seg(detector), prompts=True, progress=False)
    assert [(path.name, "turned.txt" in reason) for path, reason in report.failed] == [("turned.jpg", True)]
    assert len((tmp_path / "out" / "prompt.json").read_text().splitlines()) == 4


def test_out_inside_the_folder_is_not_annotated_itself(detector, folder: Path):
    for annotated, skipped in ((5, 0), (0, 5)):
        report = annotate_folder(folder, folder / "maps", Seg(detector), progress=False)
        assert (report.annotated, report.skipped) == (annotated, skipped)


def test_a_second_run_with_prompts_into_the_folder_itself_takes_no_result_as_input(detector, folder: Path):
    for annotated, skipped in ((5, 0), (0, 5)):
        report = annotate_folder(folder, folder, Seg(detector), resolution=64, prompts=True, progress=False)
        assert (report.annotated, report.skipped) == (annotated, skipped)


class TestCommandLine:
    def run(self, tiny, *arguments: str | Path) -> int:
        files = ["--config", tiny.config, "--checkpoint", tiny.checkpoint, "--device", "cpu"]
        return tool_annotate.main([str(argument) for argument in (*arguments, *files)])

    def test_good_run(self, tiny, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
        assert (
            self.run(tiny, folder, tmp_path / "out", "--prompts", "--batch-size", "2", "--precision", "fp32")
            == 0
        )
        assert capsys.readouterr().out == "5 annotated, 0 done before, 0 failed\n"

    def test_what_macos_puts_beside_pictures_is_none(self, tiny, folder: Path, tmp_path: Path, capsys):
        (folder / "._turned.jpg").write_bytes(b"\0\5\x16\7")
        assert self.run(tiny, folder, tmp_path / "out") == 0

    def test_pictures_whose_maps_would_have_one_name(self, tiny, folder: Path, tmp_path: Path, capsys):
        """`more/b.png` and `more/b.webp` keep their suffix, and so would have the map of this one."""
        (folder / "more" / "b.png").rename(folder / "more" / "b.webp.png")
        Image.new("RGB", (32, 32)).save(folder / "more" / "b.jpg")
        assert self.run(tiny, folder, tmp_path / "out", "--prompts") == 2
        error = capsys.readouterr().err
        assert "b.webp.png, would be the same file as" in error
        assert f"made of {folder / 'more' / 'b.webp'}" in error and len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    def test_no_map_is_written_over_a_picture(self, tiny, folder: Path, tmp_path: Path, capsys):
        colors = tmp_path / "out" / "colors"
        (tmp_path / "out").mkdir()
        folder.rename(colors)
        before = {path: path.read_bytes() for path in colors.rglob("*") if path.is_file()}
        assert self.run(tiny, colors, tmp_path / "out") == 2
        assert "would be the same file as the input" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in colors.rglob("*") if path.is_file()} == before

    def test_unreadable_picture(self, tiny, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
        (folder / "empty.png").write_bytes(b"")
        assert self.run(tiny, folder, tmp_path / "out") == 1
        assert f"{folder / 'empty.png'}: the file is empty\n" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["nowhere", "out"], "no such folder"),
            ([".", "out", "--batch-size", "0"], "batch_size"),
            (["empty", "out"], "no pictures"),
        ],
    )
    def test_nothing_to_do(
        self,
        tiny,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys,
        arguments: list[str],
        message: str,
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        assert self.run(tiny, *arguments) == 2
        assert message in capsys.readouterr().err

    def test_missing_weights(self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
        missing = str(tmp_path / "none.pth")
        assert tool_annotate.main([str(folder), str(tmp_path / "out"), "--checkpoint", missing]) == 2
        assert missing in capsys.readouterr().err
