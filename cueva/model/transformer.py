"""The whole model: embedding, layers, head, and the MTP modules behind them.

`states` is the training and scoring pass over whole rows (expanded attention). `step` and `mtp_step` are the engine's
passes over a latent cache. Both use the same modules and compute the same function.

Source: DeepSeek-V3 report (arXiv:2412.19437), section 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cueva.config import ModelConfig
from cueva.errors import ShapeError
from cueva.kernels.attend import document_mask
from cueva.kernels.route import Routing
from cueva.model.attention import Segment
from cueva.model.block import Block
from cueva.model.experts import Experts, Gate, MixtureOfExperts
from cueva.model.mtp import MTPModule
from cueva.model.norm import RMSNorm
from cueva.model.rotary import Rotary, Rotation


class Output(NamedTuple):
    """What calling the model returns."""

    logits: Tensor
    """float32, (B, T, A): row i predicts token i + 1."""
    mtp_logits: list[Tensor]
    """Depth k: float32, (B, T - k, A); row i predicts token i + k + 1."""


class States(NamedTuple):
    """What the heads read, and where the gates sent the tokens."""

    hidden_BTD: Tensor
    """After `model.norm`."""
    mtp_hidden: list[Tensor]
    """Depth k: (B, T - k, D), after that depth's `shared_head.norm`."""
    mtp_valid: list[Tensor]
    """Depth k: bool, (B, T - k): token i + k lies in the same document. Other rows are filler: no loss, no load."""
    routings: tuple[Routing, ...]
    """One per gate: expert layers in order, then the MTP modules."""


