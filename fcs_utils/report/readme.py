"""The README's tables and figure, rendered from records; nothing in them is typed by hand."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

from PIL import Image

from fcs_utils.errors import StudyError
from fcs_utils.files import write_atomic
from fcs_utils.report.claims import STATEMENTS, claim_verdicts, claims_table, findings
from fcs_utils.report.figures import forest, use_house_style
from fcs_utils.report.frames import make_report
from fcs_utils.study.study import Study

README = Path(__file__).resolve().parents[2] / "README.md"


def records_block(study: Study) -> str:
    """Verdicts, the figure behind them, the table. Reads records only."""
    report = make_report(study)
    words = findings(report.ledger)
    verdicts = [f"- **{claim}** {STATEMENTS[claim]}: **{word}**. {words[claim]}"
                for claim, word in claim_verdicts(report.ledger).items()]  # fmt: skip
    where = f"results/{study.profile.name}/figures/readme.png"
    seeds, further = len(study.profile.seeds), len(study.profile.arms.further_seeds)
    counted = f"n = {seeds} seeds" + (f", {seeds + further} for C3" if further else "")
    shown = report.ledger[report.ledger.decisive | (report.ledger.role == "network")]
    lines = [
        f"Profile `{study.profile.name}` on {study.settings.title}, {counted}:", "", *verdicts, "",
        f"![Effect and 95 % interval of every comparison behind the verdicts]({where})", "",
        claims_table(shown).to_markdown(index=False, disable_numparse=True),
    ]  # fmt: skip
    return "\n".join(lines)


BLOCKS = {"from records": records_block}  # by the name in their marks


def ledger_digest(study: Study) -> str:
    """Hash of the numbers that the figure shows; stands inside the PNG, so that a stale one is found out."""
    return hashlib.sha256(make_report(study).ledger.to_csv(index=False).encode()).hexdigest()


def figure_is_fresh(study: Study) -> bool:
    """Whether the README's figure was drawn from the records as they are now."""
    path = study.store.figure("readme")
    if not path.exists():
        return False
    with Image.open(path) as picture:
        return picture.info.get("Source") == ledger_digest(study)


def draw_figure(study: Study) -> None:
    """The figure of the records."""
    use_house_style()
    buffer = io.BytesIO()
    ledger = make_report(study).ledger
    forest(ledger[ledger.decisive]).savefig(buffer, format="png", metadata={"Source": ledger_digest(study)})
    write_atomic(study.store.figure("readme"), buffer.getvalue())


def update_readme(profile: str, out: str | Path, *, check: bool = False) -> int:
    """Put the blocks into the README, or with ``check`` return 1 when one there is stale."""
    old = new = README.read_text()
    study = Study(profile, out)
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if new.count(begin) != 1 or new.count(end) != 1:
            raise StudyError(f"{README} must have one '{begin}' and one '{end}'")
        before, rest = new.split(begin)
        new = f"{before}{begin}\n{block(study)}\n{end}{rest.split(end)[1]}"
    if check:
        stale = new != old or not figure_is_fresh(study)
        if stale:
            print("README.md or its figure is stale; renew both with: python -m fcs_utils readme", file=sys.stderr)
        return int(stale)
    draw_figure(study)
    write_atomic(README, new.encode())
    return 0
