PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The part of the suite that rests on other libraries, run with the lowest and with the newest of them: the Trainer
# (test_callback), TensorBoard's files, server and page (outputs, tensorboard_plugin), pictures (outputs), the command line
# with scikit-learn and rich (test_cli), and what is loaded when (test_package). The rest computes with torch, which is the
# same in all environments, and numpy. With the newest libraries the page is left out: what shows it is the browser, and the
# newest TensorBoard is the one that all tests run with.
LIBRARY_TESTS := $(addprefix tests/,outputs tensorboard_plugin test_callback.py test_cli.py test_package.py)

# What of these tests finds most: the Trainer, TensorBoard's files, and what is loaded when. With the lowest libraries it is a
# part of `.ci/run`; with the newest it finds little there, since those of constraints.txt are hardly older.
LIBRARY_SMOKE := $(addprefix tests/,outputs/test_tensorboard.py outputs/test_tab.py test_callback.py test_package.py)

# The tests that train with the real Hugging Face Trainer, accelerate, W&B and MLflow.
INTEGRATIONS := tests/integrations docs/loops.md

# The tests that train tiny members of many families of networks. They have an environment of their own, since torchvision,
# which comes with timm, needs help beside a torch without CUDA, and whatever imports it there does too.
ARCHITECTURES := tests/architectures

# The families of transformers that `.ci/run` trains, one of each kind, in the environment of all other tests.
FAMILIES_SMOKE := [bert] or [gpt2] or [llama] or [t5] or [mixtral] or [mamba] or [vit] or [convnext]

# The tests that train with DeepSpeed on two processes. They have an environment of their own, since DeepSpeed is built for the
# torch that it is installed beside.
DEEPSPEED := tests/deepspeed

# The tests that train models of many public libraries, whose versions only fit together in an environment of their own.
WILD := tests/wild

# The tests of the documentation site, which browse through what `make docs` has built, and of its interactive figure and gallery.
SITE := tests/site tests/docs_figures

# The tests of the reproduced papers, which train.
EXAMPLES := tests/examples

# The tests that train on several real processes at once, which take a while to start.
RANKS := tests/ranks

# The tests of what a release is made of, which need its distributions.
RELEASE := tests/release

# The interpreters that `make test-release` walks with, by name or path, and the files of versions that pip may install; several
# with a space between them.
export PYTHONS ?= $(PYTHON)
export CONSTRAINTS ?= constraints.txt

# Files of tests run side by side, JOBS at a time, each on one thread: with more, PyTorch's threads wait for one another.
JOBS ?= 2
PYTEST := -m pytest -rs -p no:randomly -n $(JOBS) --dist loadfile --durations 20
export OMP_NUM_THREADS := 1

.PHONY: demo test test-ranks test-examples test-integrations test-cases test-smoke test-architectures test-deepspeed \
	test-wild test-random test-lowest test-newest test-all dist test-release docs test-docs bench check clean

demo: .venv/.demo  ## train the gallery of initialisations and compare them
	env -u OMP_NUM_THREADS $(BIN)/lightning-symmetry demo

test: .venv/.dev  ## run the tests of everything but what has a target of its own
	$(BIN)/python $(PYTEST) $(addprefix --ignore=,$(RANKS) $(INTEGRATIONS) $(ARCHITECTURES) $(DEEPSPEED) $(WILD) $(EXAMPLES) $(SITE) $(RELEASE))

test-ranks: .venv/.dev  ## run the tests that train on several processes
	$(BIN)/python $(PYTEST) $(RANKS)

test-examples: .venv/.dev  ## run the short forms of the reproduced papers
	$(BIN)/python $(PYTEST) $(EXAMPLES)

test-integrations: .venv/.dev  ## run the tests with the real libraries of other loops and loggers
	$(BIN)/python $(PYTEST) $(INTEGRATIONS)

test-cases: .venv/.dev  ## train what must be found and what must be passed over with every optimizer, by Trainer and in a loop
	$(BIN)/python -m tests.cases

