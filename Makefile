# LiveTalk. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
REPO ?=
SPACE_ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check -q $(PIP_ARGS) -c constraints.txt

.PHONY: help demo space test check bench soak clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "LiveTalk needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Try: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements.txt requirements-voice.txt constraints.txt | $(PY)
	$(PIP) -r requirements.txt -r requirements-voice.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements-train.txt requirements-extra.txt requirements-dev.txt
	$(PIP) -r requirements-train.txt -r requirements-extra.txt -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.demo  ## the page on this machine, with the embedded model (PIP_ARGS=... goes to pip)
	$(PY) app.py

space: $(VENV)/.demo  ## publish this clone as a Hugging Face Space: make space REPO=user/name (SPACE_ARGS=--private, --dry-run)
	$(PY) -m livetalk space --repo "$(REPO)" $(SPACE_ARGS)

test: $(VENV)/.dev  ## all tests (CPU, no network)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not soak and not gpu and not live" -n auto --maxprocesses 4 --dist loadfile
	$(PY) -m pytest -m "live and not soak and not gpu"

check: $(VENV)/.dev  ## lint, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.dev  ## every speed and quality figure of this machine (quiet machine, please)
	$(PY) -m livetalk bench --preset mini --device cpu --seconds 30
	$(PY) -m livetalk bench --network
	$(PY) -m livetalk bench --browser
	$(PY) -m livetalk evaluate clips --preset mini

soak: $(VENV)/.dev  ## everything long (tens of minutes)
	$(PY) -m pytest -m soak

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
