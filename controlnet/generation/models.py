"""The models that have a name: which files each is made of, for which conditions, and how to get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from controlnet.conditions import DEFAULT, all_conditions, conditions_of_file, find_condition
from controlnet.files import CONFIGS, MODELS, find_file
from controlnet.generation.devices import ModelError
from controlnet.weights.choice import config_for
from ldm.command import command_name
from ldm.definitions import DefinitionError
from ldm.layouts.recognise import recognise

LATENT_FACTOR = 8  # pixels per latent pixel, of SD's autoencoder and of ours
BASES = (
    "v1-5-pruned.safetensors",
    "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned-emaonly.ckpt",
)
HINTS = (
    "canny", "depth", "fake_scribble", "hed", "hough", "normal", "openpose", "scribble",
    "scribble_interactive",
)  # fmt: skip
"""What the second control of the embedded model was trained for."""


@dataclass(frozen=True)
class ModelFiles:
    """What a model is made of.

    Args:
        name: as saved pictures name it.
        config: YAML of the networks.
        weights: a whole model, or with ``controls`` Stable Diffusion alone.
        detector_weights, detector_config: of the segmentation; a config of None is the original's UPerNet.
        how_to_get: the command that brings the weights, as a text for people.
        guidance: the scale that front ends offer first; 9 is the original's.
        own: the conditions that the control in ``weights`` was trained for; none if it has no control.
        controls: files with a control for further conditions.
        serves_all: whether the control in ``weights`` is used for every other condition too.
        vae, loras, embeddings: as in ``cldm.model.load_model``.
        world: says what the model draws, where that is less than everything; see ``generation.world``.
    """

    name: str
    config: Path
    weights: Path
    detector_weights: Path
    detector_config: Path | None
    how_to_get: str
    guidance: float = 9.0
    own: tuple[str, ...] = (DEFAULT,)
    controls: Mapping[str, Path] = field(default_factory=dict)
    serves_all: bool = True
    vae: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[Path, ...] = ()
    world: Path | None = None

    def missing(self, condition: str = DEFAULT) -> list[Path]:
        """The files that a condition needs and that are not there."""
        files = [self.config, self.weights]
        if condition == DEFAULT:
            files += [self.detector_weights, *([self.detector_config] if self.detector_config else [])]
        return [file for file in files if not file.exists()]

    def all_files(self) -> list[Path]:
        """What the results depend on, beside the detectors."""
        extra = [*self.controls.values(), *([self.vae] if self.vae else []), *self.embeddings]
        return [self.config, self.weights, *extra, *(path for path, _ in self.loras)]

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that some control was trained for."""
        return tuple(dict.fromkeys([*self.own, *self.controls]))

    @property
    def resolution(self) -> int:
        """The short side that the model was trained at, in pixels: the YAML's ``image_size`` counts
        latent pixels.

        Raises:
            DefinitionError: a definition that cannot be read, or has no such number.
        """
        from cldm.model import load_config

        side = load_config(self.config).model.get("params", {}).get("image_size")
        if not isinstance(side, int) or side < 1:
            raise DefinitionError(
                f"{self.config}: model.params.image_size must be a number of latent pixels, got {side}"
            )
        return side * LATENT_FACTOR


def known_models() -> dict[str, ModelFiles]:
    """The models that have a name, with the files that are there."""
    return {"sd15": _stable_diffusion_15(), "tiny": _embedded()}


def _stable_diffusion_15() -> ModelFiles:
    """Any released control brings Stable Diffusion along (version 1.0), or steers over a base (1.1)."""
    places = {name: _first_there(find_condition(name).control_files()) for name in all_conditions()}
    found = {name: path for name, path in places.items() if path is not None}
    whole = {name: path for name, path in found.items() if path.name.startswith("control_sd15_")}
    wanted = find_file("models/control_sd15_seg.pth")
    base = _first_there(BASES)
    if whole:
        weights = whole.get(DEFAULT) or next(iter(whole.values()))
    else:
        weights = base or wanted
    own = tuple(name for name, path in found.items() if path == weights)
    return ModelFiles(
        name="sd15",
        config=MODELS / "cldm_v15.yaml",
        weights=weights,
        detector_weights=find_file("annotator/ckpts/upernet_global_small.pth"),
        detector_config=None,
        how_to_get=f"{command_name()} weights fetch sd15-seg seg-detector",
        own=own,
        controls={name: path for name, path in found.items() if name not in own},
        serves_all=False,
    )


def _embedded() -> ModelFiles:
    hints = find_file("models/tiny/control_tiny_hints.safetensors")
    return ModelFiles(
        name="tiny",
        config=MODELS / "tiny" / "cldm_tiny.yaml",
        weights=find_file(
            "models/tiny/control_tiny_seg.safetensors", "models/tiny/control_tiny_seg.safetensors.index.json"
        ),
        detector_weights=find_file("annotator/ckpts/upernet_tiny.safetensors"),
        detector_config=CONFIGS / "annotator" / "upernet_tiny.py",
        how_to_get="make tiny",
        controls=dict.fromkeys(HINTS, hints) if hints.is_file() else {},
        world=MODELS / "tiny" / "world.json",
        guidance=3.0,  # more makes colours surer and small things rougher; see models/tiny/README.md
    )


