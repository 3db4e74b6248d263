# The commands of this project; each line is what you would type yourself. `make demo` and `make test` do all the set-up.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
UV := env -u UV_FIND_LINKS $(BIN)/uv

.PHONY: demo test install lint protos lock

demo: $(INSTALLED)      ## install, then learn, export, serve and drive a policy: about five minutes
	$(BIN)/cvpo demo

test: $(INSTALLED)      ## install, then run the tests
	$(BIN)/pytest -n 2 --dist loadfile

install: $(INSTALLED)   ## everything, into .venv

lint: $(INSTALLED)      ## style, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

protos: $(INSTALLED)    ## generate serve/gen from protos/
	$(BIN)/python protos/generate.py

lock: $(INSTALLED)      ## after a change of pyproject.toml: lock, and export what `make install` installs
	$(UV) lock
	$(UV) export --quiet --frozen --all-extras --no-hashes --no-emit-project --no-annotate --no-header -o constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"cvpo needs Python 3.11 or later, and {sys.executable} is {v.major}.{v.minor}. Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.platform == "linux" else f"cvpo runs on Linux, and this is {sys.platform}. Use a Linux machine, virtual machine or container.")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,bullet,dev]'
	$(BIN)/python -m pip install --quiet --no-deps safety-gymnasium==1.0.0 bullet-safety-gym==1.4.0  # their own pins cannot be installed: README
	@touch $@
