"""The index page: every figure and table of the registries, in the order of index.toml, and last what is not in it."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcs_utils.report import pages, publish
from fcs_utils.report.figures import FIGURES
from fcs_utils.report.frames import make_report
from fcs_utils.report.tables import TABLES
from fcs_utils.study.profiles import import_plugins
from fcs_utils.study.study import Study
from tests.conftest import ROOT

OUTSIDE = '''
import matplotlib.pyplot as plt
import pandas as pd

from fcs_utils.report.figures import as_figure
from fcs_utils.report.tables import as_table

@as_table("fewest_epochs", "arms")
def fewest_epochs(arms):
    """The shortest schedule of each network."""
    return pd.DataFrame([{"network": name, "fewest epochs": group.epochs.min()} for name, group in arms.groupby("network")])

@as_figure("tests_by_seed", "tuned", "references")
def tests_by_seed(tuned, references):
    """Test top-1 after fine-tuning, a <point> for each run.

    Not in the text for those who cannot see it.
    """
    return plt.figure()

@as_figure("of_nothing", "missing")
def of_nothing(missing):
    """A figure of runs that are missing, of which there are none."""
    raise AssertionError
'''


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The published records of quick, in a folder of its own."""
    out = tmp_path_factory.mktemp("out")
    (out / "quick").mkdir()
    for name in ("records.jsonl", "study.json", "measurements.json"):
        shutil.copy(ROOT / "results" / "quick" / name, out / "quick")
    return Study("quick", out)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_report.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    import_plugins(["own_report"])
    yield
    sys.modules.pop("own_report")
    del TABLES["fewest_epochs"], FIGURES["tests_by_seed"], FIGURES["of_nothing"]


def sections(study: Study) -> dict[str, str]:
    """The HTML of the index below each heading."""
    pages.render_index(study, pages.shared_parts(study), make_report(study))
    _, *parts = re.split(r"<h2 id=.*?>(.*?)</h2>", study.store.index().read_text().partition("<h1>")[2])
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_sections_come_in_the_order_of_the_layout(study: Study) -> None:
    layout = tomllib.loads((pages.HERE / "index.toml").read_text())["section"]
    titles = [section["title"] for section in layout if section["title"]]
    found = sections(study)
    left_out = ["Not run", "More tables and figures"]  # of a complete study; what is registered from outside would come last
    shown = [title for title in titles[:-2] if title != "Which combination to use"]
    assert titles[-2:] == left_out and [*found] == ["In short", "The claims", *shown, [*found][-1]]
    for title in shown[:-1]:  # the last quotes others
        assert re.match(r"\s*<p>(?:<strong>C[^<]+</strong> )?[A-Z].+\.</p>", found[title]), title
    asked = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", found["In short"], flags=re.S)
    questions = ("Does FCS work?", "Which criterion should I use?", "Is mutual learning worth it?", "Are channels redundant?")
    assert tuple(question for question, _ in asked) == questions
    assert all(re.search("95\xa0% interval|no interval", answer) for _, answer in asked)
    assert " More than before training: " in asked[-1][1]
    folded = re.sub(r"<details class=\"table\">.*?</details>", "", "".join(found.values()), flags=re.S)
    assert "<table" not in folded and "<img" in folded
    tables = re.findall(r"tables/(\w+).csv", found["Does mutual learning pay? (C3)"])
    assert tables == ["arms", "exchange", "power", "rates", "peers"]


@pytest.mark.usefixtures("outside")
def test_what_is_registered_from_outside_comes_last(study: Study) -> None:
    found = sections(study)
    more = found["More tables and figures"]
    assert [*found][-2] == "More tables and figures"
    assert re.findall(r'<img src="(.*?)" alt="(.*?)">', more) == [
        ("figures/tests_by_seed.png", "Test top-1 after fine-tuning, a &lt;point&gt; for each run.")
    ]
    assert re.findall(r"tables/(\w+)\.csv", more) == ["fewest_epochs"] and "fewest epochs</p>" not in more
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", more) == ["network", "fewest epochs", "VGG-16 x0.25", "2"]
    assert not any("tests_by_seed" in part or "fewest_epochs" in part for title, part in found.items() if title != [*found][-2])
    assert "of_nothing" not in "".join(found.values())


def test_an_incomplete_study_shows_its_records_and_the_verdicts_that_wait_for_none(study: Study, tmp_path: Path) -> None:
    lines = (study.store.root / "records.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "similarity"]
    assert 0 < len(kept) < len(lines)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "records.jsonl").write_text("".join(kept))
    shutil.copy(study.store.root / "study.json", tmp_path / "quick")
    part = Study("quick", tmp_path)
    _, report = publish._render_overview(part)
    page = part.store.index().read_text()
    said = "some runs of stage similarity have no records yet, so claims that wait for them have no verdict: what follows"
    assert report is not None and said in " ".join(page.split())
    judged = {*re.findall(r'<li class="\w+"><b>(\w+)', page)}
    assert "C3" in judged and not {"C1a", "C1b"} & judged
    titles = re.findall(r"<h2 id=.*?>(.*?)</h2>", page)
    assert titles[:2] == ["In short", "The claims"] and "Does mutual learning pay? (C3)" in titles
    questions = re.findall(r"<dt>(.*?)</dt>", page)
    places = re.findall(r'<a href="#(.*?)">Figures and tables</a>', page)
    assert len(places) == len(questions) and all(f'<h2 id="{place}">' in page for place in places)
    assert "Is mutual learning worth it?" in questions and "Are channels redundant?" not in questions  # of which nothing is known
    figures = re.findall(r'<img src="(.*?)"', page)
    assert figures and all((part.store.work / name).exists() for name in figures)
    links = re.findall(r'<a href="([^"]+)">(data|code)</a>', page)  # what each is made from
    assert [title for _, title in links] == ["data", "code"] * len(figures)
    assert all((part.store.work / place).is_file() for place, _ in links)
    assert (part.store.work / links[0][0]).read_text().startswith("claim,") and links[1][0].endswith(".py")
    empty = Study("quick", tmp_path / "none")
    assert publish._render_overview(empty)[1] is None and not re.search("<img|The claims", empty.store.index().read_text())
    assert not empty.store.claims().exists()
