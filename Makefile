# make demo              from nothing to a 3D object: installs into .venv once, then runs on a shipped picture
# make demo IMAGE=my.png the same for your picture; ARGS="--quality draft" passes further options
# make test              lint, types and all tests that need no GPU and no download
# make lint              only lint and types

PYTHON ?= python3
ARGS ?=
WORKERS ?= auto
export TORCH_INDEX

ifndef IMAGE
IMAGE := examples/images/lantern.png
CAPTION := --caption "a black lantern with glowing yellow glass"
endif

.PHONY: demo test lint install install-dev clean

demo: install
	.venv/bin/maquette imagedream "$(IMAGE)" $(CAPTION) $(ARGS)

test: lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist worksteal

lint: install-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy

install:
	@$(PYTHON) scripts/install.py

install-dev:
	@$(PYTHON) scripts/install.py --dev

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
