# make demo | test | test-fast | check: each sets up .venv by itself. PYTHON names the interpreter to make it from.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: setup demo evaluate test test-fast check docs clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

demo: setup
	$(BIN)/promptmill run configs/demo.yaml --out runs/demo
	$(BIN)/promptmill query runs/demo "select tags['kind'] as kind, status, count(*) as images, round(avg(clip_score), 3) as clip_score from metadata group by all order by all"
	$(BIN)/promptmill show runs/demo runs/demo.png
	@echo "a contact sheet of it: runs/demo.png"

evaluate: setup
	$(BIN)/python -m pipeline.models.demo.evaluate --draws 1000

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m "not slow"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: setup
	$(BIN)/python -m tests.make_docs

clean:
	rm -rf .venv runs
