"""What a training run is told: one TOML file, a section for each part of the step, every key checked.

    [model]                      a preset, and any key of `ModelConfig` beside it: hidden_size = 384
    [data]                       texts, tokenizer, rows
    [optimizer] [schedule]       AdamW and its learning rate
    [batch] [balance] [mtp]      rows of a step, load of the experts, multi-token prediction
    [run]                        where, how long, how often to look

A key that does not exist is an error that names the nearest one; the word "none" switches off what may be absent.
Lengths that depend on the length of the run are shares of it, so that one file fits a run of minutes and one of days.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Final, Literal, Self, get_args, get_type_hints

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from cueva.config import ModelConfig, model_config
from cueva.errors import ConfigError, nearest
from cueva.train.section import NONE, Section, reason

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrNever = Annotated[int, Field(ge=0)]

# The report trains on 14.8T tokens; what it dates by tokens is a share of the run here (sections 4.2 and 5.1).
REPORT_TOKENS: Final = 14.8e12


class ModelSettings(Section):
    """The shape: a preset, and any key of `ModelConfig` that is to differ from it."""

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str] = "model"

    preset: str = "pocket"
    """One of `cueva.config.PRESETS`."""

    @model_validator(mode="before")
    @classmethod
    def _keys_of_a_model(cls, values: Any) -> Any:
        hints = _model_hints()
        checked: dict[str, Any] = {}
        for key, value in dict(values).items():
            if key == "preset":
                checked[key] = value
                continue
            if key not in hints:
                raise ConfigError(f"there is no key `model.{key}`{nearest(key, [*hints, 'preset'])}")
            if value == NONE and NoneType in get_args(hints[key]):
                value = None
            value = tuple(value) if isinstance(value, list) else value
            try:
                TypeAdapter(hints[key]).validate_python(value, strict=not isinstance(value, Mapping))
            except ValidationError as error:
                raise ConfigError(f"`model.{key}` is {value!r}: {reason(error.errors()[0])}") from None
            checked[key] = value
        return checked

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys given beside the preset."""
        return dict(self.model_extra or {})


class DataSettings(Section):
    """The texts, and the rows made of them."""

    section: ClassVar[str] = "data"

    sources: list[str] = Field(default_factory=lambda: ["python"])
    """Files, folders, globs, `hf:NAME`, `-` for standard input, or `python`: the sources of Python's own library."""
    tokenizer: str = "train"
    """`train` makes one from the texts; otherwise a folder or file that holds one."""
    vocab_size: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a tokenizer to be trained; none: as many as the preset's vocabulary."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of the documents, chosen by a hash of their names, that is never trained on."""
    sequence_length: Annotated[int, Field(ge=2)] = 256
    """Positions of a row (T)."""
    document_mask: bool = True
    """Attend and predict within documents only. The report trains without (section 4.1) and fine-tunes with (section
    5.1)."""
    text_key: str = "text"
    """Where a JSON line or a table keeps its text."""
    skip_bad: bool = False
    """Go on, counting, when a document cannot be read."""
    limit_bytes: Count | None = None
    """Read no more than this many bytes of text; none: all."""

    @field_validator("sources")
    @classmethod
    def _some_source(cls, sources: list[str]) -> list[str]:
        if not sources or not all(sources):
            raise ValueError("name at least one file, folder or data set")
        return sources


class OptimizerSettings(Section):
    """AdamW (DeepSeek-V3 report, section 4.2)."""

    section: ClassVar[str] = "optimizer"

    lr: Positive = 1e-3
    """The highest learning rate. Suits models of 10 to 100 million parameters; the report uses 2.2e-4 for 671B."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    """Added to the root of the second moment. The report does not say; this is AdamW's usual value."""
    weight_decay: NotNegative = 0.1
    """Per unit of learning rate, on everything with two or more dimensions: embeddings and experts yes, norms and
    biases no."""
    clip: Positive | None = 1.0
    """Gradients longer than this (global norm) are scaled down to it; none: never."""