class Decoder(nn.Module):
    """The part of the tree that is called `model` in published files."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        main, depths = config.num_hidden_layers, config.num_nextn_predict_layers
        blocks: list[nn.Module] = [Block(config, layer) for layer in range(main)]
        blocks += [MTPModule(config, main + depth) for depth in range(depths)]
        self.layers = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A language model built like DeepSeek-V3. Parameters bear the published names; only the experts are stacked.

    Building draws no weights: call `init_weights`, or load some.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = Rotary(config)

    # --- parts --------------------------------------------------------------------------------------------------------

    @property
    def main_layers(self) -> list[Block]:
        """The L layers that `num_hidden_layers` counts."""
        return list(self.model.layers)[: self.config.num_hidden_layers]  # pyright: ignore[reportReturnType]

    @property
    def mtp_modules(self) -> list[MTPModule]:
        """The MTP modules, depth 1 first."""
        return list(self.model.layers)[self.config.num_hidden_layers :]  # pyright: ignore[reportReturnType]

    def gates(self) -> list[tuple[str, Gate]]:
        """Every router with its name, in the order of `States.routings`; found by type, so that none is missed."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, Gate)]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float | None = None) -> None:
        """Draw every matrix from a normal distribution; norms are 1, biases (the balance bias too) 0.

        Args:
            generator: the only source of randomness.
            std: standard deviation; None takes `config.initializer_range`. The report uses 0.006 for all weights
                (section 4.2).
        """
        std = self.config.initializer_range if std is None else std
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, Experts):
                module.gate_up_proj.normal_(0.0, std, generator=generator)
                module.down_proj.normal_(0.0, std, generator=generator)
            elif isinstance(module, Gate):
                module.weight.normal_(0.0, std, generator=generator)
                if module.e_score_correction_bias is not None:
                    module.e_score_correction_bias.zero_()
            elif isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, std, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()

    def embed(self, ids: Tensor, depth: int = 0) -> Tensor:
        """Token embeddings; a depth uses the main model's unless its checkpoint brought another."""
        own = self.mtp_modules[depth - 1].embed_tokens if depth else None
        return (own or self.model.embed_tokens)(ids)

    def logits(self, hidden: Tensor, depth: int = 0) -> Tensor:
        """Float32 logits (..., A) of states that a final norm has passed; `depth` 0 is the main model."""
        own = self.mtp_modules[depth - 1].shared_head.head if depth else None
        return F.linear(hidden, (own or self.lm_head).weight).float()

    # --- whole rows ---------------------------------------------------------------------------------------------------

    def forward(self, ids_BT: Tensor, document_BT: Tensor | None = None) -> Output:
        """Logits of the main model and of every MTP depth, for whole rows. See `states` for the arguments."""
        states = self.states(ids_BT, document_BT)
        mtp_logits = [self.logits(hidden, depth) for depth, hidden in enumerate(states.mtp_hidden, start=1)]
        return Output(self.logits(states.hidden_BTD), mtp_logits)

    def states(
        self,
        ids_BT: Tensor,
        document_BT: Tensor | None = None,
        *,
        counted_BT: Tensor | None = None,
        mtp: bool = True,
        recompute: bool = False,
    ) -> States:
        """Run whole rows, expanded, and return what the heads read.

        Args:
            ids_BT: int64 token ids.
            document_BT: int64; a position sees earlier positions with the same id. A negative id is padding: it sees
                only itself and is never counted. None: one document per row.
            counted_BT: bool, positions that count towards expert loads (None: all that are not padding).
            mtp: run the MTP modules too.
            recompute: keep only the blocks' inputs and run each block again in the backward pass (activation
                recomputation).

        Raises:
            ShapeError: ids are not (B, T), or ids lie outside the vocabulary.
        """
        if ids_BT.dim() != 2:
            raise ShapeError(f"token ids have shape {tuple(ids_BT.shape)}, but rows of a batch (B, T) are expected")
        length = ids_BT.shape[1]
        rotation = self.rotary.at(torch.arange(length, device=ids_BT.device))
        mask = None if document_BT is None else document_mask(document_BT)
        if document_BT is not None:
            counted_BT = (document_BT >= 0) if counted_BT is None else counted_BT & (document_BT >= 0)
        routings: list[Routing] = []

        def run(block: Block, x_BTD: Tensor, rotation: Rotation, mask: Tensor | None, counted: Tensor | None) -> Tensor:
            if recompute and torch.is_grad_enabled():
                x_BTD, routing = checkpoint(block, x_BTD, rotation, mask, counted, use_reentrant=False)  # pyright: ignore
            else:
                x_BTD, routing = block(x_BTD, rotation, mask, counted)
            if routing is not None:
                routings.append(routing)
            return x_BTD

        # 1. The main model.
        x_BTD = self.embed(ids_BT)
        for block in self.main_layers:
            x_BTD = run(block, x_BTD, rotation, mask, counted_BT)
        state_BTD = hidden_BTD = self.model.norm(x_BTD)

        # 2. Each depth one row shorter than the last: row i needs token i + k.
        mtp_hidden: list[Tensor] = []
        mtp_valid: list[Tensor] = []
        for depth, module in enumerate(self.mtp_modules if mtp else (), start=1):
            rows = max(length - depth, 0)
            valid_BT = torch.ones(len(ids_BT), rows, dtype=torch.bool, device=ids_BT.device)
            if document_BT is not None:
                ahead_BT = document_BT[:, depth:]
                valid_BT = (document_BT[:, :rows] == ahead_BT) & (ahead_BT >= 0)
            mtp_valid.append(valid_BT)
            if rows == 0:  # The row is too short for this depth; its gate still reports, that it sent nothing.
                state_BTD = hidden_BTD[:, :0]
                mtp_hidden.append(state_BTD)
                if isinstance(module.mlp, MixtureOfExperts):
                    routings.append(module.mlp.gate(state_BTD.flatten(0, 1), None))
                continue
            x_BTD = module.joined(self.embed(ids_BT[:, depth:], depth), state_BTD[:, :rows])
            x_BTD = run(
                module,
                x_BTD,
                Rotation(rotation.cos_TJ[:rows], rotation.sin_TJ[:rows]),
                None if mask is None else mask[:, :, :rows, :rows],
                valid_BT if counted_BT is None else valid_BT & counted_BT[:, :rows],
            )
            state_BTD = module.shared_head.norm(x_BTD)
            mtp_hidden.append(state_BTD)
        return States(hidden_BTD, mtp_hidden, mtp_valid, tuple(routings))

    # --- over a cache -------------------------------------------------------------------------------------------------

    def step(
        self,
        ids_T: Tensor,
        segments: Sequence[Segment],
        *,
        rowwise: bool,
        routings: list[Routing] | None = None,
    ) -> Tensor:
        """Run T new rows of any sequences through the main layers, appending to their caches.

        Args:
            ids_T: int64 token ids, filler included.
            segments: which rows continue which sequence; rows in none are filler.
            rowwise: for decode and verification, where a row's bits must not depend on its neighbours
                (`Attention.cached`).
            routings: a list that gets each gate's `Routing`, for tracing.

        Returns:
            (T, D) states after `model.norm`.
        """
        rotation, active_T = self._places(segments, len(ids_T), 0, ids_T.device)
        x_TD = self.embed(ids_T)
        for block in self.main_layers:
            x_TD, routing = block.cached(x_TD, segments, rotation, active_T, rowwise=rowwise)
            if routings is not None and routing is not None:
                routings.append(routing)
        return self.model.norm(x_TD)

    def mtp_step(
        self, depth: int, ids_T: Tensor, state_TD: Tensor, segments: Sequence[Segment], *, rowwise: bool
    ) -> Tensor:
        """Run rows through one MTP module: row i takes token i + depth and the state of depth - 1 at i.

        Returns:
            (T, D) states after `shared_head.norm`: what this depth's head and the next depth read.
        """
        module = self.mtp_modules[depth - 1]
        rotation, active_T = self._places(segments, len(ids_T), module.layer, ids_T.device)
        x_TD = module.joined(self.embed(ids_T, depth), state_TD)
        x_TD, _ = module.cached(x_TD, segments, rotation, active_T, rowwise=rowwise)
        return module.shared_head.norm(x_TD)

    def _places(
        self, segments: Sequence[Segment], rows: int, layer: int, device: torch.device
    ) -> tuple[Rotation, Tensor]:
        """The rotation of every row's position, and which rows are not filler."""
        position_T = torch.zeros(rows, dtype=torch.int64)
        active_T = torch.zeros(rows, dtype=torch.bool)
        for segment in segments:
            held = segment.cache.length(layer)
            position_T[segment.start : segment.stop] = torch.arange(held, held + segment.stop - segment.start)
            active_T[segment.start : segment.stop] = True
        return self.rotary.at(position_T.to(device)), active_T.to(device)
