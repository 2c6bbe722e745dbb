# `make demo` and `make test` do all their own set-up: each may be the first command on a fresh machine.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := -m pip install --quiet --no-compile --constraint constraints.txt
INSTALL := $(RUN) $(PIP) --editable
# NerfBaselines wants an older NumPy than nelf's own environment has.
BASELINES := .venv-baselines
# Tests of one file stay in one process, which shares what the file's fixtures made.
PYTEST := $(RUN) -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadfile

.PHONY: demo test test-long docs baselines clean
.DELETE_ON_ERROR:

# The built-in scene, from nothing to a small light field of it, with settings that suit a processor.
demo: $(VENV)/installed
	$(RUN) distill.py experiment=demo

test: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(PYTEST) -m "not slow and not gpu"
	$(PYTEST) -m "slow and not gpu" tests/integration/test_chain.py tests/integration/test_dynamic.py tests/export

# Everything that takes longer, too: sweeps, killed runs, notebooks, the wheel, the benchmarks.
test-long: $(VENV)/installed-dev
	$(PYTEST) -m "slow and not gpu"

# The documentation, with the demo's light field running in it where there is one: make demo first.
docs: $(VENV)/installed-dev
	$(INSTALL) '.[docs]'
	$(RUN) -m mkdocs build --strict
	if [ -d runs/demo/export ]; then cp -r runs/demo/export site/demo && $(RUN) -c "from nelf.viewer import static; static.write('site/demo')"; fi

# NerfBaselines' own test of nelf, on a scene in the Blender format: make baselines SCENE=data/nerf_synthetic/lego
baselines: $(BASELINES)/installed
	@test -n "$(SCENE)" || { echo "SCENE is not set; allowed: make baselines SCENE=a folder in the Blender format"; exit 2; }
	$(BASELINES)/bin/python benchmarks/baselines.py "$(SCENE)"

# The stamps remember what is installed; another pyproject.toml or constraints.txt installs anew.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[dev]'
	touch $@ $(VENV)/installed

$(BASELINES)/installed: pyproject.toml constraints.txt
	test -x $(BASELINES)/bin/python || $(PYTHON) -m venv $(BASELINES)
	$(BASELINES)/bin/python $(PIP) --editable . 'nerfbaselines>=1.2,<1.3'
	touch $@

clean:
	rm -rf $(VENV) $(BASELINES) build dist runs site .mypy_cache .pytest_cache .ruff_cache
