"""Answers to the explorer's controls come one at a time, whichever thread asks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import ipywidgets as w

from fcs_utils.errors import StudyError
from fcs_utils.report.turns import TURN, answering


def test_threads_answer_one_after_the_other() -> None:
    errors, inside, started = w.HTML(), [0], threading.Barrier(8)
    most = []

    def act() -> None:
        inside[0] += 1
        most.append(inside[0])
        sum(range(20_000))  # long enough for others to come in
        inside[0] -= 1

    def thread(_: int) -> None:
        started.wait()
        for _ in range(50):
            answering(act, errors)(None)

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(thread, range(8))]
    assert len(most) == 400 and set(most) == {1} and errors.value == ""


def test_an_answer_may_move_a_control_that_is_answered_within() -> None:
    errors, said = w.HTML(), list[str]()
    first, second = w.IntText(), w.IntText()

    def moves() -> None:
        second.value = 10 * first.value
        said.append("first")

    first.observe(answering(moves, errors), "value")
    second.observe(answering(lambda: said.append(f"second {second.value}"), errors), "value")
    first.value = 3
    assert said == ["second 30", "first"] and errors.value == ""


def test_what_goes_wrong_is_shown_until_the_next_answer() -> None:
    errors, control = w.HTML(), w.IntText()
    control.observe(answering(lambda: 1 / control.value, errors), "value")
    control.value = 5
    assert errors.value == ""
    control.value = 0
    assert 'role="alert"' in errors.value and "ZeroDivisionError" in errors.value
    control.value = 2
    assert errors.value == ""


def test_the_turn_is_given_back_after_an_error() -> None:
    errors = w.HTML()
    answering(lambda: [][1], errors)(None)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(TURN.acquire, blocking=False).result()
        pool.submit(TURN.release).result()


def test_what_a_user_can_correct_is_said_in_one_line() -> None:
    errors = w.HTML()

    def act() -> None:
        raise StudyError("cannot write <here>")

    answering(act, errors)(None)
    assert errors.value == '<p role="alert">cannot write &lt;here&gt;</p>'
