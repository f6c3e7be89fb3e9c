"""What changes in the course of a run: learning rate, bias speed, weight of the MTP loss, rows of a step.

Each is a pure function of `progress`, the share of the run that is done when the step ends: (step + 1) / steps, or
expected seconds / limit in a run limited by time. Nothing is remembered, so a resumed run needs only its place.

Source: DeepSeek-V3 report (arXiv:2412.19437), section 4.2, whose dates in tokens are read as shares of 14.8T.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from cueva.train.settings import (
    REPORT_TOKENS,
    BalanceSettings,
    BatchSettings,
    ConstantSchedule,
    CosineSchedule,
    MTPSettings,
    ReportSchedule,
    ScheduleSettings,
    TrainConfig,
    WSDSchedule,
)


class Segment(NamedTuple):
    """A stretch of the report's schedule, from one multiple of the highest rate to another."""

    until: float
    """Its end, as a share of the run."""
    start: float
    stop: float


PEAK: Final = 2.2e-4
REPORT_SEGMENTS: Final = (
    # The first segment, 2,000 steps of warm-up, is every schedule's own.
    Segment(10e12 / REPORT_TOKENS, 1.0, 1.0),
    Segment((10e12 + 4.3e12) / REPORT_TOKENS, 1.0, 2.2e-5 / PEAK),
    Segment((10e12 + 4.3e12 + 333e9) / REPORT_TOKENS, 2.2e-5 / PEAK, 2.2e-5 / PEAK),
    Segment(1.0, 7.3e-6 / PEAK, 7.3e-6 / PEAK),
)


def learning_rate(schedule: ScheduleSettings, warmup: float, progress: float) -> float:
    """Return the rate as a share of the highest one.

    Args:
        schedule: which, with its keys.
        warmup: share of the run in which the rate rises linearly from 0 (`TrainConfig.warmup`).
        progress: from 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    match schedule:
        case ConstantSchedule():
            return 1.0
        case CosineSchedule(final_share=final):
            done = (progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
            return cosine(1.0, final, done)
        case WSDSchedule(decay_share=decay, final_share=final):
            if progress <= 1 - decay or decay == 0:
                return 1.0
            return 1 - (1 - final) * (progress - (1 - decay)) / decay
        case ReportSchedule():
            begin = 0.0
            for segment in REPORT_SEGMENTS:
                if progress <= segment.until:
                    return cosine(segment.start, segment.stop, (progress - begin) / (segment.until - begin))
                begin = segment.until
            return REPORT_SEGMENTS[-1].stop
    raise AssertionError(f"no such schedule: {schedule!r}")


def cosine(start: float, stop: float, done: float) -> float:
    """Half a cosine from `start` to `stop`."""
    return stop + (start - stop) * (1 + math.cos(math.pi * done)) / 2


def bias_speed(balance: BalanceSettings, progress: float) -> float:
    """How far this step moves a balance bias: gamma, and 0 in the last stretch.

    The report: 0.001, then 0 for 500B of 14.8T tokens.
    """
    return balance.bias_speed if progress <= 1 - balance.off_share else 0.0


def mtp_weight(mtp: MTPSettings, progress: float) -> float:
    """The weight of the MTP loss: lambda (the report: 0.3 for 10T tokens, 0.1 for the remaining 4.8T)."""
    return mtp.weight if progress <= mtp.switch_share else mtp.later_weight


def step_rows(batch: BatchSettings, progress: float) -> int:
    """Rows of this step.

    The report gives a ramp's ends (3,072 to 15,360 rows over 469B tokens), not its shape; ours is linear.
    """
    if batch.ramp_from is None or progress >= batch.ramp_share:
        return batch.full
    return batch.ramp_from + int((batch.full - batch.ramp_from) * progress / batch.ramp_share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dials:
    """Everything one optimizer step is told besides its rows."""

    lr: float
    clip: float | None
    bias_speed: float
    bias_rule: Literal["sign", "proportional"]
    sequence_loss: float
    sequence_loss_choice: Literal["literal", "actual"]
    mtp_weight: float
    document_mask: bool
    precision: Literal["float32", "bfloat16"]
    recompute: bool


def dials(config: TrainConfig, progress: float) -> Dials:
    """Set the dials for a step."""
    return Dials(
        lr=config.optimizer.lr * learning_rate(config.schedule, config.warmup, progress),
        clip=config.optimizer.clip,
        bias_speed=bias_speed(config.balance, progress),
        bias_rule=config.balance.rule,
        sequence_loss=config.balance.sequence_loss,
        sequence_loss_choice=config.balance.sequence_loss_choice,
        mtp_weight=mtp_weight(config.mtp, progress),
        document_mask=config.data.document_mask,
        precision=config.run.precision,
        recompute=config.run.recompute,
    )
