# make demo, make test: each does the set-up it needs.
# PYTHON=python3.12 names the interpreter; ARGS="-k packing" is handed to the command; TESTS="tests/data tests/infer" are run in place of all.
export PYTHON TORCH
ready := .venv/ready
TESTS := tests
pytest := -m pytest -c tests/pytest.ini -n auto --dist worksteal --durations=10

.PHONY: help audit package setup setup-browser demo demo-diffusion demo-encoder demo-pretrain demo-rlhf demo-seq2seq demo-attention test test-full test-newest docs clean

help:
	@echo "make demo         fine-tune the default model on real triplets, before and after (minutes)"
	@echo "make demo-diffusion  teach the default model to speak by diffusion, beside a twin that speaks left to right (15 minutes)"
	@echo "make demo-pretrain  train a small decoder from nothing on Python's documentation, beside gzip (6 minutes)"
	@echo "make demo-rlhf    reward model, PPO and DPO on the default model, with a page of curves (15 minutes)"
	@echo "make demo-encoder  teach the default encoder to tell good reviews from bad, beside a regression on its frozen vectors (minutes)"
	@echo "make demo-seq2seq  train a small Transformer from nothing on dates, numbers and countries, by exact match (6 minutes)"
	@echo "make demo-attention  two LSTMs and a Transformer learn the same rows: a page of why attention won (up to 10 minutes)"
	@echo "make test         run every test but the longest"
	@echo "make test-full    run all tests: real training, servers under load"
	@echo "make test-newest  the tests of make test, in .venv-newest, with the newest libraries that pyproject.toml allows"
	@echo "make docs         the documents as a site, site/index.html, in an environment of its own (.venv-docs)"
	@echo "make setup        only the virtual environment in .venv, with torch, Seodang and the default models"
	@echo "make setup-browser  Chromium, by which the pages are tested (Debian's package)"
	@echo "make package      build the wheel and the source archive into dist/, and try the wheel in a fresh environment (10 minutes)"
	@echo "make audit        lint, types of public signatures, licences, known vulnerabilities (in .venv-audit)"
	@echo "make clean        remove the virtual environments and everything built; trained models stay"

setup: $(ready)

# The stamp names the folder that the editable install points to: a clone that was moved is set up anew.
ifneq ($(shell cat $(ready) 2>/dev/null),$(shell pwd))
.PHONY: $(ready)
endif
$(ready): pyproject.toml .ci/setup .ci/torch.sh .ci/constraints.txt infer/checkpoint/default-model.txt infer/checkpoint/default-encoder.txt .ci/demo-data.txt
	@.ci/setup

setup-browser: $(ready)
	@.ci/setup-browser

demo: $(ready)
	@.venv/bin/seodang demo $(ARGS)

demo-diffusion: $(ready)
	@.venv/bin/seodang demo-diffusion $(ARGS)

demo-pretrain: $(ready)
	@.venv/bin/seodang demo-pretrain $(ARGS)

demo-rlhf: $(ready)
	@.venv/bin/seodang demo-rlhf $(ARGS)

demo-encoder: $(ready)
	@.venv/bin/seodang demo-encoder $(ARGS)

demo-seq2seq: $(ready)
	@.venv/bin/seodang demo-seq2seq $(ARGS)

demo-attention: $(ready)
	@.venv/bin/seodang demo-attention $(ARGS)

test: $(ready)
	@.venv/bin/python $(pytest) -m "not full" $(TESTS) $(ARGS)

test-full: $(ready)
	@.venv/bin/python $(pytest) $(TESTS) $(ARGS)

test-newest:
	@.ci/setup --newest
	@.venv-newest/bin/python $(pytest) -m "not full" $(TESTS) $(ARGS)

docs:
	@.ci/docs

package:
	@.ci/package

audit: $(ready)
	@.ci/audit

clean:
	rm -rf .venv .venv-newest .venv-audit .venv-docs build site dist seodang.egg-info tests/.pytest_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
