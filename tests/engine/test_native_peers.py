"""The native engine beside llama.cpp, on the same quantised weights."""

from pathlib import Path

import pytest
import torch

from cueva.checkpoint.gguf import write_gguf
from cueva.engine.native import ModuleWeights, NativeModel, NativeRunner
from cueva.engine.passes import Work
from tests.checkpoint.test_gguf import llama, llama_logits, mean_difference, wide_model


@pytest.mark.peer
@pytest.mark.parametrize("weights", ["f32", "q8_0", "q4_0", "q4_k"])
def test_the_same_file_means_the_same_model(weights: str, tmp_path: Path) -> None:
    """Both round activations to bytes, with scales of their own; ours stays as near to the unrounded model as theirs.

    Where they round, the model is dense: a router whose choice a rounding moves would drown what is compared.
    """
    pytest.importorskip("llama_cpp")
    experts = {} if weights == "f32" else {"n_routed_experts": None}
    model = wide_model(hidden_size=256, num_hidden_layers=2, **experts)
    write_gguf(model, tmp_path / "model.gguf", weights)
    ids_T = torch.randint(3, model.config.vocab_size, (96,), generator=torch.Generator().manual_seed(5))
    with llama(tmp_path / "model.gguf") as opened:
        theirs_TA = llama_logits(opened, ids_T)
    runner = NativeRunner(NativeModel(ModuleWeights(model), weights, threads=1), threads=1, prefill_chunk=128)
    (done,) = runner.decode([Work(runner.new_cache(96), ids_T.tolist())])
    ours_TA = torch.from_numpy(done.logits_NA)
    # Prompt rows meet the same stored weights with activations as they are.
    unrounded_TD = runner.prefill(runner.new_cache(96), ids_T.tolist())
    unrounded_TA = runner.model.head.linear(unrounded_TD, prefill=True)
    apart, ours, theirs = (
        mean_difference(one, other)
        for one, other in ((ours_TA, theirs_TA), (ours_TA, unrounded_TA), (theirs_TA, unrounded_TA))
    )
    print(f"\n{weights}: |difference of log-probabilities| {apart:.2e}, to unrounded {ours:.2e} and {theirs:.2e} nats")
    if weights == "f32":
        assert apart < 1e-4
    else:
        assert ours < 1.1 * theirs
        assert apart < ours + theirs
