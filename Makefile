# Every target makes what it needs: the environment in .venv, the package in it. `make help` lists them.
# the first Python that runs and is new enough; `make PYTHON=/path/to/python` overrides it
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
benchmarks := $(sort $(wildcard benchmarks/[!_]*.py))
say = @printf '\n== %s\n' "$(1)"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test readme bench venv export hooks clean sync lint floors deps notebooks pytest

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(STAMP) ## Train a language model and a classifier on real text, into demo_out/ (some minutes)
	$(call say,demo: a language model and a classifier learn from documentation on your disk)
	@$(BIN)/awdtext demo

test: sync lint floors deps notebooks pytest ## Run every check and test (at most 10 minutes)

readme: $(STAMP) ## Write README.md from nbs/index.ipynb
	$(call say,readme: writing README.md from nbs/index.ipynb)
	@$(BIN)/python tools/readme.py

bench: $(STAMP) ## Run every script in benchmarks/ on the corpora in DATA (hours; see benchmarks/README.md)
	@test -n "$(DATA)" || { echo "Where are the corpora? Say make bench DATA=DIR; benchmarks/README.md says what is in DIR."; exit 1; }
	$(call say,bench: scripts found in benchmarks/: $(words $(benchmarks)))
	@set -e; for script in $(benchmarks); do printf '\n== bench: %s\n' $$script; $(BIN)/python $$script --data $(DATA); done

venv: $(STAMP) ## Make .venv and install the package in it

export: $(STAMP) ## After editing notebooks: clean them, write the modules, the floors and the README
	$(call say,export: notebooks cleaned; modules and floors and README written)
	@$(BIN)/nbdev-clean
	@$(BIN)/nbdev-export
	@$(BIN)/python tools/floors.py
	@$(BIN)/python tools/readme.py

hooks: $(STAMP) ## Let git merge and Jupyter save notebooks cleanly (nbdev's hooks; writes to ~/.jupyter too)
	$(call say,hooks: installing nbdev's git and Jupyter hooks)
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "This is no git checkout: nothing to hook into."; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" nbdev-install-hooks

clean: ## Remove .venv, caches and what the demo left
	$(call say,clean: removing .venv and caches and demo_out)
	@rm -rf $(VENV) *.egg-info build dist demo_out .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The steps of `make test`, quick ones first, pytest last. Each also runs alone.

sync: $(STAMP)
	$(call say,test 1/6: notebooks are clean; modules and floors and README are in sync with them)
	@$(BIN)/python tools/check_sync.py

lint: $(STAMP)
	$(call say,test 2/6: ruff on modules and notebooks and tests)
	@$(BIN)/ruff check --output-format concise .

floors: $(STAMP)
	$(call say,test 3/6: no module imports from a higher floor)
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo --no-cache

deps: $(STAMP)
	$(call say,test 4/6: only declared packages are imported)
	@$(BIN)/python tools/check_deps.py

notebooks: $(STAMP)
	$(call say,test 5/6: every notebook runs from top to bottom)
	@OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/nbdev-test --timing

pytest: $(STAMP)
	$(call say,test 6/6: pytest)
	@OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest

$(STAMP): settings.ini setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.10 or newer, or say make PYTHON=/path/to/python3"; exit 1; }
	$(call say,venv: installing the package and its tools into .venv (once; some minutes))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --no-input --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
