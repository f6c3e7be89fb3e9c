"""Train and run language models built like DeepSeek-V3.

The public face is the handful of names in `__all__`. Each is imported when it is first asked for, so `import cueva`
costs next to nothing and never brings in plotting, hub clients or peers.

    import cueva

    model = cueva.load("runs/quickstart/model")
    engine = cueva.Engine(model)
    print(engine.generate(["def "], cueva.Sampling(max_new_tokens=64))[0].text)
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cueva.api import Engine, evaluate, load, quickstart, save, train
    from cueva.config import PRESETS, ModelConfig
    from cueva.engine import Sampling
    from cueva.errors import CuevaError
    from cueva.train import TrainConfig

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CuevaError",
    "Engine",
    "ModelConfig",
    "Sampling",
    "TrainConfig",
    "__version__",
    "evaluate",
    "load",
    "quickstart",
    "save",
    "train",
]

_HOME = {
    "load": "cueva.api",
    "save": "cueva.api",
    "Engine": "cueva.api",
    "evaluate": "cueva.api",
    "quickstart": "cueva.api",
    "Sampling": "cueva.engine",
    "TrainConfig": "cueva.train",
    "ModelConfig": "cueva.config",
    "PRESETS": "cueva.config",
    "CuevaError": "cueva.errors",
}


class _CallableFolder(ModuleType):
    """The folder `cueva.train`, which can also be called: `cueva.train(config)` is `cueva.api.train(config)`.

    Python puts an imported subpackage on its parent under the subpackage's name, so a function of the same name would
    be there or not depending on who imported what first. One object that is both is there always.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from cueva.api import train

        return train(*args, **kwargs)


class _Face(ModuleType):
    """This module, which makes the folder `train` callable at the moment the import system hangs it here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value.__class__ = _CallableFolder
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face


def __getattr__(name: str) -> Any:
    if name == "train":
        return importlib.import_module("cueva.train")
    if name not in _HOME:
        raise AttributeError(f"module 'cueva' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
