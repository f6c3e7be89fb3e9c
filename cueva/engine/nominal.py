"""What passes should cost by the shape of the model: no clock, so the same on every run.

The unit is one plain step with nothing cached. A pass reads every weight that its rows meet, once; each row also scores
the cached positions and mixes them. That is all a request with a seed may go by (`controller.py`), and what measured
costs start from (`costs.py`).
"""

import math
from typing import Final, Protocol

from cueva.config import ModelConfig

OPERATIONS_PER_BYTE: Final = 7
"""Attention's arithmetic that takes as long as reading one byte of weights: 425 GFLOP/s of bfloat16 dot products beside
60 GB/s of memory, measured on two Zen 4 cores. Slow memory makes it 12."""
ROW_SHARE: Final = 0.05
"""What another row adds to a pass besides weights and attention, in plain steps. Measured for bfloat16 weights: two
rows cost 1.35 where their weights alone are 1.29."""
ROW_SHARE_NARROW: Final = 0.15
"""The same for weights of 8 bits or fewer, where unpacking and arithmetic are a larger part: 1.43 to 1.50."""


class Costs(Protocol):
    """What passes cost, in any one unit."""

    def verify(self, rows: float, cached: float) -> float:
        """One pass of the main model and its head: `rows` rows, each attending to `cached` positions."""
        ...

    def draft(self, rows: float, cached: float) -> float:
        """One step of drafting: `rows` rows through an MTP module, and its head for the last row of each sequence."""
        ...

    def known(self, rows: int, cached: float) -> float:
        """How many such verifications of late the cost is known from."""
        ...


class NominalCosts:
    """Costs by the model's shape (`Costs`)."""

    def __init__(
        self, config: ModelConfig, *, bits: float = 16, padded_rows: int | None = None, head_rows: int | None = None
    ):
        """Weigh the parts of a pass.

        Args:
            config: of the model.
            bits: of a weight, as it is read.
            padded_rows: rows that every pass is filled up to; None where a pass has the rows it needs.
            head_rows: ids that drafts are chosen from; None is the whole vocabulary.
        """
        self.padded_rows = padded_rows
        self._config, self._bytes = config, bits / 8
        self._row_share = ROW_SHARE if bits >= 16 else ROW_SHARE_NARROW
        head = config.vocab_size * config.hidden_size
        embedding = 0 if config.tie_word_embeddings else head  # a lookup, not a product
        self._main = float(config.parameters(active=True) - embedding)
        self._module = float(config.mtp_parameters(active=True)) if config.num_nextn_predict_layers else 0.0
        self._head = float((head_rows or config.vocab_size) * config.hidden_size)
        expert = 3.0 * config.hidden_size * config.moe_intermediate_size
        self._routed_layer = expert * config.num_experts_per_tok if config.n_routed_experts else 0.0
        routers = sum(config.is_expert_layer(layer) for layer in range(config.num_hidden_layers))
        self._routed = self._routed_layer * routers
        width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
        operations = 2.0 * config.num_attention_heads * width
        self._attention = operations / OPERATIONS_PER_BYTE / self._bytes / self._main
        self._module_routes = config.is_expert_layer(config.num_hidden_layers)

    def _spread(self, rows: float) -> float:
        """Experts that `rows` rows meet, as a multiple of those of one row; choices are taken as independent."""
        experts, chosen = self._config.n_routed_experts, self._config.num_experts_per_tok
        if not experts or rows <= 1:
            return 1.0
        return experts / chosen * (1 - (1 - chosen / experts) ** rows)

    def _shape(self, rows: float, fixed: float, routed: float) -> float:
        if self.padded_rows is not None:
            return -(-rows // self.padded_rows) * (fixed + routed)
        return fixed + routed * self._spread(rows) + (rows - 1) * self._row_share * (fixed + routed)

    def verify(self, rows: float, cached: float) -> float:
        """See `Costs`."""
        share = self._routed / self._main
        attention = rows * cached * self._attention * self._config.num_hidden_layers
        return self._shape(rows, 1 - share, share) + attention

    def draft(self, rows: float, cached: float) -> float:
        """See `Costs`."""
        routed = self._routed_layer / self._main if self._module_routes else 0.0
        fixed = (self._module + self._head) / self._main - routed
        return self._shape(rows, fixed, routed) + rows * cached * self._attention

    def known(self, rows: int, cached: float) -> float:
        """Nothing that happens would change these."""
        return math.inf
