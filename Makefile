# make run   run all chapters on the embedded data, write build/*.html, print the results
# make test  style and unit tests; one process for each core
# make chapters  all chapters and solved exercises, and whether the texts say what the outputs show
# make types the type checker, ten seconds
# make lab   open the notebooks in JupyterLab
# make colab run the notebooks with Google Colab's packages; this needs a network
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -p no:nbval -n auto --maxprocesses 8 --dist worksteal

# Some images of Docker set it; then each process would compile torch and all else anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test chapters cpus types lab notebooks heads wheel bundles colab browser site versions integrations sweep-test \
  container mutants clean

run: $(VENV)/installed
	$(PY) tools/run_notebooks.py

test: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PYTEST) tests/test_*.py

# Each chapter and solved exercise alone, in a fresh kernel and an empty folder, and what chapters say
# about their own outputs.
chapters: $(VENV)/installed
	$(PYTEST) tests/chapters.py

# Chapters and solved exercises with the arithmetic of older CPUs, whose runs have other numbers: what
# a chapter says must hold with them, too.
cpus: $(VENV)/installed
	ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) tests/chapters.py
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) tests/chapters.py

# The types of all of csd_lib.
types: $(VENV)/installed
	$(PY) -m mypy

lab: $(VENV)/installed
	$(PY) -m jupyterlab --notebook-dir=notebooks

# After a change to the library or a notebook: their heads, the exercises of students and chapters, the
# outputs of a fresh run, and what the instructor's guide takes from the checkers.
notebooks: heads
	$(PY) tools/exercises.py
	$(PY) tools/run_notebooks.py --all --write
	$(PY) tools/answers.py

# Write the way to Google Colab, the set-up cell and the reading time into every notebook.
heads: $(VENV)/installed
	$(PY) tools/heads.py

# What a release offers and Google Colab installs.
wheel: $(VENV)/installed
	$(PY) tools/wheel.py

# One zip for students, and one for instructors with slides, answer key and copies for grading.
bundles: $(VENV)/installed
	$(PY) tools/bundles.py

# Every notebook as on Google Colab; needs a network, for small environments of its own.
colab: $(VENV)/installed
	rm -rf build/colab-*
	$(PY) -m pytest -n 2 tests/colab/imitation.py

# The notebooks' controls in a real JupyterLab; needs Debian's chromium, or $CHROMIUM.
browser: $(VENV)/installed
	$(PY) -m pytest -n 2 tests/browser/controls.py

# The fast tests and a notebook with the oldest and the newest packages that pyproject.toml allows,
# on every Python that is here; needs a network, and 5 GB for one environment at a time.
versions: $(VENV)/installed
	$(PY) tools/versions.py

# The plug-ins for pytorch-metric-learning and Avalanche, and exported models; needs a network, for a
# small environment of its own (200 MB) that is laid over the one that runs the tests.
integrations: $(VENV)/installed
	$(call overlay,integrations,'.[avalanche$(comma)export$(comma)metric-learning$(comma)timm]')
	build/integrations/bin/python -m pytest -p no:xdist tests/integrations/with_*.py tests/test_networks.py

# The Dockerfile's steps without an engine, in a bare Debian made by debootstrap; needs root, and a network
# for Debian and for all packages but torch (3 GB in build/ and a temporary folder). Some minutes.
container: $(VENV)/installed
	$(PY) -m pytest -p no:xdist tests/container/steps.py

# Sweeps: submitit's processes here, and a real Slurm of one node that is set up and torn down; needs a
# network for submitit, and Debian's slurmctld, slurmd, slurm-client and munge (no root). Some minutes.
sweep-test: $(VENV)/installed
	$(call overlay,sweep-test,'.[sweep]')
	build/sweep-test/bin/python -m pytest -p no:xdist tests/sweep/with_*.py

# README, docs and notebooks as a site in build/site, opened page by page in Chromium as for make browser;
# needs npm, and a network the first time.
site: build/site-env/installed
	rm -rf build/site
	build/site-env/bin/python -m sphinx -W --keep-going -q -E -c site -d build/site-env/doctrees . build/site
	build/site-env/bin/python -m pytest -p no:xdist tests/site/pages.py

build/site-env/installed: pyproject.toml constraints.txt $(VENV)/installed
	$(call overlay,site-env,'.[site]')
	npm install --silent --no-save --ignore-scripts --prefix build/site-env mathjax@3.2.2 axe-core@4.14.1
	@touch $@

# A small environment in build/, laid over the one that runs the tests.
comma := ,
overlay = $(PY) -m venv build/$(1) && \
	$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$(echo build/$(1)/lib/python3.*/site-packages)/kit.pth && \
	build/$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e $(2)

# Is the gate itself awake? Seeds each defect of tests/mutants.toml in a copy of this folder and runs
# the test that must turn red; needs git, and ten minutes to half an hour on two cores.
mutants: $(VENV)/installed
	$(PY) tools/mutants.py --jobs 2

# A torch that is already in the environment, such as a CPU-only build, is kept if it is the version
# of constraints.txt. Python compiles what it imports; pip would compile everything, a minute longer.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else \
	  "error: this is Python %d.%d, but 3.11 to 3.14 is needed: make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing the packages into $(VENV): some minutes and, with CUDA, 5 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
	@touch $@

clean:
	rm -rf build
