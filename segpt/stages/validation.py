"""How a run is measured on every one of its held-out texts."""

from segpt.config.recipe import Recipe
from segpt.data.tokenizer import load
from segpt.data.validation import ValidationSets
from segpt.eval.validate import validate
from segpt.model.model import Model
from segpt.train.mesh import Mesh
from segpt.values import Tokens

from .calibrate import in_order


class Validation:
    """Measures a model on every held-out text.

    ``by_set`` holds the bits per byte of the named sets, as they were measured last.
    """

    def __init__(self, recipe: Recipe, held_out: ValidationSets, mesh: Mesh) -> None:
        self.by_set: dict[str, float] = {}
        self._context, self._count = recipe.model.context, recipe.train.validate_tokens
        self._held_out, self._mesh = held_out, mesh

    def __call__(self, model: Model) -> tuple[float, float]:
        """Nats per token and bits per byte of the first set."""
        first = self._measure(model, self._held_out.first)
        if self._held_out.named():
            bpb = {self._held_out.name: first[1]}
            others = self._held_out.others.items()
            bpb |= {name: self._measure(model, tokens)[1] for name, tokens in others}
            self.by_set = {name: self._mesh.mean_value(value) for name, value in bpb.items()}
        return first

    def _measure(self, model: Model, tokens: Tokens) -> tuple[float, float]:
        rows = in_order(tokens, self._context, self._count, rest=True)
        return validate(model, rows, load(tokens.tokenizer).sizes)
