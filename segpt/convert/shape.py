"""What a Llama-shaped model is, and how a spec says the same."""

import math
from dataclasses import dataclass
from typing import Literal

from segpt.config.head import Head
from segpt.config.layer import Attention, Dense, Layer
from segpt.config.model import ModelSpec
from segpt.config.parts import Llama3Scaling, Norm, Rope, Token
from segpt.config.route import Visit
from segpt.errors import SpecError

MOST = 2**24  # of any size that a file may ask for
MOST_LAYERS = 4096
MOST_WEIGHTS = 2**34


@dataclass(frozen=True)
class Shape:
    """A decoder of RMS norms, a rope in halves, and gated feeds with SiLU.

    ``bias`` is that of attention and ``feed_bias`` that of the feed. With ``head_norm`` each head
    of queries and keys is normalised with a gain per channel, as in Qwen3.
    """

    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float
    base: float
    scaling: Llama3Scaling | None = None
    window: int | None = None
    tied: bool = False
    bias: Literal["none", "qkv", "all"] = "none"
    feed_bias: bool = False
    head_norm: bool = False

    def __post_init__(self) -> None:
        sizes = {
            "vocabulary": self.vocab,
            "width": self.width,
            "feed": self.hidden,
            "number of heads": self.heads,
            "number of key heads": self.kv_heads,
            "head size": self.head_dim,
            "context": self.context,
        }
        for name, size in sizes.items():
            if not 1 <= size <= MOST:
                raise SpecError(f"a {name} of {size} is out of range")
        if not 1 <= self.layers <= MOST_LAYERS:
            raise SpecError(f"{self.layers} layers are out of range")
        if not math.isfinite(self.base) or not math.isfinite(self.eps):
            raise SpecError("the base of the rope and the eps of norms are finite")
        if self.weights > MOST_WEIGHTS:
            raise SpecError(f"a model of {self.weights:,} weights is too large to be read")

    @property
    def weights(self) -> int:
        """About how many numbers the model learns, without counting them one by one."""
        mixer = 2 * (self.heads + self.kv_heads) * self.head_dim * self.width
        return self.layers * (mixer + 3 * self.hidden * self.width) + 2 * self.vocab * self.width


def spec_of(shape: Shape, start: int) -> ModelSpec:
    """The spec of a model of this shape, whose texts begin with the token ``start``.

    Raises:
        SpecError: if the sizes do not fit each other.
    """
    rope = Rope(dims=shape.head_dim, base=shape.base, turn="left", scaling=shape.scaling)
    mixer = Attention(
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_key=(Norm(gain=True), rope) if shape.head_norm else (rope,),
        window=shape.window,
        bias=shape.bias,
    )
    feed = Dense(hidden=shape.hidden, act="swiglu", bias=shape.feed_bias)
    layer = Layer(mixer=mixer, feed=feed, gain="input")
    return ModelSpec(
        vocab=shape.vocab,
        width=shape.width,
        context=shape.context,
        embed=(Token(norm=False),),
        layers=(layer,) * shape.layers,
        visits=tuple(Visit(layer=i) for i in range(shape.layers)),
        head=Head(tied=shape.tied, softcap=None, gain=True),
        start=start,
        norm_eps=shape.eps,
    )


def shape_of(spec: ModelSpec) -> Shape:
    """The shape that a spec says, for writing it in a format of others.

    Raises:
        SpecError: if the model has anything that this shape cannot say, naming what.
    """
    layer = spec.layers[0]
    mixer, feed = layer.mixer, layer.feed
    if mixer is None or feed is None:
        raise SpecError("a layer lacks a mixer or a feed, which other formats do not know")
    ropes = [part for part in mixer.query_key if isinstance(part, Rope)]
    if len(ropes) != 1:
        raise SpecError("other formats know models with one rope only")
    shape = Shape(
        vocab=spec.vocab,
        width=spec.width,
        hidden=feed.hidden,
        layers=len(spec.layers),
        heads=mixer.heads,
        kv_heads=mixer.kv_heads,
        head_dim=mixer.head_dim,
        context=spec.context,
        eps=2.0**-23 if spec.norm_eps is None else spec.norm_eps,
        base=ropes[0].base,
        scaling=ropes[0].scaling,
        window=mixer.window,
        tied=spec.head.tied,
        bias=mixer.bias,
        feed_bias=feed.bias,
        head_norm=Norm(gain=True) in mixer.query_key,
    )
    same = spec_of(shape, 0 if spec.start is None else spec.start)
    if spec.documents:
        raise SpecError("attention that stops at documents has no place in other formats")
    for name in ("embed", "layers", "visits", "head", "norm", "value_tables", "growth"):
        if getattr(spec, name) != getattr(same, name):
            raise SpecError(
                f"{name} of this model is not as in a Llama-shaped one, and is not approximated; "
                "train one of that shape to export it"
            )
    return shape
