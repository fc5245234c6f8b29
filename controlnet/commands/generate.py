"""Pictures from pictures, maps or files of requests, without a page.

python tool_generate.py photo.jpg results --prompt "a house by a lake"
python tool_generate.py photos results --prompt "winter" --devices 4
python tool_generate.py requests.jsonl results
python tool_generate.py results/photo.png again --from-image
python tool_generate.py photo.jpg results --rows "prompt=a house|a lake at night" --columns seed=1-4
python tool_generate.py photo.jpg results --prompt "winter" --denoise 0.6
python tool_generate.py photo.jpg results --prompt "a boat" --mask mask.png --second-pass 2

A line of requests.jsonl is {"image": "a.jpg", "prompt": "a house", "seed": 3}, or with "hint" instead of
"image"; "source" and "mask" are what it begins from and what of that is painted anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlnet.commands.conditions import add_condition_arguments, condition_options, option_flag
from controlnet.conditions import DEFAULT, all_conditions
from controlnet.generation.devices import find_device, find_precision, precision_name
from controlnet.generation.from_source import read_outpaint
from controlnet.generation.grid import AXES, Axis, Grid
from controlnet.generation.grid_jobs import axis_of_argument, grid_jobs, sheet_file, write_sheets
from controlnet.generation.jobs import Job, check_jobs, from_themselves, jobs_of_lines, jobs_of_pictures
from controlnet.generation.memory import peak_memory
from controlnet.generation.options import add_model_arguments, files_from_options
from controlnet.generation.request import Request, RequestError, setting_names, setting_type
from controlnet.generation.samplers import SAMPLERS
from controlnet.generation.several import MODES
from controlnet.generation.several_files import PICTURES, further_of_text
from controlnet.listing import MANIFEST


def parse_arguments(arguments: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="a picture, a folder of pictures, or a JSON-lines file of requests"
    )
    parser.add_argument("out", type=Path, help="folder for PNG files and manifest.jsonl")
    parser.add_argument(
        "--from-image", action="store_true", help="repeat the requests that the pictures carry"
    )
    parser.add_argument("--no-measure", action="store_true", help="do not run the detector on the results")
    for flag in ("--rows", "--columns"):
        parser.add_argument(
            flag,
            type=axis_argument,
            metavar="SETTING=VALUES",
            help=f"make a grid, whose {flag[2:]} vary one of {', '.join(AXES)}: seed=1-4, strength=0.5,1, "
            "'prompt=a house|a lake'",
        )
    add_setting_arguments(parser)
    add_model_arguments(parser)
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine, one GPU each")
    parser.add_argument(
        "--num_nodes", type=int, default=1, help="machines; start this command on each with torchrun"
    )
    return parser.parse_args(arguments)


def axis_argument(text: str) -> Axis:
    """An axis, or an error that argparse tells."""
    try:
        return axis_of_argument(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


HELP = {
    "prompt": "what to draw",
    "a_prompt": "appended to the prompt after a comma",
    "n_prompt": "what to stay away from",
    "num_samples": "pictures of one batch",
    "image_resolution": "short side of the result in pixels; both sides become multiples of 64",
    "detect_resolution": "short side of the picture that the detector sees",
    "ddim_steps": "sampling steps",
    "guess_mode": "control without the prompt's help, weaker towards the first blocks",
    "strength": "factor on all that the control says; 0 is none",
    "scale": "guidance: how much the prompt counts",
    "seed": "-1 draws one",
    "eta": "noise that each step of DDIM adds, 0 to 1",
    "per_sample_seeds": "picture k of a batch is what seed + k gives alone",
    "condition": "what steers the picture",
    "sampler": "how the steps are taken",
    "guidance_start": "share of the steps before which there is no guidance",
    "guidance_end": "share of the steps after which there is none",
    "control_start": "share of the steps before which the control does not act",
    "control_end": "share of the steps after which it does not",
    "control_mode": "how the control stands to the prompt",
    "class_prompts": 'prompts for classes of the map: "house: red brick; sky: a storm"',
    "prompt_syntax": "read (word:1.3), [word] and BREAK in prompts, and take them at any length",
    "denoise": "share of the steps that is taken from the picture it begins from; 0 gives that back",
    "feather": "pixels over which the new fades into what is kept, outside the mask",
    "second_pass": "draw the picture once more, this many times as large",
    "second_denoise": "as --denoise, of that second pass",
}
"""What each setting means, for ``--help``; those that this does not name are pictures or mappings."""
DEFAULTS = {field.name: field.default for field in dataclasses.fields(Request)}


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for every setting of a request and of its condition; only those that are given count."""
    group = parser.add_argument_group("settings", "of every request that does not say otherwise")
    choices = {"condition": sorted(all_conditions()), "sampler": list(SAMPLERS), "control_mode": list(MODES)}
    for name in setting_names():
        flag, kind, text = option_flag(name), setting_type(name), HELP.get(name)
        if kind is bool:
            group.add_argument(flag, dest=name, action="store_true", default=None, help=text)
        elif name == "class_prompts":
            group.add_argument(flag, metavar="TEXT", help=text)
        elif kind is not dict:
            default = "as the model has it" if DEFAULTS[name] is None else DEFAULTS[name]
            more = "" if name == "prompt" else f" (default: {default})"
            metavar = None if name in choices else kind.__name__.upper().replace("STR", "TEXT")
            group.add_argument(
                flag,
                dest=name,
                type=kind,
                choices=choices.get(name),
                metavar=metavar,
                help=(text or "") + more,
            )
    group.add_argument("--region", metavar="FILE", help="a picture that is white where the control acts")
    group.add_argument(
        "--further",
        action="append",
        default=[],
        metavar="CONDITION[,NAME=VALUE...]",
        help="a control beside the first, by the same picture or image=FILE or hint=FILE; with region=FILE, "
        f"strength, start, end, mode ({', '.join(MODES)}) and the condition's options; may be repeated",
    )
    group.add_argument("--class-map", metavar="FILE", help="a map of the classes, where seg does not steer")
    add_source_arguments(parser)
    add_condition_arguments(parser)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What pictures begin from; with none of these and no ``--denoise`` they begin from noise."""
    group = parser.add_argument_group(
        "from a picture", "--denoise, --mask or --outpaint alone: each picture begins from itself"
    )
    group.add_argument("--source", dest="begin_from", metavar="FILE", help="begin from this picture")
    group.add_argument("--mask", metavar="FILE", help="white is painted anew, black is kept")
    group.add_argument(
        "--outpaint", type=_outpaint, metavar="SIDE=PIXELS,…", help="extend: left=64,bottom=128"
    )


def _outpaint(text: str) -> dict[str, int]:
    try:
        return read_outpaint(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """The jobs that the command line asks for."""
    names = [name for name in setting_names() if name != "options"]
    settings: dict[str, Any] = {
        name: getattr(options, name) for name in names if getattr(options, name) is not None
    }
    for name in PICTURES:
        given = options.begin_from if name == "source" else getattr(options, name)
        if given is not None:
            settings[name] = given
    if options.further:
        settings["further"] = [further_of_text(text) for text in options.further]
    if given := condition_options(options, options.condition or DEFAULT):
        settings["options"] = given
    if options.source.suffix.lower() in (".jsonl", ".json"):
        return jobs_of_lines(options.source, settings)
    varied = {axis.name for axis in (options.rows, options.columns) if axis}
    if "prompt" not in settings and "prompt" not in varied and not options.from_image:
        raise RequestError("--prompt is needed for pictures.")
    jobs = jobs_of_pictures(options.source, settings, repeat=options.from_image, out=options.out)
    return from_themselves(jobs) if {"denoise", "mask", "outpaint"} & set(settings) else jobs


def grid_of(options: argparse.Namespace) -> Grid | None:
    """The grid that the command line asks for."""
    axes = [axis for axis in (options.rows, options.columns) if axis]
    return Grid(*axes) if axes else None


def main(
    arguments: Sequence[str] | None = None, prog: str | None = None, *, save_memory: bool = False
) -> int:
    """Do the jobs; 0 if all went well, 1 if some inputs failed. ``save_memory`` is the default of that
    option.
    """
    options = parse_arguments(arguments, prog)
    try:
        files = files_from_options(options, options.condition or DEFAULT)
        sources, grid = jobs_of(options), grid_of(options)
        jobs = grid_jobs(sources, grid) if grid else sources
        check_jobs(jobs, options.out, options.source, [sheet_file(job) for job in sources] if grid else ())
        device = find_device(options.device)
        # By its name: on another machine "auto" may be another, and with it the pictures.
        precision = precision_name(find_precision(options.precision, device))
        load_options = {"precision": precision, "save_memory": options.save_memory or save_memory}
        load_options |= {"compiles": options.compile, "graphs": options.cuda_graphs}
        # Lightning takes seconds to import, which neither --help nor a mistyped option has to wait for.
        from controlnet.generation.batch import GenerateJobs, make_trainer, run_jobs

        task = GenerateJobs(jobs, options.out, files, load_options, measure=not options.no_measure)
        trainer = make_trainer(device, options.devices, options.num_nodes)
        entries = run_jobs(task, trainer)
        if grid and trainer.is_global_zero:
            for sheet in write_sheets(sources, grid, options.out, entries):
                print(f"grid: {options.out / sheet}")
    except (ValueError, OSError) as error:  # with WeightsError, ModelError and RequestError among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not trainer.is_global_zero:
        return 0
    failed = report(entries, options.out)
    if peak := peak_memory(device):
        print(
            f"At most {peak / 2**30:.2f} GiB of {'GPU ' if device.type == 'cuda' else ''}memory were in use."
        )
    return 1 if failed else 0


def report(entries: Sequence[dict[str, Any]], out: Path) -> int:
    """Print what is to be said about each job, and how many are done; returns how many failed."""
    failed = [entry for entry in entries if "error" in entry]
    for entry in entries:
        for remark in entry.get("remarks", ()):
            print(f"note: {entry['name']}: {remark}", file=sys.stderr)
    for entry in failed:
        print(f"failed: {entry['name']}: {entry['error']}", file=sys.stderr)
    print(f"{len(entries) - len(failed)} of {len(entries)} done; see {out / MANIFEST}")
    return len(failed)
