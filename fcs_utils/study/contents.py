"""What files must hold. A checksum tells that a file is as it was written, not that what was written makes sense."""

from __future__ import annotations

from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import BaseModel, Field, ValidationError, create_model

from fcs_utils.config import Count, NotNegative, Positive
from fcs_utils.errors import StudyError, refuse_field
from fcs_utils.machine import Precision
from fcs_utils.pruning.counts import keep_count
from fcs_utils.pruning.plan import PruningPlan
from fcs_utils.study.packed import Record
from fcs_utils.study.runs import SCHEMA, Level, Run, parse_run

Shape = type[BaseModel]


def _shape(*parts: Shape, **fields: Any) -> Shape:
    """A JSON object with these fields and those of its parts; one that may be None may be missing. Further fields are allowed."""
    types = {name: (kind, None if NoneType in get_args(kind) else ...) for name, kind in fields.items()}
    inherited = {name: (field.annotation, field) for part in parts for name, field in part.model_fields.items()}
    found: Shape = create_model("Shape", **inherited, **types)  # type: ignore[call-overload]
    return found


def _list(kind: Any) -> Any:
    return GenericAlias(list, (kind,))


def _by_name(kind: Any) -> Any:
    return GenericAlias(dict, (str, kind))


PERCENT = Annotated[float, Field(ge=0, le=100)]
COST = _shape(params=Count, macs=Count, bytes=Count)
JUDGED = _shape(validation=PERCENT, test=PERCENT)
START = _shape(validation=PERCENT, validation_loss=NotNegative, peer_validation=PERCENT | None, peer_kl=float | None)
EPOCH = _shape(START, epoch=Count, loss=NotNegative, training_macs=Count)
HISTORY: Any = Annotated[_list(EPOCH), Len(1)]
TRAINED = _shape(JUDGED, cost=COST, best_validation_epoch=Count, history=HISTORY, dataset_fingerprint=str)
ON_REFERENCE = _shape(reference_sha256=str, dataset_fingerprint=str)
DUPLICATES = _shape(twins=Level, pairs=Level, threshold=float)
RESULTS = {
    "reference": _shape(TRAINED, weights_sha256=str),
    "similarity": _shape(ON_REFERENCE, shares=_by_name(_by_name(DUPLICATES))),
    "pruned": _shape(
        ON_REFERENCE, plan=dict, cost=COST, dense_cost=COST, before_recalibration=_shape(test=PERCENT), before_tuning=JUDGED
    ),
    "tuned": _shape(TRAINED, ON_REFERENCE, dense_cost=COST, start=START, peer=JUDGED | None),
}
# Of a reference whose weights were given: nothing was trained, and these splits may have been seen.
GIVEN = _shape(
    JUDGED, cost=COST, dataset_fingerprint=str, weights_sha256=str, history=Annotated[list, Len(0, 0)],
    seen=_list(Literal["train", "validation"]),
)  # fmt: skip
MACHINE = _shape(device_type=str, device=str, threads=Count, torch=str)
VOLATILE = _shape(seconds=NotNegative, date=str, commit=str, epoch_seconds=_list(NotNegative) | None)
RECORD = _shape(id=str, kind=Literal[*RESULTS], config=dict, result=dict, provenance=MACHINE, volatile=VOLATILE)
SETTINGS = _shape(precision=Precision, profile=str, dataset=str, validation_images=Count)

MEASURED = _shape(machine=MACHINE, date=str)
JOB = _shape(network=str, width=Positive, images=Count)
SCORED = _shape(JOB, method=str, memory=bool, seconds=Positive | None, forward_seconds=Positive | None, bytes=int | None)
TIMED = _shape(JOB, batch_size=Count, what=str, way=str, images_per_second=Positive)
TURNS = _shape(network=str, macs=_by_name(Count), milliseconds=_by_name(_list(Positive)))
TIMES: Any = Annotated[_list(Positive), Len(1)]
WIDE = _shape(network=str, macs=_by_name(Count), seconds=_by_name(TIMES))
ON_CLUSTER = _shape(workers=Count, runs_per_second=Positive, idle_per_second=Positive)
GRID_OF_IDLE = _shape(runs=Count, per_second=Positive, bytes=Count, bytes_per_run=float)
PAIR = _shape(what=str, against=str, seconds=TIMES, other_seconds=TIMES, operators=_by_name(PERCENT))
SHARED = _shape(asked=float, macs=float, reached=Positive)
DEPLOYED = _shape(MEASURED, asked=dict, rows=_list(TURNS), goals=_list(SHARED), layers=_list(_shape(network=str, kinds=dict)))


