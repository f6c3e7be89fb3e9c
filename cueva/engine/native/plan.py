"""From a model's weights to a native plan: formats chosen, tiles filled, layers listed.

The formats that `weights` names, by the part that a matrix plays:

    f32, bf16          every matrix
    fp8                the matrices that published FP8 files hold in FP8; embedding, head and `eh_proj` in bf16
    q8_0, q4_0         every matrix, the embedding too
    q4_k               every matrix; embedding and head in q6_k

A matrix whose columns are not whole blocks takes q8_0 instead of a 256-block, bf16 instead of a 32-block. Norms, biases
and routers stay float32 whatever is asked for.
"""

from typing import Any, Final

import torch
from torch import Tensor

from cueva.checkpoint import fp8 as fp8_format
from cueva.config import LATENT_NORM_EPS
from cueva.engine.native.weights import Weights
from cueva.errors import RequestError, nearest
from cueva.kernels import native, quant
from cueva.kernels.linear import FORMATS, PackedMatrix
from cueva.kernels.linear.packed import FP8_BLOCK
from cueva.model.rotary import attention_factor, inverse_frequencies, softmax_scale

WEIGHT_FORMATS: Final = ("f32", "bf16", "fp8", "q8_0", "q4_0", "q4_k")
EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"


def chosen_format(weights: str, columns: int, *, part: str = "matrix") -> str:
    """The format that a matrix is stored in.

    Args:
        weights: what was asked for.
        columns: inputs of the matrix.
        part: "matrix", or "embedding", "head" or "eh_proj".
    """
    if weights == "fp8" and part != "matrix":
        return "bf16"
    return quant.stored_format(weights, columns, end=part in ("embedding", "head"))


