"""Greedy text of the native engine is PyTorch's, token for token, with any number of drafts.

Two engines sum in different orders, so they may part where the best two logits, or the scores of two experts, lie
within 1e-3 of each other; from there on their texts are different texts. Each parting is looked up: it has to be at
such a place, and most of the text has to come before any.
"""

from collections.abc import Sequence

import pytest
import torch

from cueva.config import model_config
from cueva.engine import Engine, Sampling
from cueva.kernels import native
from cueva.model import CausalLM
from tests.builders import random_ids, tiny_model
from tests.engine.doubles import force_drafts
from tests.engine.native_models import ISAS, choices_are_clear

pytestmark = pytest.mark.skipif(native.extension() is None, reason="the native kernels were not built")

NEW = 250
PROMPTS = {"671B switches": 8, "no query latent, softmax": 2}
"""Prompts for each model: 2,000 tokens of the first, 500 of the second."""
NEAR = 1e-3
MODELS = tuple(PROMPTS)
_KEPT: dict[str, tuple[CausalLM, list[list[int]], list[list[int]]]] = {}


def model_of(kind: str) -> CausalLM:
    config = model_config("tiny", max_position_embeddings=400, num_nextn_predict_layers=2)
    if kind == MODELS[0]:
        return tiny_model(config)
    return tiny_model(
        model_config(
            "tiny", max_position_embeddings=400, q_lora_rank=None, scoring_func="softmax", topk_method="greedy",
            n_group=1, topk_group=1, norm_topk_prob=False, num_hidden_layers=2,
        )
    )  # fmt: skip


def by_pytorch(kind: str) -> tuple[CausalLM, list[list[int]], list[list[int]]]:
    """A model, prompts of several lengths, and what the plain engine says to them; computed once."""
    if kind not in _KEPT:
        model = model_of(kind)
        prompts = [random_ids(model.config, 3 + 9 * i, seed=i).tolist() for i in range(PROMPTS[kind])]
        engine = Engine(model, backend="torch", weights="f32", prefill_chunk=32)
        _KEPT[kind] = model, prompts, texts(engine, prompts, 0)
    return _KEPT[kind]


def texts(engine: Engine, prompts: Sequence[list[int]], draft: int) -> list[list[int]]:
    answers = engine.generate(prompts, Sampling(max_new_tokens=NEW, temperature=0, ignore_eos=True), draft=draft)
    return [list(answer.token_ids) for answer in answers]


def first_near_step(model: CausalLM, prompt: list[int], answer: list[int]) -> int:
    """The first token of an answer that is decided by less than `NEAR`, or follows such a choice of an expert."""
    ids = torch.tensor([*prompt, *answer])
    with torch.inference_mode():
        best_T2 = model(ids[None]).logits[0, len(prompt) - 1 : -1].topk(2, -1).values
    near = ((best_T2[:, 0] - best_T2[:, 1]) < NEAR).nonzero()
    first = int(near[0]) if len(near) else len(answer)
    low, high = 0, first  # a step follows all choices made for tokens before it
    while low < high:
        middle = (low + high) // 2
        if choices_are_clear(model, [ids[: len(prompt) + middle]], gap=NEAR):
            low = middle + 1
        else:
            high = middle
    return low


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("isa", ISAS)
def test_greedy_text_is_pytorchs(kind: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUEVA_ISA", isa)
    model, prompts, wanted = by_pytorch(kind)
    engine = Engine(model, backend="native", weights="f32", threads=1, prefill_chunk=32)
    same = 0
    for prompt, ours, theirs in zip(prompts, texts(engine, prompts, 0), wanted, strict=True):
        assert len(ours) == len(theirs) == NEW
        parting = next((step for step in range(NEW) if ours[step] != theirs[step]), NEW)
        same += parting
        if parting < NEW:
            assert first_near_step(model, prompt, theirs) <= parting, "they part where nothing is near"
    assert same > 0.9 * len(prompts) * NEW


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("draft", [1, 2, 3])
def test_greedy_text_is_the_same_with_drafts(kind: str, draft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the token, whatever is near: verification has the bits of decoding. The third draft recycles a module.

    Modules with random weights are hardly ever right, so a seeded coin makes seven drafts of ten so.
    """
    model, prompts, _ = by_pytorch(kind)
    engine = Engine(model, backend="native", weights="f32", threads=1, prefill_chunk=32)
    plain = texts(engine, prompts, 0)
    force_drafts(monkeypatch, [[*prompt, *answer] for prompt, answer in zip(prompts, plain, strict=True)], 0.7)
    answers = engine.generate(prompts, Sampling(max_new_tokens=NEW, temperature=0, ignore_eos=True), draft=draft)
    assert [list(answer.token_ids) for answer in answers] == plain
    for answer in answers:
        assert len(answer.stats.drafted) == draft
        assert 0.5 < answer.stats.accepted[0] / answer.stats.drafted[0] < 0.9


@pytest.mark.parametrize("weights", ["bf16", "fp8", "q8_0", "q4_0", "q4_k"])
def test_greedy_text_is_the_same_with_drafts_in_every_format(weights: str) -> None:
    model, prompts, _ = by_pytorch(MODELS[0])
    engine = Engine(model, backend="native", weights=weights, threads=1, prefill_chunk=32)
    sampling = Sampling(max_new_tokens=40, temperature=0, ignore_eos=True)
    plain = [answer.token_ids for answer in engine.generate(prompts, sampling, draft=0)]
    for draft in (1, 3):
        assert [answer.token_ids for answer in engine.generate(prompts, sampling, draft=draft)] == plain
    alone = [engine.generate([prompt], sampling, draft=2)[0].token_ids for prompt in prompts[:3]]
    assert alone == plain[:3]
