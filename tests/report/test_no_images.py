"""A clone has the records of a data set, and not its images: what can be shown is shown."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fcs_utils.errors import StudyError
from fcs_utils.report.publish import build
from tests.conftest import ROOT


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published results of a profile, where no images are found."""
    monkeypatch.setenv("FCS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FCS_DATA", str(tmp_path / "data"))
    shutil.copytree(ROOT / "results" / "cifar", tmp_path / "results" / "cifar", ignore=shutil.ignore_patterns("work"))
    return tmp_path / "results"


@pytest.mark.slow
def test_chapters_that_need_images_say_what_to_put_where_and_the_others_come(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = build("cifar", out, None, "02,09", allow_missing=True)
    said = re.search(
        r"chapters left out: 02_activation_collection: (data set .* not found\. Looked in: .*)", capsys.readouterr().err
    )
    assert said and str(out.parent / "data") in said[1]
    page = index.read_text()
    assert page.count("(needs the images: data set") == 5 and "<h2" in page and 'class="cards"' in page
    assert {path.name for path in (index.parent / "pages").iterdir()} == {"09_paper_tables.html"}
    assert (index.parent / "tables" / "claims.csv").read_text() == (out / "cifar" / "tables" / "claims.csv").read_text()


def test_runs_without_a_record_need_the_images(out: Path) -> None:
    lines = (out / "cifar" / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "cifar" / "records.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(StudyError, match="not found. Looked in"):
        build("cifar", out, None, "09")
