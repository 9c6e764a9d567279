"""The closed-form part of a batch against the references' expressions.

  python -m tests.benchmarks.solves --width=1536,4096,8192 --past=50

One layer, float32, for F inputs and D outputs: jedit's gain form (dW and the
next root), AlphaEdit's own expression (P M, LU, back-substitution), and LU and
Cholesky of M with their right-hand sides; M = K'K + past + I, so that all give
the same dW. Each share is of the measured product peak. With --past, the gain
form after so many batches.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jedit import condition
from tests.benchmarks.speed import peak

_WIDTH = flags.DEFINE_list('width', ['1536', '4096', '8192'], 'F.')
_OUT = flags.DEFINE_integer('out', 4096, 'D.')
_FACTS = flags.DEFINE_integer('facts', 100, 'B, in a batch.')
_PAST = flags.DEFINE_integer('past', 0, 'Batches before the one that is timed.')
_LARGEST = flags.DEFINE_integer(
  'largest', 8192, 'The references are run up to this F.'
)
_HIGHEST = jax.lax.Precision.HIGHEST
_dot = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)


def alphaedit(projector, past, keys, residuals):
  """(P (K'K + past) + I)^-1 P K' R, as its authors' code computes it."""
  left = _dot(projector, _dot(keys.T, keys) + past) + jnp.eye(len(past))
  return jnp.linalg.solve(left, _dot(_dot(projector, keys.T), residuals))


def lu(projector, past, keys, residuals):
  """M^-1 K' R by LU."""
  del projector
  left = _dot(keys.T, keys) + past + jnp.eye(len(past))
  return jnp.linalg.solve(left, _dot(keys.T, residuals))


def cholesky(projector, past, keys, residuals):
  """M^-1 K' R by Cholesky."""
  del projector
  left = _dot(keys.T, keys) + past + jnp.eye(len(past))
  factor = jax.scipy.linalg.cho_factor(left)
  return jax.scipy.linalg.cho_solve(factor, _dot(keys.T, residuals))


def seconds(fn, *args, repeats: int = 2) -> tuple[float, jax.Array]:
  """(of the fastest, what it returned); compilation excluded."""
  fn = jax.jit(fn).lower(*args).compile()
  best = np.inf
  for _ in range(repeats):
    start = time.perf_counter()
    out = jax.block_until_ready(fn(*args))
    best = min(best, time.perf_counter() - start)
  return best, out


def main(_):
  fast = peak(False)
  print(f'float32 products: {fast / 1e9:.0f} GFLOP/s')
  rng, size = np.random.default_rng(0), _FACTS.value
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
  for width in map(int, _WIDTH.value):
    keys, residuals = normal(size, width) / width**0.5, normal(size, _OUT.value)
    noise, eye = jnp.ones(size), jnp.eye(width)
    ours, (delta, _) = seconds(
      condition.condition, eye, keys, residuals, noise, repeats=5
    )
    work = 2 * size * width * (3 * width + _OUT.value)
    print(
      f'F = {width}: gain {ours:.3f} s, {work / ours / fast:.0%} of peak',
      flush=True,
    )
    if width <= _LARGEST.value:
      past = jnp.zeros_like(eye)
      for other in alphaedit, lu, cholesky:
        took, found = seconds(other, eye, past, keys, residuals)
        apart = jnp.linalg.norm(found - delta) / jnp.linalg.norm(found)
        print(
          f'  {other.__name__}: {took:.2f} s, {took / ours:.1f} times as long; '
          f'dW {float(apart):.0e} apart',
          flush=True,
        )
    if _PAST.value:
      step = jax.jit(condition.condition)
      root = eye
      for _ in range(_PAST.value):
        new = normal(size, width) / width**0.5
        root = jax.block_until_ready(step(root, new, residuals, noise))[1]
      later, _ = seconds(
        condition.condition, root, keys, residuals, noise, repeats=5
      )
      print(f'  after {_PAST.value} batches: gain {later:.3f} s', flush=True)


if __name__ == '__main__':
  app.run(main)
