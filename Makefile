# Each target makes and reuses .venv. Set PYTHON to choose the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch goes first: a CPU-only wheel that the package index or pip's configuration offers is then kept.
TORCH ?= torch==2.13.0
# A second environment, with the last TransformerLens that has HookedTransformer.
VENV3 := .venv-tl3

# Every process of a test, a Ray worker or a notebook would otherwise compile torch and transformers anew.
unexport PYTHONDONTWRITEBYTECODE

DATA_DIR ?= $(or $(LENSPRUNE_DATA_DIR),../shared/benchmarks)

.PHONY: versions notice calibration estimates demo docs wheel-test test test-main test-pretend-gpu test-hooked-transformer types-and-more parity families faults audit bench kernels notebooks quick lint style format clean

# Tests run in as many processes as there are cores, at most four, with one thread each: two threads that share a core
# are far slower than one. A file stays with one process, so that its fixtures are made once.
WORKERS := -n auto --maxprocesses=4 --dist loadfile --no-loadscope-reorder
COMMA := ,
# coverage.py makes every test a third slower on Python 3.11; this one rewrites byte code instead.
COVERED := -m slipcover --branch --source lensprune --json --out build/coverage.json
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

HOOKED_TRANSFORMER := OMP_NUM_THREADS=1 $(VENV3)/bin/python -m pytest -q tests/unit/models/test_hooked_transformer.py \
	tests/unit/attribution/test_hooked_transformer.py tests/integration/test_hooked_transformer_sweep.py

# mypy takes one core for a minute where it has no cache: it runs beside a command, and its messages follow.
define beside-types
	@mkdir -p build
	$(BIN)/mypy >build/mypy.log 2>&1 & mypy=$$!; $(1); code=$$?; wait $$mypy || code=1; cat build/mypy.log; exit $$code
endef

# uv installs in seconds and shows how far it is; where it can't reach the package index, pip does it. torch goes
# through pip, which knows of a local wheel; its bytecode is compiled when it is imported, of what is imported.
define install
	$(1)/bin/python -m pip install --quiet --no-compile --upgrade "pip<26" uv
	$(1)/bin/python -m pip install --no-compile "$(TORCH)"
	$(call install-more,$(1),$(2))
endef

define install-more
	$(1)/bin/uv pip install --python $(1)/bin/python $(2) || $(1)/bin/python -m pip install $(2)
	@touch $@
endef

# What the package itself needs, which is all that the demo installs; everything else adds to it.
$(VENV)/.installed-package: pyproject.toml
	@echo "== setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),--editable .)

$(VENV)/.installed: $(VENV)/.installed-package
	@echo "== adding what tests and documentation need to $(VENV)"
	$(call install-more,$(VENV),--editable ".[test$(COMMA)docs]")

$(VENV3)/.installed: pyproject.toml
	@echo "== setting up $(VENV3) with TransformerLens 3.9"
	$(PYTHON) -m venv $(VENV3)
	$(call install,$(VENV3),--editable . "transformer-lens>=3.9$(COMMA)<4" hypothesis pytest pytest-timeout)

demo: $(VENV)/.installed-package
	@echo "== lensprune demo: remove each layer of smollm2-135m and score three bundled tasks"
	$(BIN)/lensprune demo

lint: style
	@echo "== types"
	$(BIN)/mypy

style: $(VENV)/.installed
	@echo "== lint and layers"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

quick: style
	@echo "== quick tests, and types beside them"
	$(call beside-types,$(PYTEST) $(WORKERS) -m "not slow and not real_model" tests/unit)

types-and-more: $(VENV)/.installed $(VENV3)/.installed
	@echo "== types; beside them documentation into build/site, and HookedTransformer with TransformerLens 3.9"
	$(call beside-types,$(DOCS) && $(HOOKED_TRANSFORMER))

test: style types-and-more test-main test-pretend-gpu

test-main: $(VENV)/.installed
	@echo "== all tests"
	mkdir -p build
	$(subst -m pytest,$(COVERED) -m pytest,$(PYTEST)) $(WORKERS) --durations=20
	$(BIN)/python -m slipcover --merge build/coverage.json --out build/coverage.json --fail-under 94

