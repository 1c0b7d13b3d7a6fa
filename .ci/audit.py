"""Asks pip-audit about the locked versions: known holes fail; a database out of reach is said, not failed."""

import json
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / ".venv" / "audit"  # apart from the study's packages: pip-audit brings a dozen of its own


def main() -> int:
    if not (TOOL / "bin" / "pip-audit").exists():
        venv.create(TOOL, with_pip=True)
        install = [TOOL / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"]
        if subprocess.run(install, capture_output=True).returncode:
            print("audit: skipped, pip-audit cannot be installed")
            return 0
    command = [
        TOOL / "bin" / "pip-audit",
        "--requirement",
        ROOT / "requirements.lock",
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--timeout",
        "10",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        packages = []
    asked = [package for package in packages if "vulns" in package]
    if not asked:
        print("audit: skipped, the database of advisories cannot be reached")
        return 0
    holes = [f"{p['name']} {p['version']}: {hole['id']}, fixed in {hole['fix_versions']}" for p in asked for hole in p["vulns"]]
    print(f"audit: {len(asked)} of {len(packages)} packages looked up, {len(holes)} known holes", *holes, sep="\n  ")
    return bool(holes)


if __name__ == "__main__":
    sys.exit(main())
