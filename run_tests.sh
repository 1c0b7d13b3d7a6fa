#!/usr/bin/env bash
# Runs the tests in the study's own environment; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/venv.sh
python=$(find_python)
make_venv "$python"
exec .venv/bin/python -m pytest "$@"
