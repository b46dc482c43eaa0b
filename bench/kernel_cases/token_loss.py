"""The loss of tokens in the shapes, types and masks that it meets."""

from collections.abc import Iterator

import torch

from .case import BF16, FP16, FP32, TYPES, Case, meta, short

_USUAL = {
    (BF16, 8192, "tanh", False),
    (BF16, 8192, "asymmetric", True),
    (FP16, 50_257, "none", False),
    (FP32, 257, "none", False),
}


# Forms of the cap by the size of the vocabulary: all of them once, then what is short and long.
_FORMS = {
    8192: ("none", "tanh", "sigmoid", "algebraic", "asymmetric"),
    50_257: ("none", "tanh", "sigmoid"),
    257: ("none", "tanh", "asymmetric"),
}


def cases() -> Iterator[Case]:
    """Each cap, one of them with smoothing; a vocabulary and a width that no tile divides."""
    from segpt.kernels import cross_entropy as op
    from segpt.kernels.cross_entropy import triton as token_loss

    caps: dict[str, op.Cap | None] = {
        "none": None,
        "tanh": op.TanhCap(30.0),
        "sigmoid": op.SigmoidCap(30.0, 7.5),
        "algebraic": op.AlgebraicCap(15.0),
        "asymmetric": op.AsymmetricCap(meta(torch.float32, 2)),
    }
    for dtype in TYPES:
        for rows, vocab, width in ((1 << 16, 8192, 512), (4096, 50_257, 768), (999, 257, 100)):
            hidden, weight = meta(dtype, rows, width), meta(dtype, vocab, width)
            targets = torch.empty(rows, dtype=torch.int64, device="meta")
            log_z, picked, logit_sum, share = (meta(torch.float32, rows) for _ in range(4))
            by_products = meta(dtype, rows, vocab)
            for form in _FORMS[vocab]:
                cap = caps[form]
                head = op.LinearHead(weight, 1.0, cap)
                operands = token_loss.Operands(hidden, weight, targets, head)
                smoothed, by_caps = form == "asymmetric", None
                if form == "asymmetric":
                    by_caps = meta(torch.float32, 2, token_loss.tiles_of_tokens(operands), rows)
                usual = (dtype, vocab, form, smoothed) in _USUAL
                name = f"{rows}x{vocab}x{width} {short(dtype)}"
                name += "" if cap is None else f" {form}{' smoothed' * smoothed}"
                sums = token_loss.RowSums(log_z, picked, logit_sum if smoothed else None)
                normalise = token_loss.normalise(operands, sums)
                yield Case(f"token_loss log Z {name}", normalise, usual)
                weights = token_loss.Weights(share, 1e-4, 0.1 * smoothed)
                results = token_loss.Slopes(by_products, by_caps)
                slopes = token_loss.slopes(operands, log_z, weights, results)
                yield Case(f"token_loss slope {name}", slopes, usual)
