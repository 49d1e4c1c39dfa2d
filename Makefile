# Needs Python 3.11 or newer and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow lint docs clean

demo: $(VENV)/demo
	$(VENV)/bin/grokscape run quickstart --out runs/quickstart --reuse

test: $(VENV)/test lint
	$(VENV)/bin/python -m pytest -n auto

slow: $(VENV)/test
	$(VENV)/bin/python -m pytest -n auto -m slow

lint: $(VENV)/test
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[test]'
# A torchvision built for another torch breaks the import of torchmetrics merely by being installed; nothing needs it.
	$(VENV)/bin/python -c 'import torchvision' 2>/dev/null || $(VENV)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@ $(VENV)/demo

clean:
	rm -rf $(VENV) runs

docs: $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	$(VENV)/bin/sphinx-build -q -W -b html docs docs/_build/html
	@echo docs/_build/html/index.html
