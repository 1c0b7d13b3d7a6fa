"""The runs of a study on the workers of a cluster, with a disk that they share with the client or without."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from tqdm import tqdm

from fcs_utils.data.dataset import data_folder
from fcs_utils.errors import StudyError, refuse
from fcs_utils.files import parse_json, read_bytes, write_atomic
from fcs_utils.study.contents import check_record
from fcs_utils.study.networks import OnMacs
from fcs_utils.study.packed import Record
from fcs_utils.study.pool import executor
from fcs_utils.study.records import Store, write_record
from fcs_utils.study.runs import Run, describe
from fcs_utils.study.schedule import Errors, attempt

if TYPE_CHECKING:
    from fcs_utils.study.dask_engine import Engine

Site = tuple[Executor, Callable[[], int] | int]  # and how many pieces of work to have in hand there


class Opened(Protocol):
    """What is needed of a ``Study``, which imports this module."""

    store: Store

    def record(self, run: Run) -> Record | None: ...

    def ensure(self, run: Run, *, wait: bool = True) -> Record: ...

    def __reduce__(self) -> tuple[Any, ...]: ...


@contextmanager
def runs_on(study: Opened, workers: int, cluster: str | None, on_macs: OnMacs) -> Iterator[Site]:
    """Where a study's runs are done, and how many to have in hand: processes here, or a cluster's workers.

    Raises StudyError as ``on_cluster`` does.
    """
    if cluster is None:
        with executor(workers, on_macs) as pool:
            yield pool, workers
        return
    with ThreadPoolExecutor(1) as desk, on_cluster(cluster, on_macs) as engine, marked(study.store) as mark:
        yield Away(study, engine, mark, desk), engine.slots


@contextmanager
def on_cluster(cluster: str, on_macs: OnMacs = lambda macs: None) -> Iterator[Engine]:
    """The workers of a cluster as an executor; ``on_macs`` hears of every epoch there.

    cluster: the scheduler's address, or the file that it wrote. Raises StudyError where Dask is not installed, for an address
    that is not private, where no scheduler answers or a worker does not fit, and when the scheduler is gone.
    """
    try:
        from fcs_utils.study.dask_engine import connect
    except ModuleNotFoundError as error:
        raise StudyError(
            f"cluster={cluster!r} needs Dask, which is not installed ({error}): pip install -e '.[cluster]'"
        ) from error
    with connect(scheduler_address(cluster), on_macs) as (engine, dashboard):
        tqdm.write(f"cluster {cluster}; dashboard: {dashboard}", file=sys.stderr)
        yield engine


def scheduler_address(cluster: str) -> str:
    """``tcp://host:port`` from an address or from a scheduler's file.

    Raises StudyError where it is neither, and for a public address without TLS: who reaches a scheduler commands its workers.
    """
    address: str = cluster
    if "://" not in cluster:
        found = parse_json(read_bytes(Path(cluster)), cluster)
        if not isinstance(found.get("address"), str):
            raise refuse("cluster", cluster, "the file that dask scheduler --scheduler-file wrote")
        address = found["address"]
    parts = urlsplit(address)
    if parts.scheme == "tls":
        return address
    try:
        hosts = {entry[4][0] for entry in socket.getaddrinfo(parts.hostname, parts.port or 0)}
    except OSError as error:
        raise refuse("cluster", address, f"a host that is known here ({error.strerror or error})") from error
    if parts.scheme != "tcp" or not all(ipaddress.ip_address(host).is_private for host in hosts):
        raise refuse("cluster", address, "tcp:// at a private address, or tls://, see docs/cluster.md")
    return address


class Mark(NamedTuple):
    """A file in the results folder: who can read it shares the client's disk."""

    path: Path
    token: str

    def seen(self) -> bool:
        try:
            return read_bytes(self.path) == self.token.encode()
        except (OSError, StudyError):  # it is not there
            return False


@contextmanager
def marked(store: Store) -> Iterator[Mark]:
    """A mark inside the block. Raises StudyError where the folder cannot be written to."""
    mark = Mark(store.state(f"cluster-{(token := secrets.token_hex(8))}").resolve(), token)
    write_atomic(mark.path, token.encode())
    try:
        yield mark
    finally:
        with suppress(OSError):
            mark.path.unlink(missing_ok=True)


