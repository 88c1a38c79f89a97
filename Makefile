# On a machine with Python 3.11, git and make: each target installs and fetches what it needs, into .venv and data/.

PYTHON ?= python3
CONSTRAINTS ?= --constraint constraints.txt
BIN := .venv/bin
INSTALLED := .venv/installed
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec

.PHONY: demo app test table lint clean

demo: $(INSTALLED)
	$(BIN)/pinyin-llm transcribe --format tsv samples/*.wav samples/*.flac samples/*.ogg \
		| $(BIN)/pinyin-llm score samples/references.tsv /dev/stdin --each

app: $(INSTALLED)
	$(BIN)/pinyin-llm demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

# The paper's table (hours; it goes on where it stopped): make table, make table TABLE=--quick,
# make table TABLE='--tests data/speech/mine/test.tsv'
.SECONDARY:
TABLE_TEXTS := inews people_daily reviews_pos reviews_neg
# what is written last: a folder alone may be half of one
WHISPER := data/whisper-base/processor_config.json
SPEECH := data/table/speech/counts.json

table: $(INSTALLED) $(WHISPER) $(SPEECH) $(TABLE_TEXTS:%=data/text/clean/%.txt)
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

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis

# torch alone first: the other packages would else draw in a build of their own choice
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[test]' $(CONSTRAINTS)
	touch $@
