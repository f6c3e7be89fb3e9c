"""The native kernels: one C++ extension, compiled for several instruction sets, the best chosen when it is loaded.

`extension()` is the module or None; `instruction_set()` says which set serves; `missing()` says in a sentence why there
is none. Everything native is asked for through here, so that PyTorch (whose OpenMP runtime the extension binds to) is
loaded before it and a machine without a compiler gets a notice instead of a traceback.
"""

import functools
import importlib
import os
from types import ModuleType
from typing import Any

import torch  # noqa: F401  (its OpenMP runtime has to be there first)

from cueva.errors import RequestError

_NAME = "cueva.kernels.native._native"


@functools.cache
def _loaded() -> tuple[Any, str | None]:
    try:
        return importlib.import_module(_NAME), None
    except ImportError as error:
        return None, str(error)


def extension() -> Any:
    """The extension module, or None where it was not built or cannot be loaded."""
    return _loaded()[0]


def missing() -> str | None:
    """Why there is no extension, in a sentence; None where there is one."""
    return _loaded()[1]


def instruction_set() -> str | None:
    """The instruction set whose kernels serve: `CUEVA_ISA`, or the best that the processor runs; None without any.

    Raises:
        RequestError: `CUEVA_ISA` names a set that this build or this processor does not have.
    """
    module: ModuleType | Any = extension()
    if module is None:
        return None
    runnable = module.isas()
    wanted = os.environ.get("CUEVA_ISA")
    if not wanted:
        return runnable[0]
    if wanted not in runnable:
        raise RequestError(
            f"CUEVA_ISA is {wanted!r}, but this machine runs {', '.join(runnable)}",
            way_out="unset it, or name one of those",
        )
    return wanted
