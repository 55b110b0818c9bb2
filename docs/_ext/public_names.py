"""Fails the build when a public name has no docstring or no place in the reference."""

import importlib
import inspect
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any


def exported(module: ModuleType) -> dict[str, Any]:
    """Return the public objects of a module by their full names: `__all__`, else its own."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__ == module.__name__
        ]
    return {f"{module.__name__}.{name}": getattr(module, name) for name in names}


def members(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties that a class itself defines."""
    if inspect.isclass(value):
        for attribute, member in vars(value).items():
            if not attribute.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, property)
            ):
                yield f"{name}.{attribute}", member


def public_names(packages: Collection[str]) -> dict[str, Any]:
    """Return what the packages promise: their own names, and those of modules without any."""
    found: dict[str, Any] = {}
    for package_name in packages:
        package = importlib.import_module(package_name)
        own = exported(package)
        if not own:
            # A package that exports nothing is a folder of modules that people import by name.
            for info in pkgutil.iter_modules(package.__path__, f"{package_name}."):
                if not info.name.rpartition(".")[2].startswith("_"):
                    own |= exported(importlib.import_module(info.name))
        found |= own
    for name, value in list(found.items()):
        found |= members(name, value)
    return found


def has_docstring(value: Any) -> bool:
    """Tell whether somebody wrote a docstring: dataclasses and named tuples make up their own."""
    text = (getattr(value, "__doc__", None) or "").strip()
    made_up = inspect.isclass(value) and text.startswith(f"{value.__name__}(")
    return bool(text) and not made_up


def complaints(public: Mapping[str, Any], documented: Collection[str]) -> list[str]:
    """Return a sentence for each public name that nobody described or that no page shows."""
    found = [
        f"{name} has no docstring" for name, value in public.items() if not has_docstring(value)
    ]
    found += [f"{name} is not in the API reference" for name in public if name not in documented]
    return sorted(found)


def check(app: Any, env: Any) -> None:
    """Log a warning for each complaint; the build turns warnings into errors."""
    from sphinx.util import logging

    documented = {name for name, *_ in env.get_domain("py").get_objects()}
    for complaint in complaints(public_names(app.config.public_packages), documented):
        logging.getLogger(__name__).warning(complaint, type="public_names")


def setup(app: Any) -> dict[str, bool]:
    """Register the check with Sphinx."""
    app.add_config_value("public_packages", [], "env")
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
