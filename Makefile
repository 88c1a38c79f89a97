# On a machine with Python 3.11, git and make: `make demo` and `make test` install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/pinyin-llm transcribe --format tsv samples/*.wav samples/*.flac samples/*.ogg \
		| $(BIN)/pinyin-llm score samples/references.tsv /dev/stdin --each

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch alone first: the other packages would else draw in a build of their own choice
$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