def _each(*parts: Shape, **fields: Any) -> Any:
    """What each machine adds to."""
    return _shape(measured=_list(_shape(*parts, precision=str, **fields))) | None


MEASUREMENTS = _shape(
    scoring=_shape(MEASURED, jobs=list, rows=_list(SCORED)) | None,
    speed=_each(MEASURED, jobs=list, rows=_list(TIMED)),
    cluster=_shape(MEASURED, here_per_second=Positive, rows=_list(ON_CLUSTER), overhead_seconds=Positive, grid=GRID_OF_IDLE) | None,
    widths=_each(MEASURED, asked=dict, rows=_list(WIDE)),
    deployed=_each(DEPLOYED),
    yardsticks=_each(MEASURED, asked=dict, rows=_list(PAIR)),
    latency=_shape(MEASURED, onnxruntime=str | None, runs=list, rows=_list(TURNS)) | None,
)


def conform(shape: Shape, value: Any, where: object) -> None:
    """Raises StudyError, naming the place and the first field that is missing or has a wrong type or value."""
    try:
        shape.model_validate(value, strict=True)
    except ValidationError as error:
        raise refuse_field(error, f"{where}: ") from error


def _agree(run: Run, result: dict[str, Any]) -> None:
    """Raises StudyError for results that contradict one another or the configuration."""
    if history := result.get("history"):
        epochs, training = [one["epoch"] for one in history], run.tuning.training if run.tuning else run.reference.training
        assert training is not None  # a given reference has no history
        most = len(epochs) if run.tuning and run.tuning.budget == "macs" else training.epochs
        if epochs != [*range(1, most + 1)] or result["best_validation_epoch"] > most:
            raise StudyError(f"its history is not of {most} epochs in order")
        # Of a reference, the weights that are kept are rounded after its last epoch.
        if run.tuning and (last := history[-1]["validation"]) != result["validation"]:
            raise StudyError(f"its validation accuracy is {result['validation']}, that of its last epoch {last}")
    if "dense_cost" in result and any(result["cost"][name] > result["dense_cost"][name] for name in COST.model_fields):
        raise StudyError("the compact network costs more than the dense one")


def _check_plan(run: Run, plan: PruningPlan) -> None:
    """Raises StudyError for a plan whose layers do not all lose the share that the run or the plan itself names."""
    if plan.ranking == "network":
        return  # one threshold for all layers: how many channels each loses follows from their importance
    asked = run.pruning.ratio if run.pruning and plan.macs is None else None  # with a goal in MACs, the ratio was searched for
    if asked not in (None, plan.ratio):
        raise StudyError(f"its plan is of ratio {plan.ratio}, the run of {asked}")
    for name, kept in plan.kept.items():
        ratio = plan.ratio if plan.rates is None else plan.rates.get(name)
        if ratio is None and plan.rates is not None:
            continue  # it follows another layer
        if len(kept) != (wanted := keep_count(plan.channels[name], ratio or 0, plan.rounding)):
            raise StudyError(f"its plan keeps {len(kept)} channels of {name}; ratio {ratio} leaves {wanted}")


def check_record(record: Record, where: object, run: Run | None = None) -> None:
    """Raises StudyError for a record of another schema or run, or with a field that is missing, of a wrong type or impossible."""
    if record.get("schema") != SCHEMA:
        raise StudyError(f"{where} has schema {record.get('schema')!r}; records of this version have schema {SCHEMA}")
    conform(RECORD, record, where)
    reference = record["config"].get("reference")
    given = record["kind"] == "reference" and isinstance(reference, dict) and "weights" in reference
    conform(GIVEN if given else RESULTS[record["kind"]], record["result"], f"{where}: result")
    try:
        found = parse_run(record["config"])
        _agree(found, record["result"])
        if record["kind"] == "pruned":
            _check_plan(found, PruningPlan.from_data(record["result"]["plan"]))
    except StudyError as error:
        raise StudyError(f"{where}: {error}") from error
    if (found.kind, found.identity) != (record["kind"], record["id"]) or (run is not None and found.identity != run.identity):
        raise StudyError(f"{where} is the record of another run")
