"""A row has the same bits whatever is computed beside it, and memory that a step did not write is not read.

This is what makes speculation exact: a token under verification, in company, on any number of threads, has the bits of
the same token decoded alone. The base of every comparison is a sequence decoded row by row on one thread.
"""

import ctypes
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cueva.config import model_config
from cueva.engine.native import NativeRunner, PagedCache
from cueva.engine.passes import Work
from cueva.kernels import native
from tests.builders import tiny_model
from tests.engine.native_models import FORMATS, ISAS, ids_for, in_small, poisoned_cache, rows_for, run, runner_of

pytestmark = pytest.mark.skipif(native.extension() is None, reason="the native kernels were not built")
every_isa = pytest.mark.parametrize("isa", ISAS)
every_format = pytest.mark.parametrize("weights", FORMATS)

HELD, ROWS = 70, 30
"""Rows of a prompt, which end behind a page, and rows decoded after them."""
_KEPT: dict[Any, Any] = {}


def config_for(weights: str) -> Any:
    """The 671B model's switches in small; widths in whole blocks where a format has those."""
    if weights == "f32":
        return in_small("v3-671b")
    width = 256 if weights == "q4_k" else 128 if weights == "fp8" else 64
    return replace(in_small("v3-671b"), hidden_size=width, kv_lora_rank=64, qk_nope_head_dim=32, v_head_dim=32)


class Base:
    """A sequence after a prompt, and its rows decoded one by one on one thread."""

    def __init__(self, weights: str, isa: str):
        self.runner = runner_of(tiny_model(config_for(weights), std=0.15), weights, isa=isa)
        self.ids = ids_for(self.runner.config, HELD + ROWS, seed=1)
        self.others = [ids_for(self.runner.config, 300, seed=seed) for seed in (2, 3)]
        cache = self.after_prompt()
        self.state_TD, self.logits_TA = run(self.runner, cache, self.ids[HELD:], [(False, 1)] * ROWS)
        self.rows = rows_of(cache)

    def after_prompt(self) -> PagedCache:
        cache = poisoned_cache(self.runner, 300)
        run(self.runner, cache, self.ids[:HELD], [(True, 64), (True, HELD - 64)])
        return cache

    def other(self, which: int, held: int) -> PagedCache:
        cache = poisoned_cache(self.runner, 300)
        if held:
            run(self.runner, cache, self.others[which][:held], [(True, held)])
        return cache

    def company(self, which: int, held: int, rows: int) -> list[Work]:
        """Rows of another sequence, which holds some already; none for none."""
        ids = self.others[which][held : held + rows].tolist()
        return [rows_for(self.other(which, held), ids)] if rows else []


def base(weights: str, isa: str) -> Base:
    if (weights, isa) not in _KEPT:
        _KEPT[weights, isa] = Base(weights, isa)
    found: Base = _KEPT[weights, isa]
    found.runner.threads = 1
    return found


def rows_of(cache: PagedCache) -> Tensor:
    """Everything that the main layers' caches hold."""
    return torch.stack([cache.rows(layer, cache.length(layer)) for layer in range(cache._main)])


# --- beside other rows ------------------------------------------------------------------------------------------------


@every_isa
@every_format
def test_a_row_has_the_bits_of_decoding_it_alone(isa: str, weights: str) -> None:
    """However its sequence is cut, whatever other sequences decode before and behind it, beside any prompts."""

    @settings(max_examples=6)
    @given(
        cuts=st.lists(st.integers(1, ROWS), min_size=1, max_size=4),
        before=st.integers(0, 40),
        behind=st.integers(0, 40),
        prompt=st.integers(0, 50),
        held=st.integers(0, 200),
        threads=st.sampled_from([1, 1, 3, 4]),
    )
    def check(cuts: list[int], before: int, behind: int, prompt: int, held: int, threads: int) -> None:
        here = base(weights, isa)
        runner, cache = here.runner, here.after_prompt()
        runner.threads = threads
        states, logits, done = [], [], 0
        for count in [*cuts, ROWS]:
            count = min(count, ROWS - done)
            if not count:
                break
            own = rows_for(cache, here.ids[HELD + done : HELD + done + count])
            work = [*here.company(0, held, before), own, *here.company(1, held, behind), *here.company(0, held, prompt)]
            flags = [False] * (1 + (before > 0) + (behind > 0)) + [True] * (prompt > 0)
            place = before
            total = sum(len(item.ids) for item in work)
            runner.model.plan.poison()
            state_TD, logits_TA = runner.step(0, work, np.arange(total, dtype=np.int32), prefill=flags)
            states.append(state_TD[place : place + count])
            logits.append(torch.from_numpy(logits_TA)[place : place + count])
            done += count
        assert torch.equal(torch.cat(states), here.state_TD)
        assert torch.equal(torch.cat(logits), here.logits_TA)
        assert torch.equal(rows_of(cache), here.rows)

    check()


