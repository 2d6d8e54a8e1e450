"""Modules in which every attribute exists and raises when called. See README.md."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def absent(name: str) -> type:
    """What stands for the function or class `name`: may be imported, inherited from, looked into."""

    def refuse(cls: type, *_: object, **__: object) -> None:
        raise NotImplementedError(f"{name} is a stand-in of the tests: this part of SGLang cannot run here.")

    class Meta(type):
        def __getattr__(cls, attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return absent(f"{name}.{attribute}")

    return Meta(name.rpartition(".")[2], (), {"__new__": refuse, "__module__": name.rpartition(".")[0]})


class StandIn(ModuleType):
    """A module in which every public attribute exists."""

    __path__ = ()
    __version__ = "0.0.0"

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        found = absent(f"{self.__name__}.{attribute}")
        setattr(self, attribute, found)
        return found


class Finder(MetaPathFinder, Loader):
    """Finds every module below one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """A stand-in for `package.anything`."""
        if not name.startswith(f"{self.package}."):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def stand_in(name: str) -> None:
    """Make the package `name`, which is being imported, a stand-in with all its submodules."""
    sys.modules[name].__class__ = StandIn
    sys.meta_path.insert(0, Finder(name))
