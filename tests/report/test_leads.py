"""The answers on the first screen, and the sentences that open the sections, from planted runs."""

from __future__ import annotations

import math
import tomllib
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from fcs_utils.report.answers import answers, at_equal_epochs, which_criterion
from fcs_utils.report.leads import LEADS
from fcs_utils.report.pages import HERE
from fcs_utils.report.planning import HOURS
from fcs_utils.report.tables import published_table
from tests.report.planted import arm, ledger_of


def tuned(tops: dict[str, list[tuple[float, float]]], **more: Any) -> pd.DataFrame:
    """Validation and test accuracy of each criterion by seed."""
    common = {"network": "n", "ratio": 0.5, "epochs": 8.0, **more}
    rows = [
        {"criterion": name, "seed": seed, "validation": validation, "test": test, **common}
        for name, both in tops.items()
        for seed, (validation, test) in enumerate(both)
    ]
    return pd.DataFrame(rows)


def chosen(runs: pd.DataFrame, unfinished: pd.DataFrame | None = None) -> str:
    report: Any = SimpleNamespace(tuned=runs, slack=0.2, unfinished=pd.DataFrame() if unfinished is None else unfinished)
    return which_criterion(report)


def test_the_criterion_is_chosen_on_validation_and_compared_on_test() -> None:
    runs = tuned(
        {
            "fcs": [(70, 71), (70, 71), (70, 71.3)],
            "kernel_l1": [(72, 80), (72, 80), (72, 80)],  # the best on test
            "taylor": [(75, 74), (75, 74), (75, 74)],
            "new": [(99, 99)],  # two seeds are missing
        }
    )
    said = chosen(runs)
    assert said.startswith(
        "**Begin with `kernel_l1`** (kernel L1 norm), which needs no images. After 8 epochs of fine-tuning, Taylor has the highest "
        "mean validation accuracy of 3 criteria. On test, Taylor "
    )
    assert said.count("Taylor shows no clear difference from the kernel L1 norm: 6.0 points of top-1 below") == 1
    assert "it ends 2.9 points of top-1 above FCS" in said
    given = tuned({"fcs": [(90, 90)], "random": [(99, 99)]}, given=True)
    assert chosen(pd.concat([runs.assign(given=False), given])) == said  # they have seen the validation images
    assert "of 3 criteria so far. On test" in chosen(runs, pd.DataFrame({"stage": ["arms", "tuned"]}))
    assert chosen(given) == ""


def test_criteria_that_are_level_with_the_first_are_named() -> None:
    runs = tuned({"fcs": [(70, 71)] * 2, "kernel_l1": [(74.9, 80)] * 2, "taylor": [(75, 74)] * 2, "chip": [(74.7, 74)] * 2})
    assert "highest mean validation accuracy of 4 criteria; the kernel L1 norm is within 0.2 points of it. On" in chosen(runs)
    runs.loc[runs.criterion == "chip", "validation"] = 74.85
    assert "; the kernel L1 norm and CHIP are within 0.2 points of it. On" in chosen(runs)
    runs.loc[runs.criterion == "fcs", "validation"] = 74.81
    assert "; the kernel L1 norm, CHIP and FCS are within 0.2 points of it. On" in chosen(runs)


def test_criteria_whose_seeds_do_not_meet_are_not_compared() -> None:
    apart = tuned({"fcs": [(70, 71), (70, 71)], "taylor": [(75, 74), (75, 74)]})
    apart.loc[apart.criterion == "taylor", "seed"] += 2
    assert chosen(apart) == ""


