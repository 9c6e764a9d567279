"""Second moments of keys over text: one pass for all site layers.

The forward stops after the last site layer. Sums are float32 with Kahan's
compensation, so that 10^8 tokens lose no small terms (TPUs have no float64).
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.types import JeditError, Params, SecondMoment


class Sums(NamedTuple):
  """Running sum of key outer products; the carry of a resumable pass.

  Attributes:
    total: float32 [E, F, F].
    lost: float32 [E, F, F], what rounding has left out of `total`.
    count: float32 [], tokens.
  """

  total: jax.Array
  lost: jax.Array
  count: jax.Array


def zeros(layers: int, width: int) -> Sums:
  """The empty sum."""
  zero = lambda: jnp.zeros((layers, width, width), jnp.float32)
  return Sums(zero(), zero(), jnp.zeros(()))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def add(
  model: Model,
  params: Params,
  sums: Sums,
  tokens: Int[Array, 'R T'],
  mask: Bool[Array, 'R T'],
) -> Sums:
  """Adds the keys of a batch of token rows.

  Args:
    model: the network.
    params: params split at the site.
    sums: what was summed before (donated).
    tokens: ids, right-padded.
    mask: which of them count.
  """
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  at = transformer.layout(mask, positions, tokens.size)
  x = model.embed(params, transformer.take(tokens.ravel(), at.slot), at.positions)
  x, _ = transformer.run(model, params['below'], x, at)
  real = (at.slot < tokens.size)[:, None]

  def square(trace):
    key = jnp.where(real, trace.key, 0).astype(jnp.float32)
    return jnp.matmul(key.T, key, precision=jax.lax.Precision.HIGHEST)

  _, new = transformer.run(model, params['site'], x, at, keep=square)
  new = new - sums.lost
  total = sums.total + new
  return Sums(total, (total - sums.total) - new, sums.count + mask.sum())


def mean(sums: Sums) -> SecondMoment:
  """The moment, per token."""
  if not float(sums.count):
    raise JeditError('second moments: the corpus has no token')
  return SecondMoment((sums.total - sums.lost) / sums.count, sums.count)


def windows(
  documents: Iterable[list[int]], start: list[int], length: int, rows: int,
  tokens: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Token rows and masks [rows, length] of documents cut into windows.

  Args:
    documents: ids of each document, without BOS.
    start: BOS ids put in front of each window.
    length: window length in tokens, BOS included.
    rows: windows a batch.
    tokens: stop after this many tokens (0: all).
  """
  batch = np.zeros((rows, length), np.int32)
  sizes = np.zeros(rows, np.int32)
  filled = seen = 0
  step = length - len(start)

  def out():
    return batch.copy(), np.arange(length) < sizes[:, None]

  for ids in documents:
    for at in range(0, len(ids), step):
      piece = [*start, *ids[at : at + step]]
      piece = piece[: tokens - seen] if tokens else piece
      batch[filled, : len(piece)], sizes[filled] = piece, len(piece)
      filled, seen = filled + 1, seen + len(piece)
      if filled == rows:
        yield out()
        batch[:], sizes[:], filled = 0, 0, 0
      if tokens and seen >= tokens:
        break
    if tokens and seen >= tokens:
      break
  if filled:
    yield out()
