"""Latent attention's inner loops in plain PyTorch.

One letter beside the project's: X = N + R, the whole width of a query.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def document_mask(document_BT: Tensor) -> Tensor:
    """Say which position sees which in a packed row: earlier ones, and itself, of the same document.

    A negative id is padding and sees only itself, so that no row of the softmax is empty.

    Returns:
        bool, (B, 1, T, T): query, key.
    """
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    real_BTT = (document_BT >= 0)[:, :, None]
    length = document_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=document_BT.device).tril()
    itself_TT = torch.eye(length, dtype=torch.bool, device=document_BT.device)
    return ((same_BTT & real_BTT & causal_TT) | itself_TT)[:, None]


def attend_expanded(q_BTHX: Tensor, k_BSHX: Tensor, v_BSHP: Tensor, *, scale: float, mask: Tensor | None) -> Tensor:
    """Mix values by the softmax of scaled scores, per head.

    Args:
        q_BTHX: queries, the rotary part last.
        k_BSHX: keys; the last T of the S positions are the queries' own.
        v_BSHP: values; their width may differ from the keys'.
        scale: multiplies the scores.
        mask: bool, broadcastable to (B, H, T, S), True where a query sees a key; None: causal, all cached rows visible.

    Returns:
        (B, T, H, P). The softmax is taken in float32.

    Source: DeepSeek-V3 report (arXiv:2412.19437), eq. 10.
    """
    new, seen = q_BTHX.shape[1], k_BSHX.shape[1]
    if mask is None and new != seen:
        mask = torch.ones(new, seen, dtype=torch.bool, device=q_BTHX.device).tril(seen - new)
    mix_BHTP = F.scaled_dot_product_attention(
        q_BTHX.transpose(1, 2),
        k_BSHX.transpose(1, 2),
        v_BSHP.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
    )
    return mix_BHTP.transpose(1, 2)


def attend_absorbed(ql_THC: Tensor, qr_THR: Tensor, rows_SX: Tensor, *, scale: float) -> Tensor:
    """Mix cached latents by the softmax of scaled scores.

    All heads share one key row per position, whose first C values are also the value.

    Args:
        ql_THC: queries moved into the latent space by the key up-projection.
        qr_THR: rotary queries.
        rows_SX: the cached rows of one sequence, latent then rotary key (X = C + R here); the last T are the queries'
            own.
        scale: (N + R) ** -0.5 times the YaRN factor, as in the expanded form; never (C + R) ** -0.5.

    Returns:
        `mix_THC`: only this meets the value up-projection.

    Source: DeepSeek-V2 report (arXiv:2405.04434), section 2.1.3 (the up-projections are absorbed).
    """
    tokens, heads, latent = ql_THC.shape
    seen = rows_SX.shape[0]
    q_ZX = torch.cat([ql_THC, qr_THR], dim=-1).flatten(0, 1)  # Z = T H queries
    score_THS = (q_ZX @ rows_SX.T).float().mul(scale).view(tokens, heads, seen)
    if tokens > 1:
        hidden_TS = torch.ones(tokens, seen, dtype=torch.bool, device=rows_SX.device).triu(seen - tokens + 1)
        score_THS = score_THS.masked_fill(hidden_TS[:, None], -torch.inf)
    weight_ZS = score_THS.softmax(-1).to(rows_SX.dtype).flatten(0, 1)
    return (weight_ZS @ rows_SX[:, :latent]).view(tokens, heads, latent)


def absorbed_is_cheaper(new: int, seen: int, *, latent: int, nope: int, value: int, factor: float = 1.0) -> bool:
    """Whether the absorbed form needs less arithmetic for `new` queries over `seen` rows (their own included).

    With W visible pairs: W (2C - N - P) < (S - T) C (N + P) * factor. For the published shapes and a long cache the
    border lies at 170 new tokens; with nothing cached the absorbed form never wins.

    Args:
        new: queries (T).
        seen: rows they attend to, their own included (S).
        latent: width of the latent (C).
        nope: width of a head's key without rotary (N).
        value: width of a head's value (P).
        factor: how many times dearer an operation of the expanded form is on this machine; measured, then fixed.
    """
    cached = seen - new
    pairs = new * cached + new * (new + 1) // 2
    return pairs * (2 * latent - nope - value) < cached * latent * (nope + value) * factor
