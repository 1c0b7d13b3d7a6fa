"""What the explorer says, as HTML: refusals, what is going on, what is left of a network, and what was saved."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fcs_utils.report.exploration import Choice, Exploration


def refused_as(error: Exception) -> str:
    """An error that the user can correct, in one line."""
    return f'<p role="alert">{html.escape(str(error))}</p>'


def going_on(words: str) -> str:
    """A sign that stands there while something is going on."""
    return f'<p role="status"><b>{html.escape(words)} ...</b></p>'


def numbers(here: Exploration, choice: Choice) -> str:
    """What is left of the whole network, as HTML tables."""
    whole, dense = here.whole(choice), here.dense_cost
    costs = [("MACs", whole.cost.macs, dense.macs), ("parameters", whole.cost.params, dense.params)]
    left = [(name, f"{after:,}", 100 * after / before) for name, after, before in costs]
    tops = [("unpruned", here.dense_accuracy, None), ("pruned", *whole.plain), ("pruned and merged", *whole.merged)]
    judged = f"validation top-1, {here.subject.judged} images, no fine-tuning"
    heads = ["whole network", "left", "of the unpruned"], [judged, "after surgery", "BatchNorm recalibrated"]
    frames = [pd.DataFrame(rows, columns=head) for rows, head in zip((left, tops), heads, strict=True)]
    tables = [frame.to_html(index=False, border=0, float_format="{:.1f} %".format, na_rep="") for frame in frames]
    return f"{tables[0]}{here.measured(choice)}{tables[1]}"


def saved_as(here: Exploration, files: Sequence[Path]) -> str:
    """What was saved, the network first, and the code that loads it, as HTML."""
    names = " and ".join(f"<code>{html.escape(str(file))}</code>" for file in files)
    code = f'<pre style="white-space: pre; overflow-x: auto">{html.escape(here.loading_code(files[0].resolve()))}</pre>'
    return f"<p>Saved {names}, with the plan beside. Load it anywhere with:</p>{code}"


def ended(accuracies: Sequence[float], epochs: int, whole: bool, judged: int) -> str:
    """How a training of some epochs ended, in words behind its arm's name. accuracies: before it and after each finished epoch."""
    first, *later = accuracies
    done = f"{len(later)} of {epochs} epochs {'is' if len(later) == 1 else 'are'} finished"
    if not later:
        return " was stopped before an epoch was finished."
    found = f"{later[-1]:.1f} % after {len(later)} epoch{'s' * (len(later) > 1)}, {first:.1f} % before, on {judged} images."
    return f": {found}" if whole else f" was stopped: {done} and kept. {found}"
