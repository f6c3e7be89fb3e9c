"""The whole training loss once more, written from the report's equations token by token, in float64, without our code.

Slow and plain: no batches, no tensors over positions, no masks, no kernels. Autograd gives the gradients that the real
step is held against. It follows the conventions of the published weights where the report leaves them open (order of
halves, norms, -inf).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cueva.config import ModelConfig

Weights = Mapping[str, Tensor]


class PlainModel:
    """One row of one batch at a time. `w`: float64 weights by published names, experts stacked; biases among them."""

    def __init__(self, config: ModelConfig, w: Weights):
        self.c, self.w = config, w
        self.gate_scores: dict[int, list[Tensor]] = {}
        self.gate_choices: dict[int, list[list[int]]] = {}

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return self.w[name] * x / torch.sqrt((x * x).mean() + eps)

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Each neighbouring pair is a complex number, turned by position * theta^(-2j/R)."""
        turned = []
        for j in range(len(x) // 2):
            angle = position * self.c.rope_theta ** (-2 * j / len(x))
            a, b = x[2 * j], x[2 * j + 1]
            turned += [a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)]
        return torch.stack(turned)

    def attention(self, rows: list[Tensor], documents: list[int], p: str) -> list[Tensor]:
        c, w = self.c, self.w
        heads, nope, value = c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim
        queries, keys, values = [], [], []
        for i, x in enumerate(rows):
            latent_q = self.norm(w[p + "q_a_proj.weight"] @ x, p + "q_a_layernorm.weight", 1e-6)
            q = (w[p + "q_b_proj.weight"] @ latent_q).view(heads, -1)
            both = w[p + "kv_a_proj_with_mqa.weight"] @ x
            latent = self.norm(both[: c.kv_lora_rank], p + "kv_a_layernorm.weight", 1e-6)
            shared_key = self.rotate(both[c.kv_lora_rank :], i)
            kv = (w[p + "kv_b_proj.weight"] @ latent).view(heads, nope + value)
            queries.append([torch.cat([q[h, :nope], self.rotate(q[h, nope:], i)]) for h in range(heads)])
            keys.append([torch.cat([kv[h, :nope], shared_key]) for h in range(heads)])
            values.append([kv[h, nope:] for h in range(heads)])
        out = []
        for i in range(len(rows)):
            seen = [j for j in range(i + 1) if j == i or documents[j] == documents[i] >= 0]
            mixed = []
            for h in range(heads):
                scores = torch.stack([queries[i][h] @ keys[j][h] for j in seen]) / math.sqrt(c.qk_head_dim)
                share = scores.exp() / scores.exp().sum()
                mixed.append(sum((share[n] * values[j][h] for n, j in enumerate(seen)), torch.zeros(value).double()))
            out.append(w[p + "o_proj.weight"] @ torch.cat(mixed))
        return out

    @staticmethod
    def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        g = gate @ x
        return down @ (g / (1 + torch.exp(-g)) * (up @ x))

    def choose(self, score: list[float], bias: list[float]) -> list[int]:
        """The experts of one token: best groups by their two best, then the best experts in them."""
        c = self.c
        assert c.n_routed_experts is not None
        biased = [s + b for s, b in zip(score, bias, strict=True)]
        size = c.n_routed_experts // c.n_group
        groups = [range(g * size, (g + 1) * size) for g in range(c.n_group)]
        ranked = sorted(groups, key=lambda g: -sum(sorted((biased[e] for e in g), reverse=True)[:2]))
        reachable = [e for group in ranked[: c.topk_group] for e in group]
        return sorted(reachable, key=lambda e: -biased[e])[: c.num_experts_per_tok]

    def feed_forward(self, layer: int, x: Tensor, p: str) -> Tensor:
        c, w = self.c, self.w
        if not c.is_expert_layer(layer):
            return self.swiglu(x, *(w[f"{p}{name}_proj.weight"] for name in ("gate", "up", "down")))
        score = 1 / (1 + torch.exp(-(w[p + "gate.weight"] @ x)))
        chosen = self.choose(score.tolist(), w[p + "gate.e_score_correction_bias"].tolist())
        self.gate_scores.setdefault(layer, []).append(score)
        self.gate_choices.setdefault(layer, []).append(chosen)
        total = sum((score[e] for e in chosen), torch.zeros(()).double())
        out = self.swiglu(x, *(w[f"{p}shared_experts.{name}_proj.weight"] for name in ("gate", "up", "down")))
        inner = c.moe_intermediate_size
        for e in chosen:
            gate_up = w[p + "experts.gate_up_proj"][e]
            answer = self.swiglu(x, gate_up[:inner], gate_up[inner:], w[p + "experts.down_proj"][e])
            out = out + answer * score[e] / total * c.routed_scaling_factor
        return out

    def block(self, layer: int, rows: list[Tensor], documents: list[int]) -> list[Tensor]:
        p, eps = f"model.layers.{layer}.", self.c.rms_norm_eps
        normed = [self.norm(x, p + "input_layernorm.weight", eps) for x in rows]
        rows = [x + y for x, y in zip(rows, self.attention(normed, documents, p + "self_attn."), strict=True)]
        return [
            x + self.feed_forward(layer, self.norm(x, p + "post_attention_layernorm.weight", eps), p + "mlp.")
            for x in rows
        ]

    def nats(self, state: Tensor, token: int) -> Tensor:
        logits = self.w["lm_head.weight"] @ state
        return torch.log(torch.exp(logits).sum()) - logits[token]

    def row(self, ids: list[int], documents: list[int]) -> list[list[Tensor]]:
        """Every depth's losses, one for each valid target of a row of T + 1 ids."""
        c, w, eps = self.c, self.w, self.c.rms_norm_eps
        length = len(ids) - 1
        rows = [w["model.embed_tokens.weight"][t] for t in ids[:length]]
        for layer in range(c.num_hidden_layers):
            rows = self.block(layer, rows, documents[:length])
        state = [self.norm(x, "model.norm.weight", eps) for x in rows]
        losses = [self.targets(state, ids, documents, 0)]
        for k in range(1, c.num_nextn_predict_layers + 1):
            layer = c.num_hidden_layers + k - 1
            p = f"model.layers.{layer}."
            joined = []
            for i in range(length - k):
                token = self.norm(w["model.embed_tokens.weight"][ids[i + k]], p + "enorm.weight", eps)
                before = self.norm(state[i], p + "hnorm.weight", eps)
                joined.append(w[p + "eh_proj.weight"] @ torch.cat([token, before]))
            rows = self.block(layer, joined, documents[: length - k])
            state = [self.norm(x, p + "shared_head.norm.weight", eps) for x in rows]
            losses.append(self.targets(state, ids, documents, k))
        return losses

    def targets(self, state: list[Tensor], ids: list[int], documents: list[int], k: int) -> list[Tensor]:
        found = []
        for i, h in enumerate(state):
            if documents[i] == documents[i + k + 1] >= 0:
                found.append(self.nats(h, ids[i + k + 1]))
        return found


