"""`cueva generate`: text that goes on from a prompt."""

import dataclasses
import sys
from typing import Annotated, Any

import typer

from cueva.cli.common import Json, Model, draft_count, emit, result, say, speed_line

EXAMPLES = (
    'cueva generate --model runs/quickstart/model --prompt "def " --temperature 0.7'
    "\n\ngit diff | cueva generate --model runs/mine/model --max-new-tokens 40 --stop $'\\n'"
    '\n\ncueva generate --model runs/mine/model --prompt "One" --prompt "Two" --json --logprobs 3'
)
SAMPLING, OUTPUT, ENGINE = "Sampling (defaults: the model's generation_config.json)", "Output", "Engine"


def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="Text to go on from; - or none reads standard input. Several make a batch, answered in order.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="At most so many new tokens; without a default of the model 256.", rich_help_panel=SAMPLING),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits; 0 takes the likeliest token always.", rich_help_panel=SAMPLING),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Keep the k likeliest tokens; 0: all.", rich_help_panel=SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens up to this sum; 1: all.", rich_help_panel=SAMPLING)
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Keep tokens at least this many times as likely as the likeliest; 0: all.", rich_help_panel=SAMPLING
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Makes tokens that occurred less likely; 1: does not.", rich_help_panel=SAMPLING),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Taken off the logit of tokens of the answer, -2 to 2.", rich_help_panel=SAMPLING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides every random choice; none draws one.", rich_help_panel=SAMPLING)
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text would appear; may be given several times.", rich_help_panel=SAMPLING),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end token.", rich_help_panel=SAMPLING)
    ] = False,
    draft: Annotated[
        str,
        typer.Option(
            metavar="auto|N",
            help="Tokens to draft per round with the MTP modules: as many as pay, or N.",
            rich_help_panel=ENGINE,
        ),
    ] = "auto",
    weights: Annotated[
        str | None,
        typer.Option(help="Compute in f32 or bf16; default: as the weights are stored.", rich_help_panel=ENGINE),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default: what PyTorch takes.", min=1, rich_help_panel=ENGINE)
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Report each token's log-probability (nats) and N alternatives.", rich_help_panel=OUTPUT
        ),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Say how fast it was and what became of the drafts.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
) -> None:
    """Write on from a prompt, as it comes.

    Only the text goes to standard output. A prompt that does not fit the model's context is refused, never cut.
    """
    from cueva import api
    from cueva.engine import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=stop or None,
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    drafts = draft_count(draft)
    prompts = _prompts(prompt)
    engine = api.Engine(model, weights=weights, threads=threads)
    if len(prompts) == 1 and not as_json:
        answers = [_streamed(engine, prompts[0], sampling, drafts)]
    else:
        answers = engine.generate(prompts, sampling, drafts)
        for number, (text, answer) in enumerate(zip(prompts, answers, strict=True)):
            if as_json:
                emit({"prompt": text, **facts(answer)})
            else:
                result(f"\n{answer.text}" if number else answer.text)
    for answer in answers:
        if logprobs is not None and not as_json:
            _show_logprobs(engine, answer)
        if stats:
            say(f"{speed_line(answer.stats)}, ended by {answer.finish_reason}, seed {answer.seed}")


def facts(answer: Any) -> dict[str, Any]:
    """An `Answer` as JSON can hold it."""
    found = {field.name: getattr(answer, field.name) for field in dataclasses.fields(answer)}
    found["stats"] = dataclasses.asdict(answer.stats) | {
        "tokens_per_second": answer.stats.tokens_per_second,
        "tokens_per_pass": answer.stats.tokens_per_pass,
    }
    if answer.logprobs is not None:
        found["logprobs"] = [
            {
                "token_id": one.token_id,
                "logprob": one.logprob,
                "top": [{"token_id": token, "logprob": logprob} for token, logprob in one.top],
            }
            for one in answer.logprobs
        ]
    return found


def _prompts(given: list[str] | None) -> list[str]:
    """The prompts, standard input read where it is meant; its last line break is the shell's and not the text's."""
    if given and "-" not in given:
        return given
    if sys.stdin.isatty():
        say("reading the prompt from the keyboard; Ctrl-D on a line of its own ends it")
    text = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")
    return [text if one == "-" else one for one in given or ["-"]]


def _streamed(engine: Any, prompt: str, sampling: Any, draft: Any) -> Any:
    answer = None
    for piece in engine.stream(prompt, sampling, draft):
        print(piece.text, end="", flush=True)
        answer = piece.answer or answer
    print(flush=True)
    return answer


def _show_logprobs(engine: Any, answer: Any) -> None:
    for one in answer.logprobs or ():
        others = "  ".join(f"{_shown(engine, token)} {logprob:.3f}" for token, logprob in one.top)
        say(f"{one.logprob:8.3f}  {_shown(engine, one.token_id):<16}{others}")


def _shown(engine: Any, token: int) -> str:
    return (
        repr(engine.tokenizer.token_bytes(token).decode("utf-8", "backslashreplace"))
        if engine.tokenizer
        else str(token)
    )
