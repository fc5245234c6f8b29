"""What the page shows beside gradio's own components: HTML snippets and marked pictures. All text is escaped
here.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from annotator.ade20k import CLASSES, PALETTE
from controlnet.conditions.seg.validator import MapReport
from controlnet.generation.generator import Result, Step

_MARK = np.array([255, 0, 80], dtype=np.float32)


def progress_html(step: Step, preview: np.ndarray | None) -> str:
    """A bar, the step, and where there is one the preview: uint8 RGB ``[N, h, w, 3]``."""
    done = step.index + 1
    text = f"Step {done} of {step.total}" if done < step.total else "Decoding the pictures"
    bar = (
        f'<div class="bar" role="progressbar" aria-label="Sampling steps" aria-valuemin="0" '
        f'aria-valuenow="{done}" aria-valuemax="{step.total}">'
        f'<div style="width: {100 * done / step.total:.1f}%"></div></div>'
    )
    pictures = (
        "" if preview is None else "".join(f'<img src="{_data_url(p)}" alt="Preview">' for p in preview[:4])
    )
    previews = f'<div class="previews">{pictures}</div>'
    return f'<div class="run-status" role="status"><p>{text}</p>{bar}{previews}</div>'


def message_html(text: str, kind: str = "note") -> str:
    """One line; ``kind`` is ``note``, ``error`` or ``done``."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="run-status {kind}" role="{role}"><p>{escape(text)}</p></div>'


def report_html(report: MapReport) -> str:
    """What was found out about a map that a person brought."""
    shares = [f"{c.name} {100 * c.pixels / report.labels.size:.0f}%" for c in report.classes[:6]]
    lines = [
        f"Taken as {'an' if report.kind[0] in 'aeiou' else 'a'} {report.kind}: {', '.join(shares)}.",
        f"{report.touched} of {report.labels.size} pixels were snapped to their nearest class."
        if report.touched
        else "",
        *report.warnings,
    ]
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return f'<div class="run-status note" role="status">{paragraphs}</div>'


def result_html(result: Result) -> str:
    """Seed and adherence of every picture."""
    rows = []
    for index, seed in enumerate(result.seeds):
        row = f"<th scope='row'>Picture {index + 1}</th><td>{seed}</td>"
        if result.adherence:
            score = result.adherence[index]
            worst = ", ".join(f"{escape(c.name)} {c.iou:.2f}" for c in score.classes[:3])
            row += f"<td><meter min='0' max='1' value='{score.miou:.3f}'></meter> {score.miou:.2f}</td>"
            row += f"<td>{100 * score.pixel_accuracy:.0f}%</td><td>{worst}</td>"
        rows.append(f"<tr>{row}</tr>")
    head = "<th></th><th scope='col'>Seed</th>"
    if result.adherence:
        head += (
            "<th scope='col' title='Mean intersection over union of the map asked for and the map "
            "found'>Keeps the map"
            " (mIoU)</th><th scope='col'>Pixels right</th><th scope='col'>Weakest classes</th>"
        )
    took = (
        f"{len(result.pictures)} picture{'s' if len(result.pictures) > 1 else ''} in {result.seconds:.1f} s"
    )
    return (
        f'<div class="adherence"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"<p>{took}, model {escape(result.model)}.</p></div>"
    )


def caption(result: Result, index: int) -> str:
    """One picture's line in the gallery: seed, number in the batch, mIoU."""
    text = f"seed {result.seeds[index]}"
    if len(result.pictures) > 1 and not result.request.per_sample_seeds:
        text += f" #{index + 1}"
    return text + (f" · {result.adherence[index].miou:.2f}" if result.adherence else "")


def mark_departures(picture: np.ndarray, departs: np.ndarray) -> np.ndarray:
    """The picture, dimmed, and coloured where it departs from the map: uint8 RGB ``[H, W, 3]``, bool ``[H,
    W]``.
    """
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.8 + 40
    return np.where(departs[:, :, None], 0.35 * picture + 0.65 * _MARK, grey).clip(0, 255).astype(np.uint8)


def class_shares(labels: np.ndarray) -> list[dict[str, object]]:
    """The classes of a map, largest first: index, name, colour and share in [0, 1]. Ready for JSON."""
    counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
    return [
        {
            "index": int(index),
            "class": CLASSES[index],
            "color": PALETTE[index].tolist(),
            "share": round(float(counts[index] / labels.size), 4),
        }
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
