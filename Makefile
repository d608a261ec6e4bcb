# Every target does its own set-up: a virtual environment in .venv, the build, and what is
# missing of the distribution's packages. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
CC ?= cc
CWARN := -std=c11 -Wall -Wextra -Wconversion -Wsign-conversion -Werror
# For every build of the extension modules here; users' own builds only warn.
export FASTRPC_WERROR ?= 1
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600
STORM_SECONDS ?= 300
# What is quickly known comes first.
TESTS := tests/c tests/unit tests/integration tests/faults tests/fuzz
CLANG ?= clang
# libFuzzer and the sanitizers come in packages of their own; a program that links is the proof.
CLANG_WORKS = echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | \
	$(CLANG) -xc -fsanitize=fuzzer,address,undefined -o /dev/null - >/dev/null 2>&1
C_SOURCES := $(wildcard $(patsubst %,%/*.[ch],src_c tests/c tests/fuzz bench/c))
SOURCES := pyproject.toml setup.py $(wildcard fastrpc/*.pyx fastrpc/*.pxd src_c/*.c src_c/*.h)

# The newest of our own choosing, else any python3 that is new enough.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.10 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& { echo $$p; break; }; done)

say = @printf '\033[1m==> %s\033[0m\n' $(1)

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

# -- set-up

# One apt-get for all that is missing, or a message that says what to install.
.PHONY: system
system:
	@missing=(); \
	command -v $(CC) >/dev/null || missing+=(gcc libc6-dev); \
	[ -n "$(PYTHON)" ] || missing+=(python3 python3-venv); \
	python="$(PYTHON)"; include=$$($${python:-false} -c 'import sysconfig; print(sysconfig.get_paths()["include"])' 2>/dev/null || true); \
	[ -n "$$include" ] && [ -e "$$include/Python.h" ] || missing+=(python3-dev); \
	[ -n "$(NO_SERVERS)" ] || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || [ -n "$${FASTRPC_TEST_BROKER_URL:-}" ] \
		|| missing+=(rabbitmq-server); \
	[ -n "$(NO_SERVERS)$(NO_REDIS)" ] || command -v redis-server >/dev/null || missing+=(redis-server); \
	for tool in $(WITH); do command -v $$tool >/dev/null || missing+=($$tool); done; \
	if [ -n "$(WITH_CLANG)" ] && ! $(CLANG_WORKS); then missing+=(clang); fi; \
	if [ $${#missing[@]} -gt 0 ]; then \
		printf '\033[1m==> installing %s\033[0m\n' "$${missing[*]}"; \
		sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
		if ! command -v apt-get >/dev/null || { [ -n "$$sudo" ] && ! command -v sudo >/dev/null; }; then \
			echo "please install: $${missing[*]}  (Debian/Ubuntu: apt-get install $${missing[*]})" >&2; exit 1; \
		fi; \
		policy=/usr/sbin/policy-rc.d; made=; \
		if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' | $$sudo tee $$policy >/dev/null; $$sudo chmod +x $$policy; made=1; fi; \
		trap 'if [ -n "$$made" ]; then $$sudo rm -f '$$policy'; fi' EXIT; \
		{ $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null </dev/null; } \
			|| { echo "apt-get failed; please install: $${missing[*]}" >&2; exit 1; }; \
		if [ -n "$(WITH_CLANG)" ] && ! $(CLANG_WORKS); then \
			runtime=libclang-rt-$$($(CLANG) -dumpversion | cut -d. -f1)-dev; \
			$$sudo env DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends $$runtime >/dev/null </dev/null \
				|| { echo "apt-get failed; please install: $$runtime" >&2; exit 1; }; \
		fi; \
	fi

$(PY):
	$(call say,'making $(VENV) with the newest python3 >= 3.10')
	@python="$(PYTHON)"; if [ -z "$$python" ]; then python=python3; fi; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "fastrpc needs Python >= 3.10 with venv: apt-get install python3 python3-venv" >&2; exit 1; }; \
	$$python -m venv $(VENV)

# Editable: the tests and the benchmarks see the sources as they are.
$(VENV)/.installed: $(SOURCES) | $(PY)
	$(call say,'building fastrpc and installing it with its test$(,) bench and demo extras')
	@$(PY) -m pip install -q --disable-pip-version-check -e '.[test,bench,demo]'
	@touch $@

, := ,

.PHONY: build
build: system $(VENV)/.installed ## build and install into .venv

# -- what one is here for

CAN_INSTALL = $(shell command -v apt-get >/dev/null && { [ "$$(id -u)" = 0 ] || command -v sudo; } >/dev/null && echo 1)

# It shows more with a RabbitMQ, but does without where none can be installed.
.PHONY: demo
demo: NO_SERVERS := $(if $(BROKER_URL),1,$(if $(CAN_INSTALL),,1))
demo: NO_REDIS := 1
demo: system $(VENV)/.installed ## a real worker and a client: single tasks, groups, progress, the rate
	$(call say,'running the demonstration')
	@$(if $(BROKER_URL),,$(PY) -m tests.support.broker) $(PY) -m examples.demo

.PHONY: test
test: WITH_CLANG := 1
test: build lint compile ## everything: lint, C warnings as errors, all tests but the long ones
	$(call say,'running the tests')
	@$(PY) -m pytest $(TESTS) -m 'not long'

.PHONY: test-long
test-long: build ## the tests that take many minutes: a million results, ten thousand threads
	$(call say,'running the long tests')
	@$(PY) -m pytest $(TESTS) -m long

.PHONY: test-quick
test-quick: build lint compile ## as test, without the slow ones
	$(call say,'running the quick tests')
	@$(PY) -m pytest $(TESTS) -m 'not slow and not long'

# A Debian in a folder, for the RabbitMQ in it: 4.0 in trixie, newer in sid.
RABBITMQ4_SUITE ?= trixie
RABBITMQ4_ROOT := $(CURDIR)/.make/rabbitmq4-$(RABBITMQ4_SUITE)
RABBITMQ4_TESTS ?= $(patsubst %,tests/integration/test_%.py,bad_input pools semantics wire) \
	$(patsubst %,tests/faults/test_%.py,broker client_connection cluster quorum refusals tls worker_connection)
# Where it comes from: as apt is set up here, else as debootstrap thinks.
DEBIAN_MIRROR ?= $(shell apt-get indextargets --format '$$(REPO_URI)' \
	'Created-By: Packages' 'Label: Debian' 2>/dev/null | head -n 1)
# Mounts that nobody else sees, and that are gone with the process that made them.
OWN_MOUNTS := unshare --mount

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root: debootstrap, mount and chroot do" >&2; exit 1; }

$(RABBITMQ4_ROOT)/.installed: | root build
	$(call say,'installing the RabbitMQ of $(RABBITMQ4_SUITE) into $(RABBITMQ4_ROOT)')
	@rm -rf $(@D); mkdir -p $(@D)
	@$(OWN_MOUNTS) debootstrap --variant=minbase --include=rabbitmq-server \
		$(RABBITMQ4_SUITE) $(@D) $(DEBIAN_MIRROR) >$(@D).log 2>&1 || { tail $(@D).log >&2; exit 1; }
	@cp /etc/hosts $(@D)/etc/hosts
	@touch $@

.PHONY: test-rabbitmq4
test-rabbitmq4: WITH := debootstrap unshare
test-rabbitmq4: $(RABBITMQ4_ROOT)/.installed ## the tests with a broker against RabbitMQ 4, of Debian RABBITMQ4_SUITE (trixie); needs root
	$(call say,"running the tests against RabbitMQ $$(chroot $(RABBITMQ4_ROOT) \
		dpkg-query -Wf '$${Version}' rabbitmq-server) of $(RABBITMQ4_SUITE)")
	@TMPDIR=/tmp FASTRPC_TEST_RABBITMQ_ROOT=$(RABBITMQ4_ROOT) $(OWN_MOUNTS) sh -ec \
		'for dir in proc dev tmp; do mount --rbind /$$dir "$$FASTRPC_TEST_RABBITMQ_ROOT/$$dir"; done; exec "$$@"' \
		sh $(PY) -m pytest $(RABBITMQ4_TESTS) -m 'not long'

.PHONY: lint
lint: $(VENV)/.installed ## ruff, cython-lint, clang-format and mypy
	$(call say,'ruff')
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(call say,'cython-lint')
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastrpc
	$(call say,'clang-format')
	@$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(call say,'mypy')
	@$(BIN)/mypy

.PHONY: compile
compile: ## the C code alone, warnings are errors
	$(call say,'compiling the C code with $(CWARN)')
	@for source in $(filter %.c,$(C_SOURCES)); do \
		$(CC) $(CWARN) -O2 -Isrc_c -Itests/c -Ibench/c -c -o /dev/null $$source; done

.PHONY: test-pythons
test-pythons: system ## unit tests and the semantics on every Python from 3.10 to 3.13
	@found=0; for version in 3.10 3.11 3.12 3.13; do \
		python=$$(ls -d $$HOME/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -1 || true); \
		[ -n "$$python" ] || python=$$(command -v python$$version || true); \
		[ -n "$$python" ] && $$python -c 'import venv, ensurepip' 2>/dev/null || { echo "no Python $$version here"; continue; }; \
		found=1; printf '\033[1m==> Python %s\033[0m\n' "$$version"; \
		env=.make/python$$version; \
		[ -x $$env/bin/python ] || $$python -m venv $$env; \
		rm -rf build; $$env/bin/python -m pip install -q --disable-pip-version-check '.[test]'; rm -rf build; \
		rm -rf .make/run; mkdir -p .make/run; cp -r tests pyproject.toml src_c .make/run/; \
		( cd .make/run && "$(CURDIR)/$$env/bin/python" -m pytest -q tests/unit \
			tests/integration/test_semantics.py -k 'unit or (fast-fast and not Serializers)' ); \
	done; [ $$found = 1 ]

KOMBU := .make/kombu

# Their tests are in the source distribution only. Some are marked flaky, hence the reruns.
$(KOMBU)/.fetched: $(VENV)/.installed
	@rm -rf $(KOMBU); mkdir -p $(KOMBU)
	@$(PY) -m pip install -q --disable-pip-version-check pytest-rerunfailures
	@$(PY) -m pip download -q --disable-pip-version-check --no-deps --no-binary kombu -d $(KOMBU) \
		kombu==$$($(PY) -c 'import kombu; print(kombu.__version__)')
	@tar -C $(KOMBU) --strip-components=1 -xf $(KOMBU)/kombu-*.tar.gz
	@touch $@

.PHONY: test-kombu
test-kombu: build $(KOMBU)/.fetched ## kombu's own AMQP integration tests, over our transport
	$(call say,'running the tests of kombu over our transport')
	@$(PY) -m tests.kombu_suite $(KOMBU)

BENCH_OUT ?= .make/bench
AMQP = $$($(PY) -c 'import importlib.metadata as m; print(m.version("amqp"))')
AMQP_SPEEDUPS := .make/amqp-speedups

# py-amqp once more, built with the Cython speed-ups it offers. Without it that one is left out.
$(AMQP_SPEEDUPS)/.tried: $(VENV)/.installed
	$(call say,'building py-amqp with its own Cython speed-ups')
	@rm -rf $(AMQP_SPEEDUPS); mkdir -p $(AMQP_SPEEDUPS)
	@CELERY_ENABLE_SPEEDUPS=1 $(PY) -m pip install -q --disable-pip-version-check --no-deps \
		--no-cache-dir --no-binary amqp --target $(AMQP_SPEEDUPS) "amqp==$(AMQP)" \
		|| printf '\033[1m==> it does not build here: the benchmarks leave it out\033[0m\n'
	@touch $@

.PHONY: bench-deps
bench-deps: build $(AMQP_SPEEDUPS)/.tried

# An interpreter that was not built with ASan needs its runtime loaded first. What Python itself
# never frees is not our leak: the C tests, which have no Python in them, look for leaks.
.PHONY: test-sanitize
test-sanitize: NO_SERVERS := 1
test-sanitize: system ## the unit tests with the extension modules under ASan and UBSan
	$(call say,'building under ASan and UBSan and running the unit tests')
	@[ -x .make/sanitize/bin/python ] || $(PYTHON) -m venv .make/sanitize
	@rm -rf build # what was compiled without them would be taken as it is, and the other way round
	@FASTRPC_SANITIZE=1 .make/sanitize/bin/python -m pip install -q --disable-pip-version-check '.[test]'
	@rm -rf build .make/run-sanitize; mkdir -p .make/run-sanitize
	@cp -r tests pyproject.toml src_c .make/run-sanitize/
	@cd .make/run-sanitize && LD_PRELOAD="$$($(CC) -print-file-name=libasan.so):$$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		PYTHONMALLOC=malloc FASTRPC_SANITIZE=1 \
		"$(CURDIR)/.make/sanitize/bin/python" -m pytest -q tests/unit

.PHONY: bench
bench: bench-deps ## stock, redis, fast and raw bytes in turns; report and plots in .make/bench
	$(call say,'running the benchmarks: about ten minutes')
	@mkdir -p $(BENCH_OUT)
	@failed=0; $(PY) -m pytest bench -q --benchmark-only --benchmark-quiet \
		--benchmark-json=$(BENCH_OUT)/results.json || failed=$$?; \
	$(PY) -m bench.report $(BENCH_OUT)/results.json; exit $$failed

.PHONY: bench-quick
bench-quick: bench-deps ## as bench, in a minute: small sizes, few rounds
	$(call say,'running the benchmarks quickly: about a minute')
	@mkdir -p $(BENCH_OUT)
	@failed=0; FASTRPC_BENCH_QUICK=1 $(PY) -m pytest bench -q --benchmark-only --benchmark-quiet \
		--benchmark-json=$(BENCH_OUT)/results-quick.json || failed=$$?; \
	$(PY) -m bench.report $(BENCH_OUT)/results-quick.json --out $(BENCH_OUT)/quick; exit $$failed

.PHONY: bench-instructions
bench-instructions: WITH := valgrind
bench-instructions: NO_SERVERS := 1
bench-instructions: system ## instructions of the C code against bench/instructions.json
	$(call say,'counting instructions')
	@$(or $(wildcard $(PY)),$(PYTHON)) -m bench.instructions

.PHONY: docs
docs: $(PY) ## the documentation, strictly, into site/
	$(call say,'building the documentation')
	@$(PY) -m mkdocs --version >/dev/null 2>&1 || \
		$(PY) -m pip install -q --disable-pip-version-check 'mkdocs>=1.6' 'mkdocs-material>=9.5'
	@$(PY) -m mkdocs build --strict --quiet
	@echo "site/index.html"

.PHONY: soak
soak: build ## SOAK_SECONDS (600) of load with random cuts, restarts and forks, and one line of counts
	$(call say,'soaking for $(SOAK_SECONDS) s')
	@$(PY) -m tests.soak $(SOAK_SECONDS)

.PHONY: storm
storm: build ## STORM_SECONDS (300) of load with exceptions, collections and callbacks that strike, and one line of counts
	$(call say,'a storm of $(STORM_SECONDS) s')
	@$(PY) -m tests.storm $(STORM_SECONDS)

.PHONY: fuzz
fuzz: WITH_CLANG := 1
fuzz: NO_SERVERS := 1
fuzz: system ## hostile bytes for the parsers, FUZZ_SECONDS each
	$(call say,'fuzzing for $(FUZZ_SECONDS) s each')
	@FUZZ_SECONDS=$(FUZZ_SECONDS) CLANG=$(CLANG) tests/fuzz/run

.PHONY: clean
clean: ## remove all that was built, .venv too
	$(call say,'removing what was built')
	@rm -rf $(VENV) .make build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	@rm -f fastrpc/*.so fastrpc/_*.c
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