class ScheduleSettings(Section):
    """What all schedules share: the warm-up, linear from 0."""

    section: ClassVar[str] = "schedule"

    warmup_steps: CountOrNever | None = None
    """Length in steps; needs `run.steps`. The report takes 2,000."""
    warmup_share: Share | None = None
    """Length as a share of the run; 0.01 when neither is given."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise ConfigError(
                "`schedule.warmup_steps` and `schedule.warmup_share` are both given; one length is enough"
            )
        return self


class ConstantSchedule(ScheduleSettings):
    """Warm up, then stay."""

    name: Literal["constant"] = "constant"


class CosineSchedule(ScheduleSettings):
    """Warm up, then half a cosine down to the end."""

    name: Literal["cosine"] = "cosine"
    final_share: Share = 0.1
    """The last rate, as a share of the highest."""


class WSDSchedule(ScheduleSettings):
    """Warm up, stay, decay linearly at the end (warm-up, stable, decay: arXiv:2404.06395)."""

    name: Literal["wsd"] = "wsd"
    decay_share: Share = 0.2
    """How much of the run the decay takes."""
    final_share: Share = 0.0
    """The last rate, as a share of the highest."""


class ReportSchedule(ScheduleSettings):
    """The five segments of the DeepSeek-V3 report, section 4.2, scaled to this run."""

    name: Literal["report"] = "report"


AnySchedule = Annotated[ConstantSchedule | CosineSchedule | WSDSchedule | ReportSchedule, Field(discriminator="name")]


class BatchSettings(Section):
    """How many rows a step learns from."""

    section: ClassVar[str] = "batch"

    rows: Count = 8
    """Rows computed at once: this decides the memory."""
    accumulate: Count = 1
    """Times that many rows before one optimizer step."""
    ramp_from: Count | None = None
    """Rows of the first step, growing linearly to `rows * accumulate`; none: no ramp. The report: 3,072 to 15,360."""
    ramp_share: Share = 469e9 / REPORT_TOKENS
    """How much of the run the ramp takes."""

    @property
    def full(self) -> int:
        """Rows of a step once the ramp is over."""
        return self.rows * self.accumulate


class BalanceSettings(Section):
    """How the experts' loads are kept even (DeepSeek-V3 report, section 2.1.2)."""

    section: ClassVar[str] = "balance"

    bias_speed: NotNegative = 0.001
    """How far a step moves each expert's bias (gamma), in score units. The report's; a run of a few hundred steps
    needs more."""
    off_share: Share = 500e9 / REPORT_TOKENS
    """The last share of the run, in which the bias stays."""
    rule: Literal["sign", "proportional"] = "sign"
    """`sign` is the report's; `proportional` moves by the relative error instead (arXiv:2408.15664, section 4.3)."""
    sequence_loss: NotNegative = 0.0001
    """Weight of the sequence-wise loss (alpha). With `bias_speed` 0 and more of this: the classical auxiliary loss."""
    sequence_loss_choice: Literal["literal", "actual"] = "literal"
    """Whose choice eq. 18 counts: the K best scores as printed, without bias or groups, or the experts actually
    chosen."""


class MTPSettings(Section):
    """Weight of the multi-token-prediction loss (lambda; DeepSeek-V3 report, section 4.2). Depths are the model's."""

    section: ClassVar[str] = "mtp"

    weight: NotNegative = 0.3
    later_weight: NotNegative = 0.1
    switch_share: Share = 10e12 / REPORT_TOKENS
    """When `later_weight` takes over, as a share of the run."""