@every_isa
@every_format
def test_a_prompt_has_the_same_bits_in_any_company_on_any_number_of_threads(isa: str, weights: str) -> None:
    """Chunks begin at fixed places; what decodes before it and which prompts come behind it does not matter."""
    here = base(weights, isa)
    ids = here.others[0][:90]
    alone = poisoned_cache(here.runner, 300)
    state_TD, logits_TA = run(here.runner, alone, ids, [(True, 64), (True, 64)])
    for threads, company in [(1, True), (3, False), (4, True)]:
        here.runner.threads = threads
        cache, states, logits = poisoned_cache(here.runner, 300), [], []
        for start, stop in [(0, 64), (64, 90)]:
            work = [rows_for(cache, ids[start:stop])]
            flags, first = [True], 0
            if company:
                decoded = rows_for(here.other(1, 20), here.ids[:7])
                work = [decoded, rows_for(here.other(0, 5), [3]), *work, rows_for(here.other(0, 33), [9] * 50)]
                flags, first = [False, False, True, True], 8
            rows = np.arange(first, first + stop - start, dtype=np.int32)
            here.runner.model.plan.poison()
            out_TD, out_TA = here.runner.step(0, work, rows, prefill=flags)
            states.append(out_TD[first : first + stop - start])
            logits.append(torch.from_numpy(out_TA))
        assert torch.equal(torch.cat(states), state_TD), (threads, company)
        assert torch.equal(torch.cat(logits), logits_TA), (threads, company)
        assert torch.equal(rows_of(cache), rows_of(alone)), (threads, company)


@every_isa
@pytest.mark.parametrize("weights", ["f32", "bf16", "q8_0"])
def test_modules_rows_have_the_same_bits_in_any_company(isa: str, weights: str) -> None:
    here = base(weights, isa)
    ids, state_TD = here.ids[HELD + 1 :], here.state_TD[:-1]
    wanted = run(here.runner, poisoned_cache(here.runner, 300), ids, [(False, 1)] * ROWS, depth=1, state_TD=state_TD)
    for threads, pieces in [(1, [3, 26]), (3, [29]), (4, [1, 9, 19])]:
        here.runner.threads = threads
        cache, states, logits, start = poisoned_cache(here.runner, 300), [], [], 0
        for count in pieces:
            some = slice(start, start + count)
            before = rows_for(poisoned_cache(here.runner, 300), [5] * 4, here.state_TD[-4:])
            prompt = rows_for(poisoned_cache(here.runner, 300), [6] * 20, here.state_TD[:20])
            work = [before, rows_for(cache, ids[some], state_TD[some]), prompt]
            here.runner.model.plan.poison()
            out = here.runner.step(1, work, np.arange(4, 4 + count, dtype=np.int32), prefill=[False, False, True])
            states.append(out[0][4 : 4 + count])
            logits.append(torch.from_numpy(out[1]))
            start += count
        assert torch.equal(torch.cat(states), wanted[0]), threads
        assert torch.equal(torch.cat(logits), wanted[1]), threads


@every_isa
@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_long_contexts_have_the_same_bits_however_they_are_shared_out(isa: str, weights: str) -> None:
    """700 positions held, three chunks of the cache: few queries share chunks among threads, many do not."""
    model = tiny_model(num_hidden_layers=2, max_position_embeddings=2048)
    runner = runner_of(model, weights, isa=isa)
    ids = ids_for(model.config, 740)
    prompt = [(True, 256), (True, 256), (True, 188)]

    def after_prompt() -> PagedCache:
        cache = poisoned_cache(runner, 800)
        run(runner, cache, ids[:700], prompt)
        return cache

    state_TD, logits_TA = run(runner, after_prompt(), ids[700:], [(False, 1)] * 40)
    for threads, cuts in [(3, [1] * 40), (4, [40]), (3, [7, 33]), (1, [20, 20])]:
        runner.threads = threads
        got = run(runner, after_prompt(), ids[700:], [(False, count) for count in cuts])
        assert torch.equal(got[0], state_TD), (threads, cuts)
        assert torch.equal(got[1], logits_TA), (threads, cuts)


