#!/usr/bin/env bash
# Runs the study: installs into .venv at the first start, then runs, notebook by notebook. --help explains.
# './run_all.sh lab' opens the explorer in JupyterLab instead; further arguments go to it.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source .ci/venv.sh
if [ "$caller" != "$PWD" ]; then
    echo "running in $PWD; relative folders are taken from there" >&2
fi
python=$(find_python)
if [ "${1:-}" = lab ]; then
    shift
    make_venv "$python"
    if [ "$(id -u)" = 0 ]; then # Jupyter asks root to say so
        set -- --allow-root "$@"
    fi
    # Kernels start in notebooks/, with the allocator's settings that a study takes.
    if [ -n "${FCS_DATA:-}" ]; then
        FCS_DATA=$(cd "$FCS_DATA" && pwd)
        export FCS_DATA
    fi
    if [ "$(uname)" = Linux ] && [ -z "${GLIBC_TUNABLES+set}" ]; then
        GLIBC_TUNABLES=$("$python" -c 'from fcs_utils.cli.process import ALLOCATOR; print(ALLOCATOR)')
        export GLIBC_TUNABLES
    fi
    exec .venv/bin/jupyter lab notebooks/explore.ipynb "$@"
fi
# Typos are refused, and help is given, before minutes of installation.
for argument in "$@"; do
    case $argument in -h | --help) exec "$python" -m fcs_utils study --help ;; esac
done
"$python" -m fcs_utils study --parse-only "$@"
make_venv "$python"
exec .venv/bin/python -m fcs_utils study "$@"
