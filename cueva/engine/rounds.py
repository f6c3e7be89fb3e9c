"""What a round of drafting and verification yields, and what it costs."""

from collections.abc import Sequence
from typing import NamedTuple

from cueva.engine.nominal import Costs


class Situation(NamedTuple):
    """What the coming round is like."""

    limit: int
    """Drafts that can be of use."""
    cached: float = 0.0
    """Positions cached, mean of all rows."""
    sequences: int = 1
    """Sequences that draft as many as is chosen."""
    others: int = 0
    """Rows that are verified in any case."""
    backlog: int = 0
    """Rows that the modules must run before they can draft, beyond those that a round leaves."""


def round_price(costs: Costs, chances: Sequence[float], drafts: int, now: Situation) -> float:
    """What a round with so many drafts costs, in the unit of `costs`, once such rounds follow each other."""
    price = costs.verify(now.others + now.sequences * (1 + drafts), now.cached)
    if drafts:
        # The first step runs a module over all tokens of the last round, each further one over its newest draft.
        price += costs.draft(now.sequences * expected_tokens(chances, drafts), now.cached)
    if drafts > 1:
        price += (drafts - 1) * costs.draft(now.sequences, now.cached)
    return price


def expected_tokens(chances: Sequence[float], drafts: int) -> float:
    """Tokens that a round with so many drafts yields on average: 1 + a_1 + a_1 a_2 + ..."""
    tokens = staying = 1.0
    for chance in chances[:drafts]:
        staying *= chance
        tokens += staying
    return tokens


def best_rate(costs: Costs, chances: Sequence[float], now: Situation) -> float:
    """Tokens per cost with the best number of drafts, zero included."""
    numbers = range(min(len(chances), now.limit) + 1)
    return max(
        (now.others + now.sequences * expected_tokens(chances, drafts)) / round_price(costs, chances, drafts, now)
        for drafts in numbers
    )
