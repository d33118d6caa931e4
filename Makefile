# `make` alone lists the commands. PYTHON makes the environment, VENV says where it is, DEVICE what
# `make gpu` computes on.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cuda
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help book test gpu notebooks lab bench margins bind clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is older than the two files whenever the environment may no longer fit them.
$(STAMP): requirements.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

book: $(STAMP)  ## build the book and print the page to open
	rm -rf _build/html _build/.doctrees
	$(BIN)/jupyter-book build -W -n --keep-going .
	@echo "Open $(CURDIR)/_build/html/index.html"

# The slow tests run after the others and two files at a time: the pages in a browser, and beside them
# the notebooks in the environment of the test of the wheel.
test: $(STAMP)  ## lint, unit tests, strict build and browser, notebooks on the wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "not slow" --durations=10
	$(BIN)/python -m pytest -n 2 --dist loadscope -m slow --durations=10

gpu: $(STAMP)  ## unit tests and notebooks on a GPU, what fails at the end: make gpu DEVICE=cuda:1
	GAN_EBM_DEVICE=$(DEVICE) $(BIN)/python -m pytest --nbval -n 2 --dist loadscope -m "not slow"

notebooks: $(STAMP)  ## run every notebook anew and note its run time
	$(BIN)/python book/_tools/execute_notebooks.py

lab: $(STAMP)  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

bench: $(STAMP)  ## run the benchmarks of tests/benchmarks
	set -e; for script in tests/benchmarks/*.py; do $(BIN)/python "$$script"; done

margins: $(STAMP)  ## measure how far each claim stays from its bound
	$(BIN)/python tests/margins/run.py

bind: $(STAMP)  ## write the public address: make bind URL=https://github.com/owner/name
	$(BIN)/python book/_tools/bind.py "$(URL)"

clean:  ## remove what was built, and the environment
	rm -rf _build build dist .pytest_cache .ruff_cache $(VENV)
