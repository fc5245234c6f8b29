# Everything happens in .venv, made here from requirements.lock when it is missing or out of date.
#   make test | demo | docs | tiny | lint | format | bench | lock
#   make test PYTHON=python3.12    make test ARGS="-k text"    make bench    make bench BENCH=sampling_step ARGS="--size 256"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A copy of the lock that was installed last, so that a newer file time alone reinstalls nothing.
STAMP := $(VENV)/installed.lock
ARGS ?=
BENCH ?= everything

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: test demo docs tiny lint format bench lock FORCE
.DEFAULT_GOAL := test

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

demo: $(STAMP)
	$(BIN)/python gradio_seg2image.py $(ARGS)

# Static pages in site/: guides, and the reference from the docstrings. A link that leads nowhere is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "Open site/index.html"

# The embedded model, trained from nothing. See controlnet/storybook/README.md.
tiny: $(STAMP)
	$(BIN)/python -m controlnet.storybook.make_tiny $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

# A virtual environment whose Python went away (upgraded, or the checkout was moved) counts as out of date.
VENV_WORKS := $(BIN)/python -m pip --version >/dev/null 2>&1

$(STAMP): requirements.lock $(shell $(VENV_WORKS) || echo FORCE)
	@set -e; \
	if $(VENV_WORKS) && cmp -s requirements.lock $@; then touch $@; exit; fi; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, not " + sys.version)'; \
	$(VENV_WORKS) || $(PYTHON) -m venv --clear $(VENV); \
	$(BIN)/python -m pip install --requirement requirements.lock; \
	cp requirements.lock $@

# Resolve pyproject.toml anew for every supported Python. Pins that still fit are kept. What a CUDA build of torch needs
# beside itself is left to pip, for a CPU build needs none of it.
lock: $(STAMP)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header \
	  --output-file requirements.lock pyproject.toml
	grep -vE '^(nvidia|cuda|triton)\b' requirements.lock > requirements.lock.new
	mv requirements.lock.new requirements.lock
