"""The published comparisons once more, from ``records.jsonl`` and the profile's TOML alone: nothing of the package is imported.

    .venv/bin/python tests/report/recompute.py cifar    # prints the largest difference from results/cifar/claims.json

docs/method.md says what each number is. Ends of intervals of epochs are found here by trying many numbers of epochs.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"vgg16": "VGG-16", **{f"resnet{depth}": f"ResNet-{depth}" for depth in (20, 32, 44, 56)}}
GIVEN = "given networks"  # each of them is one replicate
BASELINES = ("kernel_l1", "feature_norm")
Row = dict[str, Any]


def network_of(record: Row) -> str:
    reference = record["config"]["reference"]
    if reference.get("weights"):
        return GIVEN
    width = "" if reference["width"] == 1 else f" x{reference['width']:g}"
    return NAMES[reference["network"]] + width


def interval(differences: list[float]) -> Row:
    """Student's paired t: the mean, its 95 % interval and p."""
    values = np.array(differences)
    n, mean = len(values), float(values.mean())
    if n == 1 or np.ptp(values) == 0:
        return {"effect": mean, "n": n}
    error = float(values.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.ppf(0.975, n - 1)) * error
    return {"effect": mean, "low": mean - half, "high": mean + half, "p": float(2 * stats.t.sf(abs(mean) / error, n - 1)), "n": n}


def holm(ps: list[float]) -> list[float]:
    """Holm's step-down correction."""
    order, corrected, floor = np.argsort(ps), [0.0] * len(ps), 0.0
    for place, index in enumerate(order):
        floor = max(floor, min(1.0, (len(ps) - place) * ps[index]))
        corrected[index] = floor
    return corrected


def read(profile: str) -> tuple[Row, list[Row], list[Row]]:
    folder = ROOT / "results" / profile
    plan = tomllib.loads((ROOT / "fcs_utils" / "study" / "profiles" / f"{profile}.toml").read_text())
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return plan, records, json.loads((folder / "claims.json").read_text())["comparisons"]


def shares(records: list[Row], network: str, state: str, value: str) -> dict[int | str, float]:
    """Mean over layers of a share in percent, by seed, or by network where these are given."""
    found = (r for r in records if r["kind"] == "similarity" and network_of(r) == network)
    return {
        r["config"]["reference"]["network" if network == GIVEN else "seed"]: 100
        * float(np.mean([layer[value] for layer in r["result"]["shares"][state].values()]))
        for r in found
    }


def c1(records: list[Row], row: Row) -> Row:
    trained_words, _, state = row["comparison"].partition("trained minus ")
    value = "pairs" if "pairs" in trained_words else "twins"
    trained = shares(records, row["network"], "trained", value)
    other = shares(records, row["network"], state, value) if state else dict.fromkeys(trained, 1.0)
    return interval([trained[seed] - other[seed] for seed in trained])


def fine_tuned(plan: Row, records: list[Row], given: bool = False) -> dict[tuple[Any, ...], float]:
    """Test accuracy after the schedule that compares criteria, by criterion, seed, network and ratio."""
    found = {}
    wanted = {**plan["tuning"], **({"epochs": plan["given"]["epochs"]} if given else {})}
    ratios = [plan["given"]["ratio"]] if given else plan["ratios"]
    for r in records:
        cut, tuning, reference = r["config"]["pruning"], r["config"]["tuning"], r["config"]["reference"]
        schedule = tuning and {name: tuning["training"][name] for name in wanted}
        plain = tuning and tuning["method"] == "tft" and cut["compensate"] == "none"
        if bool(reference.get("weights")) == given and plain and schedule == wanted and cut["ratio"] in ratios:
            network = reference["network"] if given else network_of(r)
            if given or reference["seed"] in plan["seeds"]:
                words = [f"{option}={value}" for option, value in sorted(cut["options"].items())]
                found[" ".join([cut["criterion"], *words]), reference["seed"], network, cut["ratio"]] = r["result"]["test"]
    return found


