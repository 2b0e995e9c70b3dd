# Two commands: `make demo` and `make test`. All else is optional.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-long fuzz check install clean

demo: $(VENV)/.installed  ## pre-train and show what was learned, in ten minutes: make demo [MINUTES=5] [DATA=/my/photos]
	$(BIN)/resim demo $(if $(MINUTES),--minutes "$(MINUTES)") $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.installed-test  ## run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST)

test-fast: $(VENV)/.installed-test  ## the tests that are not marked slow: the loop to work with
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST)

test-long: $(VENV)/.installed-test  ## the study of docs/results.md in its small form, and more faults of the network and of disks: up to an hour
	$(BIN)/python -m pytest -m long $(PYTEST)

fuzz: $(VENV)/.installed-dev  ## damaged and hostile inputs for every reader: make fuzz [MINUTES=5] [SEED=0] [TARGETS="coco tar"] [ENGINE=hypothesis]
	$(BIN)/python -m tests.fuzz $(TARGETS) --minutes "$(or $(MINUTES),5)" --seed "$(or $(SEED),0)" --engine "$(or $(ENGINE),own)"

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

install: $(VENV)/.installed

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: name a newer one, for example make PYTHON=python3.12 demo"; exit 2; }
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
