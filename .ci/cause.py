"""Prints why pip failed: the line of its log that names the package, and the Python that the package needs."""

import re
import sys
from pathlib import Path


def cause(log: str) -> str:
    """One line. pip's first ERROR line only lists versions that it passed over, so the last one counts."""
    errors = [line[6:].strip() for line in log.splitlines() if line.startswith("ERROR:")]
    told = [line for line in errors if not line.startswith(("Ignored the following", "Could not find a version"))]
    lines = told or errors or log.strip().splitlines() or ["pip said nothing"]
    pinned = re.search(r"No matching distribution found for ([\w.-]+)==(\S+)", lines[-1])
    needs = re.search(rf"\b{re.escape(pinned[2])} Requires-Python ([^;\n]+)", log) if pinned else None
    here = f"; it needs Python {needs[1].strip()}, this is {sys.version.split()[0]}" if needs else ""
    if pinned and not needs and "(from versions: none)" in log:
        here = "; the package index could not be reached or does not have it"
    return lines[-1] + here


if __name__ == "__main__":
    print(cause(Path(sys.argv[1]).read_text(errors="replace")))
