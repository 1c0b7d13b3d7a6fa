"""The prose of the notebooks: equations that every reader of Markdown draws, and parameters that name what there is."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt

from fcs_utils.report.chapters import NOTEBOOKS, Notebook, with_values
from fcs_utils.report.pages import to_html

# Equations as $...$, $`...`$, $$...$$ and ```math; other code first, so that a dollar inside it stays a dollar.
MATH = re.compile(
    r"(?:(?P<fence>```math\s)|\$\$)(?P<block>.+?)(?(fence)```|\$\$)"
    r"|(?P<code>```.*?```|`[^`\n]+`)"
    r"|(?<![\\$])\$(?P<tick>`?)(?P<inline>[^\s$`](?:[^$\n]*[^\s$`])?)(?P=tick)\$",
    re.S,
)
# Inside $...$: what Markdown reads as emphasis, as a cell's edge, as a tag or as an escape, such as \, and \{.
MANGLED = re.compile(r"_.*_|[*|<]|\\[^a-zA-Z]")
DISPLAYED = re.compile(r"(?:\A|(?<=\n\n))\$\$\n[^\n$]+\n\$\$(?=\n\n|\Z)")


def spoilt(markdown: str) -> list[str]:
    """Formulas that GitHub or JupyterLab does not draw as they are written."""
    # What a reader of Markdown that knows no formulas makes of them.
    read = html.unescape(re.sub(r"<[^>]+>", "", MarkdownIt("commonmark").enable("table").render(markdown)))
    bad = re.findall(r"\$\$[^$]*\$\$", DISPLAYED.sub("", markdown))  # not on lines of its own
    for found in MATH.finditer(markdown):
        formula = found["block"] or found["inline"] or ""
        only_github = found["fence"] or found["tick"]
        if only_github or formula.strip() not in read or (found["inline"] and MANGLED.search(formula)):
            bad.append(formula)
    return bad


@pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=lambda n: n.name)
def test_formulas_are_drawn_by_github_and_jupyterlab(notebook: Notebook) -> None:
    cells = [cell.source for cell in nbformat.read(notebook.source, as_version=4).cells if cell.cell_type == "markdown"]
    assert [formula for cell in cells for formula in spoilt(cell)] == []


@pytest.mark.parametrize(
    "formula",
    [
        r"$\{1, 2\}$",
        r"$1\,000$",
        r"$|b|$",
        r"$a < b$",
        r"$x^*$",
        r"$s_{ij} = s_{ji}$",
        "$`a_c`$",
        "```math\na_c\n```",
        "$$a_c$$",
        "and so\n$$\na_c\n$$\n\n",
        "$$\n\\mathcal{L}_C = a_{ij} \\, b\n$$",
        "$$\na *b* c\n$$",
    ],
)
def test_a_formula_that_markdown_mangles_is_found(formula: str) -> None:
    assert spoilt(f"Before.\n\n{formula}\n\nAfter, with $a_c$ and $C$ channels.") != []
    assert spoilt("Before, with $a_c$.\n\n$$\n\\frac{a_c}{b_c}\n$$\n\nAfter, with `$` and $C$ channels.") == []


@pytest.mark.parametrize(("formula", "display"), [("$a_c$", "inline"), ("$$a_c$$", "block"), ("$$\na_c\n$$", "block")])
def test_pages_draw_formulas_and_leave_code_and_money_alone(formula: str, display: str) -> None:
    page = to_html(f"It costs \\$5. {formula} and `$b$`.\n\n```\n$d$\n```")
    assert page.count("<math") == 1 and f'display="{display}"' in page and "<msub><mi>a</mi><mi>c</mi></msub>" in page
    assert "It costs $5." in page and "<code>$b$</code>" in page and "$d$" in page


@pytest.mark.parametrize("notebook", NOTEBOOKS.values(), ids=lambda n: n.name)
def test_the_parameters_say_where_profiles_are_listed(notebook: Notebook) -> None:
    cells = nbformat.read(notebook.source, as_version=4).cells
    (parameters,) = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert "# any that fcs-mlft study --help lists;" in parameters.splitlines()[0]


def test_an_executed_copy_has_one_cell_of_parameters_with_the_values_of_the_run() -> None:
    cell = 'profile: str = "quick"  # naïve = one\nseed: int = 0  # which\nratio: float = 0.5'
    injected = '# Parameters\nratio = 0.25\nprofile = "cifar: a # b"\n'
    assert (
        with_values(cell, injected) == 'profile: str = "cifar: a # b"  # naïve = one\nseed: int = 0  # which\nratio: float = 0.25'
    )
    assert with_values("ä: str = 'é'  # ü", "ä = 'ö'") == "ä: str = 'ö'  # ü"


@pytest.mark.slow
def test_executed_copies_have_the_cells_of_their_sources(smoke: Path) -> None:
    for notebook in NOTEBOOKS.values():
        executed, source = (
            nbformat.read(path, as_version=4).cells
            for path in (smoke / "smoke" / "work" / "notebooks" / f"{notebook.name}.ipynb", notebook.source)
        )
        pairs = [(own, cell) for own, cell in zip(executed, source, strict=True) if own.source != cell.source]
        ((own, cell),) = pairs
        assert own.metadata.tags == ["parameters"] and own.id == cell.id
        assert 'profile: str = "smoke"  # any that' in own.source and len(own.source.splitlines()) == len(cell.source.splitlines())
