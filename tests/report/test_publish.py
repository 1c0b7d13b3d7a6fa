"""From a start's work folder to published results, and what exploring must not touch."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import papermill
import pytest

from fcs_utils.errors import StudyError
from fcs_utils.files import read_tensors, write_tensors
from fcs_utils.report import pages, publish
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.figures import FIGURES
from fcs_utils.report.published import publish as promote
from fcs_utils.study.study import Study
from tests.conftest import ROOT, command_here


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def copy(smoke: Path, tmp_path: Path) -> Path:
    shutil.copytree(smoke, tmp_path / "results", ignore=shutil.ignore_patterns("explored", "locks"))
    return tmp_path / "results"


def test_a_start_writes_below_work_alone(smoke: Path) -> None:
    assert [path.name for path in (smoke / "smoke").iterdir()] == ["work"]


def test_git_ignores_what_a_start_writes() -> None:
    names = ["work/index.html", "work/weights/x.safetensors", "work/records/tuned-x.json", "work/pages/x.html"]
    asked = [f"results/quick/{name}" for name in names]
    done = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout.split() == asked


def test_published_results_say_the_same_and_need_no_work_folder(copy: Path) -> None:
    study = Study("smoke", copy)
    records = {run.identity: json.dumps(study.record(run)) for run in study.runs()}
    readme = promote("smoke", copy)
    assert not study.store.all_records()
    shutil.rmtree(study.store.work)
    again = Study("smoke", copy)
    assert {run.identity: json.dumps(again.record(run)) for run in again.runs()} == records
    before = content(copy)
    assert promote("smoke", copy) == readme  # once more, from what is published alone
    assert {name: text for name, text in content(copy).items() if "work" not in name} == before
    text = readme.read_text()
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(links) > 10 and all((readme.parent / link).exists() for link in links)
    assert "html" not in text and not list(copy.rglob("*.tex"))


def test_other_weights_than_the_records_are_not_published(copy: Path) -> None:
    study = Study("smoke", copy)
    path = study.store.weights(study.runs(["reference"])[0].identity)
    tensors, metadata = read_tensors(path)
    write_tensors(path, {name: tensor * 2 for name, tensor in tensors.items()}, metadata)
    with pytest.raises(StudyError, match="differs from the weights behind its record"):
        promote("smoke", copy)
    assert not study.store.packed().exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", ["02", "03", "04"])
def test_exploring_another_layer_shows_its_figures_and_writes_none(copy: Path, tmp_path: Path, number: str) -> None:
    before = content(copy)
    papermill.execute_notebook(
        str(NOTEBOOKS[number].source),
        str(tmp_path / "mine.ipynb"),
        {"profile": "smoke", "out": str(copy), "layer": "features.conv2"},
        kernel_name="python3",
        progress_bar=False,
    )
    cells = nbformat.read(tmp_path / "mine.ipynb", as_version=4).cells
    shown = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(shown) >= 3
    after = {name: text for name, text in content(copy).items() if "/locks/" not in name}
    assert after == before


def test_the_index_comes_from_records_and_a_chapter_counts_as_done_after_its_page(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Study("smoke", copy).store
    for folder in ("pages", "figures", "tables", "state", "notebooks"):
        shutil.rmtree(store.work / folder)
    store.index().unlink()

    def stop(*_: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "execute_all", stop)
    with pytest.raises(KeyboardInterrupt):
        publish.build("smoke", copy, None)
    html = store.index().read_text()
    assert str(store.index()) in capsys.readouterr().out
    assert '<h2 id="verdicts">' in html and html.count("<img") >= len(FIGURES)
    for name in FIGURES:
        assert f'src="figures/{name}.png"' in html and store.figure(name).exists()

    def broken(*_: object) -> None:
        raise StudyError("the page cannot be rendered")

    def one(store, notebooks, parameters, at_once, done, cluster, *, allow_missing):
        for number in notebooks:
            shutil.copy(NOTEBOOKS["01"].source, store.executed("01_reference_networks"))
            done(number, NOTEBOOKS["01"])

    store.executed("x").parent.mkdir(exist_ok=True)
    monkeypatch.setattr(publish, "execute_all", one)
    with monkeypatch.context() as patched, pytest.raises(StudyError, match="cannot be rendered"):
        patched.setattr(pages, "render_page", broken)
        publish.build("smoke", copy, None, "01")
    assert not store.page("01_reference_networks").exists()
    publish.build("smoke", copy, None, "01")
    assert store.page("01_reference_networks").exists() and "up to date" not in capsys.readouterr().err


def test_publishing_is_a_command(copy: Path) -> None:
    done = command_here("publish", "--profile", "smoke", "--out", str(copy))
    assert done.returncode == 0 and "published: " in done.stdout, done.stderr
