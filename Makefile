# The commands of this project; each line is what you would type yourself. `make demo` and `make test` do all the set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test install lint protos lock clean

demo: $(INSTALLED)      ## install, then learn, export, serve and drive a policy (about five minutes)
	$(BIN)/cvpo demo

test: $(INSTALLED)      ## install, then run the tests
	$(BIN)/pytest -n 2

install: $(INSTALLED)   ## everything, into .venv

lint: $(INSTALLED)      ## style, types, import rules, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"cvpo needs Python 3.11 or later; {sys.executable} is {v.major}.{v.minor}. Say which one to use: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,dev]'
	$(BIN)/python -m pip install --quiet --no-deps safety-gymnasium==1.0.0  # its pins cannot be installed: docs/install.md
	@touch $@
