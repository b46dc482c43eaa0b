"""Causal language models in the format of ``transformers``, read without believing them.

The library goes a long way to give back some model: it draws weights at random that a checkpoint
does not hold, it returns caches of many kinds under one name, and configs name the same limit in
many ways. So what it gives back is looked at before anything is asked of it.
"""

import contextlib
import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segpt.errors import ScoreError, SegptError

# What torch.compile and data parallel training put before the names of weights, or inside them.
_WRAPPERS = "(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)"
_UNWRAPPED = {rf"^(?:(?:module|{_WRAPPERS})\.)+": "", rf"(?<=\.)(?:{_WRAPPERS}\.)+": ""}
_WRAPPED = re.compile(rf"^module\.|(?:^|\.){_WRAPPERS}\.")

# Tables and masks that some versions of the library store with the weights, and others make.
_MADE = ("inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids")

# How configs call the tokens that a model takes; those of positions come first.
_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "n_ctx",
    "seq_length",
    "seq_len",
)
_UNLIMITED = 10**9  # tokenizers without a limit say 10^30
_STRETCHED = ("linear", "dynamic", "yarn", "ntk")  # ropes whose config may name what they began as

_PROBED = 8  # tokens of a probe
_NOISE = 1e-3  # of the largest logit: what the order of sums may change
_LONGEST = 200  # characters of a reason


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn whatever the library raises about a model into a message about it.

    Raises:
        ScoreError: for anything but our own errors.
    """
    try:
        yield
    except SegptError:
        raise
    except Exception as error:
        raise ScoreError(
            f"{name}: not a causal language model that transformers can read and run "
            f"({_reason(error)}); give a directory with its config, weights and tokenizer"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "there is not enough memory"
    lines = [line.strip() for line in str(error).splitlines()]
    reason = next((line for line in lines if any(map(str.isalnum, line))), "no reason was given")
    return reason if len(reason) <= _LONGEST else reason[:_LONGEST].rstrip() + "..."


def load(name: str, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model in evaluation mode, with all of its weights from its files, and its tokenizer.

    Names that ``torch.compile`` or data parallel training have put something before are
    understood. A directory is read without looking at the network, and no code that comes with a
    model runs.

    Raises:
        ScoreError: if transformers is missing, there is no such model, or weights are missing,
            unexpected or of another shape than the config says.
    """
    try:
        import transformers
    except ImportError as error:
        raise ScoreError(
            f"{name}: reading it takes the transformers library; pip install 'segpt[hf]'"
        ) from error
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": name,
        "local_files_only": Path(name).is_dir(),
        "trust_remote_code": False,
    }
    asked = source | {"output_loading_info": True, "ignore_mismatched_sizes": True, "dtype": dtype}
    with explained(name), _quiet():
        library: Any = transformers  # whose types are not those of what it returns
        tokenizer = library.AutoTokenizer.from_pretrained(**source)
        model, info = library.AutoModelForCausalLM.from_pretrained(**asked)
        if any(_WRAPPED.search(key) for key in info["unexpected_keys"]):
            asked["key_mapping"] = _UNWRAPPED
            model, info = library.AutoModelForCausalLM.from_pretrained(**asked)
        _check_weights(name, model, info)
        return model.to(device).eval(), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep reports and bars of the library off the terminal; what they say is in a message."""
    from transformers.utils import logging as library

    reports: Any = library
    level, shown = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity(logging.CRITICAL)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if shown:
            reports.enable_progress_bar()


def _check_weights(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Refuse a model that is not in its files, and say which weights are not."""
    problems = {
        "missing": sorted(_missing(model, set(info["missing_keys"]))),
        "not of this model": sorted(k for k in info["unexpected_keys"] if not k.endswith(_MADE)),
        "of another shape": sorted(map(_mismatch, info["mismatched_keys"])),
        "unreadable": sorted(map(str, info.get("error_msgs", ()))),
    }
    if any(problems.values()):
        parts = [f"{len(keys):,} {what} ({_some(keys)})" for what, keys in problems.items() if keys]
        raise ScoreError(
            f"{name}: its weights are not those that its config asks for: {'; '.join(parts)}; "
            "save the whole model again with save_pretrained, or mend config.json"
        )


