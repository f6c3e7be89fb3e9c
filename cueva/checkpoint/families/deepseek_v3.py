"""DeepSeek-V3: V3, V3-0324, V3.1, R1, Moonlight and other models of `model_type: deepseek_v3`.

Defaults are those of `DeepseekV3Config` in the published `configuration_deepseek.py` (deepseek-ai/DeepSeek-V3), which
`transformers` shares. `num_nextn_predict_layers` is an exception: its default of 1 is contradicted by published
directories without MTP tensors, so a reader asks the tensors.
"""

from typing import Final

from cueva.checkpoint.families.family import Departure, Family
from cueva.config import ModelConfig


def departures(config: ModelConfig) -> list[Departure]:
    """List what readers of this family ignore or lack."""
    found: list[Departure] = []
    if config.n_routed_experts is None:
        # The router keys say nothing then.
        return [
            Departure(
                "n_routed_experts",
                "is null (no expert layer): DeepSeek's own code reads it so, but `transformers` needs a number",
                silent=False,
            )
        ]
    if config.scoring_func != "sigmoid":
        found.append(
            Departure(
                "scoring_func",
                f"is {config.scoring_func!r}, but other readers of deepseek_v3 take sigmoid whatever it says",
                silent=True,
            )
        )
    if config.topk_method != "noaux_tc":
        found.append(
            Departure(
                "topk_method",
                f"is {config.topk_method!r}, but other readers of deepseek_v3 always choose with a bias and by a "
                f"group's two best "
                "experts (noaux_tc)",
                silent=True,
            )
        )
    elif config.n_routed_experts // config.n_group < 2:
        found.append(
            Departure(
                "n_routed_experts",
                "leaves one expert in a group, but `transformers` scores a group by its two best experts and fails",
                silent=False,
            )
        )
    return found


FAMILY: Final = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    defaults={
        "vocab_size": 129_280,
        "hidden_size": 7168,
        "intermediate_size": 18_432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    departures=departures,
    aliases={"num_local_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
)