class NativeModel:
    """A model ready to be stepped natively.

    Attributes:
        config: its shape.
        weights: the format asked for.
        plan: the extension's object.
        head: the main head, for logits of given states.
        bytes: memory of the packed weights.
    """

    def __init__(self, source: Weights, weights: str, *, threads: int, isa: str | None = None, zero_copy: bool = False):
        """Store everything.

        Args:
            source: where the weights come from.
            weights: one of `WEIGHT_FORMATS`.
            threads: that pack.
            isa: instruction set; None: the chosen one.
            zero_copy: use float32 and bfloat16 matrices as they lie in the source, row by row, instead of packing
                them: for models larger than memory. `weights` must be what the source holds.

        Raises:
            RequestError: no such format, or no native extension.
        """
        if weights not in WEIGHT_FORMATS:
            raise RequestError(
                f"there is no weights={weights!r}{nearest(weights, WEIGHT_FORMATS)}; {', '.join(WEIGHT_FORMATS)} fit"
            )
        module = native.extension()
        if module is None:
            raise RequestError(f"weights={weights!r} needs the native kernels: {native.missing()}")
        self.config = source.config
        self.weights = weights
        self.isa = isa or native.instruction_set() or ""
        self.cache_dtype = torch.float32 if weights == "f32" else torch.bfloat16
        self.bytes = 0
        self._source, self._threads, self._zero_copy = source, threads, zero_copy
        config = source.config
        self.plan: Any = module.Plan(
            self.isa,
            {
                "width": config.hidden_size,
                "vocabulary": config.vocab_size,
                "norm_eps": config.rms_norm_eps,
                "cache_f32": weights == "f32",
                "cache_layers": config.num_hidden_layers + config.num_nextn_predict_layers,
                "cache_width": config.kv_lora_rank + config.qk_rope_head_dim,
                "expand_factor": 1.0,
            },
        )
        self._inv_freq = _kept(inverse_frequencies(config))
        head_name = EMBEDDING if config.tie_word_embeddings else HEAD
        self._embedding = self._table(EMBEDDING)
        self._own_heads: list[PackedMatrix] = []
        self.head = self._matrix(head_name, config.vocab_size, config.hidden_size, part="head")
        depths = []
        for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
            self.plan.add_layer(self._layer(layer))
        depths.append(self._ends("model.norm.weight", config.num_hidden_layers))
        for depth in range(config.num_nextn_predict_layers):
            depths.append(self._module(f"model.layers.{config.num_hidden_layers + depth}."))
        self.plan.finish(depths)
        self._heads = [self.head, *self._own_heads]
        for name in (EMBEDDING, head_name):
            source.done(name)
        del self._source

    def sub_head(self, depth: int, ids: Tensor) -> PackedMatrix:
        """Pack the rows of a depth's head for a subset of the vocabulary (`ids` int64, ascending)."""
        head = self._heads[depth]
        rows_OI = head.unpack_rows(ids)
        if head.format.startswith("rows"):  # as the head itself, so that logits are the same to the bit
            dtype = torch.float32 if head.format == "rows_f32" else torch.bfloat16
            return PackedMatrix.mapped(rows_OI.to(dtype), isa=self.isa)
        packed = self._new(head.format, len(ids), head.columns)
        packed.fill(rows_OI)
        return packed

    # --- parts ---

    def _layer(self, layer: int) -> dict[str, Any]:
        prefix = f"model.layers.{layer}."
        about = self._attention(f"{prefix}self_attn.")
        about["input_norm"] = self._floats(f"{prefix}input_layernorm.weight")
        about["post_norm"] = self._floats(f"{prefix}post_attention_layernorm.weight")
        about |= self._feed_forward(f"{prefix}mlp.", layer)
        return about

    def _attention(self, prefix: str) -> dict[str, Any]:
        config, source = self.config, self._source
        width, heads, query = config.hidden_size, config.num_attention_heads, config.q_lora_rank
        nope, rope, value, latent = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
            config.kv_lora_rank,
        )
        about: dict[str, Any] = {
            "heads": heads,
            "nope": nope,
            "rope": rope,
            "value": value,
            "latent": latent,
            "query_latent": query or 0,
            "scale": softmax_scale(config),
            "interleave": config.rope_interleave,
            "inv_freq": self._inv_freq,
            "rope_factor": attention_factor(config),
            "latent_eps": LATENT_NORM_EPS,
            "kv_norm": self._floats(f"{prefix}kv_a_layernorm.weight"),
            "kv_a": self._biased(f"{prefix}kv_a_proj_with_mqa", latent + rope, width),
            "o": self._biased(f"{prefix}o_proj", width, heads * value),
        }
        if query is None:
            about |= {"q_a": None, "q_norm": None}
            about["q_b"] = self._matrix(f"{prefix}q_proj.weight", heads * (nope + rope), width).native
        else:
            about["q_a"] = self._biased(f"{prefix}q_a_proj", query, width)
            about["q_norm"] = self._floats(f"{prefix}q_a_layernorm.weight")
            about["q_b"] = self._matrix(f"{prefix}q_b_proj.weight", heads * (nope + rope), query).native

        # The up-projections of keys and values, head by head: keys as they move onto queries, (C, N); values (P, C).
        name = f"{prefix}kv_b_proj.weight"
        stored = source.fp8(name) if self.weights == "fp8" else None
        key_format = chosen_format(self.weights, nope)
        if self.weights == "fp8" and (nope + value) % FP8_BLOCK:
            key_format = "f32"  # a head's columns would begin inside a block of scales
        k_up = self._new(key_format, latent, nope, count=heads)
        v_up = self._new(chosen_format(self.weights, latent), value, latent, count=heads)
        weight_YC = source.tensor(name) if stored is None else None
        if self.weights == "fp8" and stored is None:
            assert weight_YC is not None
            stored = fp8_format.quantise(weight_YC.float(), block=(FP8_BLOCK, FP8_BLOCK))
        for h in range(heads):
            first = h * (nope + value)
            keys, values = slice(first, first + nope), slice(first + nope, first + nope + value)
            if stored is None:
                assert weight_YC is not None
                k_up.fill(weight_YC[keys].T, h)
                v_up.fill(weight_YC[values], h)
                continue
            code_YC, scale_GJ = stored[0], stored[1]
            if key_format == "fp8":
                k_up.fill_fp8(code_YC[keys].T, scale_GJ.T, h, scale_column=first)
            else:
                wide_YC = fp8_format.dequantise(code_YC, scale_GJ, block=(FP8_BLOCK, FP8_BLOCK), dtype=torch.float32)
                k_up.fill(wide_YC[keys].T, h)
            v_up.fill_fp8(code_YC[values], scale_GJ, h, scale_row=first + nope)
        source.done(name)
        return about | {"k_up": k_up.native, "v_up": v_up.native}

    def _feed_forward(self, prefix: str, layer: int) -> dict[str, Any]:
        config = self.config
        if not config.is_expert_layer(layer):
            return {"experts": 0} | self._dense(prefix, config.intermediate_size)
        assert config.n_routed_experts is not None
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        shared = (config.n_shared_experts or 0) * inner
        about = self._dense(f"{prefix}shared_experts.", shared) if shared else dict(_NO_DENSE)
        gate = self._new("f32", experts, width)
        gate.fill(self._source.tensor(f"{prefix}gate.weight").float())
        about |= {
            "experts": experts,
            "chosen": config.num_experts_per_tok,
            "groups": 1 if config.topk_method == "greedy" else config.n_group,
            "groups_kept": config.topk_group,
            "group_by_two": config.topk_method == "noaux_tc",
            "softmax": config.scoring_func == "softmax",
            "normalise": config.norm_topk_prob,
            "router_scale": config.routed_scaling_factor,
            "router": gate.native,
            "router_bias": self._floats(f"{prefix}gate.e_score_correction_bias") if config.has_router_bias else None,
            "expert_inner": inner,
            "expert_matrices": self._experts(f"{prefix}experts.", experts, width, inner),
        }
        return about

    def _experts(self, prefix: str, experts: int, width: int, inner: int) -> list[tuple[Any, Any, Any, int]]:
        if self._zero_copy:
            found = []
            for e in range(experts):
                parts = [self._matrix(f"{prefix}{e}.{p}_proj.weight", *shape) for p, shape in _parts(inner, width)]
                found.append((parts[0].native, parts[1].native, parts[2].native, 0))
            return found
        gate_up = self._new(chosen_format(self.weights, width), inner, width, count=experts, turns=2)
        down = self._new(chosen_format(self.weights, inner), width, inner, count=experts)
        for e in range(experts):
            self._store(gate_up, f"{prefix}{e}.gate_proj.weight", e, 0)
            self._store(gate_up, f"{prefix}{e}.up_proj.weight", e, 1)
            self._store(down, f"{prefix}{e}.down_proj.weight", e)
        return [(gate_up.native, None, down.native, e) for e in range(experts)]

    def _dense(self, prefix: str, inner: int) -> dict[str, Any]:
        width = self.config.hidden_size
        if self._zero_copy:
            gate, up, down = (self._matrix(f"{prefix}{p}_proj.weight", *shape) for p, shape in _parts(inner, width))
            return {"inner": inner, "gate_up": gate.native, "up": up.native, "down": down.native}
        gate_up = self._new(chosen_format(self.weights, width), inner, width, turns=2)
        self._store(gate_up, f"{prefix}gate_proj.weight", 0, 0)
        self._store(gate_up, f"{prefix}up_proj.weight", 0, 1)
        down = self._matrix(f"{prefix}down_proj.weight", width, inner)
        return {"inner": inner, "gate_up": gate_up.native, "up": None, "down": down.native}

    def _module(self, prefix: str) -> dict[str, Any]:
        """The ends of an MTP module; embedding and head are the main model's unless it brought its own."""
        width, vocabulary = self.config.hidden_size, self.config.vocab_size
        about = self._ends(f"{prefix}shared_head.norm.weight", 1)
        about |= {
            "enorm": self._floats(f"{prefix}enorm.weight"),
            "hnorm": self._floats(f"{prefix}hnorm.weight"),
            "eh_proj": self._matrix(f"{prefix}eh_proj.weight", width, 2 * width, part="eh_proj").native,
        }
        if self._source.has(f"{prefix}embed_tokens.weight"):
            about |= self._table(f"{prefix}embed_tokens.weight")
        own = self.head
        if self._source.has(f"{prefix}shared_head.head.weight"):
            own = self._matrix(f"{prefix}shared_head.head.weight", vocabulary, width, part="head")
            about["head"] = own.native
        self._own_heads.append(own)
        return about

    def _ends(self, norm: str, layers: int) -> dict[str, Any]:
        return self._embedding | {
            "layers": layers,
            "final_norm": self._floats(norm),
            "head": self.head.native,
            "enorm": None,
            "hnorm": None,
            "eh_proj": None,
        }

    # --- tensors ---

    def _new(self, format: str, rows: int, columns: int, *, count: int = 1, turns: int = 1) -> PackedMatrix:
        packed = PackedMatrix(
            format, rows, columns, count=count, turns=turns, isa=self.isa, threads=self._threads
        )  # fmt: skip
        self.bytes += packed.bytes
        return packed

    def _store(self, packed: PackedMatrix, name: str, index: int = 0, part: int = 0) -> None:
        """Fill one matrix from the source, in whatever form source and matrix have it."""
        if packed.format == "fp8":
            stored = self._source.fp8(name)
            if stored is None:
                weight_OI = self._source.tensor(name).float()
                stored = fp8_format.quantise(weight_OI, block=(FP8_BLOCK, FP8_BLOCK))
            packed.fill_fp8(stored[0], stored[1], index, part)
        else:
            packed.fill(self._source.tensor(name), index, part)
        self._source.done(name)

    def _matrix(self, name: str, rows: int, columns: int, *, part: str = "matrix") -> PackedMatrix:
        if self._zero_copy:
            return PackedMatrix.mapped(self._source.tensor(name), isa=self.isa)
        packed = self._new(chosen_format(self.weights, columns, part=part), rows, columns)
        self._store(packed, name)
        return packed

    def _biased(self, name: str, rows: int, columns: int) -> Any:
        packed = self._matrix(f"{name}.weight", rows, columns)
        if self.config.attention_bias:
            packed.set_bias(self._source.tensor(f"{name}.bias"))
        return packed.native

    def _floats(self, name: str) -> tuple[int, Tensor]:
        kept = _kept(self._source.tensor(name))
        self._source.done(name)
        return kept

    def _table(self, name: str) -> dict[str, Any]:
        """An embedding: looked up row by row, so it stays in rows."""
        weight_AD = self._source.tensor(name)
        format = chosen_format(self.weights, self.config.hidden_size, part="embedding")
        if format in quant.BLOCK_FORMATS:
            block = quant.block_format(format)
            rows = torch.empty(len(weight_AD), block.row_bytes(weight_AD.shape[1]), dtype=torch.uint8)
            for first in range(0, len(weight_AD), 4096):
                some = weight_AD[first : first + 4096].float().contiguous()
                rows[first : first + len(some)] = quant.quantise(some, format, threads=self._threads)
        else:
            dtype = torch.float32 if format == "f32" else torch.bfloat16
            format = f"rows_{format}"
            rows = weight_AD.to(dtype).contiguous()
            if rows.data_ptr() == weight_AD.data_ptr() and not self._zero_copy:
                rows = rows.clone()  # the source may go away
        self.bytes += rows.numel() * rows.element_size()
        return {
            "embedding": rows.data_ptr(),
            "embedding_owner": rows,
            "embedding_format": FORMATS[format],
            "embedding_row_bytes": rows.stride(0) * rows.element_size(),
        }


_NO_DENSE: Final = {"inner": 0, "gate_up": None, "up": None, "down": None}


def _parts(inner: int, width: int) -> list[tuple[str, tuple[int, int]]]:
    return [("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner))]


def _kept(tensor: Tensor) -> tuple[int, Tensor]:
    """A float32 copy with room to be read by whole vectors, and its address."""
    values = torch.zeros(-(-tensor.numel() // 16) * 16 + 16)
    values[: tensor.numel()] = tensor.flatten()
    return values.data_ptr(), values
