"""What every verb keeps to: where words go, exit statuses, no traceback, names of what was meant."""

import json
from pathlib import Path

import pytest

import cueva.cli
from tests.cli.conftest import Cueva, process

VERBS = ["quickstart", "prepare", "train", "generate", "chat", "eval", "inspect", "doctor"]


def test_help_lists_the_verbs_in_the_order_of_use(cueva: Cueva) -> None:
    ran = cueva("--help")
    assert ran.status == 0
    places = [ran.out.index(f"│ {verb} ") for verb in VERBS]
    assert places == sorted(places)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(cueva: Cueva, verb: str) -> None:
    ran = cueva(verb, "--help")
    assert ran.status == 0
    assert f"cueva {verb}" in ran.out.split("Usage:")[1].split("\n", 1)[1]
    assert ran.err == ""


def test_no_words_show_the_help(cueva: Cueva) -> None:
    assert "quickstart" in cueva().out


def test_version_is_the_packages(cueva: Cueva) -> None:
    assert cueva("--version") == (0, f"cueva {__import__('cueva').__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["generat"], "cueva: no such command 'generat'. Did you mean 'generate'?\n  try cueva --help\n"),
        (["train", "--stepz", "3"], "cueva train: there is no option --stepz; did you mean --steps"),
        (["generate"], "cueva generate: missing option '--model'"),
        (["eval", "--model", "x", "--length", "many", "y"], "cueva eval: invalid value for '--length': "),
    ],
)
def test_wrong_words_are_named_with_the_nearest_right_one(cueva: Cueva, words: list[str], sentence: str) -> None:
    ran = cueva(*words)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith(sentence)
    assert "try cueva" in ran.err


def test_a_callers_mistake_is_a_sentence_and_a_way_out(cueva: Cueva) -> None:
    ran = cueva("train", "--preset", "v4-1t", "--steps", "3")
    assert ran.status == 2
    presets = "tiny, pocket, small, v2-lite-16b, moonlight-16b, v3-671b"
    assert ran.err == f"cueva train: there is no preset 'v4-1t'; the presets are: {presets}\n"


def test_debug_adds_the_traceback_and_keeps_the_status(cueva: Cueva, tmp_path: Path) -> None:
    for words in (["--debug", "inspect", tmp_path / "absent"], ["inspect", tmp_path / "absent", "--debug"]):
        ran = cueva(*words)
        assert ran.status == 2
        assert "Traceback (most recent call last)" in ran.err
        assert ran.err.splitlines()[-2].startswith("cueva inspect: there is no model directory")


def test_what_nobody_expected_is_one_sentence_and_status_one(cueva: Cueva, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("a bug\nof ours")

    monkeypatch.setattr("cueva.study.examine", broken)
    ran = cueva("doctor")
    assert ran.status == 1
    assert ran.err == ("cueva doctor: ZeroDivisionError: a bug of ours\n  run again with --debug for the traceback\n")
    assert "Traceback" in cueva("doctor", "--debug").err


def test_ctrl_c_leaves_with_130_and_a_sentence(cueva: Cueva, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cueva.study.examine", interrupted)
    assert cueva("doctor") == (130, "", "cueva doctor: stopped\n")


def test_a_reader_that_leaves_early_is_no_error(model: Path, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    from tests.cli.conftest import ROOT

    words = [
        sys.executable,
        "-m",
        "cueva",
        "generate",
        "--model",
        str(model),
        "--prompt",
        "the",
        "--max-new-tokens",
        "60",
    ]
    writer = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    errors = writer.stderr.read()
    assert writer.wait(timeout=120) == 1
    assert "Traceback" not in errors
    assert "BrokenPipe" not in errors


def test_offline_may_stand_anywhere_and_reaches_the_hub(cueva: Cueva, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    ran = cueva("inspect", "nobody/nothing-of-this-name", "--offline")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert ran.status == 2
    assert ran.err.startswith("cueva inspect: nobody/nothing-of-this-name was not downloaded before")


def test_the_shell_completes_verbs(tmp_path: Path) -> None:
    words = {"_CUEVA_COMPLETE": "complete_bash", "COMP_WORDS": "cueva ge", "COMP_CWORD": "1"}
    assert process([], tmp_path, **words).stdout.split() == ["generate"]
    assert "COMPREPLY" in process([], tmp_path, _CUEVA_COMPLETE="source_bash").stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_has_results_speaks_json(verb: str) -> None:
    command = next(one for one in cueva.cli.app.registered_commands if one.name == verb)
    assert command.callback is not None
    assert ("as_json" in command.callback.__annotations__) == (verb != "chat")


def test_inspect_describes_a_model(cueva: Cueva, model: Path) -> None:
    text = cueva("inspect", model)
    assert text.status == 0
    assert "parameters" in text.out
    facts = json.loads(cueva("inspect", model, "--json").out)
    assert facts["mtp"]["modules"] == 1
    assert facts["tokenizer"]["chat_template"]


def test_doctor_is_short_and_speaks_json(cueva: Cueva) -> None:
    text = cueva("doctor", "--quick")
    assert text.status == 0
    assert len(text.out.splitlines()) <= 40
    facts = json.loads(cueva("doctor", "--quick", "--json").out)
    assert facts["versions"]["torch"]