def _missing(model: Any, names: set[str]) -> Iterator[str]:
    """Those of some names whose values come from nowhere.

    A weight may be there under another name, and tables and masks are made by the model.
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    present = {id(tensor) for name, tensor in tensors.items() if name not in names}
    buffers = dict(model.named_buffers())
    for name in names:
        made = name in buffers and (name.endswith(_MADE) or not buffers[name].is_floating_point())
        if not made and id(tensors.get(name)) not in present:
            yield name


def _mismatch(entry: Any) -> str:
    if isinstance(entry, str):
        return entry
    key, shape, wanted = entry
    return f"{key}: {tuple(shape)}, not {tuple(wanted)}"


def _some(keys: list[str], most: int = 3) -> str:
    more = f", and {len(keys) - most:,} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def context_of(config: Any, tokenizer: Any) -> int | None:
    """How many tokens a config lets a sequence have, under whatever name; None if it has no limit.

    The smallest of several limits counts. Where a config says nothing, that of the tokenizer does.
    """
    limits = [_positive(getattr(config, name, None)) for name in _LIMITS]
    known = [limit for limit in limits if limit is not None]
    if known:
        return _stretched(config, min(known))
    limit = _positive(getattr(tokenizer, "model_max_length", None))
    return limit if limit is not None and limit < _UNLIMITED else None


def _positive(value: Any) -> int | None:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
    return int(value) if whole else None


def _stretched(config: Any, limit: int) -> int:
    """The limit of rotary positions that were made to reach further, if the config says so."""
    rope = getattr(config, "rope_scaling", None)
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in _STRETCHED:
        return limit
    factor = rope.get("factor")
    if not isinstance(factor, int | float):
        return limit
    began = _positive(rope.get("original_max_position_embeddings")) or limit
    return max(limit, int(began * factor))


class Forward:
    """The logits of a model, in full or after prefixes that ran once.

    ``reuses`` says whether prefixes run once: only where the cache of the model is known to be
    all that it remembers, one key and value of each token, and gives what a full pass gives.
    """

    def __init__(self, name: str, model: Any, vocab: int) -> None:
        """Look at a model at work.

        Raises:
            ScoreError: if it cannot run, or what it predicts depends on what comes later.
        """
        self.name, self.model = name, model
        self.takes = inspect.signature(model.forward).parameters.keys()
        self.memory = "cache" if "cache" in self.takes else "past_key_values"
        with explained(name), torch.no_grad():
            self._check_causal(vocab)
        self.reuses = self._same_after_prefixes(vocab)

    def full(self, tokens: Tensor, last: int) -> Tensor:
        """Logits of at least the ``last`` positions of tokens (rows, time)."""
        return self._run(tokens, use_cache=False, logits_to_keep=last).logits

    def after(self, prefixes: Tensor, owner: Tensor, tokens: Tensor, last: int) -> Tensor:
        """The same of tokens that continue prefixes (prefixes, time); ``owner`` (rows,) says which.

        Raises:
            ScoreError: if the cache is of another kind than it was.
        """
        seen = self._run(prefixes, use_cache=True, logits_to_keep=1)
        cache = getattr(seen, self.memory, None)
        if not _plain(cache, prefixes.size(1)):
            raise ScoreError(f"{self.name}: what it remembers is not a key and value of each token")
        assert cache is not None
        cache.reorder_cache(owner)
        output = self._run(tokens, use_cache=True, logits_to_keep=last, **{self.memory: cache})
        return output.logits

    def _run(self, tokens: Tensor, **options: Any) -> Any:
        known = {key: value for key, value in options.items() if key in self.takes}
        return self.model(tokens, **known)

    def _check_causal(self, vocab: int) -> None:
        """Refuse models that look ahead, such as those of masked language modelling."""
        tokens = self._probe(vocab)[:1]
        other = tokens.clone()
        other[0, -1] = (tokens[0, -1] + 1) % vocab
        logits, others = (self.full(each, _PROBED)[0, :-1].float() for each in (tokens, other))
        if logits.size(-1) < vocab:
            raise ScoreError(
                f"{self.name}: it predicts {logits.size(-1):,} tokens, and its config has a "
                f"vocabulary of {vocab:,}; mend config.json"
            )
        if not _close(logits, others):
            raise ScoreError(
                f"{self.name}: what it predicts depends on the tokens that come later, so it is no "
                "causal language model; score one that was trained to continue text"
            )

    def _same_after_prefixes(self, vocab: int) -> bool:
        tokens = self._probe(vocab)
        half, owner = _PROBED // 2, torch.tensor([0, 1, 1], device=tokens.device)
        rows = torch.cat([tokens, tokens[1:].roll(1, 1)])
        rows[2, :half] = rows[1, :half]
        try:
            with torch.no_grad():
                cached = self.after(tokens[:, :half], owner, rows[:, half:], half)
                return _close(cached[:, -half:].float(), self.full(rows, half)[:, -half:].float())
        except Exception as error:  # noqa: BLE001 - whatever it is, full passes do without
            logging.getLogger(__name__).debug("prefixes of %s run anew: %s", self.name, error)
            return False

    def _probe(self, vocab: int) -> Tensor:
        """Two sequences (2, time) of any tokens."""
        tokens = torch.arange(2 * _PROBED, device=self.model.device) * 7 % vocab
        return tokens.view(2, _PROBED)


def _plain(cache: Any, length: int) -> bool:
    """Whether a cache holds the keys and values of so many tokens, and nothing else.

    Recurrent states, windows, compressed or preallocated tables come as other classes.
    """
    from transformers import cache_utils

    layers = getattr(cache, "layers", None)
    if type(cache) is not cache_utils.DynamicCache or not layers:
        return False
    plain = (type(layer) is cache_utils.DynamicLayer for layer in layers)
    return all(plain) and all(layer.get_seq_length() == length for layer in layers)


def _close(logits: Tensor, others: Tensor) -> bool:
    most = float((logits - others).abs().max())
    return most <= _NOISE * float(logits.abs().max())