test-smoke: .venv/.dev .venv-lowest/.test  ## run what finds most of test-lowest and test-architectures
	.venv-lowest/bin/python $(PYTEST) $(LIBRARY_SMOKE)
	$(BIN)/python $(PYTEST) $(ARCHITECTURES)/test_transformers.py -k '$(FAMILIES_SMOKE)'

test-architectures: .venv-architectures/.test  ## train many families of networks, healthy and with copies; three minutes
	.venv-architectures/bin/python $(PYTEST) -p tests.architectures.operators $(ARCHITECTURES)

test-deepspeed: .venv-deepspeed/.test  ## train with DeepSpeed's ZeRO on two processes; two minutes
	.venv-deepspeed/bin/python $(PYTEST) $(DEEPSPEED)

test-wild: .venv-wild/.test  ## train healthy and broken models of public libraries; not part of .ci/run
	.venv-wild/bin/python $(PYTEST) -W ignore -p tests.architectures.operators $(WILD)

test-random: .venv/.dev  ## run all tests in an order that nobody has chosen; the seed at the head repeats it
	$(BIN)/python -m pytest -rs $(addprefix --ignore=,$(ARCHITECTURES) $(DEEPSPEED) $(WILD) $(SITE) $(RELEASE))

test-lowest: .venv-lowest/.test  ## test with the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python $(PYTEST) $(LIBRARY_TESTS)

test-newest: .venv-newest/bin/python  ## test with the newest versions that pip finds today
	$< -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--constraint constraints-newest.txt --editable '.[test]'
	$< -m pip freeze --exclude-editable
	$< $(PYTEST) $(LIBRARY_TESTS) $(INTEGRATIONS) $(addprefix --ignore-glob=*/,test_page.py test_live.py test_using.py)

test-all: check test test-ranks test-examples test-docs test-release test-integrations test-cases test-architectures \
	test-lowest test-newest  ## all but what needs DeepSpeed, and the random order

dist: .venv/.dev  ## build the wheel and the source distribution, and check them
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

test-release: dist  ## install the wheel into an empty environment and walk docs/walk.md in it
	$(BIN)/python -m pytest -rs -p no:randomly $(RELEASE)

docs: .venv/.dev  ## build the documentation site into site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-docs: docs  ## browse through the site
	$(BIN)/python -m pytest -rs -p no:randomly $(SITE)

bench: .venv/.bench  ## measure the cost of a check; under ten minutes
	env -u OMP_NUM_THREADS $(BIN)/python -m tests.benchmarks

check: .venv/.dev  ## lint, format, types, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One virtual environment, and a stamp for each set of extras in it. Whoever develops gets all that tests, checks, the site and
# a release need at once, since each call of pip takes a while.
EXTRAS = $*
.venv/.dev: EXTRAS = dev,docs,release
.venv/.demo .venv/.bench .venv/.dev: .venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

.venv-lowest/.test: pyproject.toml constraints-lowest.txt | .venv-lowest/bin/python
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable '.[test-core]'
	touch $@

.venv-architectures/.test: pyproject.toml constraints.txt | .venv-architectures/bin/python
	.venv-architectures/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[architectures]'
	touch $@

.venv-wild/.test: pyproject.toml constraints-wild.txt | .venv-wild/bin/python
	.venv-wild/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-wild.txt \
		--editable '.[wild]'
	touch $@

# DeepSpeed asks during its installation which torch is there, and compiles nothing with DS_BUILD_OPS=0.
.venv-deepspeed/.test: pyproject.toml constraints.txt | .venv-deepspeed/bin/python
	.venv-deepspeed/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[test-core]' setuptools wheel
	DS_BUILD_OPS=0 .venv-deepspeed/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --no-build-isolation deepspeed
	.venv-deepspeed/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[deepspeed]'
	touch $@

.venv-lowest/bin/python .venv-newest/bin/python .venv-architectures/bin/python .venv-deepspeed/bin/python .venv-wild/bin/python: \
		%/bin/python:
	$(PYTHON) -m venv $*

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-architectures .venv-deepspeed .venv-wild build dist site *.egg-info
