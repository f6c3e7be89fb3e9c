"""The public face, put together from the folders above: what a program or a command calls.

`models.py` opens and saves models and engines, `texts.py` makes token shards, `training.py` trains, `scoring.py`
measures, `quick.py` does all of it once. Nothing below imports this folder; what the training loop needs of a file or
an engine is handed to it here.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cueva.api.models import Engine, load, save
    from cueva.api.quick import Quickstart, quickstart
    from cueva.api.scoring import Score, evaluate
    from cueva.api.texts import Watch, prepare
    from cueva.api.training import plan, run_facts, train

__all__ = [
    "Engine",
    "Quickstart",
    "Score",
    "Watch",
    "evaluate",
    "load",
    "plan",
    "prepare",
    "quickstart",
    "run_facts",
    "save",
    "train",
]

_HOME = {
    "Engine": "models",
    "load": "models",
    "save": "models",
    "Quickstart": "quick",
    "quickstart": "quick",
    "Score": "scoring",
    "evaluate": "scoring",
    "Watch": "texts",
    "prepare": "texts",
    "plan": "training",
    "run_facts": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cueva.api' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"cueva.api.{_HOME[name]}"), name)
    globals()[name] = value
    return value
