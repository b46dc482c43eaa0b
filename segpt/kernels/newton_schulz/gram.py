"""Newton-Schulz by the Gram matrix: when it is cheaper, and where it starts again.

A step maps X to P X, with P = a I + b A + c A^2 and A = X X^T. All P of a segment of steps are
polynomials of the A that it began with: they commute, and the next A is P A P. So a segment goes on
among matrices (rows, rows), in A and in the product Q of its P, and multiplies X once, by Q.

With r = columns / rows, and half of each symmetric product, a segment of s steps takes
3 r + 5 s - 4 times rows^3 operations, where s plain steps take s (3 r + 1): A takes r, Q X takes
2 r, and each step takes 1 for A^2; all but one take 2 for Q, and 1 each for P A and (P A) P.

Nothing keeps a rounded A the Gram matrix of any X. An eigenvalue that should be near 0 may be below
it, where P is at least a: the error grows by a^2 a step until A is made of X again. A segment ends
before that is more than ``MOST_GROWTH``, and A, Q and X are in float16, which rounds to an eighth
of what bfloat16 rounds to. Errors in spectral norm, relative to the result's, against float64: of
(256, 1024) rounded to bfloat16, with singular values from 1 to 0.1, 10^-3 and 10^-6, and of noise::

    steps     plain, bfloat16            segments, bfloat16         segments, as they are
    classic   .018  .060  .063  .023     .033  .036  .044  .047     .005  .005  .005  .006
    five      .011  .058  .064  .009     .018  .187  .144  .014     .003  .022  .017  .003
    seven     .046  .349  .902  .033     .129  .180  .527  .080     .019  .023  .060  .012
    polar     .022  .101  .116  .022     .067  .427  .333  .038     .009  .046  .037  .005

In one segment the five steps of polar end .79 off at 10^-3, and the seven are not finite.
"""

from .reference import Coefficients

MOST_GROWTH = 200.0  # of the error of A within a segment
_WORTH = 0.8  # of the operations of plain steps, at most
# Operations that must be saved, for some ten launches more and two passes over X: an estimate, 34
# microseconds at 5 10^14 a second, that no GPU has confirmed.
_LEAST_SAVED = 1 << 34


def segments(shape: tuple[int, ...], coefficients: Coefficients) -> tuple[int, ...]:
    """The steps of each segment of (matrices, rows, columns) that is to be iterated in bfloat16.

    All are 1 where plain steps are cheaper: a segment of one step is one.
    """
    matrices, rows, columns = shape
    cut = cuts(coefficients)
    plain = work(rows, columns, (1,) * len(coefficients))
    saved = plain - work(rows, columns, cut)
    if saved < (1.0 - _WORTH) * plain or matrices * saved < _LEAST_SAVED:
        return (1,) * len(coefficients)
    return cut


def cuts(coefficients: Coefficients) -> tuple[int, ...]:
    """The longest segments of which none lets the error of A grow by more than ``MOST_GROWTH``."""
    lengths: list[int] = []
    growth = float("inf")  # of what a step more would start with
    for a, _, _ in coefficients:
        if growth > MOST_GROWTH:
            lengths.append(0)
            growth = 1.0
        lengths[-1] += 1
        growth *= a * a
    return tuple(lengths)


def work(rows: int, columns: int, lengths: tuple[int, ...]) -> int:
    """The multiplications and additions of one matrix in segments of these lengths."""
    products = sum(5 * length - 4 for length in lengths)
    return rows * rows * (3 * columns * len(lengths) + rows * products)
