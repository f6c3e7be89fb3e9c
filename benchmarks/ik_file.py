"""A GGUF file as ik_llama.cpp likes it best, from one that llama.cpp reads.

llama.cpp's files hold the key/value up-projection in two parts (`attn_k_b`, `attn_v_b`). ik_llama.cpp opens such files
for a few widths only, and then without its better attention for prompts (`-mla 3`). Files of its own converter hold the
whole matrix (`attn_kv_b`) and describe the expanded heads; it makes the two parts itself when it loads them. Everything
else is copied as it is, so both files hold the same weights.

Source: the loading of `deepseek2` in ik_llama.cpp (`src/llama-hparams.cpp`), and its pull request 394.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from cueva.config import ModelConfig
from cueva.kernels.quant import BLOCK_FORMATS, quantise
from cueva.model import CausalLM
from cueva.model.block import Block


def write_ik_file(model: CausalLM, source: Path, target: Path) -> None:
    """Copy a GGUF file and put `attn_kv_b` in the place of `attn_k_b` and `attn_v_b`.

    Args:
        model: whose weights the file holds.
        source: of llama.cpp's kind.
        target: the file to write.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    new = target.with_name(f".{target.name}.new")
    writer = gguf.GGUFWriter(new, "deepseek2")
    changed = _changed(model.config)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = field.types[0], field.contents()
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, changed.get(name, value), kind)
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_v_b.weight"):
            continue
        name, data, kind = tensor.name, tensor.data, tensor.tensor_type
        if name.endswith("attn_k_b.weight"):
            data = _up_projection(model, int(name.split(".")[1]), kind.name.lower())
            name = name.replace("attn_k_b", "attn_kv_b")
        writer.add_tensor(name, np.ascontiguousarray(data).view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    new.replace(target)


def _changed(config: ModelConfig) -> dict[str, int]:
    return {
        "deepseek2.attention.head_count_kv": config.num_attention_heads,
        "deepseek2.attention.key_length": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "deepseek2.attention.value_length": config.v_head_dim,
    }


def _up_projection(model: CausalLM, layer: int, type: str) -> Any:
    block = model.model.layers[layer]
    assert isinstance(block, Block)
    weight_YC = block.self_attn.kv_b_proj.weight.detach()
    if type in BLOCK_FORMATS:
        return quantise(weight_YC, type).numpy()
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[type]
    return weight_YC.to(dtype).contiguous().view(torch.uint8).numpy()
