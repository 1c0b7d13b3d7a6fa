#!/usr/bin/env bash
# Runs the tests in the study's own environment, two at once (-n 0: one by one), but for those marked slow (-m '': all).
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/venv.sh
python=$(find_python)
make_venv "$python"
exec .venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow" "$@"
