# Every target does its own set-up: a virtual environment in .venv, the build, and the packages of
# the distribution that are missing. `make help` lists the targets. Recipes of more than a few lines
# are scripts in tools/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell tools/find-python)
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CC ?= cc
CLANG ?= clang
CWARN := -std=c11 -Wall -Wextra -Wconversion -Wsign-conversion -Werror
# Warnings are errors when the extension modules are built here; users' own builds only warn.
export FASTRPC_WERROR ?= 1

TESTS := tests/c tests/unit tests/integration tests/faults tests/fuzz
# Most tests wait more than they compute: three processes keep two cores busy. The tests of a file
# stay together, because they share workers. A process that crashes is not replaced: with loadfile
# its replacement may wait for work for ever.
TEST_PROCESSES ?= 3
AT_ONCE := -n $(TEST_PROCESSES) --dist loadfile --max-worker-restart 0
SANITIZED_TESTS ?= tests/unit
# The oldest that is supported, one between, and the newest.
CELERYS ?= 5.4 5.6 5.7
PYTHONS ?= 3.10 3.11 3.12 3.13 3.14
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600
STORM_SECONDS ?= 300
C_SOURCES := $(wildcard $(patsubst %,%/*.[ch],src_c tests/c tests/fuzz bench/c))
BENCH_OUT ?= .make/bench
# The Debian release from which `make test-rabbitmq4` takes RabbitMQ.
RABBITMQ4_SUITE ?= trixie
# The mirror to fetch it from; empty takes apt's own.
DEBIAN_MIRROR ?=
RABBITMQ4_TESTS ?= $(patsubst %,tests/integration/test_%.py,bad_input pools semantics wire) \
	$(patsubst %,tests/faults/test_%.py,broker client_connection cluster quorum refusals tls worker_connection)

# The Debian release from which `make test-python314` and `make test-python315` take Python.
PYTHON_SUITE ?= sid
# orjson has no wheels for Python 3.15 yet; cargo builds it.
PYTHON_PACKAGES = python3.$*-dev,python3.$*-venv,gcc,libc6-dev,ca-certificates$(if $(filter 15,$*),$(,)cargo)

RABBITMQ4_ROOT := $(CURDIR)/.make/rabbitmq4-$(RABBITMQ4_SUITE)
KOMBU := .make/kombu
AMQP := .make/amqp
CELERY := .make/celery
AMQP_SPEEDUPS := .make/amqp-speedups
LIBRABBITMQ := .make/librabbitmq

# What `system` looks for, see tools/install-system-packages. Some targets ask for more, or for less.
NEEDS := compiler python rabbitmq redis

say = @printf '\033[1m==> %s\033[0m\n' $(1)
, := ,

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

.PHONY: build
build: system $(VENV)/.installed ## build and install into .venv

.PHONY: demo
demo: NEEDS := compiler python $(if $(BROKER_URL),,rabbitmq)
demo: system $(or $(wildcard $(VENV)/.installed),$(VENV)/.installed-demo) ## a tour: tasks, many at once, await, a chord, stock and fastrpc side by side, the doctor
	$(call say,'running the demonstration')
	@$(if $(BROKER_URL),,$(PY) -m tests.support.broker) $(PY) examples/demo/demo.py

# -- tests

.PHONY: test
test: NEEDS += clang
test: build lint compile $(LIBRABBITMQ)/.tried ## everything: lint, C warnings as errors, all tests but the long ones
	$(call say,'running the tests')
	@$(PY) -m pytest $(TESTS) $(AT_ONCE) -m 'not long'

.PHONY: test-quick
test-quick: build lint compile ## as test, without the slow ones
	$(call say,'running the quick tests')
	@$(PY) -m pytest $(TESTS) $(AT_ONCE) -m 'not slow and not long'

.PHONY: test-long
test-long: build ## the tests that take many minutes: a million results, ten thousand threads
	$(call say,'running the long tests')
	@$(PY) -m pytest $(TESTS) -m long

.PHONY: test-rabbitmq4
test-rabbitmq4: NEEDS += debootstrap unshare
test-rabbitmq4: $(RABBITMQ4_ROOT)/.installed ## the tests that need a broker, against RabbitMQ 4 of Debian RABBITMQ4_SUITE (trixie); needs root
	$(call say,"running the tests against $$(chroot $(RABBITMQ4_ROOT) dpkg-query -W rabbitmq-server) of $(RABBITMQ4_SUITE)")
	@FASTRPC_TEST_RABBITMQ_ROOT=$(RABBITMQ4_ROOT) tools/debian run $(RABBITMQ4_ROOT) \
		$(PY) -m pytest $(RABBITMQ4_TESTS) -m 'not long'

.PHONY: test-kombu
test-kombu: build $(KOMBU)/.fetched ## kombu's own AMQP integration tests, over our transport
	$(call say,'running the tests of kombu over our transport')
	@$(PY) -m tests.kombu_suite $(KOMBU)

.PHONY: test-amqp
test-amqp: build $(AMQP)/.fetched ## py-amqp's own tests, over our connection and channel
	$(call say,'running the tests of py-amqp over our transport')
	@$(PY) -m tests.amqp_suite $(AMQP)

.PHONY: test-celery
test-celery: build $(CELERY)/.fetched ## Celery's own integration tests of its canvas, chords over the broker
	$(call say,'running the canvas tests of Celery over our backend')
	@$(PY) -m tests.celery_suite $(CELERY)

.PHONY: test-matrix
test-matrix: system ## unit tests and semantics on those of PYTHONS that are here, with CELERYS (5.4 5.6 5.7)
	@PYTHONS='$(PYTHONS)' tools/test-matrix $(CELERYS)

# The broker is ours: RabbitMQ of sid refuses what workers of older versions of Celery ask for.
.PHONY: test-python314 test-python315
test-python314: ## as test-matrix, on Python 3.14 of Debian sid; needs root
test-python315: ## the same on Python 3.15
test-python314 test-python315: NEEDS += debootstrap unshare
test-python314 test-python315: test-python3%: $(CURDIR)/.make/python3%-$(PYTHON_SUITE)/.installed
	@$(PY) -m tests.support.broker sh -c 'FASTRPC_TEST_BROKER_URL=$$BROKER_URL PYTHONS=3.$* \
		exec tools/debian run $(<D) chroot $(<D) env --chdir=$(CURDIR) tools/test-matrix $(CELERYS)'

.PHONY: test-sanitize
test-sanitize: NEEDS := compiler python
test-sanitize: system ## SANITIZED_TESTS (tests/unit) with the extension modules under ASan and UBSan
	$(call say,'building under ASan and UBSan and running $(SANITIZED_TESTS)')
	@tools/test-sanitized $(PYTHON) $(CC) $(SANITIZED_TESTS)

.PHONY: fuzz
fuzz: NEEDS := compiler python clang
fuzz: system ## fuzz the parsers, FUZZ_SECONDS (60) each
	$(call say,'fuzzing for $(FUZZ_SECONDS) s each')
	@FUZZ_SECONDS=$(FUZZ_SECONDS) CLANG=$(CLANG) tests/fuzz/run

.PHONY: soak
soak: build ## SOAK_SECONDS (600) of load with random cuts, restarts and forks, and one line of counts
	$(call say,'soaking for $(SOAK_SECONDS) s')
	@$(PY) -m tests.soak $(SOAK_SECONDS)

.PHONY: soak-tasks
soak-tasks: build ## as soak, with tasks, groups and chords of real workers, which are killed too
	$(call say,'soaking tasks and chords for $(SOAK_SECONDS) s')
	@$(PY) -m tests.soak_tasks $(SOAK_SECONDS)

.PHONY: storm
storm: build ## STORM_SECONDS (300) of load interrupted by exceptions, garbage collection and callbacks
	$(call say,'a storm of $(STORM_SECONDS) s')
	@$(PY) -m tests.storm $(STORM_SECONDS)

# -- checks that run nothing

# Nothing inherits from the compiled classes, so their stubs do without @disjoint_base.
STUBTEST := -m mypy.stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases \
	--allowlist tools/stubtest-allowlist.txt
STUBS = $(subst /,.,$(basename $(shell find fastrpc -name '*.pyi')))

.PHONY: lint
lint: $(VENV)/.installed ## ruff, cython-lint, clang-format, mypy, stubs, spelling, shell scripts, workflows
	$(call say,'ruff')
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(call say,'cython-lint')
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastrpc
	$(call say,'clang-format')
	@$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(call say,'mypy and stubtest')
	@$(BIN)/mypy
	@$(PY) $(STUBTEST) $(STUBS)
	$(call say,'codespell')
	@$(BIN)/codespell
	$(call say,'shellcheck')
	@$(BIN)/shellcheck .ci/run $(filter-out %.txt,$(wildcard tools/*))
	$(call say,'zizmor')
	@$(BIN)/zizmor --offline --quiet .github

.PHONY: compile
compile: ## compile the C code alone, with warnings as errors
	$(call say,'compiling the C code with $(CWARN)')
	@for source in $(filter %.c,$(C_SOURCES)); do \
		$(CC) $(CWARN) -O2 -Isrc_c -Itests/c -Ibench/c -c -o /dev/null $$source; done

# -- benchmarks

.PHONY: bench-deps
bench-deps: build $(AMQP_SPEEDUPS)/.tried $(LIBRABBITMQ)/.tried

.PHONY: bench
bench: bench-deps ## compare stock, redis, fastrpc, other task queues and raw bytes; report and plots in .make/bench
	$(call say,'running the benchmarks: about twenty minutes')
	@tools/run-benchmarks $(PY) $(BENCH_OUT)

.PHONY: bench-quick
bench-quick: bench-deps ## as bench, in two minutes: small sizes, few rounds
	$(call say,'running the benchmarks quickly: about two minutes')
	@tools/run-benchmarks $(PY) $(BENCH_OUT) quick

.PHONY: bench-instructions
bench-instructions: NEEDS := compiler python valgrind
bench-instructions: system ## compare the C code's instruction counts with bench/instructions.json
	$(call say,'counting instructions')
	@$(or $(wildcard $(PY)),$(PYTHON)) -m bench.instructions

# -- documentation, tidying

# Those of the extra `docs`, without building fastrpc: the API reference is made from its sources.
DOCS_PACKAGES = 'mkdocs>=1.6' 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.27'

.PHONY: docs
docs: $(PY) ## the documentation, strictly, into site/
	$(call say,'building the documentation')
	@$(PY) -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || \
		$(PY) -m pip install -q --disable-pip-version-check $(DOCS_PACKAGES)
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html"

.PHONY: clean
clean: ## remove everything that was built, also .venv
	$(call say,'removing what was built')
	@rm -rf $(VENV) .make build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@find fastrpc \( -name '*.so' -o -name '_*.c' \) -delete
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- what the targets above need

.PHONY: system
system:
	@CC=$(CC) CLANG=$(CLANG) PYTHON=$(PYTHON) tools/install-system-packages $(NEEDS)

$(PY):
	$(call say,'making $(VENV) with the newest python3 >= 3.10')
	@tools/make-venv $(VENV) $(PYTHON)

# A change to one of these needs a new build; __init__.py has the version.
SOURCES := pyproject.toml setup.py fastrpc/__init__.py \
	$(shell find fastrpc src_c -name '*.pyx' -o -name '*.pxd' -o -path 'src_c/*.[ch]')

# Editable: tests and benchmarks use the Python sources in place.
$(VENV)/.installed: $(SOURCES) | $(PY)
	$(call say,'building fastrpc and installing it with its test$(,) lint$(,) bench and demo extras')
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[test,lint,bench,demo]'
	@touch $@

# Newcomers need not wait for what the tests need.
$(VENV)/.installed-demo: $(SOURCES) | $(PY)
	$(call say,'building fastrpc')
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[demo]'
	@touch $@

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: debootstrap, mount and chroot do" >&2; exit 1; }

$(RABBITMQ4_ROOT)/.installed: | root build
	$(call say,'installing the RabbitMQ of $(RABBITMQ4_SUITE) into $(RABBITMQ4_ROOT)')
	@tools/debian install $(RABBITMQ4_ROOT) $(RABBITMQ4_SUITE) rabbitmq-server $(DEBIAN_MIRROR)
	@touch $@

$(CURDIR)/.make/python3%-$(PYTHON_SUITE)/.installed: | root build
	$(call say,'installing Python 3.$* of $(PYTHON_SUITE) into $(@D)')
	@tools/debian install $(@D) $(PYTHON_SUITE) $(PYTHON_PACKAGES) $(DEBIAN_MIRROR)
	@touch $@

# Some tests of kombu and Celery are marked flaky, hence the reruns.
$(KOMBU)/.fetched: $(VENV)/.installed
	@tools/fetch-tests $(PY) kombu $(KOMBU) pytest-rerunfailures
	@touch $@

$(AMQP)/.fetched: $(VENV)/.installed
	@tools/fetch-tests $(PY) amqp $(AMQP)
	@touch $@

$(CELERY)/.fetched: $(VENV)/.installed
	@tools/fetch-tests $(PY) celery $(CELERY) pytest-rerunfailures pydantic
	@touch $@

$(AMQP_SPEEDUPS)/.tried: $(VENV)/.installed
	$(call say,'building py-amqp with its own Cython speed-ups')
	@tools/build-amqp-speedups $(PY) $(AMQP_SPEEDUPS)
	@touch $@

$(LIBRABBITMQ)/.tried: $(VENV)/.installed
	$(call say,'fetching librabbitmq')
	@tools/fetch-librabbitmq $(PY) $(LIBRABBITMQ)
	@touch $@
