#!/usr/bin/env bash
# Runs the study: installs into .venv at the first start, then runs, notebook by notebook. --help explains.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/venv.sh
if [ "$caller" != "$PWD" ]; then
    echo "running in $PWD; relative folders are taken from there" >&2
fi
python=$(find_python)
# Typos are refused, and help is given, before minutes of installation.
for argument in "$@"; do
    case $argument in -h | --help) exec "$python" -m fcs_utils study --help ;; esac
done
"$python" -m fcs_utils study --parse-only "$@"
make_venv "$python"
exec .venv/bin/python -m fcs_utils study "$@"
