# For a machine with Python 3.11 or later, git and make. Each target installs and fetches what it needs, into .venv and data/.

PYTHON ?= python3
CONSTRAINTS ?= --constraint constraints.txt
BIN := .venv/bin
INSTALLED := .venv/installed
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec

.PHONY: help demo app test table lint clean

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# score --each prints file, reference, text and CER in columns; here the text stands below its reference, so that the
# characters line up.
demo: $(INSTALLED) ## transcribe the clips in samples/ and compare the texts with their references
	@$(BIN)/pinyin-llm transcribe --format tsv samples/*.wav samples/*.flac samples/*.ogg \
		| $(BIN)/pinyin-llm score samples/references.tsv /dev/stdin --each \
		| awk -F '\t' 'NF == 4 { printf "%-22s reference  %s\n%20s   text       %s\n", $$1, $$2, $$4, $$3 } /^CER/'

app: $(INSTALLED) ## open the demo page at http://127.0.0.1:7860
	$(BIN)/pinyin-llm demo

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest

# The paper's table takes hours. If it is interrupted, run it again to resume. Flags: make table TABLE=--quick,
# make table TABLE='--tests data/speech/mine/test.tsv'
.SECONDARY:
TABLE_TEXTS := inews people_daily reviews_pos reviews_neg
# The file that each step writes last: a folder alone may be incomplete.
WHISPER := data/whisper-base/processor_config.json
SPEECH := data/table/speech/counts.json

table: $(INSTALLED) $(WHISPER) $(SPEECH) $(TABLE_TEXTS:%=data/text/clean/%.txt) ## reproduce the table of the paper
	$(BIN)/python -m pinyin_llm.experiments.paper_table $(TABLE)

$(WHISPER): | $(INSTALLED)
	$(BIN)/python -m pinyin_llm.bases.whisper_base --parts data/parts --output $(@D)

$(SPEECH): | $(INSTALLED)
	$(BIN)/python -m pinyin_llm.corpora.prepare dataset --root speech --speaker_column speaker --output $(@D)

data/text/raw/%.txt: | $(INSTALLED)
	$(BIN)/python -m pinyin_llm.corpora.text_sources --parts data/parts --output data/text/raw --sources $*

data/text/clean/%.txt: | data/text/raw/%.txt
	$(BIN)/python -m pinyin_llm.corpora.plain_text --inputs data/text/raw/$*.txt --output $@ \
		--held_out recipes/heldout_hashes.txt

lint: $(INSTALLED) ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what make installed and built; data/ stays
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch comes first and alone: as a dependency of the other packages pip might choose another build of it.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[test]' $(CONSTRAINTS)
	touch $@
