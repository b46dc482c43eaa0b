"""The kernels of flash attention (arXiv 2205.14135, 2307.08691): logits exist as tiles only.

A program has a block of queries of one head and goes through the keys that some of them see, from
``low`` to ``high``; the window and the first key of the oldest document say where that begins::

          keys  ->      low           high
    queries            |  ####        |
       |    block      |   #####      |     # a tile that some query of the block sees
       v               |    ######    |

Forward keeps log Z of each query. Backward makes the probabilities again from it, once for the
gradient of queries, block by block, and once for that of keys and values. So every number is
written by one program, and two runs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(batch, position, positions, heads, head, channels, CHANNELS: tl.constexpr):
    """Where the channels of some positions of a head lie in (batch, positions, heads, channels)."""
    row = (batch.to(tl.int64) * positions + position) * heads + head
    return row[:, None] * channels + tl.arange(0, CHANNELS)[None]


@triton.jit
def _slot(key, begin, slots, RING: tl.constexpr):
    """Where keys lie: in a ring the oldest one in ``begin``, and the first after the last."""
    if RING:
        place = key + begin
        return tl.where(place < slots, place, place - slots)
    return key


@triton.jit
def _load(tensor, place, position, positions, channels, CHANNELS: tl.constexpr):
    inside = (position < positions)[:, None] & (tl.arange(0, CHANNELS) < channels)[None]
    return tl.load(tensor + place, inside, other=0.0)


@triton.jit
def _visible(query, key, first, queries, keys, window, WINDOWED: tl.constexpr):
    """Which keys each query sees: (queries, keys) of a tile."""
    place = (query + (keys - queries))[:, None]
    seen = (key[None] <= place) & (key[None] >= first[:, None])
    seen = seen & (query < queries)[:, None] & (key < keys)[None]
    if WINDOWED:
        seen = seen & (key[None] > place - window)
    return seen


@triton.jit
def _first_keys(first, batch, query, queries, keys, DOCUMENTS: tl.constexpr):
    """The first key of the document of each query; beyond the last query, one beyond the keys."""
    if DOCUMENTS:
        place = batch.to(tl.int64) * queries + query
        return tl.load(first + place, query < queries, other=keys)
    return query * 0


@triton.jit
def _seen_keys(
    begins,
    block,
    queries,
    keys,
    window,
    WINDOWED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """The keys that some query of a block sees, from ``low`` to before ``high``."""
    low, high = 0, tl.minimum(keys, keys - queries + (block + 1) * QUERIES)
    if DOCUMENTS:
        low = tl.min(begins, 0)
    if WINDOWED:
        low = tl.maximum(low, keys - queries + block * QUERIES - window + 1)
    return low, high


@triton.jit
def _logits(left, right, seen, scale, PRECISION: tl.constexpr):
    """The logits of a tile, left x right^T, where they are ``seen``."""
    logits = tl.dot(left, tl.trans(right), input_precision=PRECISION) * scale
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _probabilities(logits, normaliser, left, right, mean, scale, PRECISION: tl.constexpr):
    """Those of a tile, and the gradient by its logits; left x right^T is that by them."""
    chance = tl.exp(logits - normaliser)
    by_chance = tl.dot(left, tl.trans(right), input_precision=PRECISION)
    return chance, chance * (by_chance - mean) * scale


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    first,
    result,
    log_z,
    queries,
    keys,
    heads,
    kv_heads,
    channels,
    window,
    scale,
    slots,
    begin,
    WINDOWED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    RING: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of ``result`` like ``q``, and of ``log_z`` (batch, heads, queries) if no RING."""
    block, batch, head = tl.program_id(0), tl.program_id(1) // heads, tl.program_id(1) % heads
    kv_head = head // (heads // kv_heads)
    query = block * QUERIES + tl.arange(0, QUERIES)
    begins = _first_keys(first, batch, query, queries, keys, DOCUMENTS)
    place = _rows(batch, query, queries, heads, head, channels, CHANNELS)
    asking = _load(q, place, query, queries, channels, CHANNELS)
    low, high = _seen_keys(begins, block, queries, keys, window, WINDOWED, DOCUMENTS, QUERIES)
    most = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for start in range(low // KEYS * KEYS, high, KEYS):
        key = start + tl.arange(0, KEYS)
        slot = _slot(key, begin, slots, RING)
        key_place = _rows(batch, slot, slots, kv_heads, kv_head, channels, CHANNELS)
        asked = _load(k, key_place, key, keys, channels, CHANNELS)
        seen = _visible(query, key, begins, queries, keys, window, WINDOWED)
        logits = _logits(asking, asked, seen, scale, PRECISION)
        higher = tl.maximum(most, tl.max(logits, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # of rows that have seen nothing yet
        part, kept = tl.exp(logits - level[:, None]), tl.exp(most - level)
        total = total * kept + tl.sum(part, 1)
        value = _load(v, key_place, key, keys, channels, CHANNELS)
        mixed = mixed * kept[:, None]
        mixed = tl.dot(part.to(value.dtype), value, mixed, input_precision=PRECISION)
        most = higher
    inside = (query < queries)[:, None] & (tl.arange(0, CHANNELS) < channels)[None]
    total = tl.where(total == 0.0, 1.0, total)  # of rows beyond the last query
    mixed = mixed / total[:, None]
    tl.store(result + place, mixed.to(result.dtype.element_ty), inside)
    if not RING:
        of_query = tl.program_id(1).to(tl.int64) * queries + query
        tl.store(log_z + of_query, most + tl.log(total), query < queries)


@triton.jit
def query_slope_kernel(
    q,
    k,
    v,
    first,
    log_z,
    slope,
    along,
    by_q,
    queries,
    keys,
    heads,
    kv_heads,
    channels,
    window,
    scale,
    WINDOWED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of the gradient by ``q``, from ``slope``, that by the result.

    ``along`` (batch, heads, queries) is the sum of slope times result over the channels.
    """
    block, batch, head = tl.program_id(0), tl.program_id(1) // heads, tl.program_id(1) % heads
    kv_head = head // (heads // kv_heads)
    query = block * QUERIES + tl.arange(0, QUERIES)
    begins = _first_keys(first, batch, query, queries, keys, DOCUMENTS)
    place = _rows(batch, query, queries, heads, head, channels, CHANNELS)
    asking = _load(q, place, query, queries, channels, CHANNELS)
    by_result = _load(slope, place, query, queries, channels, CHANNELS)
    of_query = tl.program_id(1).to(tl.int64) * queries + query
    normaliser = tl.load(log_z + of_query, query < queries, other=0.0)[:, None]
    mean = tl.load(along + of_query, query < queries, other=0.0)[:, None]
    low, high = _seen_keys(begins, block, queries, keys, window, WINDOWED, DOCUMENTS, QUERIES)
    total = tl.zeros((QUERIES, CHANNELS), tl.float32)
    for start in range(low // KEYS * KEYS, high, KEYS):
        key = start + tl.arange(0, KEYS)
        key_place = _rows(batch, key, keys, kv_heads, kv_head, channels, CHANNELS)
        asked = _load(k, key_place, key, keys, channels, CHANNELS)
        value = _load(v, key_place, key, keys, channels, CHANNELS)
        seen = _visible(query, key, begins, queries, keys, window, WINDOWED)
        logits = _logits(asking, asked, seen, scale, PRECISION)
        _, by_logit = _probabilities(logits, normaliser, by_result, value, mean, scale, PRECISION)
        total = tl.dot(by_logit.to(asked.dtype), asked, total, input_precision=PRECISION)
    inside = (query < queries)[:, None] & (tl.arange(0, CHANNELS) < channels)[None]
    tl.store(by_q + place, total.to(by_q.dtype.element_ty), inside)


@triton.jit
def key_slope_kernel(
    q,
    k,
    v,
    first,
    log_z,
    slope,
    along,
    by_k,
    by_v,
    queries,
    keys,
    heads,
    kv_heads,
    channels,
    window,
    scale,
    WINDOWED: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of the gradients by ``k`` and ``v``; the program goes through all heads of a group.

    Its tiles are (keys, queries), the other way round.
    """
    block, batch = tl.program_id(0), tl.program_id(1) // kv_heads
    kv_head, group = tl.program_id(1) % kv_heads, heads // kv_heads
    key = block * KEYS + tl.arange(0, KEYS)
    key_place = _rows(batch, key, keys, kv_heads, kv_head, channels, CHANNELS)
    asked = _load(k, key_place, key, keys, channels, CHANNELS)
    value = _load(v, key_place, key, keys, channels, CHANNELS)
    low, high = tl.maximum(0, block * KEYS - (keys - queries)), queries
    if WINDOWED:
        high = tl.minimum(high, (block + 1) * KEYS - (keys - queries) + window)
    to_k = tl.zeros((KEYS, CHANNELS), tl.float32)
    to_v = tl.zeros((KEYS, CHANNELS), tl.float32)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for start in range(low // QUERIES * QUERIES, high, QUERIES):
            query = start + tl.arange(0, QUERIES)
            begins = _first_keys(first, batch, query, queries, keys, DOCUMENTS)
            place = _rows(batch, query, queries, heads, head, channels, CHANNELS)
            asking = _load(q, place, query, queries, channels, CHANNELS)
            by_result = _load(slope, place, query, queries, channels, CHANNELS)
            of_query = (batch.to(tl.int64) * heads + head) * queries + query
            normaliser = tl.load(log_z + of_query, query < queries, other=0.0)[None]
            mean = tl.load(along + of_query, query < queries, other=0.0)[None]
            seen = tl.trans(_visible(query, key, begins, queries, keys, window, WINDOWED))
            logits = _logits(asked, asking, seen, scale, PRECISION)
            chance, by_logit = _probabilities(
                logits, normaliser, value, by_result, mean, scale, PRECISION
            )
            to_v = tl.dot(chance.to(slope.dtype.element_ty), by_result, to_v,
                          input_precision=PRECISION)  # fmt: skip
            to_k = tl.dot(by_logit.to(asking.dtype), asking, to_k, input_precision=PRECISION)
    inside = (key < keys)[:, None] & (tl.arange(0, CHANNELS) < channels)[None]
    tl.store(by_k + key_place, to_k.to(by_k.dtype.element_ty), inside)
    tl.store(by_v + key_place, to_v.to(by_v.dtype.element_ty), inside)
