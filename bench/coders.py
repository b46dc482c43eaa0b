"""What general compressors make of quantized weights, against the file that segpt packs.

The field's record scripts store int8 codes as they are, split float16 numbers into planes of low
and high bytes ("byte shuffle"), and compress all of it with brotli 11 or LZMA.
"""

import lzma
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import zstandard
from numpy.typing import NDArray

from segpt.artifact.container import pack, sections
from segpt.values import Float16Weight, Quantized, UniformWeight

# Sections and framing that hold no weights: every scheme pays for them alike.
SHARED = ("prefix", "header", "tokenizer", "digest")
_LITERALS = ((0, 0, 0), (2, 0, 0), (4, 0, 0), (3, 0, 2))  # lc, lp, pb of LZMA
_WINDOW = 27  # log2 of zstd's

Coder = Callable[[bytes], int]


def parts(quantized: Quantized) -> tuple[bytes, bytes, bytes]:
    """Codes row by row in the order of the weights; scales and vectors byte-shuffled."""
    grids = [w for w in quantized.weights.values() if isinstance(w, UniformWeight)]
    halves = [w for w in quantized.weights.values() if isinstance(w, Float16Weight)]
    codes = b"".join(grid.codes.tobytes() for grid in grids)
    return codes, _shuffled([g.scales for g in grids]), _shuffled([h.values for h in halves])


def size(quantized: Quantized, coder: Coder) -> int:
    """Bytes of the weights: as one stream, or one stream per kind where that is smaller."""
    found = parts(quantized)
    return min(coder(b"".join(found)), sum(coder(part) for part in found if part))


def packed(quantized: Quantized) -> tuple[int, int]:
    """Bytes of the packed file, and how many of them hold no weights."""
    artifact = pack(quantized)
    return artifact.size, sum(s.bytes for s in sections(artifact) if s.name in SHARED)


def coders() -> dict[str, Coder]:
    """Bytes that a compressor needs, by its name; lrzip only where it is installed."""
    found: dict[str, Coder] = {
        "brotli-11": lambda data: len(brotli.compress(data, quality=11, lgwin=24)),
        "xz": _xz,
        "zstd-22": _zstd,
    }
    if shutil.which("lrzip"):
        found["lrzip"] = _lrzip
    return found


def zlib_9(data: bytes) -> int:
    """What the seed of the contest's training scripts compresses with."""
    return len(zlib.compress(data, 9))


def _xz(data: bytes) -> int:
    """The best of several models of literals, without any header."""
    return min(
        len(
            lzma.compress(
                data,
                lzma.FORMAT_RAW,
                filters=[
                    {
                        "id": lzma.FILTER_LZMA2,
                        "preset": 9 | lzma.PRESET_EXTREME,
                        "lc": lc,
                        "lp": lp,
                        "pb": pb,
                    }
                ],
            )
        )
        for lc, lp, pb in _LITERALS
    )


def _zstd(data: bytes) -> int:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, window_log=_WINDOW, enable_ldm=True, write_content_size=False
    )
    return len(zstandard.ZstdCompressor(compression_params=parameters).compress(data))


def _lrzip(data: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "codes", Path(folder) / "codes.lrz"
        source.write_bytes(data)
        line = ["lrzip", "-q", "-z", "-L", "9", "-o", str(target), str(source)]
        subprocess.run(line, check=True, capture_output=True)
        return target.stat().st_size


def _shuffled(arrays: Sequence[NDArray[Any]]) -> bytes:
    values = np.concatenate([np.empty(0, "<f2"), *(a.ravel() for a in arrays)]).astype("<f2")
    return values.view(np.uint8).reshape(-1, 2).T.tobytes()
