import pytest
import torch

from cueva.config import PRESETS, model_config
from cueva.engine import CacheFull, CachePool, SequenceCache, bytes_per_token
from cueva.engine.cache import BLOCK
from cueva.errors import RequestError
from tests.builders import PlainCache

TINY = model_config("tiny", num_nextn_predict_layers=2)
CPU = torch.device("cpu")


def new_cache(limit: int = 1000, dtype: torch.dtype = torch.float32) -> SequenceCache:
    return SequenceCache(TINY, limit, dtype=dtype, device=CPU)


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, TINY.kv_lora_rank, generator=generator),
        torch.randn(count, TINY.qk_rope_head_dim, generator=generator),
    )


def test_a_position_costs_the_published_number_of_bytes() -> None:
    assert bytes_per_token(PRESETS["v3-671b"], torch.bfloat16) == 70_272
    assert bytes_per_token(PRESETS["v2-lite-16b"], torch.bfloat16) == 31_104
    assert bytes_per_token(TINY, torch.float32) == TINY.cache_values_per_token * 4


def test_the_cache_holds_latent_and_rotary_key_and_nothing_else() -> None:
    cache = new_cache()
    for layer in range(TINY.num_hidden_layers):
        for _ in range(BLOCK):
            cache.append(layer, *rows(1))
    assert cache.allocated_bytes == BLOCK * bytes_per_token(TINY, torch.float32)


def test_rows_come_back_as_they_went_in_through_growth_and_truncation() -> None:
    cache, plain = new_cache(), PlainCache()
    generator = torch.Generator().manual_seed(5)
    for turn in range(200):
        layer = turn % 5
        count = int(torch.randint(1, 12, (1,), generator=generator))
        for one in (cache, plain):
            one.append(layer, *rows(count, seed=turn))
        if turn % 3 == 0:
            for one in (cache, plain):
                one.truncate(layer, max(one.length(layer) - 4, 0))
        assert cache.length(layer) == plain.length(layer)
        assert torch.equal(cache.rows(layer, cache.length(layer)), plain.rows(layer, plain.length(layer)))


def test_memory_is_taken_in_blocks_and_never_beyond_the_grant() -> None:
    cache, copies, address = new_cache(limit=500), 0, 0
    for _ in range(500):
        cache.append(0, *rows(1))
        copies += cache.rows(0, 1).data_ptr() != address
        address = cache.rows(0, 1).data_ptr()
    assert copies <= 8
    assert cache.allocated_bytes == 500 * (TINY.kv_lora_rank + TINY.qk_rope_head_dim) * 4


def test_more_rows_than_granted_are_refused_with_both_numbers_and_change_nothing() -> None:
    cache = new_cache(limit=3)
    cache.append(0, *rows(2))
    with pytest.raises(CacheFull, match=r"^4 positions do not fit in the 3 that"):
        cache.append(0, *rows(2))
    assert cache.length(0) == 2
    assert issubclass(CacheFull, RequestError)


def test_one_budget_limits_all_sequences_together() -> None:
    pool = CachePool(TINY, 100, dtype=torch.float32, device=CPU)
    first, second = pool.open(60), pool.open(40)
    assert first is not None
    assert second is not None
    assert pool.free == 0
    assert pool.open(1) is None
    pool.close(first)
    pool.close(first)  # twice is once
    assert pool.free == 60
    assert pool.open(61) is None
    assert pool.open(60) is not None


def test_what_no_waiting_can_help_is_refused_with_both_numbers() -> None:
    pool = CachePool(TINY, 100, dtype=torch.float32, device=CPU)
    with pytest.raises(RequestError, match=r"needs 101 positions of cache, but this engine holds 100") as refused:
        pool.open(101)
    assert refused.value.way_out is not None
    assert "cache_tokens=101" in refused.value.way_out
    with pytest.raises(RequestError, match="cache_tokens is 0"):
        CachePool(TINY, 0, dtype=torch.float32, device=CPU)
