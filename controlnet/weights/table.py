"""The released weights that can be fetched: where each is, its size and sha256, and where it belongs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


class UnknownWeights(ValueError):
    """A name that is not in the table; the text says which are near."""


@dataclass(frozen=True)
class Released:
    """A file in a repository of the Hugging Face hub.

    ``size`` in bytes and ``sha256`` are None where they are not known here; then the hub's own listing
    counts. ``place`` is where the file belongs, from the root of the project.
    """

    name: str
    repository: str
    path: str
    place: str
    what: str
    size: int | None = None
    sha256: str | None = None

    @property
    def stem(self) -> str:
        """The file's name without suffix, by which it can be asked for as well."""
        return self.path.rpartition("/")[2].rpartition(".")[0]


_CONTROL_SUMS = {
    "canny": "4de384b16bc2d7a1fb258ca0cbd941d7dd0a721ae996aff89f905299d6923f45",
    "depth": "726cd0b472c4b5c0341b01afcb7fdc4a7b4ab7c37fe797fd394c9805cbef60bf",
    "openpose": "d19ffffeeaff6d9feb2204b234c3e1b9aec039ab3e63fca07f4fe5646f2ef591",
    "seg": "2c772486812fdd5331a86ee7135f5146dab91f78e6676fab3ec94420708f3a37",
}
_CONTROLS = ("canny", "depth", "hed", "mlsd", "normal", "openpose", "scribble", "seg")
_NEWER_SUMS = {
    "canny": "f99cfe4c70910e38e3fece9918a4979ed7d3dcf9b81cee293e1755363af5406a",
    "depth": "761077ffe369fe8cf16ae353f8226bd4ca29805b161052f82c0170c7b50f1d99",
    "openpose": "db97becd92cd19aff71352a60e93c2508decba3dee64f01f686727b9b406a9dd",
    "seg": "bad6d753886c0edc978e79dfb06083737ab1bd9702e5b7c0f81b1e16a5ed12cc",
    "softedge": "20759ef71a109c4796e637d86eea8db492ec9772b6d5cb7a9afd077847b403f3",
}
_NEWER_CONTROLS = {
    **{
        name: f"control_v11p_sd15_{name}"
        for name in (
            "canny",
            "mlsd",
            "normalbae",
            "seg",
            "inpaint",
            "lineart",
            "openpose",
            "scribble",
            "softedge",
        )
    },
    "lineart-anime": "control_v11p_sd15s2_lineart_anime",
    "depth": "control_v11f1p_sd15_depth",
    "shuffle": "control_v11e_sd15_shuffle",
    "ip2p": "control_v11e_sd15_ip2p",
    "tile": "control_v11f1e_sd15_tile",
}
_DETECTORS = (
    (
        "seg-detector",
        "upernet_global_small.pth",
        206_313_115,
        "bebfa1264c10381e389d8065056baaadbdadee8ddc6e36770d1ec339dc84d970",
        "detector: segmentation (UPerNet)",
    ),
    (
        "hed",
        "ControlNetHED.pth",
        29_444_406,
        "5ca93762ffd68a29fee1af9d495bf6aab80ae86f08905fb35472a083a4c7a8fa",
        "detector: soft edges (HED)",
    ),
    (
        "mlsd",
        "mlsd_large_512_fp32.pth",
        None,
        "5696f168eb2c30d4374bbfd45436f7415bb4d88da29bea97eea0101520fba082",
        "detector: straight lines (M-LSD)",
    ),
    (
        "depth",
        "dpt_hybrid-midas-501f0c75.pt",
        None,
        "501f0c75b3bca7daec6b3682c5054c09b366765aef6fa3a09d03a5cb4b230853",
        "detector: depth and normals (MiDaS)",
    ),
    (
        "openpose-body",
        "body_pose_model.pth",
        209_267_595,
        "25a948c16078b0f08e236bda51a385d855ef4c153598947c28c0d47ed94bb746",
        "detector: bodies (OpenPose; noncommercial use)",
    ),
    (
        "openpose-hand",
        "hand_pose_model.pth",
        147_341_049,
        "b76b00d1750901abd07b9f9d8c98cc3385b8fe834a26d4b4f0aad439e75fc600",
        "detector: hands (OpenPose; noncommercial use)",
    ),
)


def _released() -> list[Released]:
    first, newer = "lllyasviel/ControlNet", "lllyasviel/ControlNet-v1-1"
    rows = [
        Released(
            f"sd15-{name}",
            first,
            f"models/control_sd15_{name}.pth",
            f"models/control_sd15_{name}.pth",
            f"Stable Diffusion 1.5 with the {name} control, 5.71 GB",
            sha256=_CONTROL_SUMS.get(name),
        )
        for name in _CONTROLS
    ]
    rows += [
        Released(
            f"v11-{name}",
            newer,
            f"{stem}.pth",
            f"models/{stem}.pth",
            f"ControlNet 1.1 {name}, without Stable Diffusion, 1.45 GB",
            sha256=_NEWER_SUMS.get(name),
        )
        for name, stem in _NEWER_CONTROLS.items()
    ]
    rows.append(
        Released(
            "v11-seg-diffusers",
            "lllyasviel/control_v11p_sd15_seg",
            "diffusion_pytorch_model.safetensors",
            "models/control_v11p_sd15_seg.safetensors",
            "ControlNet 1.1 seg in diffusers' layout, 1.45 GB",
            sha256="68291d493d0d75df67fe931c753c9b204cf3863509d5471b5eb64e5f0f2b4b38",
        )
    )
    rows.append(
        Released(
            "sd15",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "v1-5-pruned.ckpt",
            "models/v1-5-pruned.ckpt",
            "Stable Diffusion 1.5, 7.70 GB",
            7_703_807_346,
            "e1441589a6f3c5a53f5f54d0975a18a7feb7cdf0b0dee276dfc3331ae376a053",
        )
    )
    rows += [
        Released(name, first, f"annotator/ckpts/{file}", f"annotator/ckpts/{file}", what, size, sha256)
        for name, file, size, sha256, what in _DETECTORS
    ]
    return rows


RELEASED: tuple[Released, ...] = tuple(_released())


def find_released(name: str) -> Released:
    """The file of a short name (``sd15-seg``), a file name, or that without its suffix.

    Raises:
        UnknownWeights: there is none.
    """
    for released in RELEASED:
        if name in (released.name, released.stem, released.path.rpartition("/")[2]):
            return released
    known = [name for released in RELEASED for name in (released.name, released.stem)]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UnknownWeights(f"{name}: no released weights of this name; {hint}--list shows all names")
