# Two commands on a machine that has Python ≥ 3.11 with venv, make and a network:
#   make demo    install, fetch the small model, solve a problem by search with a live trace
#   make test    install with the test extra, run the whole test suite
#   make test-sglang  install SGLang for the CPU into .venv-sglang (3 GB), test what needs a server or torch
#   make bench-gpu  time the kernels on the GPU here; needs torch and triton, and nothing else
# Also: make lint, make types, make clean. PYTHON=python3.12 chooses the interpreter.

PYTHON ?=
VENV   := .venv
PY     := $(VENV)/bin/python
SGLANG := .venv-sglang
PIP    := $(PY) -m pip --disable-pip-version-check --quiet
ABDUCE := $(PY) -m abduce
SPREAD := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-sglang test-servers test-torch bench-gpu lint types clean model
.SILENT:

# A moved checkout leaves a .venv that points to the old place: install again.
ifneq ($(shell cat $(VENV)/.home 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/.python $(VENV)/.core $(VENV)/.test $(VENV)/.dev)
endif

help:
	sed -n '1,6s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.core model
	printf '\n$$ abduce solve "24 x 3" --recipe a-star-long-products --check numeric=72\n'
	$(ABDUCE) solve "24 x 3" --recipe a-star-long-products --check numeric=72

test: $(VENV)/.test model
	$(PY) -m pytest $(SPREAD)

# Servers are waited for while torch computes.
test-sglang: $(VENV)/.test $(SGLANG)/.ready model
	$(MAKE) --no-print-directory --jobs=2 test-servers test-torch

test-servers:
	$(PY) -m pytest -m sglang $(NEED_SERVER)

test-torch:
	OMP_NUM_THREADS=1 $(SGLANG)/bin/python -m pytest $(SPREAD) -m "sglang or not sglang" $(NEED_TORCH)
	PYTHONPATH=$(SGLANG_ENV)/stand_ins OMP_WAIT_POLICY=PASSIVE $(SGLANG)/bin/python -m pytest -W default \
	    -m "sglang or not sglang" tests/serving/test_contract.py -k "in-process or transformers"
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(SGLANG)/bin/python -m pytest $(SPREAD) tests/serving/kernels

bench-gpu:
	PYTHONPATH=. $(or $(PYTHON),python3) benchmarks/kernels.py

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev
	$(PY) -m mypy

model: $(VENV)/.core
	$(ABDUCE) model fetch

clean:
	rm -rf $(VENV) $(SGLANG) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# ---------------------------------------------------------------- the virtual environment

define FIND_PYTHON
found=; old=; bare=; \
for candidate in $(if $(PYTHON),'$(PYTHON)',python3.13 python3.12 python3.11 python3 python); do \
    version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
    if ! "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
        old="$$old $$candidate is $$version."; \
    elif ! "$$candidate" -c 'import ensurepip, venv' 2>/dev/null; then \
        bare=$$version; \
    else found=$$candidate; break; fi; \
done; \
if [ -z "$$found" ] && [ -n "$$bare" ]; then \
    echo "Python $$bare is here, but without its venv module. Install it with:"; \
    echo "    sudo apt-get install python$$bare-venv"; exit 1; \
elif [ -z "$$found" ]; then \
    echo "abduce needs Python 3.11 or newer and found none$(if $(PYTHON), under the name $(PYTHON)).$$old Install it with one of:"; \
    echo "    sudo apt-get install python3 python3-venv     (Debian 12+, Ubuntu 24.04+)"; \
    echo "    sudo dnf install python3.12                   (Fedora, RHEL 9+)"; \
    echo "    brew install python@3.12                      (macOS)"; \
    echo "then run make again, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; \
fi
endef

define NO_INSTALL
{ rm -f $@; \
  echo "The installation did not end; pip's message is above. It needs a network, once. Then run: make $(MAKECMDGOALS)"; \
  exit 1; }
endef

$(VENV)/.python:
	$(FIND_PYTHON); \
	if ! $(PY) -c '' 2>/dev/null || [ "$(origin PYTHON)" = "command line" ]; then \
	    echo "Making $(VENV) with $$found"; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	printf '%s\n' '$(CURDIR)' > $(VENV)/.home
	touch $@

$(VENV)/.core: $(VENV)/.python pyproject.toml
	echo "Installing abduce into $(VENV) (about 300 MB, a minute or two)"
	$(PIP) install --editable . || $(NO_INSTALL)
	touch $@

$(VENV)/.test: $(VENV)/.core
	echo "Installing the test extra into $(VENV)"
	$(PIP) install --editable '.[test]' || $(NO_INSTALL)
	touch $@

$(VENV)/.dev: $(VENV)/.core
	echo "Installing the test and dev extras into $(VENV)"
	$(PIP) install --editable '.[test,dev]' || $(NO_INSTALL)
	touch $@ $(VENV)/.test

# ---------------------------------------------------------------- SGLang on the CPU, for the tests

SGLANG_ENV := tests/serving/sglang_env
SGLANG_PIP := $(SGLANG)/bin/python -m pip --disable-pip-version-check --quiet
# Tests of a server, and tests that skip without torch or SGLang.
NEED_SERVER = $(sort $(shell grep -lr 'mark\.sglang' tests --include='test_*.py'))
NEED_TORCH  = $(filter-out tests/serving/kernels/%,$(sort $(shell grep -lrE 'importorskip."(torch|sglang)' tests --include='test_*.py')))

ifneq ($(shell cat $(SGLANG)/.home 2>/dev/null),$(CURDIR))
$(shell rm -f $(SGLANG)/.packages $(SGLANG)/.ready)
endif

define MAKE_SGLANG
for candidate in python3.11 python3.12 $(PY); do \
    "$$candidate" -c 'import ensurepip, venv' 2>/dev/null && break; \
done; \
"$$candidate" -m venv --clear $(SGLANG)
endef

$(SGLANG)/.packages: $(SGLANG_ENV)/requirements.txt | $(VENV)/.python
	echo "Installing SGLang for the CPU into $(SGLANG) (3 GB, some minutes)."
	echo "It is installed without its CUDA packages: pip will name them as missing, and that is as it should be."
	$(SGLANG)/bin/python -c '' 2>/dev/null || { $(MAKE_SGLANG); }
	$(SGLANG_PIP) install -r $(SGLANG_ENV)/requirements.txt || $(NO_INSTALL)
	printf '%s\n' '$(CURDIR)' > $(SGLANG)/.home
	touch $@

$(SGLANG)/.ready: $(SGLANG)/.packages pyproject.toml
	$(SGLANG_PIP) install --no-deps sglang==0.5.23 --editable . || $(NO_INSTALL)
	touch $@