class RunSettings(Section):
    """Where, how long, and how often to look. Intervals are in steps; 0 means never."""

    section: ClassVar[str] = "run"

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "default"
    folder: Annotated[str, Field(min_length=1)] = "runs"
    """The run lives in `folder/name`."""
    steps: Count | None = None
    """Optimizer steps. One of `steps` and `minutes` is needed; with both, the run ends at whichever comes first."""
    minutes: Positive | None = None
    """Minutes of training; evaluating, sampling and saving come on top."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the weights, the order of the rows, and the samples."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the matrix products. Weights, sums and the optimizer are float32 either way."""
    recompute: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, a third more time."""
    threads: Count | None = None
    """CPU threads; none: what torch takes. The bits of a run depend on it."""
    log_every: Count = 10
    """Plain progress lines; `metrics.jsonl` has every step."""
    load_every: CountOrNever = 50
    """Loads and biases of all experts in `metrics.jsonl`."""
    eval_every: CountOrNever = 200
    eval_tokens: Count | None = 65_536
    """Held-out tokens of one evaluation, always the same; none: all."""
    sample_every: CountOrNever = 200
    sample_prompt: str = ""
    save_every: CountOrNever = 200
    """The end of a run is always saved."""
    keep_last: Count = 2
    """Training states kept: this many of the latest, the best evaluated one, ..."""
    keep_every: CountOrNever = 0
    """... and every n-th that was saved."""


class TrainConfig(Section):
    """A whole run. Sections may be given as tables or as objects.

    >>> TrainConfig(model={"preset": "tiny"}, run={"steps": 100}).shape().hidden_size
    32

    Raises:
        ConfigError: an unknown key, a wrong value, or values that do not fit together.
    """

    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: AnySchedule = Field(default_factory=ReportSchedule)
    batch: BatchSettings = Field(default_factory=BatchSettings)
    balance: BalanceSettings = Field(default_factory=BalanceSettings)
    mtp: MTPSettings = Field(default_factory=MTPSettings)
    run: RunSettings

    @model_validator(mode="before")
    @classmethod
    def _schedule_has_a_name(cls, values: Any) -> Any:
        """A table of schedule keys without a name changes the default schedule."""
        schedule = values.get("schedule") if isinstance(values, Mapping) else None
        if isinstance(schedule, Mapping) and "name" not in schedule:
            values = {**values, "schedule": {"name": "report", **schedule}}
        return values if "run" in values else {**values, "run": {}}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        run, batch = self.run, self.batch
        if run.steps is None and run.minutes is None:
            raise ConfigError("the run has no length: give `run.steps`, or `run.minutes`")
        if self.schedule.warmup_steps is not None:
            if run.steps is None:
                raise ConfigError(
                    "`schedule.warmup_steps` needs a run counted in steps (`run.steps`)",
                    way_out="try `schedule.warmup_share`, a share of the run, instead",
                )
            if self.schedule.warmup_steps > run.steps:
                raise ConfigError(
                    f"`schedule.warmup_steps` is {self.schedule.warmup_steps}, but the run has {run.steps} steps"
                )
        if batch.ramp_from is not None and batch.ramp_from > batch.full:
            raise ConfigError(
                f"`batch.ramp_from` is {batch.ramp_from} rows, but a full step has {batch.full} "
                f"(`batch.rows` {batch.rows} x `batch.accumulate` {batch.accumulate})"
            )
        if run.minutes is not None and run.steps is None and not 1 / 600 <= run.minutes < 1e6:
            raise ConfigError(f"`run.minutes` is {run.minutes}; give between 0.002 and a million")
        self.shape()
        return self

    def shape(self, vocab_size: int | None = None) -> ModelConfig:
        """The shape of the model.

        Args:
            vocab_size: what the tokenizer has; taken unless `model.vocab_size` is given.

        Raises:
            ConfigError: the shape does not fit itself, the vocabulary or the rows.
        """
        changes = self.model.overrides
        wanted = changes.setdefault("vocab_size", vocab_size or self.data.vocab_size)
        if wanted is None:
            del changes["vocab_size"]
        shape = model_config(self.model.preset, **changes)
        if vocab_size is not None and shape.vocab_size < vocab_size:
            raise ConfigError(
                f"`model.vocab_size` is {shape.vocab_size}, but the tokenizer has {vocab_size} tokens; "
                f"give at least {vocab_size}, or leave it out"
            )
        length = self.data.sequence_length
        if length > shape.max_position_embeddings:
            raise ConfigError(
                f"`data.sequence_length` is {length}, but the model has {shape.max_position_embeddings} positions; "
                f"raise `model.max_position_embeddings` or shorten the rows"
            )
        if length <= shape.num_nextn_predict_layers:
            raise ConfigError(
                f"`data.sequence_length` is {length}, but {shape.num_nextn_predict_layers} MTP depths need longer rows"
            )
        if self.balance.bias_speed > 0 and shape.gate_count and not shape.has_router_bias:
            raise ConfigError(
                f"`balance.bias_speed` is {self.balance.bias_speed}, but gates with `topk_method` "
                f"{shape.topk_method!r} have no bias to move",
                way_out="try balance.bias_speed = 0 and a larger balance.sequence_loss",
            )
        return shape

    @property
    def directory(self) -> Path:
        """Where the run lives."""
        return Path(self.run.folder) / self.run.name

    @property
    def warmup(self) -> float:
        """The warm-up as a share of the run."""
        if self.schedule.warmup_steps is not None and self.run.steps is not None:
            return self.schedule.warmup_steps / self.run.steps
        return 0.01 if self.schedule.warmup_share is None else self.schedule.warmup_share

    def table(self) -> dict[str, Any]:
        """Every key with its value, as TOML can hold it: what is absent by default is left out."""
        table: dict[str, Any] = {}
        for name in type(self).model_fields:
            part: Section = getattr(self, name)
            values: dict[str, Any] = {}
            for key, value in part.model_dump().items():
                field = type(part).model_fields.get(key)
                if dataclasses.is_dataclass(value) and not isinstance(value, type):
                    value = {k: v for k, v in dataclasses.asdict(value).items() if v is not None}
                if value is None and field is not None and field.default is None:
                    continue
                values[key] = NONE if value is None else list(value) if isinstance(value, tuple) else value
            # A name says which keys follow, so it stands first.
            table[name] = {key: values[key] for key in sorted(values, key=lambda key: key not in ("name", "preset"))}
        return table

    def toml(self) -> str:
        """The file that gives this config again."""
        return tomli_w.dumps(self.table())

    @property
    def fingerprint(self) -> str:
        """A hash of every value."""
        return hashlib.sha256(json.dumps(self.table(), sort_keys=True).encode()).hexdigest()


@functools.cache
def _model_hints() -> dict[str, Any]:
    """The type of every key of a model; `other` holds what a published file brings and is not set by hand."""
    return {key: hint for key, hint in get_type_hints(ModelConfig).items() if key != "other"}
