"""Pictures from pictures, maps or files of requests, without a page.

python tool_generate.py photo.jpg results --prompt "a house by a lake"
python tool_generate.py photos results --prompt "winter" --devices 4
python tool_generate.py requests.jsonl results
python tool_generate.py results/photo.png again --from-image

A line of requests.jsonl is {"image": "a.jpg", "prompt": "a house", "seed": 3}, or with "map" instead of
"image".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlnet.generation.jobs import (
    MANIFEST,
    GenerateJobs,
    Job,
    jobs_of_lines,
    jobs_of_pictures,
    pl,
    run_jobs,
)
from controlnet.generation.models import ModelError, ModelFiles, add_model_arguments, find_device, find_model
from controlnet.generation.request import Request, RequestError, setting_names
from ldm.weights import WeightsError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="a picture, a folder of pictures, or a JSON-lines file of requests"
    )
    parser.add_argument("out", type=Path, help="folder for PNG files and manifest.jsonl")
    parser.add_argument(
        "--from-image", action="store_true", help="repeat the requests that the pictures carry"
    )
    parser.add_argument("--no-measure", action="store_true", help="do not run the detector on the results")
    add_setting_arguments(
        parser.add_argument_group("settings", "of every request that does not say otherwise")
    )
    add_model_arguments(parser)
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine, one GPU each")
    parser.add_argument(
        "--num_nodes", type=int, default=1, help="machines; start this command on each with torchrun"
    )
    return parser.parse_args(arguments)


def add_setting_arguments(group: argparse._ArgumentGroup) -> None:
    """An option for every setting of a request; only those that are given count."""
    for name in setting_names():
        option, default = "--" + name.replace("_", "-"), getattr(Request, name, None)
        if isinstance(default, bool):
            group.add_argument(option, dest=name, action="store_true", default=None)
        else:
            group.add_argument(option, dest=name, type=type(default) if default is not None else str)


def jobs_of(options: argparse.Namespace, files: ModelFiles) -> list[Job]:
    """The jobs that the command line asks for; resolutions and guidance default to the model's own."""
    given = {name: getattr(options, name) for name in setting_names() if getattr(options, name) is not None}
    sizes = {"image_resolution": files.resolution, "detect_resolution": files.resolution}
    settings: dict[str, Any] = {**sizes, "scale": files.guidance, **given}
    if options.source.suffix.lower() in (".jsonl", ".json"):
        return jobs_of_lines(options.source, settings)
    if "prompt" not in settings and not options.from_image:
        raise RequestError("--prompt is needed for pictures.")
    return jobs_of_pictures(options.source, settings, repeat=options.from_image)


def main(arguments: Sequence[str] | None = None, save_memory: bool = False) -> int:
    """Do the jobs; 0 if all went well, 1 if some inputs failed. ``save_memory`` is the default of that
    option.
    """
    options = parse_arguments(arguments)
    try:
        files = find_model(options.model, options.weights, options.detector_weights, options.detector_config)
        jobs = jobs_of(options, files)
        load_options = {"precision": options.precision, "save_memory": options.save_memory or save_memory}
        task = GenerateJobs(jobs, options.out, files, load_options, measure=not options.no_measure)
        trainer = pl.Trainer(
            accelerator="cpu" if find_device(options.device).type == "cpu" else "auto",
            devices=options.devices,
            num_nodes=options.num_nodes,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        entries = run_jobs(task, trainer)
    except (ModelError, RequestError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not trainer.is_global_zero:
        return 0
    failed = [entry for entry in entries if "error" in entry]
    for entry in failed:
        print(f"failed: {entry['name']}: {entry['error']}", file=sys.stderr)
    print(f"{len(entries) - len(failed)} of {len(entries)} done; see {options.out / MANIFEST}")
    return 1 if failed else 0