def c2(tops: dict[tuple[Any, ...], float], row: Row, own: str) -> Row:
    """A reading of FCS minus another criterion by seed; in given networks, by network. Rows that inform may lack runs."""
    gains, seeds = {}, defaultdict(set)
    for (criterion, seed, network, ratio), top in tops.items():
        other = tops.get((row["theirs"], seed, network, ratio))
        if criterion == own and row["network"] in ("", network) and (row["decisive"] or other is not None):
            gains[seed, network, ratio] = top - other
            seeds[ratio].add(seed)
    most, by_replicate = max(map(len, seeds.values())), defaultdict(list)
    for (seed, network, ratio), gain in gains.items():
        if len(seeds[ratio]) == most:
            by_replicate[network if row["role"] == "given" else seed].append(gain)
    return interval([float(np.mean(values)) for values in by_replicate.values()])


def arms(plan: Row, records: list[Row]) -> dict[tuple[str, int], dict[int, Row]]:
    """Each arm's schedule at its chosen rate: test accuracy and training MACs by seed."""
    section, validation, pilots = plan["arms"], [], defaultdict(list)
    seeds = [*plan["seeds"], *section.get("further_seeds", [])]
    runs = []
    for r in records:
        cut, tuning = r["config"]["pruning"], r["config"]["tuning"]
        if (
            not tuning
            or r["config"]["reference"].get("weights")
            or tuning["method"] not in section.get("methods", ("tft", "mlft", "twin", "kd"))
        ):
            continue
        key = (cut["criterion"], cut["ratio"], cut["compensate"], str(cut["options"]))
        if key != (section.get("criterion", "fcs"), section.get("ratio", 0.5), "none", "{}") or cut["calibration_seed"] is not None:
            continue
        seed, rate = r["config"]["reference"]["seed"], tuning["training"]["learning_rate"]
        runs.append((tuning["method"], tuning["training"]["epochs"], rate, seed, r["result"]))
        if seed in section.get("pilot_seeds", [100]):
            last = r["result"]["history"][-1]
            pilots[tuning["method"], rate].append((last["validation"], last["validation_loss"]))
    known = json.loads((ROOT / "results" / plan["name"] / "study.json").read_text())
    slack = max(0.2, 100 / known["validation_images"])
    chosen = {}
    for method in {method for method, _ in pilots}:
        means = {rate: np.mean(values, 0) for (name, rate), values in pilots.items() if name == method}
        validation = max(mean[0] for mean in means.values())
        near = {rate: mean[1] for rate, mean in means.items() if mean[0] >= validation - slack - 1e-9}
        chosen[method] = min(near, key=near.__getitem__)
    found: dict[tuple[str, int], dict[int, Row]] = defaultdict(dict)
    for method, epochs, rate, seed, result in runs:
        schedules = section["epochs"][method] if isinstance(section["epochs"], dict) else section["epochs"]
        if rate == chosen.get(method) and seed in seeds and epochs in schedules:  # no rate is chosen yet where the pilots wait
            found[method, epochs][seed] = {"test": result["test"], "macs": result["history"][-1]["training_macs"]}
    return found


def against(found: dict[tuple[str, int], dict[int, Row]], ours: tuple[str, int], theirs: tuple[str, int]) -> Row:
    one, other = found[ours], found[theirs]
    compute = np.mean([run["macs"] for run in one.values()]) / np.mean([run["macs"] for run in other.values()])
    return interval([one[seed]["test"] - other[seed]["test"] for seed in one if seed in other]) | {"compute": float(compute)}


