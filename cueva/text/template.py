"""Rendering chat templates, which are programs from strangers.

Before a template is used for the first time it is compiled and rendered with a few short conversations in a process of
its own, under limits on time and memory, so that a loop without end or a flood of memory hits that process. Afterwards
it is rendered here, in the sandbox. What is left is a template that behaves on these conversations and loops for ever
on others; that would hold up whoever renders it.
"""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from jinja2.exceptions import SecurityError

from cueva.errors import TextError
from cueva.text import sandbox

CPU_SECONDS: Final = 2
MEMORY_BYTES: Final = 512 << 20


def render(template: str, variables: Mapping[str, Any], *, trusted: bool = False) -> str:
    """Render a template.

    Args:
        template: Jinja source as `transformers` takes it; besides the dialect there are `raise_exception`,
            `strftime_now` and a `tojson` that leaves letters as they are.
        variables: plain data.
        trusted: leave out the rehearsal in a process of its own.

    Raises:
        TextError: the template is not valid, misbehaves or refuses; in the last case the sentence is its own.
    """
    if not trusted:
        vet(template)
    try:
        return sandbox.output(sandbox.compiled(template), variables)
    except sandbox.RefusedError as error:
        raise TextError(error.message or "the chat template refuses this conversation") from error
    except jinja2.TemplateSyntaxError as error:
        raise TextError(f"the chat template is not valid: line {error.lineno}: {error.message}") from error
    except Exception as error:  # a template can raise whatever Python can
        raise TextError(f"the chat template failed: {_in_words(error)}") from error


def variables_of(template: str) -> frozenset[str]:
    """Return the names that a template reads and does not set itself; empty if it is not valid."""
    try:
        return sandbox.undeclared(template)
    except jinja2.TemplateSyntaxError:
        return frozenset()


def vet(template: str, *, cpu_seconds: int = CPU_SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
    """Rehearse a template in a process of its own, once for each template; takes about a tenth of a second.

    Memory and processor time are limited where the system can do that (not on Windows, where the clock is).

    Raises:
        TextError: the template is not valid, hangs, floods the memory or reaches for what it must not.
    """
    fault = _rehearse(template, cpu_seconds, memory_bytes)
    if fault is not None:
        raise TextError(
            fault, way_out="try another template: this one is not safe to use, whoever made it, or is not a template"
        )


# --- private ----------------------------------------------------------------------------------------------------------

# Limits are set before anything is read, and the package is found on the parent's own path.
_CHILD: Final = """
import json, sys
try:
    import resource
    cpu, memory = int(sys.argv[1]), int(sys.argv[2])
    for name, limit in (("RLIMIT_CPU", cpu), ("RLIMIT_AS", memory), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError, AttributeError):
            pass
except ImportError:
    pass
job = json.load(sys.stdin)
sys.path[:] = job["path"]
from cueva.text.template import rehearse
print(json.dumps(rehearse(job["template"])))
"""


@functools.lru_cache(maxsize=64)
def _rehearse(template: str, cpu_seconds: int, memory_bytes: int) -> str | None:
    """Return what is wrong with a template, in words."""
    path = [str(Path(__file__).resolve().parents[2]), *(str(Path(place).resolve()) for place in sys.path)]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD, str(cpu_seconds), str(memory_bytes)],
            input=json.dumps({"template": template, "path": path}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            # Processor time is the limit; the clock is for what sleeps, and for systems without the other.
            timeout=10 * cpu_seconds + 10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the chat template does not come to an end"
    if done.returncode == 0 and done.stdout:
        return json.loads(done.stdout)
    if "MemoryError" in done.stderr:
        return f"the chat template needs more than {memory_bytes >> 20} MiB for a short conversation"
    if done.returncode < 0:
        return f"the chat template needs more than {cpu_seconds} s for a short conversation"
    raise AssertionError(f"the process that rehearses chat templates failed: {done.stderr}")


def rehearse(template: str) -> str | None:
    """Compile and render a template with short conversations in this process; what is wrong with it, in words, or None.

    That a conversation is refused is fine: some templates take no system message, some no tools.
    """
    try:
        compiled = sandbox.compiled(template)
        switches = sandbox.undeclared(template)
    except jinja2.TemplateSyntaxError as error:
        return f"the chat template is not valid: line {error.lineno}: {error.message}"
    except RecursionError:
        return "the chat template is not valid: it is nested too deeply"
    for conversation in _conversations():
        for on in (False, True):
            extra = {name: True for name in switches - conversation.keys()} if on else {}
            try:
                sandbox.output(compiled, {**extra, **conversation})
            except SecurityError as error:
                return f"the chat template does what none should: {error}"
            except MemoryError:
                raise
            except Exception:
                continue
    return None


def _conversations() -> list[dict[str, Any]]:
    user = {"role": "user", "content": "¿Qué tiempo hace? <b>"}
    call = {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Lima"}'}}
    structured = {**call, "function": {"name": "weather", "arguments": {"place": "Lima"}}}
    parameters = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
    tool = {"type": "function", "function": {"name": "weather", "description": "now", "parameters": parameters}}
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSol."}
    result = {"role": "tool", "tool_call_id": "a1", "name": "weather", "content": "sun"}
    exchanges = [
        [user],
        [{"role": "system", "content": "Be brief."}, user, answer, user],
        [user, {"role": "assistant", "content": "", "tool_calls": [call]}, result],
        [user, {"role": "assistant", "content": "", "tool_calls": [structured]}, result, answer, user],
        [{"role": "user", "content": [{"type": "text", "text": "Hola"}]}],
        [user, answer] * 8 + [user],
    ]
    common = {"bos_token": "<s>", "eos_token": "</s>", "documents": None}
    return [
        {**common, "messages": messages, "tools": tools, "add_generation_prompt": prompt}
        for messages in exchanges
        for tools, prompt in ((None, True), ([tool], False))
    ]


def _in_words(error: BaseException) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text:.300}" if text else type(error).__name__
