"""The native kernels: one C++ extension, compiled for several instruction sets, the best chosen when it is loaded.

`extension()` is the module or None; `instruction_set()` says which set serves; `missing()` says in a sentence why
there is none, and `warn_if_missing()` says it once. Everything native is asked for through here, so that PyTorch (whose
OpenMP runtime the extension binds to) is loaded before it and a machine without a compiler gets a notice instead of a
traceback.

Two environment variables are read, for tests and for finding out what went wrong: `CUEVA_ISA` names the instruction
set to use, and `CUEVA_NATIVE_FOLDER` a folder whose `_native` is loaded instead of the package's own (builds with
sanitizers or with emulated instructions stay in their build folder).
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import logging
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch  # noqa: F401  (its OpenMP runtime has to be there first)

from cueva.errors import RequestError
from cueva.kernels.native.threads import default_threads, openmp_runtimes

log = logging.getLogger("cueva.kernels")

SETS: Final = ("avx512bf16", "avx512", "avx2", "portable")
"""Every instruction set there are kernels for, the best first."""

_NAME: Final = "cueva.kernels.native._native"
_HERE: Final = Path(__file__).resolve().parent
_COST: Final = "until then PyTorch's operators serve, and text is generated several times slower"


@functools.cache
def _loaded() -> tuple[Any, str | None]:
    folder = os.environ.get("CUEVA_NATIVE_FOLDER")
    try:
        return (_load_from(Path(folder)) if folder else importlib.import_module(_NAME)), None
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == _NAME:
            return None, _not_built(Path(folder) if folder else None)
        # The loader's own words: a symbol or a library that is missing.
        reason = " ".join(str(error).split()) or type(error).__name__
        return None, f"the native kernels were built but cannot be loaded ({reason}); {_again()}"


def _load_from(folder: Path) -> ModuleType:
    """The extension from another folder; raises ModuleNotFoundError where there is none."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.is_file():
            spec = importlib.util.spec_from_file_location(_NAME, path)
            assert spec is not None, path
            assert spec.loader is not None, path
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[_NAME] = module
            return module
    raise ModuleNotFoundError(f"no extension in {folder}", name=_NAME)


def _not_built(folder: Path | None) -> str:
    if folder is not None:
        return f"CUEVA_NATIVE_FOLDER is {folder}, and there is no _native in it; unset it, or build there"
    compiler = _compiler()
    if compiler is None:
        why = "the native kernels were not built, because there is no C++ compiler here (g++ or clang++)"
        return f"{why}; install one, and then {_again()}"
    return f"the native kernels were not built, although there is a C++ compiler ({compiler}); {_again()}"


def _compiler() -> str | None:
    """Path of the C++ compiler that CMake would take, or None."""
    named = os.environ.get("CXX")
    for name in [named.split()[0]] if named and named.split() else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    return None


def _again() -> str:
    """What shows how a build goes."""
    if (_HERE.parents[2] / "CMakeLists.txt").is_file():  # a checkout
        return "`python -m tools.build` builds them and shows what goes wrong"
    return "installing cueva again with CUEVA_NATIVE=require shows what goes wrong"


def extension() -> Any:
    """The extension module, or None where it was not built or cannot be loaded."""
    return _loaded()[0]


def missing() -> str | None:
    """Why there is no extension, and what to do, in one sentence; None where there is one."""
    return _loaded()[1]


@functools.cache
def warn_if_missing() -> None:
    """Log as a warning what is missing and what it costs, once in a process; called where the kernels would serve."""
    why = missing()
    if why is not None:
        log.warning("%s; %s", why, _COST)


def built() -> list[str]:
    """The instruction sets that this build has, the best first; empty without an extension."""
    module = extension()
    return [] if module is None else list(module.built())


def runnable() -> list[str]:
    """Those of them that this processor runs (or that are emulated), the best first."""
    module = extension()
    return [] if module is None else list(module.isas())


def instruction_set() -> str | None:
    """The instruction set whose kernels serve: `CUEVA_ISA`, or the best that the processor runs; None without any.

    Raises:
        RequestError: `CUEVA_ISA` names a set that this build or this processor does not have, or that does not exist.
    """
    wanted = os.environ.get("CUEVA_ISA")
    if extension() is None:
        if wanted:
            raise RequestError(f"CUEVA_ISA is {wanted!r}, but there are no native kernels: {missing()}")
        return None
    if not wanted:
        return runnable()[0]
    if wanted not in runnable():
        why = (
            "this processor does not run it"
            if wanted in built()
            else "this build does not have it"
            if wanted in SETS
            else "there is no such instruction set"
        )
        raise RequestError(
            f"CUEVA_ISA is {wanted!r}, but {why}; what can be used here: {', '.join(runnable())}",
            way_out="unset it, or name one of those",
        )
    return wanted


__all__ = [
    "SETS",
    "built",
    "default_threads",
    "extension",
    "instruction_set",
    "missing",
    "openmp_runtimes",
    "runnable",
    "warn_if_missing",
]
