# The README's two commands are `make train` and `make test`; each makes .venv from nothing.
PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
export JAX_PLATFORMS ?= cpu

.PHONY: train test test-slow parity parity-table lint clean

train: $(VENV)/ready
	$(VENV)/bin/python -m agriclip_jax.main --config=configs/alive.py

test: $(VENV)/ready
	$(VENV)/bin/python -m pytest $(TESTS) -n 2 --dist loadfile -m "not slow and not parity"

test-slow: $(VENV)/ready
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m slow

parity: .venv-parity/ready
	.venv-parity/bin/python -m pytest tests/parity -n 2 --dist loadfile -m parity

# The same one after the other, and writes what was seen into docs/weights.md.
parity-table: .venv-parity/ready
	.venv-parity/bin/python -m pytest tests/parity -m parity --write-table

lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv-parity/ready: requirements-parity.txt pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

clean:
	rm -rf .venv .venv-* runs