def _first_there(names: Sequence[str]) -> Path | None:
    """The first of some files of ``models`` that is there."""
    path = find_file(*(f"models/{name}" for name in names))
    return path if path.is_file() else None


def default_model(condition: str = DEFAULT) -> str:
    """SD 1.5 if what the condition needs is there, else the embedded model."""
    files = known_models()["sd15"]
    return "sd15" if condition in files.conditions and not files.missing(condition) else "tiny"


def find_model(
    name: str,
    weights: str | None = None,
    detector_weights: str | None = None,
    detector_config: str | None = None,
    condition: str = DEFAULT,
    controls: Mapping[str, Path] | None = None,
    check: bool = True,
) -> ModelFiles:
    """The files that a command line asks for.

    Args:
        name: ``sd15``, ``tiny``, ``auto`` for the better one that is there, the path of a model's YAML, or a
            file or folder with Stable Diffusion.
        weights: replaces the model's weights; needed with a YAML.
        detector_weights: replaces the weights of the segmentation; by default the original's, or the model's
            own.
        detector_config: an mmseg config for other detectors; needs ``detector_weights``.
        condition: what is to steer first.
        controls: further files with a control, by condition.
        check: whether all that the condition needs must be there.

    Raises:
        ModelError: an unknown name, or files that are missing; with the command that brings them.
        WeightsError: a file that is no Stable Diffusion.
    """
    check_detector_options(detector_weights, detector_config)
    known = known_models()
    wanted = name
    if name == "auto":
        name = "sd15" if controls else default_model(condition)
    files = known[name] if name in known else _of_path(name, weights, known["sd15"], condition)
    if weights is not None:
        files = replace(files, weights=Path(weights))
    if detector_weights is not None:
        config = Path(detector_config) if detector_config else None
        files = replace(files, detector_weights=Path(detector_weights), detector_config=config)
    if controls:
        own = tuple(name for name in files.own if name not in controls)
        files = replace(files, controls={**files.controls, **controls}, own=own)
    if condition in files.controls:  # first: over a base without a control it is the one that is loaded
        files = replace(files, controls={condition: files.controls[condition], **files.controls})
    if check:
        check_there(files, condition, wanted == "auto", known["sd15"].how_to_get)
    return files


def _of_path(name: str, weights: str | None, model: ModelFiles, condition: str) -> ModelFiles:
    """The files of a YAML, or of a file or folder with Stable Diffusion.

    ``model`` lends its detector, and its controls to a model of the same definition. ``condition`` is what a
    control in the file steers by where the file's name says nothing.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if weights is None:
            raise ModelError(f"--model {name}: a YAML needs --weights.")
        return replace(
            model, name=path.stem, config=path, weights=Path(weights), how_to_get="", own=(DEFAULT,),
            controls={}, serves_all=True,
        )  # fmt: skip
    if not path.exists():
        raise ModelError(
            f"--model {name}: there is no such file. Known names are sd15, tiny; or give a file or folder "
            "with Stable "
            "Diffusion, or --model YAML --weights FILE."
        )
    own = conditions_of_file(path, condition) if "control" in recognise(path).parts else ()
    config = config_for(path)
    lent = model.controls if config == model.config else {}
    controls = {condition: file for condition, file in lent.items() if condition not in own}
    how = f"{command_name()} weights fetch seg-detector"  # all else is there
    stem = path.name if path.is_dir() else path.name.removesuffix(".index.json").rpartition(".")[0]
    return replace(model, name=stem, config=config, weights=path, how_to_get=how, own=own, controls=controls)


def check_detector_options(weights: str | None, config: str | None) -> None:
    """Raise a ModelError for a detector's config that comes without the weights of that network."""
    if config is not None and weights is None:
        raise ModelError(f"--detector-config {config} needs --detector-weights, the weights of that network.")


def check_there(files: ModelFiles, condition: str, is_auto: bool = False, larger: str = "") -> None:
    """Raise a ModelError where files are missing, or a control for the condition; with the command for it."""
    if missing := files.missing(condition):
        how = f" This command brings them: {files.how_to_get}" if files.how_to_get else ""
        if is_auto:
            how += f"; for Stable Diffusion 1.5 it is: {larger}"
        raise ModelError(
            f"Model {files.name}: there is no {', no '.join(str(path) for path in missing)}.{how}"
        )
    if not files.serves_all and condition not in files.conditions:
        advice = "Give a file with one: --control FILE"
        if files.config == MODELS / "cldm_v15.yaml":
            stem = find_condition(condition).control_stems()[0]
            advice = f"This command brings it: {command_name()} weights fetch {stem}"
        raise ModelError(f"Model {files.name} has no control for {condition}. {advice}")
