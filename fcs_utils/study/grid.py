"""A profile as runs, stage by stage, and what they are expected to cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fcs_utils.pruning.criteria import check_options
from fcs_utils.study.catalogue import Stage
from fcs_utils.study.profiles import Network, Profile
from fcs_utils.study.runs import Method, Pruning, Reference, Run, Similarity, Tuning

Rates = Mapping[tuple[str, str], float]  # the learning rate of a network's arm


def grid(profile: Profile, precision: Literal["fp32", "bf16"], rates: Rates | None = None) -> dict[Stage, list[Run]]:
    """Every run of a profile by stage, in the order they are done.

    rates: the chosen learning rates; without them the stage ``arms`` is left out, for it is not known yet.
    Runs that two stages share (TFT at the schedule of the comparison of criteria) appear in both and are done
    once.
    """

    def reference(network: Network, seed: int) -> Run:
        return Run(reference=Reference(dataset=profile.dataset, network=network.network, width=network.width, seed=seed,
                                       training=network.training, precision=precision))  # fmt: skip

    def pruned(run: Run, criterion: str, ratio: float, **more: Any) -> Run:
        check_options(criterion, more.get("options", {}))
        pruning = Pruning(**{"criterion": criterion, "ratio": ratio, "calibration": profile.calibration, **more})
        return run.model_copy(update={"pruning": pruning})

    def tuned(run: Run, method: Method, **training: Any) -> Run:
        return run.model_copy(update={"tuning": Tuning(method=method, training=profile.tuning.model_copy(update=training))})

    references = [reference(network, seed) for network in profile.networks for seed in profile.seeds]
    cut = [pruned(run, c, ratio) for run in references for ratio in profile.ratios for c in profile.criteria]
    ablations, arms = profile.ablations, profile.arms
    further = [reference(network, seed) for network in profile.networks if network.network in arms.networks
               for seed in arms.further_seeds]  # fmt: skip
    stages: dict[Stage, list[Run]] = {
        "reference": [*references, *further],
        "similarity": [r.model_copy(update={"similarity": Similarity(calibration=profile.calibration)}) for r in references],
        "pruned": cut,
        "tuned": [tuned(run, "tft") for run in cut],
    }  # fmt: skip
    counts = dict.fromkeys((profile.calibration, *ablations.calibrations))
    draws = [(count, seed) for count in counts for seed in (None, *range(1000, 1000 + ablations.draws))]
    varying = [run for run in references if run.reference.seed in profile.seeds[: ablations.seeds]
               and run.reference.network in (ablations.networks or [run.reference.network])]  # fmt: skip
    stages["ablation"] = [
        varied for run in varying for varied in (
            pruned(run, "fcs", ablations.ratio),
            *(pruned(run, "fcs", ablations.ratio, options=options) for options in ablations.variants()),
            *(pruned(run, "fcs", ablations.ratio, calibration=count, calibration_seed=seed) for count, seed in draws),
            *(pruned(run, c, ratio, compensate=how) for c in ablations.merged for ratio in profile.ratios
              for how in ("none", "merge")),
        )
    ]  # fmt: skip
    compact = [pruned(run, arms.criterion, arms.ratio) for run in references if run.reference.network in arms.networks]
    stages["headstart"] = [
        tuned(run.model_copy(update={"pruning": run.pruning.model_copy(update={"compensate": how})}), "tft",
              epochs=ablations.headstart)
        for run in compact if run.pruning for how in ("none", "merge")
    ]  # fmt: skip
    pilots = [pruned(reference(network, seed), arms.criterion, arms.ratio)
              for network in profile.networks if network.network in arms.networks for seed in arms.pilot_seeds]  # fmt: skip
    stages["rates"] = [tuned(run, method, epochs=arms.pilot_epochs, learning_rate=rate)
                       for run in pilots for method in arms.methods for rate in arms.learning_rates]  # fmt: skip
    if rates is not None:
        stages["arms"] = [
            *(tuned(run, method, epochs=epochs, learning_rate=rates[run.reference.network, method])
              for run in (*compact, *(pruned(run, arms.criterion, arms.ratio) for run in further))
              for method in arms.methods for epochs in arms.epochs),
            *(run.model_copy(update={"tuning": Tuning(method="scratch", training=run.reference.training, budget=budget)})
              for run in compact if run.reference.seed in profile.seeds[: arms.scratch_seeds] for budget in arms.scratch),
        ]  # fmt: skip
    return stages
