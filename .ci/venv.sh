# Sourced by run_all.sh and run_tests.sh: find_python names a Python; make_venv fills .venv from the lock.

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer not found${PYTHON:+ as PYTHON=$PYTHON}; install it (Debian: apt-get install python3 python3-venv)" >&2
    return 1
}

make_venv() {
    local python=$1 want
    want=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(p, "rb").read() for p in sys.argv[1:])).hexdigest())' \
        requirements.lock pyproject.toml)
    # The stamp is written last: an installation that was cut off is taken up again.
    if [ -x .venv/bin/python ] && [ "$(cat .venv/installed 2>/dev/null)" = "$want" ]; then
        return
    fi
    echo "installing locked packages into .venv (about 6 GB, most of it CUDA, see README.md; some minutes; once)" >&2
    "$python" -m venv .venv || {
        echo "error: '$python -m venv .venv' failed (Debian: apt-get install python3-venv)" >&2
        return 1
    }
    # Bytecode is made afterwards by all cores, and whatever PYTHONDONTWRITEBYTECODE says: without it each start of Python takes
    # many seconds longer. Templates that are not Python are passed by.
    local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
    if ! "${pip[@]}" -r requirements.lock >.venv/install.log 2>&1 || ! "${pip[@]}" --no-deps -e . >>.venv/install.log 2>&1; then
        echo "error: installation failed: $("$python" .ci/cause.py .venv/install.log) (whole log: .venv/install.log)" >&2
        return 1
    fi
    .venv/bin/python -m compileall -q -j 0 -x '/tests/' .venv/lib >/dev/null 2>&1 || true
    echo "$want" >.venv/installed
}
