"""From spans of tokens to the log-probabilities of what follows them."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpt.kernels import token_log_probs
from segpt.model.cache import KVCache, LayerCache, first_rows
from segpt.values import Arrays

from .learners import Learner
from .surprisal import gather, pieces, window_hidden
from .windows import Indices, Spans


class TargetLogProbs(NamedTuple):
    """What a model says of scored targets, all of them natural logarithms in float32.

    Attributes:
        targets: which ones, (targets,).
        nats: -log p of each, (targets,).
        rows: (probed, vocab) log p of the whole alphabet, for the probed targets among them.
    """

    targets: Indices
    nats: NDArray[np.float32]
    rows: NDArray[np.float32]


class Predictor:
    """Reads spans of a stream: windows from scratch, or steps that carry on from each other.

    ``window`` is how far attention looks back where steps carry on, or None for windows.
    ``probed`` (targets,) tells of which targets the whole row is wanted.
    """

    def __init__(
        self,
        ids: NDArray[np.uint32],
        window: int | None,
        probed: NDArray[np.bool_],
    ) -> None:
        self.ids, self.window, self.probed = ids, window, probed
        self._cache: KVCache = {}
        self._position = 0

    def open(self) -> None:
        """Segments begin that have read nothing."""
        self._cache, self._position = {}, 0

    @torch.no_grad()
    def read(self, learner: Learner, spans: Spans) -> TargetLogProbs:
        """The distributions of the targets of ``spans`` under the learner's model."""
        model = learner.model
        # Segments may differ in their weights, so only windows of one segment can share tokens.
        shared = self.window is None and bool((spans.segment == spans.segment[:1]).all())
        learner.select(spans.segment[:1] if shared else spans.segment)
        device = model.table.weight.device
        lengths, scored = spans.shapes.T
        longest = int(lengths.max())
        # What stands right of a shorter span is read by no one, as attention is causal.
        offset = np.arange(longest)
        read = (offset >= (lengths - scored)[:, None]) & (offset < lengths[:, None])
        last = max(1, longest - int((lengths - scored).min()))
        if shared:
            hidden = window_hidden(model, self.ids, spans.begin, longest, last)
        elif self.window is None:
            hidden = model.hidden(gather(self.ids, spans.begin, longest).to(device), last=last).x
        else:
            tokens = gather(self.ids, spans.begin, longest).to(device)
            first_rows(self._cache, len(spans))
            hidden = model.hidden(tokens, self._cache, self._position, last, self.window).x
            self._position += longest
        return self._logs(learner, hidden, read[:, longest - last :], spans)

    def _logs(
        self, learner: Learner, hidden: Tensor, chosen: NDArray[np.bool_], spans: Spans
    ) -> TargetLogProbs:
        """Logits of a few positions at a time, softmax over the whole vocabulary."""
        targets, device = spans.targets, hidden.device
        nats: list[Tensor] = []
        rows: list[Tensor] = []
        done = 0
        for part in pieces(*chosen.shape):
            picked = chosen[part]
            scored = targets[done : done + int(picked.sum())]
            if not scored.size:
                continue
            done += len(scored)
            learner.select(spans.segment[part[0]])
            probed = self.probed[scored]
            log_probs = token_log_probs(
                hidden[part],
                learner.model.readout(),
                None if picked.all() else _places(picked).to(device),
                torch.from_numpy(self.ids[scored + 1].astype(np.int64)).to(device),
                _places(probed).to(device) if probed.any() else None,
            )
            nats.append(log_probs.nats)
            if log_probs.rows is not None:
                rows.append(log_probs.rows)
        return TargetLogProbs(
            targets, _joined(nats, (0,)), _joined(rows, (0, learner.model.spec.vocab))
        )

    def state(self) -> dict[str, NDArray[Any]]:
        """What the next step carries on from, as named arrays."""
        arrays = {
            f"{place}|{name}": _bits(tensor.cpu()).numpy()
            for place, past in self._cache.items()
            for name, tensor in past.tensors().items()
        }
        return arrays | {"position": np.array(self._position)}

    def restore(self, state: Arrays, device: torch.device) -> None:
        """Carry on, on ``device``, from where these named arrays were taken."""
        self.open()
        self._position = int(state["position"])
        for key, array in state.items():
            if key != "position":
                place, name = key.split("|")
                past = self._cache.setdefault(int(place), LayerCache())
                setattr(past, name, _of_bits(torch.from_numpy(np.array(array))).to(device))


def _places(mask: NDArray[np.bool_]) -> Tensor:
    """Where a mask of any shape is true, (trues,)."""
    return torch.from_numpy(np.flatnonzero(mask))


def _bits(tensor: Tensor) -> Tensor:
    """``tensor`` in its shape, or the bits of bfloat16, which numpy does not have."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _of_bits(tensor: Tensor) -> Tensor:
    """What :func:`_bits` was given, in the same shape; nothing else is of int16."""
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def _joined(parts: list[Tensor], empty: tuple[int, ...]) -> NDArray[np.float32]:
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(empty, np.float32)
