"""What of the core's source goes into a model by itself, and what is left out or said otherwise.

Texts are statements and tests as ``ast.unparse`` writes them. Where the core changes, so do they:
the tests of this room name the first text that no longer occurs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

Texts = Mapping[str, str]


@dataclass(frozen=True)
class ModuleRules:
    """What changes in one module, see :class:`.rewrite.Rules`.

    ``specs`` and ``modules`` are the names under which it imports modules of specs and others.
    """

    specs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    facts: Mapping[str, bool] = field(default_factory=dict)
    texts: Texts = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    names: Texts = field(default_factory=dict)


CONFIG = (
    "config/role.py",
    "config/caps.py",
    "config/parts.py",
    "config/layer.py",
    "config/head.py",
    "config/route.py",
    "config/window.py",
    "config/model.py",
)
FACTS_CONFIG = MappingProxyType({"self.growth is None": True})
GONE_CONFIG = ("growth", "since", "progress")
CUT_CONFIG = (
    "__post_init__", "weights", "embed_weights", "active", "passes", "loop", "looped", "Place",
    "joined_visits", "Weightless", "_check_embed", "_check_value_tables", "_check_lanes",
    "_check_mixers", "_blends", "Loop", "Growth", "longest_loop", "parse_route", "_joins",
    "indices", "_STEP",
)  # fmt: skip

FUNCTIONS = ("is_gated", "narrower", "read_spec", "shape_per")
BOUND = frozenset(
    ("matrix", "table", "stack", "vector", "within")
)  # what variables are called there

# What is so in every pass of a model by itself.
FACTS = MappingProxyType(
    {
        "overlap is None": True,
        "state.inputs.overlap is not None": False,
        "QUERY_KEY.may_choose(q.device.type)": False,
        "_rolls(k)": False,
        "ring is None": True,
        "self.ring is not None": False,
        "statistics": False,
        "place == self.no_grad_visits.start": False,
        "place in self.no_grad_visits": False,
        "place == self.no_grad_visits.stop - 1": False,
        "self._is_recomputed(place)": False,
        "self.feed is not None and self.feed.reads_all": False,
    }
)
PASSED = ("state.read", "state.tail", "state.inputs.rows", "inputs.rows")
NO_VALUE_TABLES = MappingProxyType(
    {"tables = [Table(*rows.shape) for rows, _ in s.value_table_weights()]": ""}
)
_OPS = ("__all__", "TRITON", "ADDED")


def _facade(**names: str) -> ModuleRules:
    """The function of an operation, which calls its reference."""
    return ModuleRules(names=names, cut=(*_OPS, *names, "CACHED_ATTENTION", "cached_attention"))


MODEL: Mapping[str, ModuleRules] = MappingProxyType(
    {
        "kernels/linear/reference.py": ModuleRules(names={"reference": "linear_reference"}),
        "kernels/linear/__init__.py": _facade(LINEAR="linear_reference"),
        "kernels/rms_norm/reference.py": ModuleRules(names={"reference": "rms_norm_reference"}),
        "kernels/rms_norm/__init__.py": _facade(
            RMS_NORM="rms_norm_reference", ADD_NORM="add_norm_reference"
        ),
        "kernels/rotary/reference.py": ModuleRules(names={"reference": "rotary_reference"}),
        "kernels/rotary/__init__.py": _facade(ROTARY="rotary_reference"),
        "kernels/query_key/reference.py": ModuleRules(
            cut=("reference", "QueryKeyCall", "Step", "NormStep", "GainStep", "apply")
        ),
        "kernels/activation/reference.py": ModuleRules(names={"reference": "activation_reference"}),
        "kernels/activation/__init__.py": _facade(
            ACTIVATION="activation_reference", GATED_FEED="feed_reference"
        ),
        "kernels/attention/reference.py": ModuleRules(names={"reference": "attention_reference"}),
        "kernels/attention/__init__.py": _facade(ATTENTION="attention_reference"),
        "kernels/cross_entropy/caps.py": ModuleRules(),
        "model/cache.py": ModuleRules(
            cut=("LayerCache.roll", "tensors"),
            gone=("ring",),
            texts={"self.ring = None if self.ring is None else self.ring.pick(rows)": ""},
        ),
        "model/state.py": ModuleRules(
            gone=("overlap", "last"),
            cut=(
                "PassInputs.rows",
                "by_window",
                "copy",
                "tail",
                "read",
                "part_windows",
                "Hidden",
                "Outputs",
            ),
            texts={
                "cache, overlap = (self.visit.cache, self.inputs.overlap)": (
                    "cache = self.visit.cache"
                ),
                "follows = overlap.follows.view(1, -1, *[1] * (x.dim() - 2))": "",
                "return torch.where(follows, before, first)": "",
            },
        ),
        "model/params.py": ModuleRules(
            gone=("role",),
            cut=(
                "used",
                "Param",
                "WeightTransform",
                "Weight",
                "weights",
                "plain_weight",
                "is_hooked",
            ),
            texts={
                "self.weight_transform: WeightTransform | None = None": "",
                "self.product: Product = PlainProduct()": "",
                "return self.product(x, self.used())": "return linear(x, self.weight.to(x.dtype))",
                "return F.embedding(ids, self.used())": "return F.embedding(ids, self.weight)",
                "self.role, self.zero, self.diagonal = (role, zero, diagonal)": (
                    "self.zero, self.diagonal = zero, diagonal"
                ),
                "self.role, self.zero = (Role.TABLE, zero)": "self.zero = zero",
                "self.role, self.init = (Role.VECTOR, init)": "self.init = init",
            },
        ),
        "model/norm.py": ModuleRules(),
        "model/parts.py": ModuleRules(
            specs=("spec", "softcaps"),
            modules=("caps",),
            cut=("cap_numbers", "QueryKeyPart", "Norm.step", "Gain.step"),
            names={"QueryKeyPart": "nn.Module"},
            texts={
                "self.rates: Tensor": "",
                "self.register_buffer('rates', rates.float(), persistent=False)": (
                    "# Numbers and not a buffer, which loading would leave empty or round.\n"
                    "self.rates: list[float] = rates.float().tolist()"
                ),
                "self.rates.to(device).double()": (
                    "torch.tensor(self.rates, dtype=torch.float64, device=device)"
                ),
            },
        ),
        "model/embed.py": ModuleRules(specs=("spec",)),
        "model/fast.py": ModuleRules(specs=("spec",)),
        "model/attention.py": ModuleRules(
            specs=("spec",),
            texts={
                "cache, ring = (state.visit.cache, None)": "cache = state.visit.cache",
                "q, v, x = (state.read(q), state.read(v), state.read(x))": "",
            },
            cut=("_rolls",),
        ),
        "model/feed.py": ModuleRules(
            specs=("spec",),
            facts={"weight is None": True},
            texts={"weight = plain_weight(self.up) if self.up_bias is None else None": ""},
            cut=("Dense.reads_all",),
        ),
        "model/head.py": ModuleRules(cut=("linear_form",)),
        "model/layer.py": ModuleRules(
            specs=("spec",),
            cut=("Branch.reads_all",),
            texts={
                "state.part_windows()": "",
                "last = state.visit.last": "",
                "state.visit.last = last": "",
                "fed = None if fed is None else state.read(fed)": "",
            },
        ),
        "model/model.py": ModuleRules(
            gone=("last", "overlap", "statistics"),
            cut=(
                "Model.forward",
                "hidden",
                "set_progress",
                "loops",
                "_straight_through",
                "_passing",
                "private_prefix",
                "_is_recomputed",
                "_visit_checkpointed",
                "readout",
            ),
            names={"_hidden": "forward", "Hidden": "Tensor", "DataError": "ValueError"},
            texts={
                "self.recompute = 0": "",
                "self.set_progress(1.0)": (
                    "self.active = tuple(range(len(spec.visits)))\nself.windows = spec.windows()"
                ),
                "watched: list[Tensor] = []": "",
                "loop_entry = (x, state.memory.lane)": "",
                "outputs = Outputs({}, {'kurtosis': torch.stack(watched)} "
                "if statistics else {})": "",
                "return Hidden(x, outputs)": "return x",
            },
        ),
        "model/build.py": ModuleRules(
            specs=("spec", "slot", "caps"),
            modules=("parts", "embed"),
            gone=("role",),
            cut=("load_weights",),
            names={"HeadSpec": "HeadSpec"},
        ),
    }
)

# What changes where no such spec occurs in the model, by its class; and in which module.
ABSENT: Mapping[str, Mapping[str, ModuleRules]] = MappingProxyType(
    {
        "Llama3Scaling": {
            "model/parts.py": ModuleRules(facts={"s.scaling is not None": False}, cut=("_scaled",))
        },
        "FastWeight": {
            "model/feed.py": ModuleRules(
                facts={"self.fast is None": True},
                texts={"self.fast = fast": ""},
                gone=("fast",),
            ),
            "model/build.py": ModuleRules(
                texts={
                    "fast = None if s.feed.fast is None else FastWeight(s.feed.fast, "
                    "s.feed.hidden, width)": ""
                },
                gone=("fast",),
            ),
        },
        "Lanes": {
            "model/layer.py": ModuleRules(
                facts={"self.lanes is None": True},
                texts={"self.lanes = lanes": ""},
                gone=("lanes",),
                cut=("Layer._lanes",),
            ),
            "model/build.py": ModuleRules(
                texts={"lanes = None if s.lanes is None else Lanes(s.lanes)": ""},
                gone=("lanes",),
            ),
            "model/model.py": ModuleRules(
                facts={
                    "state.memory.lane is None "
                    "and self.spec.layers[visit.layer].lanes is not None": False
                },
                gone=("lanes_end_here",),
                cut=("_lanes_end",),
            ),
            "model/state.py": ModuleRules(gone=("lane", "lanes_end_here")),
        },
    }
)

# Words of docstrings that speak of what is left out.
WORDS = MappingProxyType(
    {
        "(batch or windows, time or last ones, width)": "(batch, time, width)",
        "(batch or windows, time or last, width)": "(batch, time, width)",
        "(batch, time or last, width)": "(batch, time, width)",
        "What :meth:`hidden` gives for tokens (batch, time).": (
            "The final normalised stream (batch, time, width) of tokens (batch, time)."
        ),
        "Token logits. ``progress`` (1 after training) and ``loops`` decide which visits run.": (
            "The embedding, the layers in the order of their visits, and the head."
        ),
    }
)
