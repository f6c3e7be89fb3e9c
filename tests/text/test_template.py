"""Chat templates from strangers: what renders, what is refused, what never reaches this process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cueva.errors import TextError
from cueva.text import sandbox, template
from cueva.text.default_template import DEFAULT_TEMPLATE
from cueva.text.template import rehearse, render, vet

ROOT = Path(__file__).resolve().parents[2]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

# What each asks for; all are refused by the sandbox, in whatever process.
REFUSED = {
    "{{ 'a' * (3 * 10**9) }}": "repetition",
    "{{ (10**9 * 3) * 'a' }}": "repetition",
    "{{ [0] * 10**9 }}": "repetition",
    "{{ 'a' | center(2 * 10**9) }}": "the number 2000000000",
    "{{ 'a'.ljust(2 * 10**9) }}": "the number 2000000000",
    "{{ 'a' | indent(width=10**9) }}": "the number 1000000000",
    "{{ messages | tojson(indent=10**9) }}": "the number 1000000000",
    "{{ '%999999999d' | format(1) }}": "so wide a format",
    "{{ '%999999999d' % 1 }}": "so wide a format",
    "{{ '{:999999999}'.format(1) }}": "so wide a format",
    "{{ '{:{}}'.format(1, 10**9) }}": "the number 1000000000",
    "{{ 9 ** 999999999 }}": "such a power",
    "{{ ('b' * 90000) | replace('', 'b' * 90000) }}": "such a replacement",
    "{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}{% endfor %}": "keeps growing",
    "{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}": "characters of output",
    "{% set n = namespace(__class__=1) %}": "the attribute '__class__'",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "'__class__' of 'str' object is unsafe",
    "{{ raise_exception.__globals__['json'] }}": "'__globals__' of 'function' object is unsafe",
    "{{ range(1000000) | list }}": "the number 1000000",
}


@pytest.mark.parametrize("source", REFUSED)
def test_what_no_chat_template_needs_is_refused(source: str) -> None:
    fault = rehearse(source)
    assert fault is not None
    assert REFUSED[source] in fault
    with pytest.raises(TextError, match="the chat template failed"):
        render(source, {"messages": []}, trusted=True)


@pytest.mark.parametrize("source", ["{{ messages.append(1) }}", "{{ messages[0].update(role='x') }}", "{{ lipsum() }}"])
def test_messages_cannot_be_changed_and_lipsum_is_gone(source: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TextError):
        render(source, {"messages": messages}, trusted=True)
    assert messages == [{"role": "user", "content": "x"}]


def test_a_loop_without_end_is_stopped_in_a_process_of_its_own() -> None:
    began = time.monotonic()
    with pytest.raises(TextError, match="more than 1 s for a short conversation"):
        vet(LOOP, cpu_seconds=1)
    first = time.monotonic() - began
    began = time.monotonic()
    with pytest.raises(TextError, match="more than 1 s"):
        vet(LOOP, cpu_seconds=1)
    assert time.monotonic() - began < first / 10, "the verdict is remembered"


def test_a_flood_of_memory_is_stopped_in_a_process_of_its_own() -> None:
    doubling = "{% set n = namespace(s='abcd') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    with pytest.raises(TextError, match="more than 512 MiB for a short conversation"):
        render(doubling, {"messages": []})


def test_a_template_is_rehearsed_before_its_first_use_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = subprocess.run
    monkeypatch.setattr(template.subprocess, "run", lambda *a, **k: calls.append(a) or real(*a, **k))
    source = "{{ bos_token }}{# rehearsed once #}{{ messages[0].content }}"
    for _ in range(3):
        assert render(source, {"bos_token": "B", "messages": [{"content": "c"}]}) == "Bc"
    assert len(calls) == 1


def test_the_rehearsal_does_without_torch() -> None:
    code = "import sys\nfrom cueva.text.template import rehearse\nrehearse('x')\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "tokenizers", "transformers"} & set(done.stdout.split())


@pytest.mark.parametrize("source", ["{% for %}", "{{ messages", "{{ " + "(" * 3000 + ")" * 3000 + " }}"])
def test_a_template_that_is_not_valid_is_said(source: str) -> None:
    with pytest.raises(TextError, match="the chat template is not valid"):
        render(source, {})
    with pytest.raises(TextError, match="the chat template"):
        render(source, {}, trusted=True)


def test_a_refusal_is_in_the_templates_own_words() -> None:
    with pytest.raises(TextError) as raised:
        render("{{ raise_exception('Roles must alternate!') }}", {"messages": []}, trusted=True)
    assert raised.value.message == "Roles must alternate!"


def test_a_failure_is_a_sentence() -> None:
    with pytest.raises(TextError, match="the chat template failed: UndefinedError: 'missing' is undefined"):
        render("{{ missing.x }}", {}, trusted=True)
    with pytest.raises(TextError, match="the chat template failed: RecursionError"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", {}, trusted=True)


def test_the_dialect_is_that_of_published_templates() -> None:
    source = (
        "{% for m in messages %}\n"
        "    {% if m.skip %}{% continue %}{% endif %}\n"
        "    {% generation %}{{ m.text | tojson }}{% endgeneration %}\n"
        "    {% if loop.index == 3 %}{% break %}{% endif %}\n"
        "{% endfor %}"
        "{{ dict(a=1).a }}{{ strftime_now('%Y') | length }}"
    )
    messages = [{"text": "niño <&>"}, {"skip": True}, {"text": "dos"}, {"text": "tres"}]
    assert render(source, {"messages": messages}) == '"niño <&>""dos"14'


def test_the_variables_of_a_template_are_what_it_reads() -> None:
    assert template.variables_of("{% set a = b %}{{ a }}{% for m in messages %}{{ m }}{% endfor %}{{ range(1) }}") == {
        "b",
        "messages",
    }
    assert template.variables_of("{% for %}") == frozenset()
    known = {"messages", "tools", "bos_token", "eos_token", "add_generation_prompt", "thinking"}
    assert template.variables_of(DEFAULT_TEMPLATE) == known


def test_the_default_template_passes_the_rehearsal_too() -> None:
    assert rehearse(DEFAULT_TEMPLATE) is None
    assert len(sandbox.output(sandbox.compiled(DEFAULT_TEMPLATE), {"messages": [{"role": "user", "content": "x"}]})) > 0