class Order(NamedTuple):
    """Some runs for a worker, and what they build on: it may have no disk in common with the client, or see its files late."""

    reopen: Callable[..., Opened]
    arguments: tuple[Any, ...]  # of ``reopen``: the deadline, the profile, the results folder, the data folder, and more
    mark: Mark
    runs: Sequence[Run]
    wait: bool
    ancestors: Mapping[str, Record]
    has_weights: bool  # whether the client has those of the reference
    weights: bytes | None = None  # sent where a worker asks for them


class Brought(NamedTuple):
    """What comes home. errors: None where the worker asks for weights before it begins."""

    errors: Errors | None
    records: Sequence[Record | None] = ()
    weights: bytes | None = None


class Away(Executor):
    """The workers of a cluster for one study: what is submitted must be ``attempt``, and what it leaves lands in the store here."""

    def __init__(self, study: Opened, engine: Executor, mark: Mark, desk: Executor) -> None:
        self._study, self._engine, self._mark, self._desk = study, engine, mark, desk

    def submit(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Future[Any]:
        assert function is attempt
        _, runs, wait = args
        reopen, (deadline, profile, out, data, *more) = self._study.__reduce__()
        arguments = (deadline, profile, Path(out).resolve(), data_folder(data).resolve(), *more)
        known = {run.identity: record for run in _ancestors(runs[0]) if (record := self._study.record(run)) is not None}
        order = Order(reopen, arguments, self._mark, runs, wait, known, _weights_file(self._study, runs[0]).exists())
        future: Future[Errors] = Future()
        self._send(order, future)
        return future

    def _send(self, order: Order, future: Future[Errors]) -> None:
        # Files are written on a thread of ours: the engine's must not wait for a disk.
        self._engine.submit(visit, order).add_done_callback(lambda done: self._desk.submit(self._receive, order, future, done))

    def _receive(self, order: Order, future: Future[Errors], done: Future[Brought]) -> None:
        try:
            brought = done.result()
            if brought.errors is None:
                self._send(order._replace(weights=read_bytes(_weights_file(self._study, order.runs[0]))), future)
            else:
                future.set_result(self._land(order, brought))
        except StudyError as error:  # no worker ended it; some may have their records nevertheless
            future.set_result([self._named(run, error) for run in order.runs])
        except BaseException as error:
            future.set_exception(error)

    def _named(self, run: Run, error: StudyError) -> StudyError | None:
        return None if self._study.record(run) is not None else type(error)(f"{describe(run)}: {error}")

    def _land(self, order: Order, brought: Brought) -> Errors:
        """Keep what came home and is not here yet; a shared disk may show a file of another machine only after a while."""
        assert brought.errors is not None
        weights = _weights_file(self._study, order.runs[0])
        if brought.weights is not None and not weights.exists():
            write_atomic(weights, brought.weights)
        for run, record in zip(order.runs, brought.records, strict=True):
            if record is not None and self._study.record(run) is None:
                check_record(record, describe(run), run)
                write_record(self._study.store, record)
        return brought.errors


def _ancestors(run: Run) -> Iterator[Run]:
    while (parent := run.parent()) is not None:
        yield (run := parent)


def _weights_file(study: Opened, run: Run) -> Path:
    """The file of the weights of a run's reference."""
    return study.store.there(study.store.weights(Run(reference=run.reference).identity))


# -- in the worker -------------------------------------------------------------------------------------------------


def visit(order: Order) -> Brought:
    """Do the runs of an order: in the client's folder where this worker shares its disk, else in a folder of its own."""
    deadline, profile, out, data, *more = order.arguments
    if not order.mark.seen():
        from fcs_utils.study.dask_engine import own_folder

        out = own_folder() / order.mark.token
    study = order.reopen(deadline, profile, out, data if data.is_dir() else None, *more)
    for run in _ancestors(order.runs[0]):
        if (record := order.ancestors.get(run.identity)) and study.record(run) is None:
            write_record(study.store, record)
    weights, reference = _weights_file(study, order.runs[0]), order.runs[0].kind == "reference"
    if order.weights is not None and not weights.exists():
        write_atomic(weights, order.weights)
    if not (reference or weights.exists()) and order.has_weights:
        return Brought(None)
    errors = attempt(study.ensure, order.runs, order.wait)
    records = [study.record(run) for run in order.runs]
    return Brought(errors, records, read_bytes(weights) if weights.exists() and not order.has_weights else None)
