# Two commands on a fresh machine: `make run` and `make test`. Everything goes into .venv and book/_build.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CHAPTER ?= taming#  the chapter of `make run` and `make report`
ARGS ?=#            passed to papermill by `make run`, such as ARGS="-p steps 2000"
MINUTES ?= 25#      the time that `make gpu` may take
PIP_ARGS ?=#        passed to pip install
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
STAMP := .venv/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
QUICK := book/_build/quick/$(CHAPTER).ipynb
CHECKS := lint types pairing units pages devices book browser

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Install everything into .venv (once; again only when the dependencies change)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(strip $(PYTHON))" || { \
		echo "no Python 3.11 or newer found (python3 is $$(python3 -V 2>&1)); name one: make PYTHON=/path/to/python3.12"; \
		exit 1; }
	@test -x $(BIN)/python || $(strip $(PYTHON)) -m venv .venv || { \
		echo "could not make .venv; on Debian or Ubuntu: apt-get install python3-venv"; rm -rf .venv; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo ".venv holds $$($(BIN)/python -V); Python 3.11 or newer is wanted: remove .venv and call make again"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@$(PIP) -c constraints.txt torch setuptools
	@$(PIP) -c constraints.txt --no-build-isolation -e '.[book,dev]'
	@touch $@

assets: $(STAMP) ## Fetch the pictures and networks that the default runs need
	@$(BIN)/cvlib assets fetch quick

run: assets ## Run CHAPTER at quick scale (ARGS="-p steps 2000") and build the book with it
	@CVLIB_STATIC=1 $(BIN)/cvlib run $(CHAPTER) -o $(QUICK) $(ARGS)
	@$(BIN)/cvlib book --with $(QUICK)
	@echo "your run:  file://$(CURDIR)/book/_build/html/chapters/$(CHAPTER).html"

report: assets ## Run CHAPTER's pages at report scale; refresh executed copies and results (resumes)
	@$(BIN)/cvlib report $(CHAPTER)
	@$(BIN)/cvlib book

gpu: assets ## Go on with every chapter's report for MINUTES, then stop; call again to resume
	@end=$$((SECONDS + 60 * $(MINUTES))); for page in notebooks/*.ipynb; do \
		name=$$(basename $$page .ipynb); [[ $$name == *_* ]] && continue; \
		left=$$((end - SECONDS)); ((left > 0)) || { echo "time is over before $$name"; break; }; \
		timeout --signal=INT --kill-after=60 $$left $(BIN)/cvlib report $$name || \
			echo "$$name stopped; what it finished is kept"; done

book: $(STAMP) ## Build the book from the committed executed copies
	@$(BIN)/cvlib book

test: assets ## Run every check and print the time of each
	@tree=$$(git status --porcelain 2>/dev/null || true); failed=; times=; \
	for check in $(CHECKS); do \
		echo; echo "== $$check"; start=$$SECONDS; verdict=passed; \
		$(MAKE) check-$$check || { verdict=FAILED; failed+=" $$check"; }; \
		times+=$$(printf '%-10s %-6s %4d s' $$check $$verdict $$((SECONDS - start)))$$'\n'; \
	done; \
	[[ $$tree == "$$(git status --porcelain 2>/dev/null || true)" ]] || { failed+=" clean-tree"; git status --short; }; \
	printf '\n%sin all %18d s\n' "$$times" $$SECONDS; \
	[[ -z $$failed ]] || { echo "failed:$$failed"; exit 1; }

check-lint:
	@$(BIN)/ruff check cvlib tests notebooks
	@$(BIN)/ruff format --check cvlib tests notebooks

check-types:
	@$(BIN)/mypy

check-pairing:
	@$(BIN)/cvlib sync --check && echo "every notebook is what its script makes"

check-units:
	@$(BIN)/python -m pytest tests cvlib --doctest-modules --ignore tests/browser \
		--cov --cov-report term --durations 8 -q

check-pages: # each page in a fresh folder, so that no finished run of before is recognised
	@for page in notebooks/*.ipynb; do \
		start=$$SECONDS; room=$$(mktemp -d); trap 'rm -rf "$$room"' EXIT; cp $$page "$$room"; \
		CVLIB_SMOKE=1 CVLIB_RESULTS=$(CURDIR)/book/results $(BIN)/python -m pytest --nbval-lax \
			--nbval-cell-timeout 300 -p no:cacheprovider -q --rootdir "$$room" "$$room" || exit 1; \
		rm -rf "$$room"; echo "$$page: $$((SECONDS - start)) s"; done

check-devices: # each page where tensors left behind on the CPU are found, as on a graphics card
	@CVLIB_RESULTS=$(CURDIR)/book/results $(BIN)/python tests/devices/pretend.py notebooks/*.py

check-book:
	@$(BIN)/cvlib book

check-browser: book
	@$(BIN)/python -m pytest tests/browser -q

test-quick: assets ## Run every page at quick scale, as a reader does
	@for page in notebooks/*.ipynb; do start=$$SECONDS; name=$$(basename $$page .ipynb); \
		CVLIB_STATIC=1 $(BIN)/cvlib run $$name -o book/_build/quick/$$name.ipynb; \
		echo "$$page: $$((SECONDS - start)) s"; done

verify-results: assets ## Replay the first steps of CHAPTER's runs whose code has changed
	@$(BIN)/cvlib verify $(CHAPTER)

sync: $(STAMP) ## Make the notebooks from their percent scripts, and mend the words of executed copies
	@$(BIN)/cvlib sync
	@$(BIN)/cvlib reword

format: $(STAMP) ## Format code and pages, then make the notebooks again
	@$(BIN)/ruff check --fix cvlib tests notebooks
	@$(BIN)/ruff format cvlib tests notebooks
	@$(BIN)/cvlib sync

constraints: $(STAMP) ## Pin what .venv holds into constraints.txt
	@{ sed '/^[^#]/,$$d' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu//'; } > .venv/new
	@mv .venv/new constraints.txt

clean: ## Remove what builds and tests made (not .venv, not runs/)
	@rm -rf book/_build build dist *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache

.PHONY: help install assets run report gpu book test test-quick verify-results sync format constraints clean \
	$(addprefix check-,$(CHECKS))
