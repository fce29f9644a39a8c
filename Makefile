# SPDX-License-Identifier: Apache-2.0
# Each target sets up what it needs (tools/setup.sh says what it installs), so a fresh clone starts with any of them.
PYTHON := .venv/bin/python
JOBS ?= $(shell nproc)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
# The steps of a target run in their order; JOBS is for the compiler and ctest.
.NOTPARALLEL:
export CTEST_PARALLEL_LEVEL := $(JOBS)
# Container images like to set it; then each process of the tests, of which there are dozens, would compile torch's Python again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST_ARGS ?=
DEMO_ARGS ?=

.PHONY: help setup build package test test-cpp test-python demo asan tsan bench bench-attend bench-fidelity bench-fidelity-all bench-layout gpu-build gpu-package gpu-test gpu-test-cpp gpu-test-python gpu-sanitize gpu-bench gpu-bench-model gpu-demo gpu-map gpu-ladder wheel format format-check tidy clean

help:
	@echo "make test    set up, build, run every CPU test (C++ and Python)"
	@echo "make demo    set up, build, let a small real model answer from a compressed cache"
	@echo "make asan    the C++ tests with address and undefined-behaviour checks (tsan: data races)"
	@echo "make bench   the C++ benchmarks; results in build/bench/*.json"
	@echo "make bench-attend  decode attention from pages beside torch's SDPA"
	@echo "make bench-fidelity  what caches of all kinds cost a model; hours on two cores, minutes with FIDELITY_ARGS='--device cuda'; resumable"
	@echo "make bench-fidelity-all  the same with a text of 8,000 tokens, planted stresses, blocks and the paper's experiments"
	@echo "make bench-layout  loops over the page layout, one core (needs only cmake and a compiler)"
	@echo "make gpu-test    every test that needs a GPU (C++ and Python); needs nvcc, cmake, GoogleTest, torch, pytest"
	@echo "make gpu-sanitize  compute-sanitizer over a part of them that meets every kernel (minutes)"
	@echo "make gpu-bench   attention on a GPU beside torch's SDPA (gpu-map: over batch x length); needs nvcc, cmake, torch"
	@echo "make gpu-bench-model  a whole model on a GPU beside transformers' caches; needs nvcc, cmake, torch, transformers"
	@echo "make gpu-demo    the demo's model and a random one that sees pictures and clips, on a GPU (minutes); needs the benchmark's packages too"
	@echo "make gpu-ladder  four small kernels from naive to fast (examples/attend_ladder); needs only nvcc"
	@echo "make wheel   dist/turboquant-*.whl"
	@echo "make format  clang-format on every C++ file (format-check: only look)"
	@echo "make tidy    clang-tidy on the library and the command line (minutes)"
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

# -P: the tests must meet the installed package, never a folder that happens to be near. A process holds torch: more than four bring little.
test-python: package
	$(PYTHON) -P -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile tests/python $(PYTEST_ARGS)

# PASSIVE: waiting threads that spin would make it several times slower where other programs want the cores too.
demo: package
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(PYTHON) -P -m turboquant.benchmark --demo $(DEMO_ARGS)

asan tsan: setup
	cmake --preset $@
	cmake --build --preset $@
	ctest --preset $@

bench:
	@tools/setup.sh --bench
	cmake --preset dev -DTQ_BUILD_BENCHMARKS=ON
	cmake --build --preset dev
	@tools/bench.sh build/dev build/bench

bench-attend: package
	$(PYTHON) -P benchmarks/attend_cpu.py --json build/attend_cpu.json $(ATTEND_ARGS)

bench-fidelity: package
	$(PYTHON) -P benchmarks/measure_fidelity.py run $(FIDELITY_ARGS)
	$(PYTHON) -P benchmarks/measure_fidelity.py report --json build/fidelity/report.json --plot build/fidelity/report.png

# What docs/fidelity.md shows, but for ablations under a stress and 1,024 tokens. The paper's experiments take --device, --threads and --model only: FIDELITY_PAPER_ARGS.
FIDELITY_GROUPS = --groups ours,paper,peer,'peer as run',sixteen
FIDELITY = $(PYTHON) -P benchmarks/measure_fidelity.py
bench-fidelity-all: package
	$(FIDELITY) run $(FIDELITY_ARGS)
	$(FIDELITY) run $(FIDELITY_ARGS) --texts novel $(FIDELITY_GROUPS)
	for stress in k-bias outlier; do $(FIDELITY) run $(FIDELITY_ARGS) --stress $$stress $(FIDELITY_GROUPS) || exit; done
	$(FIDELITY) blocks $(FIDELITY_ARGS) $(FIDELITY_GROUPS)
	$(FIDELITY) paper --json build/fidelity/paper.json $(FIDELITY_PAPER_ARGS)
	$(FIDELITY) report --json build/fidelity/report.json --plot build/fidelity/report.png

