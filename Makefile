# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs (tools/setup.sh says what it installs), so a fresh clone starts with any of them.
PYTHON := .venv/bin/python
JOBS ?= $(shell nproc)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
# The steps of a target run in their order; JOBS is for the compiler and ctest.
.NOTPARALLEL:
export CTEST_PARALLEL_LEVEL := $(JOBS)
PYTEST_ARGS ?=
DEMO_ARGS ?=

.PHONY: help setup build package test test-cpp test-python demo asan tsan bench wheel format format-check clean

help:
	@echo "make test    set up, build, run every CPU test (C++ and Python)"
	@echo "make demo    set up, build, let a small real model answer from a compressed cache"
	@echo "make asan    the C++ tests with address and undefined-behaviour checks (tsan: data races)"
	@echo "make bench   the C++ benchmarks; results in build/bench/*.json"
	@echo "make wheel   dist/turboquant-*.whl"
	@echo "make format  clang-format on every C++ file (format-check: only look)"
	@echo "make clean   removes build/ and dist/; .venv stays"

setup:
	@tools/setup.sh

build: setup
	cmake --preset dev
	cmake --build --preset dev

# Builds the wheel and installs it into .venv, when anything that goes into it has changed.
package: setup
	@tools/package.sh install

test: test-cpp test-python format-check
	@echo "all tests passed"

test-cpp: build
	ctest --preset dev

# -P: the tests must meet the installed package, never a folder that happens to be near.
test-python: package
	$(PYTHON) -P -m pytest tests/python $(PYTEST_ARGS)

demo: package
	$(PYTHON) -P -m turboquant.benchmark --demo $(DEMO_ARGS)

asan tsan: setup
	cmake --preset $@
	cmake --build --preset $@
	ctest --preset $@

bench:
	@tools/setup.sh --bench
	cmake --preset dev -DTQ_BUILD_BENCHMARKS=ON
	cmake --build --preset dev
	@tools/bench.sh build/dev build/bench

wheel: setup
	@tools/package.sh wheel

format: setup
	@tools/format.sh

format-check: setup
	@tools/format.sh --check

clean:
	rm -rf build dist
