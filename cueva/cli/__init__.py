"""The command line: one file per verb, thin over `cueva.api`.

Results go to stdout and talk goes to stderr. A caller's mistake is one sentence and a way out, with exit status 2; a
run that began and failed exits with 1, an interrupted one with 130. Nothing here imports torch until a verb runs, so
`cueva --help` and shell completion answer at once.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cueva.cli import chat, doctor, evaluate, generate, inspect, prepare, quickstart, train
from cueva.cli.common import say, show_library_talk
from cueva.errors import CuevaError

EVERYWHERE = ("--debug", "--offline")
"""Flags that may stand anywhere on the line, before or after the verb."""


class _Verbs(TyperGroup):
    """Lists verbs in the order they are used, and lets the flags of `EVERYWHERE` stand anywhere before a `--`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        moved = [word for word in args[:end] if word in EVERYWHERE]
        rest = [word for word in args[:end] if word not in EVERYWHERE]
        return super().parse_args(ctx, [*moved, *rest, *args[end:]])

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)


app = typer.Typer(
    name="cueva",
    cls=_Verbs,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train and run language models built like DeepSeek-V3.",
    epilog="Start with [bold]cueva quickstart[/bold]: it trains a small model on this machine and writes with it."
    "\n\n--debug and --offline may stand after the verb too. `cueva VERB --help` has examples.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from cueva import __version__

        typer.echo(f"cueva {__version__}")
        raise typer.Exit()


@app.callback()
def _everywhere(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never ask the network: hub names must be in the cache already.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train and run language models built like DeepSeek-V3."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"


app.command("quickstart", epilog=quickstart.EXAMPLES)(quickstart.quickstart)
app.command("prepare", epilog=prepare.EXAMPLES)(prepare.prepare)
app.command("train", epilog=train.EXAMPLES)(train.train)
app.command("generate", epilog=generate.EXAMPLES)(generate.generate)
app.command("chat", epilog=chat.EXAMPLES)(chat.chat)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("inspect", epilog=inspect.EXAMPLES)(inspect.inspect)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit status.

    Args:
        words: what follows `cueva`; the process's own arguments when absent.

    Raises:
        SystemExit: always. 0: done; 1: a run that failed; 2: a request that cannot be served; 130: interrupted.
    """
    given = list(sys.argv[1:] if words is None else words)
    sys.exit(_status(given))


def _status(given: list[str]) -> int:
    """Run what was asked for and turn whatever comes of it into sentences on stderr and an exit status."""
    verbs = [command.name for command in app.registered_commands]
    verb = next((word for word in given if word in verbs), None)
    name = f"cueva {verb}" if verb else "cueva"
    show_library_talk(name, all_of_it=verb == "generate")
    try:
        status = app(given, prog_name="cueva", standalone_mode=False)
        status = status if isinstance(status, int) and not isinstance(status, bool) else 0
        if status == 130:
            say(f"{name}: stopped")
        return status
    except KeyboardInterrupt:
        say(f"{name}: stopped")
        return 130
    except typer.Abort:
        say(f"{name}: stopped, because the input ended")
        return 130
    except BrokenPipeError:
        _close_quietly()
        return 1
    except CuevaError as error:
        if "--debug" in given:
            traceback.print_exc()
        say(f"{name}: {error}")
        return error.exit_status
    except Exception as error:
        if hasattr(error, "format_message"):  # the command-line parser's own, public under this name only
            return _misused(name, error)
        sentence = f"{name}: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
        if "--debug" in given:
            traceback.print_exc()
            say(sentence)
        else:
            say(f"{sentence}\n  run again with --debug for the traceback")
        return 1


def _misused(name: str, error: Any) -> int:
    """Say what was wrong with the words themselves, and name the nearest thing that exists."""
    message = error.format_message()
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        near = f"; did you mean {' or '.join(error.possibilities)}?" if error.possibilities else ""
        message = f"there is no option {option}{near}"
    if not message:  # a group called with nothing at all: the help is already on the screen
        return error.exit_code
    say(f"{name}: {message[:1].lower()}{message[1:].rstrip('.')}\n  try {name} --help")
    return error.exit_code


def _close_quietly() -> None:
    """Whoever read our output has gone; keep Python from complaining about it once more while it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
