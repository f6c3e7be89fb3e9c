"""`cueva generate`: only the text on stdout, the same whichever way it was asked for."""

import json
from pathlib import Path

from cueva import api
from cueva.engine import Sampling
from tests.cli.conftest import Cueva

GREEDY = ("--temperature", "0", "--max-new-tokens", "12")


def answer(model: Path, prompt: str, **sampling: object) -> str:
    settings = Sampling(**{"temperature": 0, "max_new_tokens": 12, **sampling})  # pyright: ignore[reportArgumentType]
    return api.Engine(model).generate([prompt], settings)[0].text


def test_only_the_text_goes_to_stdout(cueva: Cueva, model: Path) -> None:
    ran = cueva("generate", "--model", model, "--prompt", "the cave", *GREEDY, "--stats", "--logprobs", "2")
    assert ran.status == 0
    assert ran.out == answer(model, "the cave") + "\n"
    assert "tokens/s" in ran.err
    assert "seed" in ran.err
    assert "sampling defaults" in ran.err


def test_a_prompt_comes_from_standard_input_too(cueva: Cueva, model: Path) -> None:
    expected = answer(model, "the cave") + "\n"
    assert cueva("generate", "--model", model, *GREEDY, stdin="the cave\n").out == expected
    assert cueva("generate", "--model", model, "--prompt", "-", *GREEDY, stdin="the cave").out == expected


def test_several_prompts_are_answered_in_order(cueva: Cueva, model: Path) -> None:
    ran = cueva("generate", "--model", model, "--prompt", "the cave", "--prompt", "river", *GREEDY, "--json")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the cave", "river"]
    assert [line["text"] for line in lines] == [answer(model, "the cave"), answer(model, "river")]
    plain = cueva("generate", "--model", model, "--prompt", "the cave", "--prompt", "river", *GREEDY)
    assert plain.out == "\n\n".join(line["text"] for line in lines) + "\n"


def test_json_tells_everything_about_an_answer(cueva: Cueva, model: Path) -> None:
    ran = cueva(
        "generate",
        "--model",
        model,
        "--prompt",
        "the",
        "--max-new-tokens",
        "6",
        "--seed",
        "7",
        "--logprobs",
        "2",
        "--json",
    )
    facts = json.loads(ran.out)
    assert facts["seed"] == 7
    assert facts["finish_reason"] in ("length", "stop")
    assert len(facts["token_ids"]) == len(facts["logprobs"]) == len(facts["drafted"]) == facts["stats"]["new_tokens"]
    assert all(len(one["top"]) == 2 for one in facts["logprobs"])


def test_a_seed_repeats_an_answer_and_drafting_does_not_change_greedy_text(cueva: Cueva, model: Path) -> None:
    words = ("generate", "--model", model, "--prompt", "the", "--max-new-tokens", "16")
    assert cueva(*words, "--seed", "3").out == cueva(*words, "--seed", "3").out
    assert (
        cueva(*words, "--temperature", "0", "--draft", "0").out
        == cueva(*words, "--temperature", "0", "--draft", "2").out
    )


def test_a_stop_text_ends_the_answer_before_it(cueva: Cueva, model: Path) -> None:
    whole = answer(model, "the cave")
    stop = whole[4:6]
    ran = cueva("generate", "--model", model, "--prompt", "the cave", *GREEDY, "--stop", stop)
    assert ran.out == whole[: whole.index(stop)] + "\n"


def test_every_sampling_flag_reaches_the_engine(cueva: Cueva, model: Path) -> None:
    """Each flag with a value the engine refuses: the sentence that comes back names the field."""
    refused = {
        "--max-new-tokens": "0",
        "--temperature": "-1",
        "--top-k": "-1",
        "--top-p": "2",
        "--min-p": "2",
        "--repetition-penalty": "0",
        "--presence-penalty": "3",
        "--seed": "-1",
        "--logprobs": "-1",
        "--stop": "",
    }
    for flag, value in refused.items():
        ran = cueva("generate", "--model", model, "--prompt", "x", flag, value)
        assert ran.status == 2, flag
        assert ran.err.startswith(f"cueva generate: {flag[2:].replace('-', '_')} "), ran.err
        assert ran.err.count("\n") <= 2


def test_a_draft_length_is_auto_or_a_number(cueva: Cueva, model: Path) -> None:
    ran = cueva("generate", "--model", model, "--prompt", "x", "--draft", "some")
    assert ran.status == 2
    assert ran.err == "cueva generate: --draft is 'some', but it is 'auto' or a number of tokens from 0\n"


def test_tokens_that_do_not_fit_are_refused_with_both_numbers(cueva: Cueva, model: Path) -> None:
    ran = cueva("generate", "--model", model, "--prompt", "the", "--max-new-tokens", "4096")
    assert ran.status == 2
    assert "4096 new tokens do not fit" in ran.err
    assert "this model's 128 positions" in ran.err
    assert "\n  try --max-new-tokens " in ran.err
