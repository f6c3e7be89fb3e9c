"""DeepSeek-V2: V2, V2-Lite, V2.5, Coder-V2 and other models of `model_type: deepseek_v2`.

Softmax scores, no balance bias, no MTP modules. Defaults are those of `DeepseekV2Config` in the published
`configuration_deepseek.py` (deepseek-ai/DeepSeek-V2), where the default `topk_method` is misspelt ("gready").
"""

from typing import Final

from cueva.checkpoint.families.family import Departure, Family
from cueva.config import ModelConfig


def departures(config: ModelConfig) -> list[Departure]:
    """List what readers of this family ignore or lack."""
    found: list[Departure] = []
    if config.hidden_size % config.num_attention_heads:
        found.append(
            Departure(
                "hidden_size",
                f"is {config.hidden_size}, not a multiple of the {config.num_attention_heads} heads, which "
                f"`transformers` "
                "demands of deepseek_v2",
                silent=False,
            )
        )
    if not config.rope_interleave:
        found.append(
            Departure(
                "rope_interleave",
                "is false, but other readers of deepseek_v2 always turn adjacent pairs",
                silent=True,
            )
        )
    if config.num_nextn_predict_layers:
        found.append(
            Departure(
                "num_nextn_predict_layers",
                f"is {config.num_nextn_predict_layers}, but other readers of deepseek_v2 leave the MTP modules out",
                silent=False,
            )
        )
    if config.n_routed_experts is None:
        found.append(
            Departure(
                "n_routed_experts",
                "is null (no expert layer): DeepSeek's own code reads it so, but `transformers` needs a number",
                silent=False,
            )
        )
        return found
    if config.scoring_func != "softmax":
        found.append(
            Departure(
                "scoring_func",
                f"is {config.scoring_func!r}, but other readers of deepseek_v2 take softmax whatever it says",
                silent=True,
            )
        )
    if config.topk_method == "noaux_tc":
        found.append(
            Departure(
                "topk_method", "is 'noaux_tc', but other readers of deepseek_v2 know no balance bias", silent=True
            )
        )
    if config.norm_topk_prob:
        found.append(
            Departure(
                "norm_topk_prob",
                "is true, but of the other readers of deepseek_v2 some never normalise and some then do not scale",
                silent=True,
            )
        )
    return found


FAMILY: Final = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    defaults={
        "vocab_size": 102_400,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "moe_intermediate_size": 1407,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": None,
        "n_shared_experts": None,
        "num_experts_per_tok": 0,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "first_k_dense_replace": 0,
        "max_position_embeddings": 2048,
        "bos_token_id": 100_000,
        "eos_token_id": 100_001,
    },
    departures=departures,
    aliases={"num_experts": "n_routed_experts", "num_mtp_layers": "num_nextn_predict_layers"},
)