@pytest.mark.parametrize(
    ("taylor", "advice"),
    [
        ([80.2, 80.3, 80.4], "**Begin with `taylor`** (Taylor). After 8 epochs"),
        ([80.2, 80.3, 79.4], "**Begin with `kernel_l1`** (kernel L1 norm), which needs no images. After 8 epochs"),
    ],
)
def test_a_criterion_is_named_only_if_it_is_clearly_ahead_of_the_norm_of_the_kernels(taylor: list[float], advice: str) -> None:
    runs = tuned({"kernel_l1": [(70, 80)] * 3, "taylor": [(75, test) for test in taylor]})
    assert chosen(runs).startswith(advice)
    assert chosen(runs[runs.criterion == "taylor"]).startswith(
        "**Begin with `taylor`** (Taylor). After 8 epochs"
    )  # nothing to compare with
    assert chosen(runs[runs.criterion == "kernel_l1"]).startswith("**Begin with `kernel_l1`** (kernel L1 norm). After 8 epochs")


def test_what_a_learning_teacher_costs_is_told_at_the_longest_common_schedule() -> None:
    rows = [
        arm(name, [50.0] * epochs, 80 + gain + offset, seed, macs)
        for name, epochs, gain, macs in (
            ("kd", 2, 0, 20),
            ("kd", 4, 1, 20),
            ("mlft", 4, 2, 50),
            ("mlft", 8, 9, 50),
            ("tft", 4, 0, 10),
        )
        for seed, offset in enumerate((-0.01 * (name == "mlft"), 0.0, 0.01 * (name == "mlft")))
    ]
    said = at_equal_epochs(pd.DataFrame(rows), "kd", "distillation")
    assert said.startswith("After 4 epochs, MLFT ends 1.0 points of top-1 above distillation ")
    assert said.endswith("at 2.5 times the training MACs.")
    assert at_equal_epochs(pd.DataFrame(rows), "tft", "TFT").startswith("After 4 epochs, MLFT ends 2.0 points of top-1 above TFT (")
    one_seed = [arm(name, [50.0] * 6, 99, 0) for name in ("kd", "mlft")]  # the others are not done
    assert at_equal_epochs(pd.DataFrame(rows + one_seed), "kd", "distillation") == said
    beside = opening("C3", ledger=pd.DataFrame(), schedules=pd.DataFrame(rows))
    assert beside.startswith("After 4 epochs, MLFT ends 1.0 points of top-1 above distillation from the frozen network (KD) (95 %")
    assert at_equal_epochs(pd.DataFrame(rows[-3:]), "kd", "KD") == "" == at_equal_epochs(pd.DataFrame(), "kd", "KD")


def test_answers_begin_with_the_verdict_and_leave_out_what_has_no_records() -> None:
    nothing = pd.DataFrame()
    known = ledger_of({2: 90.0, 4: 94.0}, {2: 92.0, 4: 97.0})
    empty: Any = {"tuned": nothing, "schedules": nothing, "unfinished": nothing}
    (only,) = answers(SimpleNamespace(ledger=known, **empty))  # type: ignore[arg-type]
    assert only[0] == "Is mutual learning worth it?" and only[1].startswith("Counted in epochs: **yes.** MLFT needs ")
    assert " Counted in compute: " in only[1]
    assert answers(SimpleNamespace(ledger=nothing, **empty)) == []  # type: ignore[arg-type]


def test_what_is_not_decided_yet_says_why() -> None:
    known, nothing = ledger_of({2: 90.0, 4: 94.0}, {2: 92.0, 4: 97.0}).assign(decisive=False), pd.DataFrame()
    report: Any = SimpleNamespace(ledger=known, tuned=nothing, schedules=nothing, unfinished=nothing)
    why = "**not decided yet.** Not all planned runs are done."
    assert answers(report) == [("Is mutual learning worth it?", f"Counted in epochs: {why} Counted in compute: {why}", "C3")]
    report.ledger = known.assign(claim="C2", replicate="network")
    (only,) = answers(report)
    assert only[1] == "**Not decided yet.** Only networks whose weights were given have been compared."


