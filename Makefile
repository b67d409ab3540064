# Every target first makes .venv, with a Python 3.12 or 3.13 that it finds itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ENCODER ?= conbimamba
ESPNET ?= 2
DEVICE ?= cpu
SEPARATOR ?= extbimamba
JOBS ?= 2
VENV ?= .venv

PY := $(VENV)/bin/python
CODE := espnet_bimamba tests egs benchmarks
export PYTHON

.PHONY: help venv recipes known-options demo demo-enh enh-extra enh-extra-if-possible test test-quick
.PHONY: test-parts test-parts-quick test-triton
.PHONY: test-triton-quick test-recipes lint bench-extra bench bench-quick clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'make demo ENCODER=transbimamba   another encoder: bimamba, conbimamba, e_branchbimamba, transbimamba'
	@echo 'make demo ESPNET=3               with the ESPnet3 recipe instead of the ESPnet2 one'
	@echo 'make demo-enh SEPARATOR=mamba    another separator: extbimamba, mamba (causal)'
	@echo 'make bench DEVICE=cuda           the benchmarks on a GPU'
	@echo 'make PYTHON=/path/to/python ...  a Python of your choice'

venv: ## make or update the virtual environment
	@.ci/make-venv $(VENV)

recipes: venv ## fetch the stock ESPnet recipes of the installed ESPnet, once
	@$(PY) -m espnet_bimamba.recipes --cache .cache >/dev/null

# Before minutes of setting up, see whether there is such an encoder and such an ESPnet.
known-options:
	@case '$(ESPNET)' in 2|3) ;; *) echo "no ESPNET='$(ESPNET)' here; there are 2 and 3" >&2; exit 2;; esac
	@ls conf/mini_an4/train_asr_$(ENCODER).yaml >/dev/null 2>&1 || { \
	    echo "no encoder '$(ENCODER)' here; there are:" >&2; \
	    ls conf/mini_an4 | sed -n 's/^train_asr_\(.*\)\.yaml$$/    \1/p' >&2; exit 2; }

demo: known-options recipes ## train and try an encoder on real speech in a stock recipe
	@$(PY) egs/mini_an4/demo.py --encoder '$(ENCODER)' --espnet '$(ESPNET)'

enh-extra: venv
	@$(PY) -c 'import fast_bss_eval, mir_eval, pesq, pystoi' 2>/dev/null \
	    || $(PY) -m pip install --quiet --editable '.[enh]'

demo-enh: enh-extra recipes ## train and try our separator in a stock recipe of speech enhancement
	@$(PY) egs/mini_an4/demo_enh.py --separator '$(SEPARATOR)'

# PESQ is built from C: without a compiler its tests are skipped, visibly.
enh-extra-if-possible: venv
	@$(MAKE) --no-print-directory enh-extra || echo 'pesq could not be built: its tests are skipped'

test: enh-extra-if-possible lint recipes test-triton test-parts test-recipes ## everything, recipe runs included

test-quick: enh-extra-if-possible lint recipes test-triton-quick test-parts-quick ## all but recipe runs and slow tests, in 4 minutes

BESIDE_EACH_OTHER := -n $(JOBS) --durations=5 --dist

test-parts: venv
	@$(PY) -m pytest -m "not recipe" $(BESIDE_EACH_OTHER) worksteal

test-parts-quick: venv
	@$(PY) -m pytest -m "not recipe and not slow" $(BESIDE_EACH_OTHER) worksteal

# Tests that share a trained model stay in one process.
test-recipes: venv
	@$(PY) -m pytest tests/recipes -m recipe $(BESIDE_EACH_OTHER) loadgroup

# Triton reads the variable when a kernel is declared: a process interprets all kernels or none.
INTERPRETED := TRITON_INTERPRET=1 ESPNET_BIMAMBA_TEST_BACKENDS=triton \
    $(PY) -m pytest $(BESIDE_EACH_OTHER) worksteal
LAYERS := plain_algorithm and not at_size or alone_equals_batched and nan
MORE_LAYERS := plain_algorithm or alone_equals_batched and nan or autocast or half or chunks_give and -4-
LEFT_OUT := (in_float64 and float16 or layers and torch.float16)

# Kernels compute in float32: the operators' matrix is in that, the layers' halves are bfloat16,
# test_triton.py has both.
test-triton: venv ## the operators' matrix and layers on Triton's kernels, interpreted
	@$(INTERPRETED) tests/ops tests/layers \
	    -k "triton and (not layers or $(MORE_LAYERS)) and not $(LEFT_OUT)"

test-triton-quick: venv
	@$(INTERPRETED) tests/ops/test_triton.py tests/layers -k "test_triton or triton and ($(LAYERS))"

lint: venv ## style and types
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m mypy
# Programs are no package: mypy knows each by its file's name, and two of one name need two runs.
	@MYPYPATH=egs/se $(PY) -m mypy $$(find egs -name '*.py' -not -path 'egs/so762/*' -not -path 'egs/se/*')
	@$(PY) -m mypy $$(find egs/so762 -name '*.py')
	@MYPYPATH=egs:egs/so762 $(PY) -m mypy $$(find egs/se -name '*.py')

bench-extra: venv
	@$(PY) -c 'import mambapy, matplotlib' 2>/dev/null || $(PY) -m pip install --quiet --editable '.[bench]'

bench: bench-extra ## speed and memory against peers: table, JSON, plots
	@$(PY) -m benchmarks run --device '$(DEVICE)' --command 'make bench DEVICE=$(DEVICE)'

bench-quick: bench-extra ## the main ratios only, a minute: before and after a change
	@$(PY) -m benchmarks run --device '$(DEVICE)' --scale quick --command 'make bench-quick DEVICE=$(DEVICE)'

clean: ## remove what runs and builds left, but not .venv and .cache
	rm -rf exp build dist .pytest_cache .mypy_cache .ruff_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
