"""The house rules that a machine can check; import-linter and ruff check the others."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ROOTS = ("services", "punchcard_client", "sandbox", "console", "benchmarks", "tests")
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400

FILES = sorted(path for root in ROOTS for path in (REPOSITORY / root).rglob("*.py"))
NAMES = [str(path.relative_to(REPOSITORY)) for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long_ones = [node.name for node in functions if node.end_lineno - node.lineno >= FUNCTION_LINES_MAX]

    assert long_ones == []
    # Tests are rows beside each other, which do not grow harder to read by being many.
    assert path.is_relative_to(REPOSITORY / "tests") or len(text.splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_nothing_is_left_for_later(path):
    # Written so that this line does not find itself.
    marks = re.findall(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", path.read_text())

    assert marks == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-2] != "tests"], ids=str)
def test_each_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module starts with a docstring"


def test_both_databases_know_the_same_queries():
    folders = [path.parent for path in (REPOSITORY / "services").rglob("sql/sqlite.sql")]

    names = {
        (folder, dialect): sorted(
            re.findall(r"^-- name:\s*(\w+)", (folder / f"{dialect}.sql").read_text(), re.MULTILINE)
        )
        for folder in folders
        for dialect in ("sqlite", "postgres")
    }

    for folder in folders:
        # SQLite has no clock of its own: the process's is taken.
        assert names[folder, "sqlite"] == [name for name in names[folder, "postgres"] if name != "clock_us"]


def test_each_migration_exists_for_both_databases_and_can_be_taken_back():
    for folder in (REPOSITORY / "services").glob("*/migrations"):
        sqlite, postgres = ({path.name for path in (folder / name).glob("*.sql")} for name in ("sqlite", "postgres"))
        assert sqlite == postgres
        for path in folder.rglob("*.sql"):
            assert "-- migrate:up" in path.read_text()
            assert "-- migrate:down" in path.read_text()


def test_requirements_are_pinned_with_hashes_and_name_no_registry():
    for path in (REPOSITORY / "requirements").glob("*.txt"):
        text = path.read_text()
        assert "://" not in text
        assert all("==" in line for line in text.splitlines() if line and not line.startswith((" ", "#")))
        assert text.count("==") <= text.count("--hash=sha256:")


def test_each_target_of_make_that_is_for_people_is_explained():
    text = (REPOSITORY / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()

    assert phony == re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE)


def test_each_extra_has_its_pinned_requirements():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

    assert {path.stem for path in (REPOSITORY / "requirements").glob("*.txt")} == set(project["optional-dependencies"])
