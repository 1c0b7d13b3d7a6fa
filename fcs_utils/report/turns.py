"""Answers to controls: one at a time, whichever thread they come in, and what goes wrong is shown.

JupyterLab has two threads of the kernel answer at once (subshells). An ``ipywidgets.Output`` that both enter keeps the message
that ends an answer from the page, and the page then sends nothing more from that control: errors go to HTML widgets instead.
All explorers of a kernel share the turns, because they share torch's generators and matplotlib's figures.
"""

from __future__ import annotations

import asyncio
import html
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ipywidgets as w

from fcs_utils.errors import StudyError
from fcs_utils.report.words import refused_as

TURN = threading.RLock()  # an answer that moves a control is answered within


@contextmanager
def in_its_turn(errors: w.HTML) -> Iterator[None]:
    """Wait for the turn; what goes wrong in it appears in ``errors``, with a traceback unless the user can correct it."""
    with TURN:
        errors.value = ""
        try:
            yield
        except StudyError as error:
            errors.value = refused_as(error)
        except Exception:  # as a cell does, which goes on with the next
            errors.value = f'<pre role="alert" style="overflow-x: auto">{html.escape(traceback.format_exc())}</pre>'


def after_this(act: Callable[[], Any], errors: w.HTML) -> None:
    """``act`` in its turn once what the kernel does now has come to its end and is shown; where no kernel runs, at once."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        act()
    else:
        loop.call_soon(answering(act, errors), None)


def answering(act: Callable[[], Any], errors: w.HTML) -> Callable[[Any], None]:
    """What a control can call when it changes: ``act`` in its turn."""

    def answer(_: Any) -> None:
        with in_its_turn(errors):
            act()

    return answer
