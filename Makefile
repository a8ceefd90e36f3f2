# `make demo` and `make test` are all a newcomer needs: each sets up what it uses, once.
#
#   make demo       a picture from a query image, three context images and a prompt, offline  -> out/demo.png
#   make test       every test, including every lesson from top to bottom
#   make check      lint, and the tests without the lessons and the slow ones: the fast loop, a few minutes
#   make lint       ruff, mypy on the public names, codespell, and whether the notebooks are stripped
#   make lab        JupyterLab on the lessons
#   make site       the web site: lessons with their outputs, the module's reference, tables -> build/site/
#   make students exercises for a class, with hidden checks, marked by nbgrader             -> build/students/
#   make slides     slides of every lesson, for a room without a network                 -> build/slides/
#   make colab      three lessons with the versions that Colab has, in an environment of their own
#   make browser    two lessons in a real JupyterLab, in headless Chromium where there is one
#   make device     every lesson but 12 on a device that mixes no tensors with the CPU: a GPU's rules, without a GPU
#   make models     every lesson with random models in the places of those that its line MODEL = ... names
#   make doors      the first cell and the Colab badge of every lesson, from the address in pyproject.toml
#   make figures    the pictures of README, lessons and scores whose inputs have changed     -> figures/
#   make train-X    one offline model, resumable; e.g. make train-unet ARGS="--minutes 120"  -> build/training/X/
#   make publish    what was trained, for the library to find: make publish ARGS="unet"      -> data/checkpoints/
#   make train      every offline model in order, each published before the next is trained  -> data/checkpoints/
#   make evaluate   scores and cards of the offline models, and the papers' tables on trial  -> figures/offline/
#   make papers     the papers' tables in full: hours on two cores; resumable                -> figures/evaluation/
#   make clean      removes what can be made again: build/, out/, caches
#
# Variables: PYTHON (3.11 or newer), VENV (where the environment goes), PIP_ARGS (for pip install, e.g. another index),
# WORKERS (processes of the tests), TESTS and ARGS (passed on), OMP_NUM_THREADS (threads; respected by everything).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
WORKERS ?= 2
TESTS ?=
ARGS ?=
BIN := $(VENV)/bin
RUN := $(BIN)/python
# One stamp for each clone: an environment may serve several, whose requirements may differ.
CLONE := $(shell pwd | cksum | cut -d' ' -f1)
RUNTIME := $(VENV)/.runtime-$(CLONE)
DEV := $(VENV)/.dev-$(CLONE)
SET_UP := $(PYTHON) set_up.py $(VENV) $(PIP_ARGS)
FIRST := notebooks/00_quickstart.ipynb
COMPONENTS := vae clip unet controlnet-canny controlnet-depth judge decoder depth dino texture captioner speech music

PYTEST := $(RUN) -m pytest -n $(WORKERS) --dist worksteal

# Whatever is run here uses this clone, kernels included, whichever clone the environment was made for.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: help demo test check lint lab browser device models students students-test slides colab doors site figures train train-decoder publish evaluate papers clean mend
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   make/  make/p' Makefile

demo: $(RUNTIME)
	@$(RUN) -m context_diffusion demo --out out/demo.png

test: $(DEV)
	$(PYTEST) $(TESTS)

check: lint
	$(PYTEST) -m "not lesson and not slow" $(TESTS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	@find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -print0 | xargs -0 -r $(BIN)/nbstripout --verify

# The server's root is the clone's: a lesson shows pictures and opens code that lie beside its folder.
lab: $(RUNTIME)
	$(RUN) -m jupyter lab --config=experiments/publishing/lab_config.py --ServerApp.root_dir="$(CURDIR)" \
		--LabApp.default_url=/lab/tree/$(FIRST) $(ARGS)

browser: $(DEV)
	BROWSER=1 $(RUN) -m pytest tests/test_lab.py $(TESTS)

device: $(DEV)
	DEVICE=1 $(RUN) -m pytest tests/test_devices.py $(TESTS)

models: $(DEV)
	MODELS=1 $(RUN) -m pytest tests/test_models_in_lessons.py $(TESTS)

colab: $(DEV)
	COLAB=1 $(RUN) -m pytest -m colab tests/test_colab.py

# The folder of a course; for a real class name one outside of the clone, which `make clean` does not empty.
COURSE ?= build/students

students: $(DEV) build/grader/.done
	$(RUN) -m experiments.publishing.students --course "$(COURSE)" $(ARGS)

# Solutions get all points, stubs none; answers that raise or never end: minutes for each lesson.
students-test: $(DEV) build/grader/.done
	STUDENTS=1 $(RUN) -m pytest tests/test_students.py $(TESTS)

build/grader/.done: requirements-students.txt
	$(PYTHON) -m venv build/grader
	build/grader/bin/python -m pip install --quiet $(PIP_ARGS) -r $<
	@touch $@

slides: $(DEV) build/revealjs/.done
	$(RUN) -m experiments.publishing.slides $(ARGS)

# Only the files of reveal.js are wanted: none of its Sphinx extension is installed.
build/revealjs/.done: requirements-slides.txt
	$(RUN) -m pip install --quiet --no-deps --upgrade --target build/revealjs $(PIP_ARGS) -r $<
	@touch $@

doors: $(DEV)
	$(RUN) -m experiments.publishing.doors $(ARGS)

site: $(DEV)
	$(RUN) -m experiments.publishing.site $(ARGS)

figures: $(DEV)
	$(RUN) -m experiments.publishing.manifest $(ARGS)

train: $(RUNTIME)
	$(foreach part,$(COMPONENTS),$(MAKE) train-$(part) && $(MAKE) publish ARGS=$(part) &&) true

train-decoder: $(RUNTIME)
	$(RUN) -m experiments.training.vae --decoder $(ARGS)

train-controlnet-%: $(RUNTIME)
	$(RUN) -m experiments.training.controlnet --kind $* $(ARGS)

train-%: $(RUNTIME)
	$(RUN) -m experiments.training.$* $(ARGS)

publish: $(RUNTIME)
	$(RUN) -m experiments.publishing.weights $(ARGS)

# A score that cannot run here (speech without espeak-ng) says so and does not stop what follows.
evaluate: $(DEV)
	-$(RUN) -m experiments.evaluation offline
	$(RUN) -m experiments.publishing.card
	$(RUN) -m experiments.publishing.manifest --accept offline
	$(RUN) -m experiments.publishing.fusion_card
	$(RUN) -m experiments.evaluation papers --quick

papers: $(DEV)
	$(BIN)/torchrun --standalone --nproc-per-node $(WORKERS) -m experiments.evaluation papers --test
	$(RUN) -m experiments.publishing.bench_card
	$(RUN) -m experiments.publishing.manifest --accept evaluation

clean:
	rm -rf build out .pytest_cache .ruff_cache .mypy_cache .hypothesis

# The two stamps: what running needs, and what testing and the site need on top. An interrupted installation leaves no
# stamp and is taken up again; so is an environment whose Python has gone.
$(RUNTIME): requirements.txt constraints-cpu.txt $(if $(shell $(RUN) -c "" 2>/dev/null && echo works),,mend)
	@$(SET_UP) -r requirements.txt
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@$(SET_UP) -r requirements.txt -r requirements-dev.txt
	@touch $@
