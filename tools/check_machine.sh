#!/bin/sh
# Says in one line what is missing for `make install`.
python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { echo "missing: $python (Python 3.11 or newer); set PYTHON=/path/to/python"; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer; $python is $("$python" -V 2>&1); set PYTHON=/path/to/python"; exit 1; }
"$python" -c 'import venv, ensurepip' 2>/dev/null || { echo "missing: Python's venv module (Debian: apt-get install python3-venv)"; exit 1; }
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
test -f "$header" || { echo "missing: Python's headers, $header (Debian: apt-get install python3-dev)"; exit 1; }
command -v "${CXX:-g++}" >/dev/null 2>&1 || { echo "missing: a C++20 compiler, ${CXX:-g++} (Debian: apt-get install g++); set CXX for another"; exit 1; }
