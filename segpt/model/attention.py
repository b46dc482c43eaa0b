"""Attention: a straight line through its slots."""

from torch import Tensor, nn

from segpt.config import model as spec
from segpt.kernels import attention

from .leaves import Matrix
from .stream import Stream


class Attention(nn.Module):
    """Project; query_key parts; value parts; attend; output parts; project."""

    def __init__(
        self,
        s: spec.Attention,
        width: int,
        query_key: list[nn.Module],
        value: list[nn.Module],
        output: list[nn.Module],
    ) -> None:
        super().__init__()
        self.head_dim, self.window, self.scale = s.head_dim, s.window, s.scale
        self.query = Matrix(width, s.heads * s.head_dim)
        self.key = Matrix(width, s.kv_heads * s.head_dim)
        self.value = Matrix(width, s.kv_heads * s.head_dim)
        self.out = Matrix(s.heads * s.head_dim, width, zero=True, output=True)
        self.query_key_parts = nn.ModuleList(query_key)
        self.value_parts = nn.ModuleList(value)
        self.output_parts = nn.ModuleList(output)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        q, k, v = (
            matrix(x).unflatten(-1, (-1, self.head_dim))
            for matrix in (self.query, self.key, self.value)
        )
        for part in self.query_key_parts:
            q, k = part(q, k, stream)
        for part in self.value_parts:
            v = part(v, x, stream)
        window, documents = stream.narrowest(self.window), stream.documents
        if stream.past is None:
            keys, values = stream.rows(k), stream.rows(v)
        else:
            keys, values = stream.past.extend(k, v, window)
            if documents is not None:
                documents = stream.past.number(documents, window)
        q, v, x = stream.read(q), stream.read(v), stream.read(x)
        y = attention(q, keys, values, window, documents, self.scale)
        for part in self.output_parts:
            y = part(y, v, x, stream)
        return self.out(y.flatten(-2))
