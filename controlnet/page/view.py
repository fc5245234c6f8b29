"""What the page shows beside gradio's own components: HTML snippets and marked pictures. All text is escaped
here.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from controlnet.conditions import Condition, HintReport, Score, find_condition
from controlnet.generation.result import Result
from controlnet.generation.watcher import Step
from controlnet.generation.world import World

_GOOD, _FAIR = 0.6, 0.4  # agreement from which a result is called so
_MARK = np.array([255, 0, 80], dtype=np.float32)


def heading_html(title: str, note: str, more: str, files: str) -> str:
    """The title, one line about the model, and what unfolds behind it.

    Args:
        title: plain text.
        note, more: HTML about the model, and about a larger one where there is one.
        files: a folded list of its files, or nothing.
    """
    unfolded = f"<details><summary>A larger model</summary><p>{more}</p></details>" if more else ""
    return f'<h1>{escape(title)}</h1><div class="model-note"><p>{note}</p>{unfolded}{files}</div>'


def progress_html(step: Step, preview: np.ndarray | None) -> str:
    """A bar, the step, and where there is one the preview: uint8 RGB ``[N, h, w, 3]``."""
    done = step.index + 1
    text = f"Step {done} of {step.total}" if done < step.total else "Decoding the pictures"
    count = 0 if preview is None else min(len(preview), 4)
    pictures = (
        "" if preview is None else "".join(f'<img src="{_data_url(p)}" alt="Preview">' for p in preview[:4])
    )
    previews = f'<div class="previews" style="--columns: {min(count, 2)}">{pictures}</div>' if count else ""
    return f"{bar_html(text, 'Sampling steps', done, step.total)}{previews}"


def bar_html(text: str, label: str, done: float, total: float) -> str:
    """A line of text over a bar, which has a name of its own."""
    return (
        f'<div class="run-status running"><p>{escape(text)}</p>'
        f'<div class="bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" '
        f'aria-valuenow="{done:g}" aria-valuemax="{total:g}">'
        f'<div style="width: {100 * done / total:.1f}%"></div></div></div>'
    )


def message_html(text: str, kind: str = "note") -> str:
    """One line; ``kind`` is ``note``, ``error``, ``running`` or ``done``, which a grade may follow."""
    return f'<div class="run-status {kind}"><p>{escape(text)}</p></div>'


SYNTAX_HELPS = "Prompt syntax, under Advanced options, takes prompts of any length."


def token_count_html(text: str, is_cut: bool) -> str:
    """A line under the prompt, marked where something is cut."""
    return f'<p class="{"cut" if is_cut else "fits"}" role="status">{escape(text)}</p>'


def done_html(result: Result) -> str:
    """That a run is over, and in words and colour how well it went by the detector's judgement."""
    said = ["Done.", *result.remarks]
    if not result.scores:
        return message_html(" ".join(said), "done")
    noun = _hint_called(result)
    best = max(result.scores, key=lambda score: score.agreement)
    grade = grade_of(best.agreement)
    words = {"good": "keeps to", "fair": "keeps to parts of", "poor": "hardly keeps to"}[grade]
    which = "It" if len(result.scores) == 1 else "The best"
    number = f"{best.measure} {score_text(best)}" + (f"; {best.remark}" if best.remark else "")
    judged = f"{which} {words} the {noun}, says the detector ({number})."
    return message_html(" ".join([said[0], judged, *said[1:]]), f"done {grade}")


def _hint_called(result: Result) -> str:
    """What the page calls the hint of a result: an edge map, a depth map; the segmentation's is *the* map."""
    return find_condition(result.request.condition).noun.removeprefix("segmentation ")


def grade_of(agreement: float) -> str:
    """``good``, ``fair`` or ``poor``: the embedded model reaches 0.85 on maps of its own world."""
    return "good" if agreement >= _GOOD else "fair" if agreement >= _FAIR else "poor"


def loading_html() -> str:
    """That the model is not there yet."""
    return message_html("Loading the model … What you ask for meanwhile begins when it is there.", "loading")