test-pretend-gpu: $(VENV)/.installed
	@echo "== placement on a pretend GPU"
	LENSPRUNE_TEST_DEVICE=pretend $(PYTEST) $(WORKERS) tests/pretend_gpu

test-hooked-transformer: $(VENV3)/.installed
	@echo "== HookedTransformer, with TransformerLens 3.9"
	$(HOOKED_TRANSFORMER)

# The same processor computes with other kernels under these settings; the numbers then differ by rounding alone.
KERNELS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41
KERNEL_TESTS := tests/unit/engine/test_forked.py tests/unit/engine/test_hooked.py tests/unit/engine/test_traces.py \
	tests/unit/models/test_float64.py tests/unit/models/test_load_folder.py tests/unit/ablation/test_identities.py \
	tests/unit/attribution/test_nodes.py tests/unit/replacement/test_in_place.py

kernels: $(VENV)/.installed
	@echo "== a slice of the tests under other CPU kernels"
	set -e; for setting in $(KERNELS); do \
		echo "== $$setting"; env $$setting $(PYTEST) $(WORKERS) -m "not slow" $(KERNEL_TESTS); \
	done

families: $(VENV)/.installed
	@echo "== architecture families by checks, into docs/reference/models.md"
	$(BIN)/python -m tests.families_table --write docs/reference/models.md

notebooks: $(VENV)/.installed
	@echo "== run the notebooks in place"
	$(BIN)/python -m tests.notebooks

parity: $(VENV)/.installed
	@echo "== prompts, ids, scores and metrics against lm-eval"
	$(PYTEST) $(WORKERS) tests/parity

faults: $(VENV)/.installed
	@echo "== faults and hostile inputs, into docs/explanation/reliability.md"
	$(BIN)/python -m tests.faults_table --write docs/explanation/reliability.md

# Of make versions: interpreters, such as VERSIONS="--python /usr/local/bin/python3.13".
VERSIONS ?=

versions: $(VENV)/.installed
	@echo "== Python, torch, transformers and TransformerLens by a slice of the tests, into docs/reference/versions.md"
	$(BIN)/python -m tests.versions --write docs/reference/versions.md $(VERSIONS)

notice: $(VENV)/.installed
	@echo "== licences of the dependencies, into NOTICE and docs/explanation/reliability.md"
	$(BIN)/python -m tests.licences --notice NOTICE --write docs/explanation/reliability.md

audit: $(VENV)/.installed
	@echo "== known vulnerabilities of the dependencies"
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m tests.audit

calibration: $(VENV)/.installed
	@echo "== sizes, powers and coverages by simulation, into docs/explanation/calibration.md"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.calibration --write docs/explanation/calibration.md

estimates: $(VENV)/.installed
	@echo "== estimates by each gradient rule beside exact removal, into docs/explanation/estimates.md"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.estimates --write docs/explanation/estimates.md

bench: $(VENV)/.installed
	@echo "== time against lm-eval, into tests/benchmarks/results.json and docs/explanation/performance.md"
	$(BIN)/python -m tests.benchmarks --data-dir $(DATA_DIR) --out tests/benchmarks/results.json --write docs/explanation/performance.md

docs: $(VENV)/.installed
	@echo "== documentation, into build/site; a warning is an error"
	$(DOCS)

wheel-test: $(VENV)/.installed
	@echo "== build the wheel, install it in an environment of its own and run the demo"
	$(BIN)/python -m pip install --quiet build twine
	rm -rf build/wheel-test
	$(BIN)/python -m build --outdir build/wheel-test .
	$(BIN)/python -m twine check --strict build/wheel-test/*
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install --quiet "$(TORCH)"
	build/wheel-test/venv/bin/python -m pip install --quiet build/wheel-test/*.whl
	cd build/wheel-test && venv/bin/lensprune demo --out runs/demo && venv/bin/lensprune report runs/demo

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV3) .mypy_cache .pytest_cache .ruff_cache dist build
