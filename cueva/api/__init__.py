"""The public face, put together from the folders above: what a program or a command calls.

`models.py` opens and saves models and engines, `texts.py` makes token shards, `training.py` trains, `scoring.py` measures,
`quickstart.py` does all of it once. Nothing below imports this folder; what the training loop needs of a file or an engine is
handed to it here.
"""

from cueva.api.models import Engine, load, save
from cueva.api.quickstart import Quickstart, quickstart
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