@every_isa
def test_more_rows_than_one_pass_has(isa: str) -> None:
    """`decode` cuts what it is given into passes of at most 256 rows; 280 at once are two of them."""
    here = base("f32", isa)
    runner, passes = here.runner, here.runner.passes
    work = [rows_for(here.other(0, 0), here.others[0][:250]), rows_for(here.after_prompt(), here.ids[HELD:])]
    done = runner.decode(work)
    assert runner.passes == passes + 2
    assert torch.equal(done[1].state_ND, here.state_TD)
    assert (torch.from_numpy(done[1].logits_NA) == here.logits_TA).all()
    assert done[0].logits_NA.shape == (250, runner.config.vocab_size)


# --- memory -----------------------------------------------------------------------------------------------------------


@every_isa
@every_format
def test_what_a_workspace_holds_before_a_step_changes_nothing(isa: str, weights: str) -> None:
    """NaN everywhere, after the workspace has its full size, or zeros, or what a larger step left there."""
    runner = runner_of(tiny_model(config_for(weights), std=0.15), weights, isa=isa)
    ids = ids_for(runner.config, 100)
    pieces = [(True, 50), (False, 1), (False, 19), (True, 30)]
    fresh = run(runner, runner.new_cache(128), ids, pieces)  # grown by zeros
    for _ in range(2):
        again = run(runner, poisoned_cache(runner, 128), ids, pieces)  # `run` poisons before every step
        assert torch.equal(again[0], fresh[0])
        assert torch.equal(again[1], fresh[1])


@every_isa
@pytest.mark.parametrize("weights", ["f32", "bf16"])
def test_only_a_sequences_own_rows_of_the_cache_are_written(isa: str, weights: str) -> None:
    """Every other cell keeps the bits it had: rows not reached, other depths, other sequences."""
    runner = runner_of(tiny_model(num_nextn_predict_layers=2), weights, isa=isa)
    config, cell = runner.config, 4 if weights == "f32" else 2
    cache, other = poisoned_cache(runner, 128), poisoned_cache(runner, 128)
    ids = ids_for(config, 100)
    state_TD, _ = run(runner, cache, ids[:90], [(True, 65), (False, 25)])
    run(runner, cache, ids[2:72], [(True, 70)], depth=2, state_TD=state_TD[:70])
    width = config.kv_lora_rank + config.qk_rope_head_dim
    for one, lengths in ((cache, [90, 90, 90, 0, 70]), (other, [0] * 5)):
        for page in range(2):
            raw = ctypes.string_at(one.pages.address(page), runner.model.plan.page_bytes)
            layers = np.frombuffer(raw, np.uint8).reshape(5, 64, width * cell)
            for layer, length in enumerate(lengths):
                written = min(max(length - 64 * page, 0), 64)
                assert (layers[layer, written:] == 0xFF).all(), (page, layer)
                assert not (layers[layer, :written] == 0xFF).all(-1).any(), (page, layer)


@every_isa
def test_rows_taken_back_are_written_anew(isa: str) -> None:
    """What a refused draft left in the cache is never seen again."""
    here = base("bf16", isa)
    cache = here.after_prompt()
    for length in (HELD, HELD + 11, HELD + 20):
        run(here.runner, cache, ids_for(here.runner.config, 25, seed=9), [(False, 25)])  # drafts, all wrong
        cache.truncate(0, length)
        count = 11 if length == HELD else 9
        run(here.runner, cache, here.ids[length : length + count], [(False, count)])
    assert cache.length(0) == HELD + 29
    assert torch.equal(rows_of(cache), here.rows[:, : HELD + 29])


@every_isa
def test_two_engines_in_one_process_do_not_disturb_each_other(isa: str) -> None:
    runners = [runner_of(tiny_model(seed=seed), isa=isa, threads=2) for seed in (0, 1)]
    ids = ids_for(model_config("tiny"), 60)
    wanted = [run(runner, runner.new_cache(100), ids, [(False, 60)])[1] for runner in runners]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(number: int, runner: NativeRunner) -> None:
        for _ in range(2):
            found[number].append(run(runner, runner.new_cache(100), ids, [(True, 20), (False, 1), (False, 39)])[1])

    first = [run(runner, runner.new_cache(100), ids, [(True, 20), (False, 1), (False, 39)])[1] for runner in runners]
    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(runners)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert len(found[number]) == 2
        assert all(torch.equal(one, first[number]) for one in found[number])
        assert not torch.equal(wanted[number], wanted[1 - number])