def plain_sequence_loss(
    config: ModelConfig, scores: list[Tensor], choices: list[list[int]] | None, counted: list[bool]
) -> Tensor:
    """Eqs. 17-20 for one row and gate, without alpha. `choices` None: the K best scores, as eq. 18 prints it."""
    experts, chosen = len(scores[0]), config.num_experts_per_tok
    length = sum(counted)
    total = torch.zeros(()).double()
    for e in range(experts):
        f = p = torch.zeros(()).double()
        for t, score in enumerate(scores):
            if not counted[t]:
                continue
            best = choices[t] if choices is not None else score.argsort(descending=True)[:chosen].tolist()
            f = f + experts / (chosen * length) * float(e in best)
            p = p + score[e] / score.sum() / length
        total = total + f * p
    return total


def plain_loss(
    config: ModelConfig,
    w: Weights,
    ids: list[list[int]],
    documents: list[list[int]],
    *,
    mtp_weight: float,
    sequence_weight: float = 0.0,
    actual: bool = False,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss of a batch: everything, each depth's mean, and the sequence-wise loss before its weight."""
    depths = config.num_nextn_predict_layers
    losses: list[list[Tensor]] = [[] for _ in range(depths + 1)]
    sequence: list[list[Tensor]] = []
    for row, document in zip(ids, documents, strict=True):
        model = PlainModel(config, w)
        for all_losses, new in zip(losses, model.row(row, document), strict=True):
            all_losses += new
        mine = []
        for layer in sorted(model.gate_scores):
            k = max(layer - config.num_hidden_layers + 1, 0)
            counted = [document[i] == document[i + k] >= 0 for i in range(len(row) - 1 - k)]
            choices = model.gate_choices[layer] if actual else None
            if any(counted):
                mine.append(plain_sequence_loss(config, model.gate_scores[layer], choices, counted))
        sequence.append(mine)
    means = [torch.stack(one).mean() for one in losses]
    gates = torch.stack([torch.stack(mine) for mine in sequence]).mean(0).sum()
    total = means[0] + sequence_weight * gates
    for mean in means[1:]:
        total = total + mtp_weight / depths * mean
    return total, means, gates
