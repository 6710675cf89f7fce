# Each target makes and reuses .venv. Set PYTHON to choose the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch goes first: a CPU-only wheel that the package index or pip's configuration offers is then kept.
TORCH ?= torch==2.13.0

.PHONY: demo test parity quick lint format clean

$(VENV)/.installed: pyproject.toml
	@echo "== setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip<26"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

demo: $(VENV)/.installed
	@echo "== lensprune demo: remove each layer of smollm2-135m and score three bundled tasks"
	$(BIN)/lensprune demo

lint: $(VENV)/.installed
	@echo "== lint and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

quick: lint
	@echo "== quick tests"
	$(BIN)/python -m pytest -q -m "not slow and not real_model" --ignore=tests/parity

test: lint
	@echo "== all tests"
	$(BIN)/python -m pytest --cov --cov-report=term

parity: $(VENV)/.installed
	@echo "== prompts, ids, scores and metrics against lm-eval"
	$(BIN)/python -m pytest tests/parity

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache dist build
