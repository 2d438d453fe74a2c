#!/usr/bin/env sh
# Installs the wheel from dist/ into a clean environment with torch alone, and runs it where no compiler is in reach.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
"${PYTHON:-python3}" -m venv "$clean/venv"
pip="$clean/venv/bin/pip --disable-pip-version-check install -q"
$pip "$(grep -o '^torch==[0-9.]*' "$here/requirements.txt")"
$pip "$here"/dist/graphmode-*.whl
cd "$clean"
env -i PATH="$clean/venv/bin" python -W ignore "$here/tools/run_wheel.py"
