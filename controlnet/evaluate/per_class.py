"""One wish in several ways of words: in a sentence for the whole picture, or in a prompt for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cldm.cldm import ControlLDM
from controlnet.evaluate.evaluation import Case, Report, Sampling, generate_all, prompt_scores


def compare_ways(
    model: ControlLDM, ways: Mapping[str, Sequence[Case]], sampling: Sampling, keep: int = 0
) -> Report:
    """How often pictures show what was asked for.

    Args:
        model: in eval mode, on its device.
        ways: cases by the way in which they ask, the same wishes in the same order; their judges tell.
        sampling: how pictures are made; a case has the same noise in every way.
        keep: how many cases to keep pictures of, those of all ways side by side.

    Returns:
        A report with ``ways``: by way the share of each aspect, and ``things``, that of all aspects of single
        things together.
    """
    report = Report({"ways": {}})
    rows: dict[int, list[np.ndarray]] = {}
    for way, cases in ways.items():
        answers = []
        for index, picture in generate_all(model, cases, sampling):
            answers.append(cases[index].agreement(picture))
            if index < keep:
                rows.setdefault(index, []).append(picture)
        report.scores["ways"][way] = {"things": things_right(answers)} | prompt_scores(answers)[
            "prompt_accuracy_of"
        ]
    report.generated = {index: np.concatenate(row, axis=1) for index, row in rows.items()}
    return report


def things_right(answers: Sequence[Mapping[str, bool]], whole: Sequence[str] = ("time", "season")) -> Any:
    """The share of right answers about single things: those that are not about the picture as a ``whole``."""
    told = [right for answer in answers for name, right in answer.items() if name not in whole]
    return float(np.mean(told)) if told else None
