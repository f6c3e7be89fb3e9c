"""Weights to more tokens: the engine.

Read `engine.py` first, then `scheduler.py` (one round), `runner.py` (why rows do not depend on neighbours),
`drafting.py` and `acceptance.py` (why drafting changes nothing but speed), `settings.py`, `sampling.py` and `stops.py`.
"""

from cueva.engine.answers import Answer, FinishReason, Piece, Stats
from cueva.engine.backends import Backend
from cueva.engine.cache import CacheFull, CachePool, SequenceCache, bytes_per_token
from cueva.engine.draft_vocabulary import frequent_ids
from cueva.engine.engine import Engine
from cueva.engine.plan import DraftingReport
from cueva.engine.sampling import TokenLogprob
from cueva.engine.settings import Sampling
from cueva.engine.stops import Codec

__all__ = [
    "Answer",
    "Backend",
    "CacheFull",
    "CachePool",
    "Codec",
    "DraftingReport",
    "Engine",
    "FinishReason",
    "Piece",
    "Sampling",
    "SequenceCache",
    "Stats",
    "TokenLogprob",
    "bytes_per_token",
    "frequent_ids",
]
