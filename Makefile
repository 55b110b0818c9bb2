# Everything is set up in .venv by the first target that needs it, and again when the
# requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread each: two busy processes make threaded linear algebra collapse.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help demo test lint docs bench bench-quick bench-compare performance wheel torture clean

help:
	@echo "make demo   train a classifier of handwritten digits from loss values alone"
	@echo "make test   run the whole test suite"
	@echo "make lint   ruff and mypy"
	@echo "make torture  kill runs, mutate their files, run for long: 4 to 25 minutes"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make bench  run the benchmarks"
	@echo "make bench-compare BASE=commit  compare with a commit, fail where slower by FACTOR"
	@echo "make performance  measure the tables of docs/performance.md"
	@echo "make wheel  build the wheel and check what is inside"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The demo needs little; what the tests need takes minutes to install.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cli]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[cli,torch,jax,scipy,dask,mpi,transformers,examples,test,docs,bench]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/zomopi run digits --save zomopi-digits.png

test: $(VENV)/.dev
	$(BIN)/python -m pytest

# Needs no more than the core.
torture: $(VENV)/.demo
	$(BIN)/python tests/crashes.py kills 1000
	$(BIN)/python tests/crashes.py writes
	$(BIN)/python -W error tests/fuzz.py 20000
	$(BIN)/python tests/journal_costs.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
# The results of `make bench`, if there are any; asv counts the commits of the branch main.
	cd asv_benches && ../$(BIN)/asv machine --yes > /dev/null
	cd asv_benches && { [ -f .asv/results/benchmarks.json ] || \
		../$(BIN)/asv run --python=same --bench just-discover > /dev/null; }
	cd asv_benches && if git rev-parse --verify --quiet main > /dev/null; then \
		../$(BIN)/asv publish --html-dir ../docs/_build/html/asv > /dev/null && \
		../$(BIN)/python results_page.py ../docs/_build/html/asv; \
		else echo "no branch main: the pages of asv are left out"; fi
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.dev
	cd asv_benches && ../$(BIN)/asv machine --yes > /dev/null
	cd asv_benches && ../$(BIN)/asv run --python=same --show-stderr --set-commit-hash "$$(git rev-parse HEAD)"

bench-quick: $(VENV)/.dev
	cd asv_benches && ../$(BIN)/asv machine --yes > /dev/null
	cd asv_benches && ../$(BIN)/asv check --python=same
	cd asv_benches && ZOMOPI_BENCH=quick ../$(BIN)/asv run --python=same --quick --show-stderr

# Builds an environment for each of the two commits the first time, which takes minutes.
FACTOR ?= 1.15
BENCH ?= .
bench-compare: $(VENV)/.dev
	@test -n "$(BASE)" || { echo "name a commit: make bench-compare BASE=main~1"; exit 2; }
	cd asv_benches && ../$(BIN)/asv machine --yes > /dev/null
	cd asv_benches && ../$(BIN)/asv continuous --factor $(FACTOR) --split --show-stderr \
		--bench "$(BENCH)" "$(BASE)" HEAD

performance: $(VENV)/.dev
	cd asv_benches && ../$(BIN)/python -m performance

wheel: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/python tools/check_wheel.py dist

clean:
	rm -rf $(VENV) dist docs/_build asv_benches/.asv zomopi-digits.png
