"""Models of ours for lm-evaluation-harness, where they are called ``segpt``.

Once :func:`register` has run, ``--model segpt --model_args path=FILE`` works as for any model,
for instance in a script of two lines::

    from segpt.tasks import harness; harness.register()
    from lm_eval.__main__ import cli_evaluate; cli_evaluate()

``FILE`` is an artifact, a quantized model, a checkpoint or a run.
"""

import codecs
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from segpt.errors import ScoreError
from segpt.eval.windows import plan
from segpt.kernels.precision import computed
from segpt.model.cache import KVCache
from segpt.stages.open_model import OpenedModel, open_model
from segpt.stages.read_model import Value, read_model
from segpt.stages.resolve_spec import Reading, score_spec
from segpt.train.mesh import pick

from .continuations import ContinuationScore, Request, continuations
from .subject import of_model

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
except ImportError as error:
    raise ScoreError(
        f"running tasks takes lm-evaluation-harness ({error}); pip install 'segpt[eval]'"
    ) from error

NAME: Final = "segpt"
LONGEST: Final = 256  # tokens that are generated where a task sets no limit
WINDOWS: Final = 4096  # of documents that are held at once

Report = Callable[[int, int], None]


class SegptLM(TemplateLM):  # type: ignore[misc]
    """A model of ours as lm-evaluation-harness wants it: text in, log-likelihoods out.

    A context and its continuation are cropped from the left so that the model reads at most its
    own context. Documents are scored as ``segpt score`` does with each of them alone.
    """

    def __init__(
        self,
        path: str | Path | Value | OpenedModel,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        context: int | None = None,
        stride: int | None = None,
        report: Report = lambda done, total: None,
        **others: object,
    ) -> None:
        """Load a model.

        Args:
            path: where the model is, or the model.
            device: where to compute; CUDA if there is any.
            batch_size: sequences of the model's context that run at once, which changes no
                result; by the device if ``auto``.
            max_batch_size: ignored, since the batch that ``auto`` takes always fits.
            context: tokens that the model reads at most; its own context if None.
            stride: targets per window of a long document; as ``segpt score`` does if None.
            report: told how many of how many requests are done.
            others: ignored, with a warning.

        Raises:
            CheckpointError, ArtifactError, DataError: if there is no model there.
            TrainError: if the device is not there.
        """
        super().__init__()
        if others:
            logging.getLogger(__name__).warning("no model of ours uses %s", ", ".join(others))
        value = read_model(Path(path)) if isinstance(path, (str, Path)) else path
        where = pick(device or "auto")
        opened = open_model(value, where)
        source, self.model, self.codec = opened.source, opened.model, opened.codec
        self.fingerprint, self._tokenizer = source.fingerprint, source.tokenizer.fingerprint
        reading = Reading(context=context, stride=stride, precision=computed())
        self.spec = score_spec(source.spec, reading=reading)
        self.max_length = context or source.spec.context
        # The last token of a sequence is predicted, never read.
        self._subject = of_model(self.model, self.codec, self.max_length + 1)
        self._batch = None if batch_size in (None, "auto") else int(batch_size) * self.max_length
        self._device = torch.device(where)
        self._report = report

    @property
    def eot_token_id(self) -> int:
        return self.codec.start

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer

    def get_model_info(self) -> dict[str, str]:
        """What the results say about the model."""
        return {"model": self.fingerprint, "tokenizer": self._tokenizer}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **others: object
    ) -> list[int]:
        """The tokens of a text, after a start token only if asked for."""
        return [self.codec.start] * bool(add_special_tokens) + self._subject.encode(string)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the likeliest."""
        return super().loglikelihood(requests, disable_tqdm=True)  # ``report`` tells as much

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **others: object
    ) -> list[tuple[float, bool]]:
        scores = self._score([self._request(before, after) for _, before, after in requests])
        answers = [(-scored.nats, scored.greedy) for scored in scores]
        for (key, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def _request(self, before: list[int], after: list[int]) -> Request:
        start = self.codec.start
        context = before if before[:1] == [start] else [start, *before]
        if not after:  # it has merged with the end of the context, whose last token stands for it
            context, after = context[:-1], context[-1:]
        return Request(context, after)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each document alone, after a start token."""
        totals = np.zeros(len(requests))
        windows: list[tuple[int, Request]] = []
        for number, request in enumerate(requests):
            windows += [(number, window) for window in self._windows(request.args[0])]
            if len(windows) >= WINDOWS or number == len(requests) - 1:
                scores = self._score([window for _, window in windows])
                for (owner, _), scored in zip(windows, scores, strict=True):
                    totals[owner] -= scored.nats
                windows = []
        for request, total in zip(requests, totals.tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals.tolist()

    def _windows(self, document: str) -> Iterable[Request]:
        """The windows that together score each token of a document once."""
        ids = [self.codec.start, *self._subject.encode(document)]
        if len(ids) == 1:
            return
        spans = plan(len(ids) - 1, self.max_length, self.spec.stride)
        for begin, start, end in zip(
            spans.begin.tolist(), spans.start.tolist(), spans.end.tolist(), strict=True
        ):
            yield Request(ids[begin : start + 1], ids[start + 1 : end + 1])

    def _score(self, requests: Sequence[Request]) -> list[ContinuationScore]:
        (scores,) = continuations(self._subject, [requests], batch=self._batch, report=self._report)
        return scores

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context greedily up to a stop string, a start token or the limit.

        Raises:
            ScoreError: if a task asks for sampling.
        """
        answers = []
        for done, request in enumerate(requests, 1):
            context, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise ScoreError(
                    "the task samples what it generates, which is not supported; set do_sample: "
                    "false in its generation_kwargs"
                )
            until = options.get("until") or []
            answer = self._continue(
                context,
                [until] if isinstance(until, str) else until,
                next((options[key] for key in _LIMITS if options.get(key) is not None), LONGEST),
            )
            answers.append(answer)
            self.cache_hook.add_partial("generate_until", request.args, answer)
            self._report(done, len(requests))
        return answers

    @torch.no_grad()
    def _continue(self, context: str, until: Sequence[str], limit: int) -> str:
        """Each token attends to as many before it as the model's context holds.

        Where positions are learned, all that is read and written at once takes one each.
        """
        cache: KVCache = {}
        room, positions = self.max_length, self.model.spec.positions
        if positions is not None:
            limit = min(limit, positions - 1)
            room = min(room, positions - limit)
        ids = [self.codec.start, *self._subject.encode(context)][-room:]
        stops = [stop.encode() for stop in until if stop]
        raw, position = b"", 0
        for _ in range(limit):
            tokens = torch.tensor([ids], device=self._device)
            hidden = self.model.hidden(tokens, cache, position, 1, self.max_length).x
            position += len(ids)
            ids = [int(self.model.logits(hidden)[0, -1].argmax())]
            if ids[0] == self.codec.start or ids[0] >= self.codec.vocab:
                break
            raw += self.codec.decode(ids)
            if places := [raw.index(stop) for stop in stops if stop in raw]:
                raw = raw[: min(places)]
                break
        # A character that the limit cuts short is left out; other odd bytes are shown as such.
        return codecs.getincrementaldecoder("utf-8")("replace").decode(raw)


_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


def register() -> None:
    """Make ``segpt`` the name of :class:`SegptLM` in lm-evaluation-harness; twice is fine."""
    model_registry.register(NAME, target=SegptLM)
