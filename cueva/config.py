"""The shape of a model: the keys of a published `config.json`, what follows from them, and named presets.

Field names are the published keys, so that a config file needs no dictionary; each carries the letter that tensor names
use for it (`docs/architecture.md` lists the letters). Whatever follows from a field is a property, never a second
field. Where families of this architecture differ, the difference is a field with a value: nothing is guessed from a
layer count.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cueva.errors import ConfigError, nearest

LATENT_NORM_EPS: Final = 1e-6
"""Epsilon of `q_a_layernorm` and `kv_a_layernorm`, whatever `rms_norm_eps` says.

The published remote code builds these two norms without passing `rms_norm_eps` on; weights with 1e-5 elsewhere
(Moonlight, Kimi-K2) reproduce only so.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """YaRN, the only scaling this family uses (arXiv:2309.00071; DeepSeek-V3 report, section 4.3)."""

    factor: float
    """How many times longer than the original context (s)."""
    original_max_position_embeddings: int
    """The context before stretching (T0), in positions."""
    beta_fast: float = 32.0
    """Pairs that turn more often than this within T0 keep their frequency."""
    beta_slow: float = 1.0
    """Pairs that turn less often than this are stretched by the whole factor."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    """An explicit factor on cos and sin; when absent it follows from the two `mscale` keys."""
    truncate: bool = True
    """Round the two borders between kept and stretched pairs outwards to whole pairs."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(
                f"`rope_scaling.factor` is {self.factor}, but a context can only be stretched: give 1 or more"
            )
        if self.original_max_position_embeddings < 1:
            raise ConfigError(
                f"`rope_scaling.original_max_position_embeddings` is {self.original_max_position_embeddings}; "
                "give the number of positions the model was trained with"
            )
        if self.beta_fast <= self.beta_slow:
            raise ConfigError(
                f"`rope_scaling.beta_fast` ({self.beta_fast}) must be larger than `beta_slow` ({self.beta_slow})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a model. Every other size in cueva is derived from these fields.

    Raises:
        ConfigError: the fields do not describe a model; the message names the key, the value and what would fit.
    """

    model_type: Literal["deepseek_v3", "deepseek_v2"] = "deepseek_v3"
    """The family whose file format the model is written in."""
    vocab_size: int
    """Tokens in the vocabulary (A). May exceed the tokenizer's own length."""
    hidden_size: int
    """Model width (D)."""
    intermediate_size: int
    """Width of a dense feed-forward (I)."""
    moe_intermediate_size: int = 0
    """Width of one expert (F)."""
    num_hidden_layers: int
    """Main layers (L). MTP modules come after and are not counted."""
    num_nextn_predict_layers: int = 0
    """Multi-token-prediction modules (depths)."""
    num_attention_heads: int
    """Attention heads (H). MLA has no grouped heads, so `num_key_value_heads` is always the same."""
    q_lora_rank: int | None = None
    """Width of the query latent (Q); None: one `q_proj` makes the queries directly."""
    kv_lora_rank: int
    """Width of the key/value latent (C)."""
    qk_nope_head_dim: int
    """Width of a head's query and key without rotary position (N)."""
    qk_rope_head_dim: int
    """Width of a head's query, and of the one shared key, with rotary position (R)."""
    v_head_dim: int
    """Width of a head's value (P)."""
    n_routed_experts: int | None = None
    """Routed experts of an expert layer (E); None: every layer is dense."""
    n_shared_experts: int | None = None
    """Experts that see every token, computed as one feed-forward of this many times F; None: there are none."""
    num_experts_per_tok: int = 0
    """Experts chosen for a token (K)."""
    n_group: int = 1
    """Groups that consecutive experts form (G)."""
    topk_group: int = 1
    """Groups a token may reach (M)."""
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    """How a router logit becomes a score."""
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"] = "noaux_tc"
    """`noaux_tc`: a bias decides who is chosen, a group counts by its two best; `group_limited_greedy`: no bias, a
    group
    counts by its best; `greedy`: neither bias nor groups."""
    norm_topk_prob: bool = True
    """Divide a token's K weights by their sum."""
    routed_scaling_factor: float = 1.0
    """Multiplies a token's weights last."""
    first_k_dense_replace: int = 0
    """Layers 0 .. n-1 are dense. MTP blocks are always expert layers when there are experts."""
    rms_norm_eps: float = 1e-6
    """Epsilon of every norm but the two on the latents."""
    attention_bias: bool = False
    """Biases on `q_a_proj`, `kv_a_proj_with_mqa` and `o_proj`."""
    max_position_embeddings: int = 4096
    """Positions the model claims."""
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_interleave: bool = True
    """Rotary on adjacent pairs (published weights) rather than on halves."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights. The report trained with 0.006; published files say 0.02."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] | None = 1
    pad_token_id: int | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
    """Keys of a published file that do not touch the arithmetic, or that we do not know: kept and written back."""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_router()

    def _check_sizes(self) -> None:
        positive = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        widths = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "max_position_embeddings")
        for key in positive + widths:
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"`{key}` is {value!r}, but it must be a whole number of at least 1")
        for key in ("num_nextn_predict_layers", "first_k_dense_replace"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"`{key}` is {value!r}, but it must be a whole number of at least 0")
        if self.q_lora_rank is not None and self.q_lora_rank < 1:
            raise ConfigError(f"`q_lora_rank` is {self.q_lora_rank}; give a width of at least 1, or null for none")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"`qk_rope_head_dim` is {self.qk_rope_head_dim}, but rotary positions turn pairs: "
                f"{self.qk_rope_head_dim - 1} or {self.qk_rope_head_dim + 1} would fit"
            )
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ConfigError(
                f"`first_k_dense_replace` is {self.first_k_dense_replace}, but there are only "
                f"{self.num_hidden_layers} layers (`num_hidden_layers`)"
            )
        for key in ("rms_norm_eps", "rope_theta", "routed_scaling_factor", "initializer_range"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"`{key}` is {getattr(self, key)!r}, but it must be larger than 0")

    def _check_router(self) -> None:
        if self.n_routed_experts is None:
            return
        experts, groups, kept, chosen = self.n_routed_experts, self.n_group, self.topk_group, self.num_experts_per_tok
        for key in ("n_routed_experts", "moe_intermediate_size", "num_experts_per_tok", "n_group", "topk_group"):
            if getattr(self, key) < 1:
                raise ConfigError(f"`{key}` is {getattr(self, key)}, but an expert layer needs at least 1")
        if self.n_shared_experts is not None and self.n_shared_experts < 0:
            raise ConfigError(f"`n_shared_experts` is {self.n_shared_experts}; give a count, or null for none")
        if experts % groups:
            raise ConfigError(
                f"{experts} experts cannot be split into {groups} equal groups; "
                f"choose a divisor of {experts} for `n_group`"
            )
        if groups > 1 and self.topk_method == "noaux_tc" and experts // groups < 2:
            raise ConfigError(
                f"`n_group` {groups} leaves one expert in a group, but a group is scored by its two best experts; "
                f"`n_group` of at most {experts // 2} would fit"
            )
        if kept > groups:
            raise ConfigError(f"`topk_group` keeps {kept} groups, but `n_group` makes only {groups}")
        reachable = experts if self.topk_method == "greedy" else kept * experts // groups
        if chosen > reachable:
            raise ConfigError(
                f"`num_experts_per_tok` is {chosen}, but a token can reach only {reachable} experts "
                f"({kept} of {groups} groups of {experts // groups}); lower it, or raise `topk_group`"
            )

    # --- what follows -------------------------------------------------------------------------------------------------

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's whole query (X = N + R)."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def has_router_bias(self) -> bool:
        """Whether gates carry `e_score_correction_bias`."""
        return self.topk_method == "noaux_tc"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end tokens, as a tuple whatever the file says."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    def is_expert_layer(self, layer: int) -> bool:
        """Whether layer `layer` routes; layers from `num_hidden_layers` on are MTP blocks."""
        return self.n_routed_experts is not None and layer >= min(self.first_k_dense_replace, self.num_hidden_layers)

    @property
    def gate_count(self) -> int:
        """Routers in the model, MTP blocks included; also the number of balance biases, when there are any."""
        layers = self.num_hidden_layers + self.num_nextn_predict_layers
        return sum(self.is_expert_layer(layer) for layer in range(layers))

    @property
    def cache_values_per_token(self) -> int:
        """Numbers cached for one position, main layers together; times the item size for bytes."""
        return self.num_hidden_layers * (self.kv_lora_rank + self.qk_rope_head_dim)

    @property
    def attention_parameters(self) -> int:
        """Weights of one attention, its two latent norms included (no biases)."""
        d, heads = self.hidden_size, self.num_attention_heads
        if self.q_lora_rank is None:
            query = d * heads * self.qk_head_dim
        else:
            query = self.q_lora_rank * (d + 1 + heads * self.qk_head_dim)
        latent = d * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank
        raised = self.kv_lora_rank * heads * (self.qk_nope_head_dim + self.v_head_dim)
        bias = 0
        if self.attention_bias:
            bias = (self.q_lora_rank or 0) + self.kv_lora_rank + self.qk_rope_head_dim + d
        return query + latent + raised + heads * self.v_head_dim * d + bias

    def layer_parameters(self, layer: int, *, active: bool = False) -> int:
        """Weights of one layer; `active`: only those a token meets (K experts of E). The balance bias is a buffer."""
        fixed = self.attention_parameters + 2 * self.hidden_size
        if not self.is_expert_layer(layer):
            return fixed + 3 * self.hidden_size * self.intermediate_size
        assert self.n_routed_experts is not None
        expert = 3 * self.hidden_size * self.moe_intermediate_size
        routed = self.num_experts_per_tok if active else self.n_routed_experts
        return fixed + (routed + (self.n_shared_experts or 0)) * expert + self.n_routed_experts * self.hidden_size

    def parameters(self, *, active: bool = False) -> int:
        """Weights of the main model, embedding and head included, MTP modules not."""
        ends = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size
        return ends + sum(self.layer_parameters(layer, active=active) for layer in range(self.num_hidden_layers))

    def mtp_parameters(self, *, active: bool = False) -> int:
        """Weights of one MTP module: its block, three norms, the projection; embedding and head are not its own."""
        own = 3 * self.hidden_size + 2 * self.hidden_size**2
        return own + self.layer_parameters(self.num_hidden_layers, active=active)

    @property
    def router_bias_values(self) -> int:
        """Values of all balance biases of the main model."""
        if not self.has_router_bias or self.n_routed_experts is None:
            return 0
        return self.n_routed_experts * sum(self.is_expert_layer(layer) for layer in range(self.num_hidden_layers))


def model_config(preset: str, **changes: Any) -> ModelConfig:
    """Take a preset by name and change some keys.

    Raises:
        ConfigError: no such preset or key, or the changed shape does not fit; names what exists.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}; the presets are: {', '.join(PRESETS)}")
    known = [f.name for f in dataclasses.fields(ModelConfig)]
    for key in changes:
        if key not in known:
            raise ConfigError(f"there is no model key {key!r}{nearest(key, known)}")
    if isinstance(changes.get("rope_scaling"), Mapping):
        changes["rope_scaling"] = RopeScaling(**changes["rope_scaling"])
    return dataclasses.replace(PRESETS[preset], **changes)


