"""Multi-head latent attention (MLA), in its two forms.

*Expanded*: keys and values of every head are raised from a narrow latent, then ordinary attention (training, long
prefill). *Absorbed*: the key up-projection moves onto the queries and the value up-projection behind the mixture, so
that all heads attend to the cached latents themselves (decode, verification). Both compute the same function; a test
holds one against the other.

The cache keeps, per position and layer, the latent after its norm and the rotary key after its rotation, and nothing
else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cueva.config import LATENT_NORM_EPS, ModelConfig
from cueva.kernels.attend import absorbed_is_cheaper, attend_absorbed, attend_expanded
from cueva.model.norm import RMSNorm
from cueva.model.rotary import Rotation, rotate, softmax_scale


class LatentCache(Protocol):
    """What attention asks of the cache of one sequence. Layers from `num_hidden_layers` on belong to MTP modules."""

    def length(self, layer: int) -> int:
        """Rows held for this layer."""
        ...

    def append(self, layer: int, latent_TC: Tensor, rope_TR: Tensor) -> None:
        """Add rows behind those held."""
        ...

    def rows(self, layer: int, stop: int) -> Tensor:
        """Return the first `stop` rows, (S, C + R): latent, then rotary key."""
        ...

    def truncate(self, layer: int, length: int) -> None:
        """Forget the rows from `length` on."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [start, stop) of a flat step: they continue one sequence, at positions from `cache.length(layer)` on."""

    cache: LatentCache
    start: int
    stop: int


class Attention(nn.Module):
    """Latent attention of one layer. Parameter names are the published ones."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.heads = heads
        self.nope, self.rope, self.value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent_width = config.kv_lora_rank
        self.interleave = config.rope_interleave
        self.scale = softmax_scale(config)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(width, heads * config.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * config.qk_head_dim, bias=False)
        self.has_query_latent = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(width, self.latent_width + self.rope, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent_width, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.latent_width, heads * (self.nope + self.value), bias=False)
        self.o_proj = nn.Linear(heads * self.value, width, bias=bias)

    def queries(self, x_TD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries of every head, without rotary and with (eqs. 6-9): (..., T, H, N) and (..., T, H, R)."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD))) if self.has_query_latent else self.q_proj(x_TD)
        qn_THN, qr_THR = q.unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], dim=-1)
        return qn_THN, rotate(qr_THR, rotation, interleave=self.interleave)

    def latents(self, x_TD: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """What the cache holds (eqs. 1, 3): normed latents (..., T, C) and the shared rotary keys (..., T, R)."""
        latent_TC, kr_TR = self.kv_a_proj_with_mqa(x_TD).split([self.latent_width, self.rope], dim=-1)
        kr_TR = rotate(kr_TR.unsqueeze(-2), rotation, interleave=self.interleave).squeeze(-2)
        return self.kv_a_layernorm(latent_TC), kr_TR

    def raised(self, latent_SC: Tensor, kr_SR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (..., S, H, N + R) and values (..., S, H, P) of every head (eqs. 2, 5)."""
        kv_SHY = self.kv_b_proj(latent_SC).unflatten(-1, (self.heads, -1))
        kn_SHN, v_SHP = kv_SHY.split([self.nope, self.value], dim=-1)
        kr_SHR = kr_SR.unsqueeze(-2).expand(*kn_SHN.shape[:-1], self.rope)
        return torch.cat([kn_SHN, kr_SHR.to(kn_SHN.dtype)], dim=-1), v_SHP

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """Attend within whole rows, expanded. `mask` says who sees whom; None is causal."""
        # 1. Queries: in through a narrow latent, out to every head.
        qn_BTHN, qr_BTHR = self.queries(x_BTD, rotation)

        # 2. Keys and values: raised from one latent per position; one rotary key serves all heads.
        k_BTHX, v_BTHP = self.raised(*self.latents(x_BTD, rotation))

        # 3. Score, mix, and back to the model's width (eqs. 10, 11).
        q_BTHX = torch.cat([qn_BTHN, qr_BTHR], dim=-1)
        mix_BTHP = attend_expanded(q_BTHX, k_BTHX, v_BTHP, scale=self.scale, mask=mask)
        return self.o_proj(mix_BTHP.flatten(-2))

    def cached(
        self, x_TD: Tensor, layer: int, segments: Sequence[Segment], rotation: Rotation, *, rowwise: bool
    ) -> Tensor:
        """Attend from T new rows, each to its own sequence's cache and what of the step came before it.

        Args:
            x_TD: the rows of a step, of any sequences; rows in no segment are filler.
            layer: whose rows of the cache.
            segments: which rows continue which sequence. Their latents are appended to the caches.
            rotation: of each row's position.
            rowwise: attend row by row in the absorbed form, over exactly the rows each may see, so that its sum has
                one order whatever the step holds; otherwise a segment at a time, in the form that costs less.

        Returns:
            (T, D); filler rows are meaningless.
        """
        # 1. Queries, and this step's rows of the cache.
        qn_THN, qr_THR = self.queries(x_TD, rotation)
        latent_TC, kr_TR = self.latents(x_TD, rotation)
        k_up_HNC, v_up_HPC = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split([self.nope, self.value], dim=1)

        # 2. Move the key up-projection onto the queries: T of them, never the S cached rows.
        ql_THC = torch.einsum("thn,hnc->thc", qn_THN, k_up_HNC)

        # 3. Each sequence over its own cache.
        mix_THC = ql_THC.new_zeros(ql_THC.shape)
        mix_THP = qn_THN.new_zeros(*qn_THN.shape[:2], self.value)
        expanded_T = torch.zeros(len(x_TD), dtype=torch.bool, device=x_TD.device)
        for segment in segments:
            some = slice(segment.start, segment.stop)
            new, held = segment.stop - segment.start, segment.cache.length(layer)
            segment.cache.append(layer, latent_TC[some], kr_TR[some])
            if rowwise:
                for row in range(new):
                    at = slice(segment.start + row, segment.start + row + 1)
                    rows_SX = segment.cache.rows(layer, held + row + 1)
                    mix_THC[at] = attend_absorbed(ql_THC[at], qr_THR[at], rows_SX, scale=self.scale)
                continue
            rows_SX = segment.cache.rows(layer, held + new)
            if absorbed_is_cheaper(new, held + new, latent=self.latent_width, nope=self.nope, value=self.value):
                mix_THC[some] = attend_absorbed(ql_THC[some], qr_THR[some], rows_SX, scale=self.scale)
            else:
                k_SHX, v_SHP = self.raised(*rows_SX.split([self.latent_width, self.rope], dim=-1))
                q_THX = torch.cat([qn_THN[some], qr_THR[some]], dim=-1)
                mix_THP[some] = attend_expanded(q_THX[None], k_SHX[None], v_SHP[None], scale=self.scale, mask=None)[0]
                expanded_T[some] = True

        # 4. Only the mixture meets the value up-projection.
        raised_THP = torch.einsum("thc,hpc->thp", mix_THC, v_up_HPC)
        return self.o_proj(torch.where(expanded_T[:, None, None], mix_THP, raised_THP).flatten(-2))
