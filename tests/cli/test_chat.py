"""`cueva chat` through a pipe, and the conversation behind it."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cueva import api
from cueva.cli.chat import Chat, read_lines
from cueva.engine import Sampling
from cueva.errors import CuevaError, RequestError
from tests.cli.conftest import ROOT, Cueva


@pytest.fixture(scope="module")
def engine(model: Path) -> api.Engine:
    return api.Engine(model)


@pytest.fixture
def talk(engine: api.Engine) -> Chat:
    return Chat(engine, Sampling(max_new_tokens=8, temperature=0), "auto", io.StringIO())


def said(talk: Chat) -> str:
    assert isinstance(talk.out, io.StringIO)
    return talk.out.getvalue()


def test_lines_from_a_pipe_are_answered_one_after_another(cueva: Cueva, model: Path) -> None:
    ran = cueva("chat", "--model", model, "--max-new-tokens", "8", "--temperature", "0", stdin="hello\n/stats\nagain\n")
    assert ran.status == 0
    assert ran.err.count("tokens/s") >= 2
    assert "of 128 positions" in ran.err
    assert "last answer:" in ran.err


def test_the_conversation_is_what_the_model_sees(talk: Chat, engine: api.Engine) -> None:
    talk.line("hello")
    first = talk.messages[-1]["content"]
    talk.line("and?")
    conversation = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and?"},
    ]
    expected = engine.chat(conversation, talk.sampling).text
    assert talk.messages == [*conversation, {"role": "assistant", "content": expected}]
    assert said(talk) == f"{first}\n{expected}\n"


def test_retry_answers_the_last_message_again_and_reset_forgets(talk: Chat) -> None:
    with pytest.raises(RequestError, match="no message"):
        talk.line("/retry")
    talk.line("hello")
    before = list(talk.messages)
    talk.line("/retry")
    assert talk.messages == before
    talk.line("/reset")
    assert talk.messages == []


def test_a_system_message_is_told_first(talk: Chat, engine: api.Engine) -> None:
    talk.line("/system be brief")
    talk.line("hello")
    told = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    assert talk.messages[-1]["content"] == engine.chat(told, talk.sampling).text
    talk.line("/system -")
    assert talk.system is None


def test_set_changes_how_it_answers_and_names_the_nearest_key(talk: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    talk.line("/set temperature 0.5")
    talk.line("/set max-new-tokens 3")
    talk.line('/set stop ["x", "y"]')
    talk.line("/set draft 2")
    assert talk.sampling == Sampling(max_new_tokens=3, temperature=0.5, stop=["x", "y"])  # pyright: ignore[reportArgumentType]
    assert talk.draft == 2
    talk.line("/set temperature none")
    assert talk.sampling.temperature is None
    capsys.readouterr()
    talk.line("/set")
    assert "max_new_tokens 3" in capsys.readouterr().err
    with pytest.raises(RequestError, match="temprature; did you mean 'temperature'"):
        talk.line("/set temprature 1")
    with pytest.raises(RequestError, match="temperature is -1"):
        talk.line("/set temperature -1")
    assert talk.sampling.temperature is None


def test_a_command_that_does_not_exist_is_named_and_nothing_is_asked(talk: Chat) -> None:
    with pytest.raises(RequestError, match="/rest; did you mean '/reset'"):
        talk.line("/rest")
    assert talk.messages == []


def test_drafted_tokens_are_marked_and_the_text_stays_the_same(talk: Chat) -> None:
    talk.line("/set draft 2")
    talk.line("hello")
    plain = said(talk)
    talk.line("/draft")
    talk.line("/retry")
    marked = said(talk).removeprefix(plain)
    assert marked.replace("«", "").replace("»", "") == plain
    kept = talk.stats[-1].accepted
    assert ("«" in marked) == bool(sum(kept))


def test_a_conversation_that_no_longer_fits_is_refused_and_kept(talk: Chat) -> None:
    talk.line("hello")
    before = list(talk.messages)
    with pytest.raises(CuevaError, match="128 positions"):
        talk.line("the river sings " * 60)
    assert talk.messages == before


def test_a_line_that_fails_does_not_end_the_chat(cueva: Cueva, model: Path) -> None:
    ran = cueva("chat", "--model", model, "--max-new-tokens", "4", stdin="/nonsense\nhello\n")
    assert ran.status == 0
    assert "there is no command /nonsense" in ran.err
    assert "tokens" in ran.err
    assert ran.out.strip("\n") or ran.out == "\n"


def test_several_lines_between_fences_are_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\n"""two\nthree"""\nfour\n"""\nfive\n"""\n'))
    assert list(read_lines()) == ["one", "two\nthree", "four", "\nfive\n"]


def test_a_model_without_a_template_is_refused_with_a_way_out(cueva: Cueva, model: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(model, bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    ran = cueva("chat", "--model", bare)
    assert ran.status == 2
    assert "has no chat template" in ran.err
    assert f"\n  try cueva generate --model {bare}" in ran.err


def test_ctrl_c_stops_the_answer_and_not_the_program(model: Path) -> None:
    """The answer would take long; it is cut short, stays in the conversation, and the next line is answered."""
    words = [sys.executable, "-u", "-m", "cueva", "chat", "--model", str(model), "--max-new-tokens", "100"]
    chat = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    assert chat.stdin is not None
    assert chat.stdout is not None
    assert chat.stderr is not None
    chat.stdin.write(b"hello\n")
    chat.stdin.flush()
    assert chat.stdout.read(1)  # the first character of the answer is out
    chat.send_signal(signal.SIGINT)
    threading.Timer(
        0.2, lambda: (chat.stdin and chat.stdin.write(b"/stats\n/quit\n"), chat.stdin and chat.stdin.close())
    ).start()
    errors = chat.stderr.read().decode()
    assert chat.wait(timeout=60) == 0
    assert "[stopped; " in errors
    assert "last answer:" in errors
    assert "Traceback" not in errors
