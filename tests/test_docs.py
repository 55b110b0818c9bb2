"""The documentation says what is true: snippets run, links lead somewhere, names are described."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import zomopi_core as zo
from zomopi_core import problems

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a user may do without: a snippet that imports it is left out where it is missing.
OPTIONAL = {"torch", "jax", "scipy", "array_api_strict", "transformers"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


public_names = load(ROOT / "docs" / "_ext" / "public_names.py")


def snippets(page, language):
    """Yield (line, code) of the fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match[1]


def missing_libraries(tree):
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    return {name for name in imported & OPTIONAL if importlib.util.find_spec(name) is None}


def run_snippets(page):
    """Run the snippets of a page in one namespace; return why some were left out."""
    namespace, missing, reasons = {"__name__": "snippet"}, set(), []
    for line, code in snippets(page, "python"):
        # Line numbers of the page in tracebacks; a later snippet may need an earlier one's names.
        tree = ast.parse("\n" * line + code, filename=str(page))
        missing |= missing_libraries(tree)
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if absent := missing_libraries(tree) | (missing & used):
            reasons.append(f"line {line + 1} needs {', '.join(sorted(absent))}")
            continue
        exec(compile(tree, str(page), "exec"), namespace)
    return reasons


@every_page
def test_snippets_run(page):
    if not any(snippets(page, "python")):
        assert page.name in {"api.md", "benchmarks.md", "contributing.md"}
        return
    if reasons := run_snippets(page):
        pytest.skip(f"{page.name}: {'; '.join(reasons)}")


def test_a_wrong_snippet_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError):
        run_snippets(page)


def test_a_snippet_without_its_library_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    page = tmp_path / "page.md"
    page.write_text("```python\nimport jax.numpy\n```\n```python\njax.numpy.ones(1)\n```\n")
    assert run_snippets(page) == ["line 2 needs jax", "line 5 needs jax"]


@every_page
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


@every_page
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(targets)


def test_readme_names_the_two_commands():
    assert {"make demo\n", "make test\n"} <= {code for _, code in snippets(PAGES[0], "sh")}


def test_readme_lists_the_extras():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `(\w+)` \|", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(extras["optional-dependencies"])


def rows(page, *header):
    """Return the first columns of the tables of a page that begin with these heads."""
    wanted, found, inside = list(header), [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")][: len(header)]
        if not line.startswith("|"):
            inside = False
        elif cells == wanted:
            inside = True
        elif inside and not cells[0].startswith("---"):
            found.append(cells)
    return found


def count(formula, sizes):
    """Evaluate a formula of the tables, such as `m r + 2 n k` or `2N + 1`."""
    formula = formula.replace("²", " **2")
    terms = [re.findall(r"\*\*2|\d+|[A-Za-z]", term) for term in formula.split("+")]
    python = "+".join("*".join(term).replace("***", "**") for term in terms)
    return eval(python, {}, sizes)


def numbers_in(state):
    if isinstance(state, tuple):
        return sum(map(numbers_in, state))
    return state.size if getattr(state, "ndim", 0) else 0  # single numbers do not count


class TestCatalogueTables:
    PAGE = ROOT / "docs" / "methods.md"

    @pytest.mark.parametrize("second", ["Evaluations a step", "Where it differs", None])
    def test_every_method_has_a_row(self, second):
        heads = {
            None: [("Method", "Subspace"), ("Method", "Momentum")],
            "Where it differs": [("Method", "Where it differs from its released code")],
        }.get(second, [("Method", second)])
        named = [
            name
            for head in heads
            for first, _ in rows(self.PAGE, *head)
            for name in re.findall(r"`(\w+)`", first)
        ]
        assert sorted(set(named)) == sorted(zo.methods())

    def test_costs_are_true(self):
        table = rows(self.PAGE, "Method", "Evaluations a step", "Numbers in the state")
        assert [name.strip("`") for name, *_ in table] == list(zo.methods())
        for name, evaluations, state in table:
            make = getattr(zo, name.strip("`"))
            takes = inspect.signature(make).parameters
            sizes = {"m": 11, "n": 13, "r": 5, "k": 3, "N": 4}
            options = {"rank": 5, "spectral_rank": 3, "probes": 4}
            method = make(**{k: v for k, v in options.items() if k in takes})
            leaf = method.init(np.zeros((11, 13))).leaves[0]
            assert method.evaluations_per_step == count(evaluations, sizes), name
            assert numbers_in(tuple(leaf)) == count(state, sizes), name


class TestProblems:
    PAGE = ROOT / "docs" / "problems.md"

    def test_the_table_is_true(self):
        pytest.importorskip("sklearn", reason="the extra cli is not installed")
        table = rows(
            self.PAGE, "Name", "Unknowns", "Precision", "Loss", "At `x0`", "Best", "Target"
        )
        names = [name.strip("`") for name, *_ in table]
        assert names == [name for name in problems.names() if not name.endswith("-noisy")]
        for name, (_, unknowns, dtype, _, initial, best, target) in zip(names, table, strict=True):
            problem = problems.make(name)
            leaf = next(iter(problem.x0.values())) if "digits" in name else problem.x0
            assert (unknowns, dtype) == (f"{problem.unknowns:,}", str(leaf.dtype))
            digits = len(initial.partition(".")[2])
            assert float(initial) == round(problem.initial, digits)
            assert float(best) == problem.best
            assert float(target.partition(":")[0]) == round(problem.target, 3)

    def test_every_noisy_form_is_described(self):
        described = [
            name
            for cell, _ in rows(self.PAGE, "Name", "Noise")
            for name in re.findall(r"`([\w-]+)`", cell)
        ]
        assert sorted(described) == sorted(n for n in problems.names() if n.endswith("-noisy"))

    def test_ranks_are_those_of_the_problems(self):
        header = ("Name", "At `x0`", "At the target of gradient descent", "`low_rank`")
        for name, _, _, flag in rows(self.PAGE, *header):
            assert flag == str(problems.make(name.strip("`")).low_rank)

    def test_the_reference_lists_all(self):
        listed = re.findall(r"auto\w+:: (\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
        assert set(problems.__all__) <= set(listed)
        assert problems.__all__ == sorted(problems.__all__)


def test_a_method_of_ones_own_is_short():
    _, code = next(snippets(ROOT / "docs" / "own_method.md", "python"))
    assert sum(bool(line.strip()) for line in code.splitlines()) < 40


class TestPublicNames:
    def test_finds_what_is_public(self):
        pytest.importorskip("scipy")
        names = public_names.public_names(["zomopi_core", "zomopi_adapters"])
        assert {f"zomopi_core.{name}" for name in zo.__all__} <= set(names)
        assert {"zomopi_core.Optimizer.ask", "zomopi_adapters.scipy.zo_mopi"} <= set(names)

    def test_all_have_docstrings(self):
        names = public_names.public_names(["zomopi_core"])
        assert public_names.complaints(names, set(names)) == []

    def test_names_what_is_not_in_the_reference(self):
        names = public_names.public_names(["zomopi_core"]) | {"zomopi_core.made_up": zo.polar}
        documented = set(names) - {"zomopi_core.made_up"}
        assert public_names.complaints(names, documented) == [
            "zomopi_core.made_up is not in the API reference"
        ]

    def test_names_what_has_no_docstring(self):
        def bare():
            pass

        assert public_names.complaints({"bare": bare}, {"bare"}) == ["bare has no docstring"]
