#!/bin/sh
# Make .venv: the package, editable, and everything its tests and tools need, at the versions of requirements.lock.
# usage: scripts/setup-venv.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}

need() {
    # need COMMAND PACKAGE WHAT: install a Debian package if we may, or say what is missing.
    if sh -c "$1" >/dev/null 2>&1; then return; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $2 ($3)" >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$2" >/dev/null
    else
        echo "setup: $3 is missing; install the package $2" >&2
        exit 1
    fi
}

need "$python -c 'import sys; sys.exit(sys.version_info < (3, 11))'" python3 "Python 3.11 or newer"
need "$python -c 'import venv, ensurepip'" python3-venv "Python's venv module"
need "$python -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()[\"include\"], \"Python.h\"))'" \
    python3-dev "Python's C headers"
need "cc --version" gcc "a C compiler"

echo "setup: making .venv, with the packages of requirements.lock; this takes about a minute" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall -e .
touch .venv/ready
