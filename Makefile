# `make demo` and `make test` are all a newcomer needs: each sets up what it uses, once.
#
#   make demo       a picture from a query image, three context images and a prompt, offline  -> out/demo.png
#   make test       the tests, every lesson executed among them
#   make lint       ruff, codespell, and that the notebooks are stripped
#   make lab        JupyterLab on the lessons
#   make notebooks  every lesson executed, with outputs and as HTML                          -> build/notebooks/
#   make figures    those pictures of README, lessons and scores whose inputs changed        -> figures/
#   make train      the offline models, all components in order (resumable)                  -> data/checkpoints/
#   make evaluate   the scores and model cards of the offline models; the papers' tables from few sets  -> figures/offline/
#   make papers     the papers' tables in full, hours on two cores, resumable                -> figures/evaluation/
#
# Variables: PYTHON (3.11 or newer), VENV (where the environment goes), PIP_ARGS (for pip install, e.g. another index),
# WORKERS (processes of the tests), OMP_NUM_THREADS (threads; respected by everything).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
RUN := $(BIN)/python
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev

# Without an NVIDIA GPU the pins keep pip from replacing a CPU torch by a newer build for CUDA.
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)
CONSTRAINTS := $(if $(filter-out 0,$(HAS_GPU)),,-c constraints-cpu.txt)
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) $(CONSTRAINTS)

.PHONY: demo test lint lab notebooks figures train evaluate papers clean
.DELETE_ON_ERROR:

demo: $(RUNTIME)
	@$(RUN) -m context_diffusion demo --out out/demo.png

test: $(DEV)
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	@find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -print0 | xargs -0 -r $(BIN)/nbstripout --verify

lab: $(DEV)
	$(BIN)/jupyter lab notebooks

notebooks: $(DEV)
	@mkdir -p build/notebooks
	$(RUN) -m nbconvert --execute --to notebook --output-dir build/notebooks notebooks/*.ipynb
	$(RUN) -m nbconvert --to html --output-dir build/notebooks build/notebooks/*.ipynb

figures: $(DEV)
	$(RUN) -m context_diffusion.evaluation.manifest

train: $(RUNTIME)
	$(RUN) -m context_diffusion.training.vae
	$(RUN) -m context_diffusion.training.clip
	$(RUN) -m context_diffusion.training.unet
	$(RUN) -m context_diffusion.training.controlnet --kind canny
	$(RUN) -m context_diffusion.training.controlnet --kind depth
	$(RUN) -m context_diffusion.training.decoder
	$(RUN) -m context_diffusion.training.depth
	$(RUN) -m context_diffusion.training.dino
	$(RUN) -m context_diffusion.training.judge
	$(RUN) -m context_diffusion.training.captioner
	$(RUN) -m context_diffusion.training.speech
	$(RUN) -m context_diffusion.training.music

evaluate: $(DEV)
	$(RUN) -m context_diffusion.evaluation.offline
	$(RUN) -m context_diffusion.evaluation.card
	$(RUN) -m context_diffusion.evaluation.manifest --accept offline
	$(RUN) -m context_diffusion.evaluation.fusion_card
	$(RUN) -m context_diffusion.evaluation.papers --quick

papers: $(DEV)
	$(BIN)/torchrun --standalone --nproc-per-node $(WORKERS) -m context_diffusion.evaluation.papers
	$(RUN) -m context_diffusion.evaluation.manifest --accept evaluation

clean:
	rm -rf build out .pytest_cache .ruff_cache .hypothesis

# The two stamps: what running needs, and what testing needs beside it. An interrupted installation leaves no stamp and
# is taken up again. The .pth file makes the package importable from every folder, without building anything.
$(RUNTIME): requirements.txt constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV) (once; a few hundred megabytes) ..."
	@$(PIP) -r requirements.txt
	@$(RUN) -c 'import os, pathlib, sysconfig; pathlib.Path(sysconfig.get_paths()["purelib"], "context_diffusion.pth").write_text(os.getcwd() + "\n")'
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@touch $@
