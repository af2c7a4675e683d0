# One command each: `make demo` shows what it does, `make test` proves it.
PYTHON ?= python3
KIND ?= quic_failure
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
TOOLS = $(VENV)/.tools

.PHONY: demo test check example examples torture bench lock lab clean

demo: $(READY)  ## run the bundled example incident of KIND and print where its report is
	@rm -rf build/demo && mkdir -p build/demo && cp -R incidents notebooks parameters build/demo/
	@$(BIN)/tbforensics run build/demo/parameters/$(KIND).example.yaml

test: $(READY) $(TOOLS) check  ## everything: style, types, tests, notebooks
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

example: $(READY) $(TOOLS)  ## make the bundled example of KIND anew, with its notebook's outputs
	$(BIN)/python -m examples $(KIND)

examples: $(READY) $(TOOLS)  ## the same for every kind
	$(BIN)/python -m examples $(notdir $(basename $(wildcard notebooks/*.ipynb)))

torture: $(READY) $(TOOLS)  ## break everything around it, send it hostile bytes, print what came of it
	$(BIN)/python -m torture

bench: $(READY) $(TOOLS)  ## measure it beside its peers; BENCH='--full' or BENCH='run batch' for others
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH)

lab: $(READY)  ## JupyterLab on the notebooks and cases
	$(BIN)/jupyter lab notebooks

lock: $(READY)  ## renew requirements.lock from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --extra cluster --extra s3 \
	    --no-emit-index-url --no-emit-find-links --no-header \
	    --upgrade pyproject.toml -o requirements.lock

# pip leaves a half-filled folder behind when it fails, so the mark comes last.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# A real Prometheus and a real browser, for tests and examples only.
$(TOOLS): $(READY)
	@sh tests/install_tools.sh
	@touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
