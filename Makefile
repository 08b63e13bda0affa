# make demo | test | test-slow | check | lock: each does its own set-up first.
PY ?= $(shell command -v python3.11 || command -v python3)
V := .venv
BIN := $(V)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-ablation test test-slow check lock clean

help:
	@echo "make demo           data, training, sampling and held-out scores of an adversarial diffusion model, in minutes"
	@echo "make demo-ablation  the demo with and without the adversary, side by side"
	@echo "make test           the default tests      make test-slow   the long ones      make check   ruff and mypy"
	@echo "make setup          only the environment (.venv)      make lock   remake constraints.txt"

$(V)/.ok: pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lmsd needs Python 3.11 or later: make PY=/path/to/python3.11"; exit 2; }
	@echo "[setup] $(V) (about 3 minutes, 2 GB)"
	@$(PY) -m venv $(V)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(V)/.ok

demo: $(V)/.ok
	@$(BIN)/lmsd demo

demo-ablation: $(V)/.ok
	@$(BIN)/lmsd demo --ablation

test: $(V)/.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: $(V)/.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

check: $(V)/.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:
	rm -rf $(V)/lock && $(PY) -m venv $(V)/lock
	$(V)/lock/bin/python -m pip install -q --disable-pip-version-check 'torch==2.13.0' -e '.[dev,export]'
	{ echo "# The versions that the tests pass with: pip install -c constraints.txt -e '.[dev]'. Remade by: make lock"; \
	  $(V)/lock/bin/python -m pip freeze --exclude-editable | grep '==' | sed 's/+cpu$$//'; } > constraints.txt
	rm -rf $(V)/lock

clean:
	rm -rf $(V)