# COMMIT names the sources where there is no git, LAYOUT_ARGS goes to the program.
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
bench-layout:
	cmake -S . -B build/layout -DCMAKE_BUILD_TYPE=Release -DTQ_BUILD_TESTS=OFF -DTQ_BUILD_TOOLS=OFF -DTQ_BUILD_BENCHMARKS=ON
	cmake --build build/layout --target bench_layout_simd
	build/layout/benchmarks/layout_simd --commit $(COMMIT) --out build/layout/layout_simd.json $(LAYOUT_ARGS)

# On a machine with a GPU and the CUDA toolkit, and any python3 that has torch: nothing is installed.
GPU_PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
NVCC ?= $(firstword $(shell command -v nvcc) /usr/local/cuda/bin/nvcc)
GPU_RUN = PYTHONPATH=build/cuda/python $(GPU_PYTHON) -P
# A GoogleTest elsewhere: GPU_CMAKE_ARGS=-DCMAKE_PREFIX_PATH=/where/it/is
# gpu-package: without the tests, and thus without GoogleTest.
gpu-build gpu-package:
	cmake --preset cuda -DTQ_BUILD_GPU_TESTS=$(if $(filter gpu-build,$@),ON,OFF) -DTQ_BUILD_TORCH=ON \
	  -DPython_EXECUTABLE=$(abspath $(shell command -v $(GPU_PYTHON))) $(GPU_CMAKE_ARGS)
	cmake --build --preset cuda
	rm -rf build/cuda/python
	cmake --install build/cuda --component python --prefix build/cuda/python >/dev/null
	cp -r python/turboquant build/cuda/python/
	@mkdir -p build/gpu-bench

gpu-test: gpu-test-cpp gpu-test-python
	@echo "all GPU tests passed"

gpu-test-cpp: gpu-build
	build/cuda/tests/gpu/turboquant_gpu_tests --gtest_brief=1 $(GPU_TEST_ARGS)

gpu-test-python: gpu-build
	$(GPU_RUN) -m pytest tests/gpu/python $(PYTEST_ARGS)

gpu-sanitize: gpu-build
	@tools/gpu_sanitize.sh build/cuda/tests/gpu/turboquant_gpu_tests

gpu-bench gpu-map: gpu-package
	$(GPU_RUN) benchmarks/attend_gpu.py --libraries build/cuda/bindings --commit $(COMMIT) $(if $(filter gpu-map,$@),--map) \
	  --json build/gpu-bench/attend_$(subst -bench,,$(subst -map,_map,$@)).json $(GPU_BENCH_ARGS)

gpu-bench-model: gpu-package
	$(GPU_RUN) benchmarks/model_gpu.py --commit $(COMMIT) --json build/gpu-bench/model_gpu.json $(GPU_BENCH_ARGS)

# Text with growing caches and with static ones; then a picture and a clip, which a model of random weights looks at.
GPU_AB = $(GPU_RUN) -m turboquant.benchmark --device cuda --commit $(COMMIT)
GPU_DEMO := build/gpu-bench/benchmark
GPU_VISION := build/gpu-bench/qwen3-vl-2b-random
gpu-demo: gpu-package
	$(GPU_AB) --demo --max-new-tokens 256 --longest --json $(GPU_DEMO)_text.json --plot $(GPU_DEMO)_text.png $(DEMO_ARGS)
	$(GPU_AB) --demo --max-new-tokens 256 --static --json $(GPU_DEMO)_static.json --plot $(GPU_DEMO)_static.png $(DEMO_ARGS)
	$(GPU_RUN) benchmarks/vision_model.py $(GPU_VISION)
	$(GPU_AB) --model $(GPU_VISION) --random-weights --prompt "w1 w2 w3" \
	  --image $(GPU_VISION)/picture.png --json $(GPU_DEMO)_image.json $(DEMO_ARGS)
	$(GPU_AB) --model $(GPU_VISION) --random-weights --prompt "w1 w2 w3" \
	  --video $(GPU_VISION)/clip.mp4 --json $(GPU_DEMO)_video.json $(DEMO_ARGS)

gpu-ladder:
	@mkdir -p build/gpu-ladder
	$(NVCC) -std=c++20 -O3 -arch=native --expt-relaxed-constexpr -Iinclude -Isrc -t $(JOBS) examples/attend_ladder/*.cu examples/attend_ladder/*.cc \
	  -o build/gpu-ladder/attend_ladder
	build/gpu-ladder/attend_ladder --commit $(COMMIT) --json build/gpu-ladder/attend_ladder.json

wheel: setup
	@tools/package.sh wheel

format: setup
	@tools/format.sh

format-check: setup
	@tools/format.sh --check

# Minutes, so not a part of `make test`.
tidy: build
	@command -v run-clang-tidy >/dev/null || { echo "missing: sudo apt-get install clang-tidy" >&2; exit 1; }
	run-clang-tidy -quiet -p build/dev -j $(JOBS) '$(CURDIR)/(src|tools)/.*'

clean:
	rm -rf build dist