# The YaRN of every published 671B file (DeepSeek-V3 report, section 4.3).
_YARN_V3: Final = RopeScaling(
    factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=1.0
)

PRESETS: Final[Mapping[str, ModelConfig]] = {
    # The model of most tests: every mechanism present, nothing larger than it must be.
    "tiny": ModelConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_nextn_predict_layers=1,
        num_attention_heads=2,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        max_position_embeddings=256,
    ),
    # The quickstart's model: ten million parameters, of which a token meets a quarter, so that minutes on two CPU cores
    # are enough to teach it to write. Narrower and shallower than the report would scale; measured, not derived.
    "pocket": ModelConfig(
        vocab_size=4096,
        hidden_size=160,
        intermediate_size=448,
        moe_intermediate_size=96,
        num_hidden_layers=4,
        num_nextn_predict_layers=1,
        num_attention_heads=4,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=40,
        n_shared_experts=1,
        num_experts_per_tok=4,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        max_position_embeddings=1024,
        # The report's 0.006 suits a width of 7168; a narrow model starts faster with the published files' 0.02.
        initializer_range=0.02,
    ),
    # Half a day on a workstation: the same proportions at ten times the size.
    "small": ModelConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        moe_intermediate_size=256,
        num_hidden_layers=8,
        num_nextn_predict_layers=1,
        num_attention_heads=8,
        q_lora_rank=256,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=32,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        first_k_dense_replace=1,
        max_position_embeddings=2048,
        initializer_range=0.006,
    ),
    # The published config.json of DeepSeek-V2-Lite; DeepSeek-V2 report (arXiv:2405.04434), appendix B.
    "v2-lite-16b": ModelConfig(
        model_type="deepseek_v2",
        vocab_size=102_400,
        hidden_size=2048,
        intermediate_size=10_944,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        scoring_func="softmax",
        topk_method="greedy",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        first_k_dense_replace=1,
        max_position_embeddings=163_840,
        rope_scaling=dataclasses.replace(_YARN_V3, mscale=0.707, mscale_all_dim=0.707),
        bos_token_id=100_000,
        eos_token_id=100_001,
    ),
    # The published config.json of Moonlight-16B-A3B-Instruct (arXiv:2502.16982).
    "moonlight-16b": ModelConfig(
        vocab_size=163_840,
        hidden_size=2048,
        intermediate_size=11_264,
        moe_intermediate_size=1408,
        num_hidden_layers=27,
        num_attention_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        routed_scaling_factor=2.446,
        first_k_dense_replace=1,
        rms_norm_eps=1e-5,
        max_position_embeddings=8192,
        rope_theta=50_000.0,
        bos_token_id=163_584,
        eos_token_id=163_586,
    ),
    # DeepSeek-V3 report, section 4.2, and the published config.json of DeepSeek-V3.
    "v3-671b": ModelConfig(
        vocab_size=129_280,
        hidden_size=7168,
        intermediate_size=18_432,
        moe_intermediate_size=2048,
        num_hidden_layers=61,
        num_nextn_predict_layers=1,
        num_attention_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        first_k_dense_replace=3,
        max_position_embeddings=163_840,
        rope_scaling=_YARN_V3,
        bos_token_id=0,
        eos_token_id=1,
    ),
}
