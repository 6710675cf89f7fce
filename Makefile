# Each target makes and reuses .venv. Set PYTHON to choose the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch goes first: a CPU-only wheel that the package index or pip's configuration offers is then kept.
TORCH ?= torch==2.13.0
# A second environment, with the last TransformerLens that has HookedTransformer.
VENV3 := .venv-tl3

DATA_DIR ?= $(or $(LENSPRUNE_DATA_DIR),../shared/benchmarks)

.PHONY: demo docs wheel-test test test-main test-hooked-transformer parity families faults audit bench quick lint format clean

$(VENV)/.installed: pyproject.toml
	@echo "== setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip<26"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV3)/.installed: pyproject.toml
	@echo "== setting up $(VENV3) with TransformerLens 3.9"
	$(PYTHON) -m venv $(VENV3)
	$(VENV3)/bin/python -m pip install --quiet --upgrade "pip<26"
	$(VENV3)/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV3)/bin/python -m pip install --quiet --editable . "transformer-lens>=3.9,<4" pytest pytest-timeout
	@touch $@

demo: $(VENV)/.installed
	@echo "== lensprune demo: remove each layer of smollm2-135m and score three bundled tasks"
	$(BIN)/lensprune demo

lint: $(VENV)/.installed
	@echo "== lint, types and layers"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quick: lint
	@echo "== quick tests"
	$(BIN)/python -m pytest -q -m "not slow and not real_model" --ignore=tests/parity

test: lint docs test-main test-hooked-transformer

test-main: $(VENV)/.installed
	@echo "== all tests"
	$(BIN)/python -m pytest --cov --cov-report=term

test-hooked-transformer: $(VENV3)/.installed
	@echo "== HookedTransformer, with TransformerLens 3.9"
	$(VENV3)/bin/python -m pytest -q tests/unit/models/test_hooked_transformer.py \
		tests/unit/attribution/test_hooked_transformer.py \
		tests/integration/test_hooked_transformer_sweep.py

families: $(VENV)/.installed
	@echo "== architecture families by checks, into README.md"
	$(BIN)/python -m tests.families_table --write README.md

parity: $(VENV)/.installed
	@echo "== prompts, ids, scores and metrics against lm-eval"
	$(BIN)/python -m pytest tests/parity

faults: $(VENV)/.installed
	@echo "== faults and hostile inputs, into docs/reliability.md"
	$(BIN)/python -m tests.faults_table --write docs/reliability.md

audit: $(VENV)/.installed
	@echo "== known vulnerabilities of the dependencies"
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m tests.audit

bench: $(VENV)/.installed
	@echo "== time against lm-eval, into tests/benchmarks/results.json and README.md"
	$(BIN)/python -m tests.benchmarks --data-dir $(DATA_DIR) --out tests/benchmarks/results.json --write README.md

docs: $(VENV)/.installed
	@echo "== documentation, into build/site; a warning is an error"
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict -f .mkdocs.yml

wheel-test: $(VENV)/.installed
	@echo "== build the wheel, install it in an environment of its own and run the demo"
	$(BIN)/python -m pip install --quiet build
	rm -rf build/wheel-test
	$(BIN)/python -m build --wheel --outdir build/wheel-test .
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install --quiet "$(TORCH)"
	build/wheel-test/venv/bin/python -m pip install --quiet build/wheel-test/*.whl
	cd build/wheel-test && venv/bin/lensprune demo --out runs/demo && venv/bin/lensprune report runs/demo

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV3) .mypy_cache .pytest_cache .ruff_cache dist build
