#!/usr/bin/env sh
# Looks whether the source archive in dist/ has all sources, installs the wheel into a clean environment with torch
# alone, and runs it where no compiler is in reach.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT
tar -tzf "$here"/dist/graphmode-*.tar.gz | cut -d/ -f2- | sort > "$clean/has"
(cd "$here" && find src setup.py pyproject.toml README.md LICENSE -type f \
  ! -path '*.egg-info/*' ! -path '*/__pycache__/*' ! -name '*.so') | sort > "$clean/wants"
missing=$(comm -13 "$clean/has" "$clean/wants")
test -z "$missing" || { echo "the source archive lacks: $missing"; exit 1; }
"${PYTHON:-python3}" -m venv "$clean/venv"
pip="$clean/venv/bin/pip --disable-pip-version-check install -q"
$pip "$(grep -o '^torch==[0-9.]*' "$here/requirements.txt")"
$pip "$here"/dist/graphmode-*.whl
cd "$clean"
env -i PATH="$clean/venv/bin" python -W ignore "$here/tools/run_wheel.py"
