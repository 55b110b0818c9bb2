"""The package as others see it: names, imports, docstrings that run."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import zomopi_adapters
import zomopi_core as zo
from zomopi_core import _arrays, errors


def modules():
    for package in (zo, zomopi_adapters):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield info.name


class TestNames:
    def test_all_is_sorted_and_complete(self):
        assert zo.__all__ == sorted(zo.__all__)
        defined = {
            name
            for name, value in vars(zo).items()
            if not name.startswith("_") and not isinstance(value, type(zo))
        }
        assert defined == set(zo.__all__)

    def test_names_of_the_design(self):
        promised = (
            "minimize Result Optimizer zo_mopi Method methods streaming_power_iteration "
            "newton_schulz polar Draw Sampler"
        )
        assert set(promised.split()) <= set(zo.__all__)

    def test_typed(self):
        for package in (zo, zomopi_adapters):
            assert (Path(package.__file__).parent / "py.typed").exists()


class TestImports:
    def test_core_imports_nothing_heavy(self):
        code = "import sys, zomopi_core; print(*sorted(m for m in sys.modules if '.' not in m))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        heavy = {"torch", "cupy", "jax", "scipy", "sklearn", "matplotlib", "rich", "typer"}
        assert done.returncode == 0, done.stderr
        assert heavy & set(done.stdout.split()) == set()

    @pytest.mark.parametrize(
        "name", ["rich", "scipy", "sklearn", "matplotlib", "torch", "transformers"]
    )
    def test_missing_extra_is_named(self, name):
        calls = {
            "rich": "import numpy as np\n"
            "zo.minimize(np.sum, np.ones((2, 2)), max_queries=8, progress=True)",
            "scipy": "import zomopi_adapters.scipy",
            "torch": "import zomopi_adapters.torch",
            "transformers": "import zomopi_adapters.transformers",
            "sklearn": "import zomopi_core.problems as p; p.digits()",
            "matplotlib": "import zomopi_core._picture as p; p.draw_digits(None, None, None)",
        }
        code = f"import sys; sys.modules[{name!r}] = None\nimport zomopi_core as zo\n{calls[name]}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        extra = name if name in {"scipy", "torch", "transformers"} else "cli"
        assert f"is not installed; pip install 'zomopi[{extra}]' brings it" in done.stderr


class TestBackends:
    def test_names(self):
        for name in _arrays.LIBRARIES:
            if not _arrays.installed(name):
                with pytest.raises(
                    ImportError, match=rf"pip install 'zomopi\[{name}\]' brings it"
                ):
                    _arrays.backend(name)
            elif name != "cupy":
                xp, device = _arrays.backend(name, "cpu")
                assert _arrays.library(_arrays.namespace(xp.ones(2, device=device))) == name

    def test_unknown(self):
        with pytest.raises(ValueError, match="backend must be one of 'numpy', 'torch', 'cupy'"):
            _arrays.backend("tensorflow")

    def test_a_broken_installation_is_shown_not_raised(self, monkeypatch):
        monkeypatch.setitem(_arrays.LIBRARIES, "cupy", "zomopi_no_such_package")
        assert ("cupy", "not installed", "pip install 'zomopi[cupy]'") in (
            _arrays.describe_backends()
        )


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples(name):
    if name == "zomopi_core.__main__":
        pytest.skip("runs the command line")
    if name == "zomopi_adapters.outsiders":
        pytest.importorskip("cma")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(str(error))
    assert doctest.testmod(module).failed == 0


def test_every_message_is_used():
    """A message that nothing raises is dead text."""
    core = Path(zo.__file__).parent
    adapters = Path(zomopi_adapters.__file__).parent
    sources = [*core.rglob("*.py"), *adapters.glob("*.py")]
    text = "\n".join(f.read_text() for f in sources if f.name != "errors.py")
    unused = [
        name
        for name, value in vars(errors).items()
        if callable(value)
        and getattr(value, "__module__", "") == errors.__name__
        and name not in text
    ]
    assert unused == []
