# Everything starts from a clean checkout with Python 3.11 or newer and make. uv is used where it is installed.

VENV := .venv
BIN := $(VENV)/bin
NEWER := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	if "$$p" -c '$(NEWER)' 2>/dev/null; then echo $$p; break; fi; done)
UV := $(shell command -v uv 2>/dev/null)
ifneq ($(wildcard ../shared/data),)
export WITHSTAND_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test check docs bench requirements clean
.DEFAULT_GOAL := demo

demo: $(VENV)/runtime.stamp ## audit the embedded demo: a table here, a page in runs/demo
	$(BIN)/withstand demo

test: $(VENV)/dev.stamp ## the tests, without those marked slow; ARGS="..." goes to pytest
	$(BIN)/python -m pytest -n auto --dist loadscope -m "not slow" $(ARGS)

check: $(VENV)/dev.stamp ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(VENV)/dev.stamp ## the site, in site/
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: $(VENV)/peers.stamp ## side by side with peers; prints ratios, records benchmarks/results
	$(BIN)/python benchmarks/run.py

requirements: ## pin again what pyproject.toml asks for (needs uv)
	$(PIN) -o requirements/runtime.txt
	$(PIN) --extra dev --extra hf --extra onnx --extra metric --extra generative -c requirements/runtime.txt -o requirements/dev.txt

clean: ## forget the environment and what was built
	rm -rf $(VENV) site dist build coverage.xml .coverage

PIN := uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--no-header --no-emit-index-url --no-annotate

# $(call install,ARGUMENTS): into the environment, with uv or pip
ifneq ($(UV),)
install = uv pip install --quiet --python $(BIN)/python $(1)
else
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(1)
endif

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "withstand needs Python 3.11 or newer; set PYTHON=/path/to/python"; exit 1; }
	$(if $(UV),uv venv --quiet --python "$(PYTHON)" $(VENV),"$(PYTHON)" -m venv $(VENV))

$(VENV)/runtime.stamp: requirements/runtime.txt pyproject.toml | $(BIN)/python
	$(call install,-r requirements/runtime.txt)
	$(call install,--no-deps -e .)
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/runtime.stamp
	$(call install,-r requirements/dev.txt)
	@touch $@

$(VENV)/peers.stamp: pyproject.toml $(VENV)/dev.stamp
	$(call install,-c requirements/dev.txt -e ".[peers]")
	@touch $@