def saved(found: dict[tuple[str, int], dict[int, Row]], row: Row) -> Row:
    """Epochs at which the mean difference from TFT's longest schedule is zero, and where its interval contains zero."""
    goal, method = row["against"], row["theirs"]
    base = found["tft", goal]
    lengths = sorted(epochs for name, epochs in found if name == method and base.keys() <= found[name, epochs].keys())
    differences = np.array([[found[method, e][seed]["test"] - base[seed]["test"] for seed in base] for e in lengths])
    tried = np.linspace(np.log2(lengths[0]), np.log2(lengths[-1]), 200_001)
    at = np.array([np.interp(tried, np.log2(lengths), one) for one in differences.T])
    mean, error = at.mean(0), at.std(0, ddof=1) / np.sqrt(len(base))
    inside = np.flatnonzero(np.abs(mean) <= stats.t.ppf(0.975, len(base) - 1) * error + 1e-12)
    reached = np.flatnonzero(mean >= -1e-12)
    return {
        "length": 2 ** tried[reached[0]] if len(reached) else None,
        "shortest": 2 ** tried[inside[0]] if len(inside) and inside[0] > 0 else None,
        "longest": 2 ** tried[inside[-1]] if len(inside) and inside[-1] < len(tried) - 1 else None,
        "effect": 100 * (1 - 2 ** tried[reached[0]] / goal) if len(reached) else None,
    }


def best_reading(profile: str) -> str:
    """The candidate with the highest mean validation accuracy on the pilot seeds, as a profile spells it."""
    plan, records, _ = read(profile)
    section, tops = plan["readings"], defaultdict(list)
    for r in records:
        cut, tuning, seed = r["config"]["pruning"], r["config"]["tuning"], r["config"]["reference"]["seed"]
        if seed not in plan["arms"].get("pilot_seeds", [100]) or not tuning or tuning["method"] != "tft":
            continue
        training = tuning["training"]
        wanted = section.get("ratio", 0.5), section["epochs"], plan["tuning"]["learning_rate"]
        if (cut["ratio"], training["epochs"], training["learning_rate"]) == wanted:  # the same pilots tune at other rates for C3
            words = [f"{name}={value}" for name, value in cut["options"].items()]
            tops[frozenset([cut["criterion"], *words])].append(r["result"]["validation"])
    return max(section["candidates"], key=lambda text: float(np.mean(tops[frozenset(text.split())])))


def recompute(profile: str) -> list[tuple[str, str, float, float]]:
    """Every number that both know: comparison, name, published and recomputed value."""
    plan, records, rows = read(profile)
    plan["name"] = profile
    tops, schedules = fine_tuned(plan, records), arms(plan, records)
    given = fine_tuned(plan, records, given=True) if "given" in plan else {}
    both = []
    for row in rows:
        if row["claim"] in ("C1a", "C1b"):
            own = c1(records, row)
        elif row["claim"] in ("C2", "C2, best reading"):
            own = c2(given if row["role"] == "given" else tops, row, "fcs" if row["claim"] == "C2" else plan["best"])
        elif row["role"].startswith("saving"):
            own = saved(schedules, row)
            both.append((row["comparison"], "reached", float(row["effect"] is not None), float(own["effect"] is not None)))
            if row["theirs"] == "tft":
                own["longest"] = own["longest"] and row["against"]
        else:
            ours = "tft" if row["comparison"].startswith("test top-1, TFT of") else "mlft"
            own = against(schedules, (ours, row["epochs"]), (row["theirs"], row["against"]))
        both += [(row["comparison"], name, row[name], value) for name, value in own.items() if None not in (row[name], value)]
    for claim in dict.fromkeys(row["claim"] for row in rows):
        deciding = [row for row in rows if row["claim"] == claim and row["decisive"] and row["p"] is not None]
        corrected = holm([row["p"] for row in deciding])
        both += [(row["comparison"], "p_holm", row["p_holm"], p) for row, p in zip(deciding, corrected, strict=True)]
    return both


if __name__ == "__main__":
    found = recompute(sys.argv[1])
    worst = max(found, key=lambda one: abs(one[2] - one[3]))
    print(f"{len(found)} numbers; the largest difference is {abs(worst[2] - worst[3]):.2g}: {worst}")