def place_html(before: int, seconds: float, waited: float) -> str:
    """A visitor's place in the line, or nothing where the turn comes at once."""
    if not before:
        return message_html("You are next.", "running") if waited > 1 else ""
    place = before + 1
    ending = "th" if place % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return message_html(f"You are {place}{ending}, about {max(1, round(seconds))} s.", "running")


def report_html(report: HintReport) -> str:
    """What was found out about a hint that a person brought."""
    shares = [f"{name} {100 * share:.0f}%" for name, share in report.shares[:6]]
    taken_as = f"Taken as {'an' if report.taken_as[0] in 'aeiou' else 'a'} {report.taken_as}"
    lines = [
        f"{taken_as}: {', '.join(shares)}." if shares else f"{taken_as}.",
        f"{report.touched} of {report.hint.size} pixels were snapped to their nearest value."
        if report.touched
        else "",
        *report.warnings,
    ]
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return f'<div class="run-status note">{paragraphs}</div>'


def what_next(condition: Condition, world: World | None = None) -> str:
    """What a person can do with a hint that was detected, and what the model makes of it."""
    edit = {
        "label_map": "Paint on the map if you like, then press",
        "draw": "Draw on it if you like, then press",
    }
    honest = f" This model knows {world.about}: of a photograph it makes little." if world else ""
    return f"{edit.get(condition.editor or '', 'Press')} Generate.{honest}"


def result_html(result: Result) -> str:
    """Seed and score of every picture."""
    rows = []
    for index, seed in enumerate(result.seeds):
        row = f"<th scope='row'>Picture {index + 1}</th><td>{seed}</td>"
        if result.scores:
            score = result.scores[index]
            number = score_text(score)
            ranges = f"min='0' max='1' low='{_FAIR}' high='{_GOOD}' optimum='1'"
            meter = f"<meter {ranges} aria-label='Agreement' value='{score.agreement:.3f}'></meter>"
            row += f"<td>{meter} {number}</td>"
            row += f"<td>{escape(_details(score))}</td>"
        rows.append(f"<tr>{row}</tr>")
    head = "<td></td><th scope='col'>Seed</th>"
    if result.scores:
        noun = _hint_called(result)
        head += (
            f"<th scope='col' title='The detector compares the result with the hint'>Keeps the {escape(noun)}"
            f" ({escape(result.scores[0].measure)}, judged by the detector)</th><th scope='col'>Details</th>"
        )
    took = f"{pictures_text(len(result.pictures))} in {result.seconds:.1f} s"
    return (
        f'<div class="adherence"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f"<p>{took}, model {escape(result.model)}.</p></div>"
    )


def pictures_text(count: int) -> str:
    """``1 picture``, ``2 pictures``."""
    return f"{count} picture{'' if count == 1 else 's'}"


def score_text(score: Score) -> str:
    """The number with its unit."""
    unit = "°" if score.details.get("unit") == "degrees" else ""
    return f"{score.value:.1f}{unit}" if unit else f"{score.value:.2f}"


def _details(score: Score) -> str:
    """What else is to be said of a score: shares as percents, the weakest classes of a map."""
    parts = [score.remark] if score.remark else []
    parts += [
        f"{name.replace('_', ' ')} {100 * value:.0f}%"
        for name, value in score.details.items()
        if isinstance(value, float)
    ]
    worst = ", ".join(f"{entry['class']} {entry['iou']:.2f}" for entry in score.details.get("worst", ()))
    return ", ".join(parts) + (f"; weakest: {worst}" if worst else "")


def caption(result: Result, index: int) -> str:
    """One picture's line in the gallery: seed, number in the batch, score."""
    text = f"seed {result.seeds[index]}"
    if len(result.pictures) > 1 and not result.request.per_sample_seeds:
        text += f" #{index + 1}"
    return text + (f" · {score_text(result.scores[index])}" if result.scores else "")


def mark_departures(picture: np.ndarray, departs: np.ndarray) -> np.ndarray:
    """The picture, dimmed, and coloured where it departs from the map: uint8 RGB ``[H, W, 3]``, bool ``[H,
    W]``.
    """
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.8 + 40
    return np.where(departs[:, :, None], 0.35 * picture + 0.65 * _MARK, grey).clip(0, 255).astype(np.uint8)


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
