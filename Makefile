# `make demo` and `make test` do all their own set-up: each may be the first command on a fresh machine.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-long docs clean
.DELETE_ON_ERROR:

# The built-in scene, from nothing to a small light field of it, with settings that suit a processor.
demo: $(VENV)/installed
	$(RUN) distill.py experiment=demo

test: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest -q -m "not slow and not gpu"
	$(RUN) -m pytest -q -m "slow and not gpu" tests/integration/test_chain.py tests/integration/test_dynamic.py tests/export

# Everything that takes longer, too: sweeps, killed runs, notebooks, the wheel, the benchmarks.
test-long: $(VENV)/installed-dev
	$(RUN) -m pytest -q -m "slow and not gpu"

# The documentation, with the demo's light field running in it where there is one: make demo first.
docs: $(VENV)/installed-dev
	$(RUN) -m pip install --quiet --no-compile --editable '.[docs]'
	$(RUN) -m mkdocs build --strict
	if [ -d runs/demo/export ]; then cp -r runs/demo/export site/demo && $(RUN) -c "from nelf.viewer import static; static.write('site/demo')"; fi

# The stamps remember what is installed; another pyproject.toml installs anew.
$(VENV)/installed: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist runs site .mypy_cache .pytest_cache .ruff_cache
