"""`cueva chat`: a conversation in the terminal.

`Chat` holds the conversation and knows no terminal: it is given lines and a place to write. The verb reads the lines,
with history and completion where there is a terminal, plainly where there is none.
"""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final, TextIO

import typer

from cueva.cli.common import Model, draft_count, say, speed_line
from cueva.errors import CuevaError, RequestError, TextError, nearest

EXAMPLES = (
    "cueva chat --model runs/quickstart/model --temperature 0.6"
    "\n\nprintf 'Hello\\n/stats\\n' | cueva chat --model runs/quickstart/model"
)
COMMANDS: Final = {
    "/help": "this list",
    "/reset": "forget the conversation; the system message stays",
    "/set KEY VALUE": "change how it samples: temperature, top_p, max_new_tokens, seed, draft, ...; alone: shows",
    "/system TEXT": "what it is told before the conversation; alone: shows it; - removes it. Begins anew",
    "/retry": "answer the last message again",
    "/draft": "show which tokens an MTP module had drafted, by depth; again: stop showing",
    "/stats": "how fast it answers, and what became of the drafts",
    "/quit": "leave, as Ctrl-D does",
}
FENCE: Final = '"""'
"""A message of several lines stands between two of these."""
COLOURS: Final = ("", "\x1b[32m", "\x1b[36m", "\x1b[34m", "\x1b[35m")
"""By place in the draft: 0, the model's own choice, has none."""
RESET: Final = "\x1b[0m"


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer, in tokens (default 256, or the model's).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token; default: the model's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the answers repeatable.")] = None,
    draft: Annotated[str, typer.Option(metavar="auto|N", help="Tokens to draft per round.")] = "auto",
    weights: Annotated[str | None, typer.Option(help="Compute in f32 or bf16; default: as stored.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: what PyTorch takes.", min=1)] = None,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer and not the program; Ctrl-D or /quit leaves; /help lists what else there is. Lines from a
    pipe are answered one after another.
    """
    from cueva import api
    from cueva.engine import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    drafts = draft_count(draft)
    talk = Chat(
        api.Engine(model, weights=weights, threads=threads), sampling, drafts, sys.stdout, model=model, system=system
    )
    say(talk.engine.describe_sampling())
    if sys.stdin.isatty():
        say(f"{model} listens. /help lists the commands, Ctrl-D leaves.")
    for line in read_lines():
        try:
            if not talk.line(line):
                break
        except CuevaError as error:
            say(str(error))


class Chat:
    """A conversation with a model.

    Args:
        engine: with a tokenizer that has a chat template.
        sampling: how it answers.
        draft: tokens to draft per round.
        out: gets the answers; everything else goes to stderr.
        model: how messages name the model.
        system: what it is told first.

    Raises:
        TextError: the model has no chat template.
    """

    def __init__(
        self,
        engine: Any,
        sampling: Any,
        draft: Any,
        out: TextIO,
        *,
        model: str = "the model",
        system: str | None = None,
    ):
        if engine.tokenizer is None or engine.tokenizer.chat_template is None:
            raise TextError(
                f"{model} has no chat template, so it cannot tell who is speaking",
                way_out=f"try cueva generate --model {model}, which writes on from any text",
            )
        self.engine, self.sampling, self.draft, self.out = engine, sampling, draft, out
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.stats: list[Any] = []
        self.show_drafts = False

    def line(self, text: str) -> bool:
        """Take a message or a command; returns False when it says to leave.

        Raises:
            CuevaError: the command is not known or its words are wrong, or the message does not fit; nothing has
                changed then.
        """
        text = text.strip()
        if not text:
            return True
        if not text.startswith("/"):
            self.answer([*self.messages, {"role": "user", "content": text}])
            return True
        command, _, rest = text.partition(" ")
        rest = rest.strip()
        match command:
            case "/quit" | "/exit" | "/bye":
                return False
            case "/help":
                say("\n".join(f"  {name:<16}{meaning}" for name, meaning in COMMANDS.items()))
                say(f"  {FENCE:<16}begins and ends a message of several lines")
            case "/reset":
                self.messages = []
                say("the conversation begins anew")
            case "/set":
                self._set(rest)
            case "/system":
                self._system(rest)
            case "/retry":
                self._retry()
            case "/draft":
                self.show_drafts = not self.show_drafts
                say(self._legend() if self.show_drafts else "drafted tokens look like the others again")
            case "/stats":
                self._stats()
            case _:
                known = [name.split()[0] for name in COMMANDS]
                raise RequestError(f"there is no command {command}{nearest(command, known)}", way_out="try /help")
        return True

    def answer(self, messages: list[dict[str, str]]) -> None:
        """Answer the last of the messages, and make them the conversation; an interrupted answer stays as it is."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        prompt = self.engine.chat_prompt([*told, *messages])
        with _interrupts() as asked:
            pieces = self.engine.stream(prompt, self.sampling, self.draft, cancel=asked.is_set)
            answer = self._shown(pieces, prompt)
        self.out.write("\n")
        self.out.flush()
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.stats.append(answer.stats)
        stopped = "stopped; " if answer.finish_reason == "cancelled" else ""
        say(f"{_dim()}[{stopped}{self._speed(answer.stats)}]{_plain()}")

    # --- private ------------------------------------------------------------------------------------------------------

    def _shown(self, pieces: Iterator[Any], prompt: list[int]) -> Any:
        """Write the pieces as they come; with colours, token by token, since a piece holds several."""
        decoder = self.engine.tokenizer.stream(after=prompt) if self.show_drafts else None
        answer = None
        for piece in pieces:
            if decoder is None:
                self.out.write(piece.text)
            else:
                for token, place in zip(piece.token_ids, piece.drafted, strict=True):
                    self.out.write(self._marked(decoder.push(token), place))
            self.out.flush()
            answer = piece.answer or answer
        if decoder is not None:
            self.out.write(decoder.flush())
        assert answer is not None, "the last piece carries the answer"
        return answer

    def _speed(self, stats: Any) -> str:
        return speed_line(stats, positions=self.engine.config.max_position_embeddings)

    def _marked(self, text: str, place: int) -> str:
        if not place or not text:
            return text
        if not self.out.isatty():
            return f"«{text}»"
        return f"{COLOURS[min(place, len(COLOURS) - 1)]}{text}{RESET}"

    def _legend(self) -> str:
        depths = self.engine.config.num_nextn_predict_layers
        if not depths:
            return "this model has no MTP modules, so nothing is drafted"
        if not self.out.isatty():
            return "drafted tokens that the model agreed with stand between « and »"
        names = ("first", "second", "third", "fourth and later")
        shown = ", ".join(f"{COLOURS[place]}{name}{RESET}" for place, name in enumerate(names, start=1))
        return f"drafted tokens that the model agreed with, by their place in the draft: {shown}"

    def _set(self, rest: str) -> None:
        fields = [field.name for field in dataclasses.fields(self.sampling)]
        if not rest:
            given = {name: getattr(self.sampling, name) for name in fields}
            changed = [f"{name} {value}" for name, value in given.items() if value not in (None, False)]
            say(f"draft {self.draft}, {', '.join(changed) or 'nothing else set'}; {self.engine.describe_sampling()}")
            return
        key, _, text = rest.partition(" ")
        key, text = key.replace("-", "_"), text.strip()
        if key != "draft" and key not in fields:
            raise RequestError(
                f"there is nothing to set called {key}{nearest(key, [*fields, 'draft'])}", way_out="try /set"
            )
        if not text:
            raise RequestError(f"/set {key} needs a value", way_out="try none to give the choice back to the model")
        if key == "draft":
            self.draft = draft_count(text)
        else:
            self.sampling = dataclasses.replace(self.sampling, **{key: _value(text)})
        say(f"{key} is {text}")

    def _system(self, rest: str) -> None:
        if not rest:
            say(self.system or "there is no system message")
            return
        self.system = None if rest == "-" else rest
        self.messages = []
        say("the conversation begins anew " + ("without a system message" if self.system is None else "with that"))

    def _retry(self) -> None:
        asked = self.messages[:-1] if self.messages else []
        if not asked:
            raise RequestError("there is no message to answer again")
        self.answer(asked)

    def _stats(self) -> None:
        if not self.stats:
            say("nothing was answered yet")
            return
        say(f"last answer: {self._speed(self.stats[-1])}")
        tokens = sum(stats.new_tokens - 1 for stats in self.stats)
        seconds = sum(stats.decode_seconds for stats in self.stats)
        speed = f", {tokens / seconds:.1f} tokens/s" if seconds else ""
        say(f"all {len(self.stats)} answers: {tokens + len(self.stats)} tokens{speed}")


def read_lines() -> Iterator[str]:
    """Messages and commands, one at a time, until the input ends; several lines between fences are one."""
    source = _terminal_lines() if sys.stdin.isatty() else (line.rstrip("\n") for line in sys.stdin)
    for line in source:
        if not line.startswith(FENCE):
            yield line
            continue
        block = [line.removeprefix(FENCE)]
        while not block[-1].rstrip().endswith(FENCE) and (following := next(source, None)) is not None:
            block.append(following)
        yield "\n".join(block).rstrip().removesuffix(FENCE)


def _terminal_lines() -> Iterator[str]:
    """Lines from the keyboard, with history on the arrow keys and completion of commands."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: Any = PromptSession(completer=WordCompleter([name.split()[0] for name in COMMANDS], sentence=True))
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            say("Ctrl-D or /quit leaves")
        except EOFError:
            return


class _Asked:
    """Whether somebody pressed Ctrl-C. Asking twice stops at once, since a long prompt does not hear the first."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        return self._set

    def ask(self, *_: Any) -> None:
        if self._set:
            raise KeyboardInterrupt
        self._set = True


@contextlib.contextmanager
def _interrupts() -> Iterator[_Asked]:
    """Turn Ctrl-C into a question that the engine asks between passes, so that it stops in an orderly way."""
    asked = _Asked()
    try:
        before = signal.signal(signal.SIGINT, asked.ask)
    except ValueError:  # not the main thread: whoever runs us there has the keyboard
        yield asked
        return
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _value(text: str) -> Any:
    if text in ("none", "default"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _dim() -> str:
    return "\x1b[2m" if sys.stderr.isatty() else ""


def _plain() -> str:
    return RESET if sys.stderr.isatty() else ""