def test_openings_are_empty_where_there_are_no_records() -> None:
    names = ("ledger", "tuned", "schedules", "references", "variations", "merges", "recipe", "unfinished")
    empty = SimpleNamespace(**{name: pd.DataFrame() for name in names})
    alone = {name: LEADS[name](empty, None) for name in LEADS if name not in ("milliseconds", "scoring", "reported")}  # type: ignore[arg-type]
    assert len(alone) > 5 and set(alone.values()) == {""}


def opening(name: str, **frames: Any) -> str:
    """What opens a section where a report has these frames."""
    report: Any = SimpleNamespace(**frames)
    return LEADS[name](report, report)


def test_every_section_of_the_index_has_an_opening() -> None:
    *sections, rest = tomllib.loads((HERE / "index.toml").read_text())["section"]
    assert sections[0]["title"] == "" and rest["title"] == "More tables and figures"  # it has none
    assert all(section["lead"] in LEADS for section in sections)


def test_the_claims_open_with_how_their_comparisons_came_out() -> None:
    verdicts = ["supported", "contradicted", "undecided", "undecided", "supported"]
    ledger = pd.DataFrame({"verdict": verdicts, "decisive": [True] * 4 + [False]})
    assert opening("claims", ledger=ledger) == (
        "Of the 4 comparisons that decide the claims, 1 is clearly above zero, 1 clearly below, and 2 neither, corrected for "
        "several comparisons within a claim."
    )
    assert opening("claims", ledger=ledger[:1]).startswith("Of the 1 comparison that")
    assert opening("claims", ledger=ledger.assign(decisive=False)) == opening("claims", ledger=ledger[:0]) == ""


def test_the_best_combination_is_chosen_on_validation() -> None:
    rows = [
        {"network": "n", "criterion": criterion, "compensate": how, "method": "kd" if criterion == "fcs" else "tft", "seed": seed}
        | {"validation": validation, "test": test + spread, "id": f"{criterion} {how} {seed}", "ratio": 0.5}
        for criterion, how, validation, test in (("tp", "none", 80, 70), ("fcs", "merge", 82, 73), ("l1", "none", 81, 99))
        for seed, spread in enumerate((0.0, 0.1 * (criterion == "fcs"), 0.0))
    ]
    said = opening("recipe", recipe=pd.DataFrame(rows), default="tp", unfinished=pd.DataFrame())
    lead = "The highest mean validation accuracy of all combinations: in n, FCS with merged surgery and KD (on test, it ends 3.0 "
    assert said.startswith(lead) and "above tp with plain surgery and TFT (95 % interval " in said
    alone = opening("recipe", recipe=pd.DataFrame(rows[:3]), default="tp", unfinished=pd.DataFrame())
    assert alone.endswith("in n, tp with plain surgery and TFT.")
    begun = pd.DataFrame([*rows, {**rows[0], "criterion": "lucky", "validation": 99}])  # with one seed of three
    said = opening("recipe", recipe=begun, default="tp", unfinished=pd.DataFrame({"stage": ["recipe"]}))
    assert said.startswith(lead.replace("all combinations", "the 3 combinations that have the most seeds so far"))


def test_what_others_report_and_what_is_not_run() -> None:
    quoted, table = opening("reported"), published_table()
    change = [
        float(b) - float(a) for a, b in zip(table["base top-1 (%)"], table["pruned top-1 (%)"], strict=True) if a[:1].isdigit()
    ]
    assert quoted == (
        f"In the {len(change)} results quoted with both accuracies, the pruned network's top-1 minus the unpruned one's is "
        f"{min(change):+.2f} to {max(change):+.2f} points."
    )
    unfinished = pd.DataFrame({"runs": [2, 1], HOURS: [1.25, math.nan]})
    some, one = (opening("not run", unfinished=rows) for rows in (unfinished, unfinished[:1].assign(runs=1)))
    assert some == "3 planned runs without a record would take over 1.2 core-hours (an estimate)."
    assert one == "1 planned run without a record would take 1.2 core-hours (an estimate)."
