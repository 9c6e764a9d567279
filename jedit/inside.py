"""What editing did inside a model: weights, singular values, hidden states.

AdaEdit's tables of weights, the condition number and the spectrum that PRUNE
and AlphaEdit look at, AlphaEdit's drift of hidden states, which are shown in
two dimensions, and how alike edited facts are, by their keys and by what was
written for them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from jedit.models import transformer
from jedit.models.transformer import Model
from jedit.questions import Questions, bunches
from jedit.rows import advance, enter, plain
from jedit.types import EditBatch, Params


def weights(
  before: Float[np.ndarray, 'F D'], change: Float[np.ndarray, 'F D']
) -> dict[str, Any]:
  """Of a matrix and its change, in float64.

  Returns:
    "before" and "after": max, min, mean, median, norm (Frobenius), condition
    (largest singular value over smallest); change: percent of each;
    singular: of the change, the largest first; "rank": how many of them hold
    99 percent of its square.
  """

  def statistics(w):
    size = np.linalg.svd(w, compute_uv=False)
    return {
      'max': w.max(),
      'min': w.min(),
      'mean': w.mean(),
      'median': np.median(w),
      'norm': np.linalg.norm(w),
      'condition': size[0] / max(size[-1], 1e-30),
    }

  before, change = np.float64(before), np.float64(change)
  was, now = statistics(before), statistics(before + change)
  singular = np.linalg.svd(change, compute_uv=False)
  share = np.cumsum(singular**2) / max((singular**2).sum(), 1e-300)
  return {
    'before': {k: float(v) for k, v in was.items()},
    'after': {k: float(v) for k, v in now.items()},
    'change': {
      k: 100 * float((now[k] - v) / abs(v)) if v else None
      for k, v in was.items()
    },
    'singular': singular.tolist(),
    'rank': int((share < 0.99).sum() + 1) if singular.any() else 0,
  }


@functools.partial(jax.jit, static_argnums=(0, 4))
def _ends(model: Model, params: Params, prompt, prompt_len, size):
  """Hidden states [R, D] of the last tokens behind the last layer."""
  slots = jnp.broadcast_to(jnp.arange(prompt.shape[1]), prompt.shape)
  at = transformer.layout(slots < prompt_len[:, None], slots, size)
  tokens = transformer.take(prompt.ravel(), at.slot)
  x = model.embed(params, tokens, at.positions)
  x, _ = transformer.run(model, params['layers'], x, at)
  end = jnp.maximum(prompt_len - 1, 0)
  return transformer.take(x, at.token[jnp.arange(len(end)), end])


def states(
  model: Model, params: Params, q: Questions, rows: int = 128
) -> Float[np.ndarray, 'Q D']:
  """Behind the last layer, at the last token of each prompt; unsplit params."""
  out = np.zeros((len(q.prompt_len), model.config.width), np.float32)
  for chunks, cut in bunches(q, rows):
    size = max(int(c.prompt_len.sum()) for c in cut)
    for chunk, c in zip(chunks, cut, strict=True):
      found = _ends(model, params, c.prompt, c.prompt_len, size)
      out[chunk] = np.asarray(found, np.float32)[: len(chunk)]
  return out


def keys(
  model: Model, params: Params, batch: EditBatch
) -> Float[np.ndarray, 'E B F']:
  """Of each request's plain prompt, at its lookup token, by site layer.

  Args:
    model: the network.
    params: split at the site.
    batch: one batch [B, ...].
  """

  @jax.jit
  def run(params, batch):
    rows = enter(model, params, batch)
    every = advance(model, params['site'], rows, lambda trace: trace.key)[1]
    at = rows.at.token[:, batch.head.shape[-1]]
    return jax.vmap(lambda key: transformer.take(key, at))(every)

  return np.asarray(run(params, plain(batch)), np.float32)


def cosines(x: Float[np.ndarray, 'N D']) -> Float[np.ndarray, 'N N']:
  """Of every row with every other; 0 with a row of zeros."""
  unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
  return unit @ unit.T


def drift(
  before: Float[np.ndarray, 'Q D'], after: Float[np.ndarray, 'Q D']
) -> dict[str, float]:
  """How far states have moved, on average and as a cloud.

  Returns:
    moved: mean distance, over the mean norm; cosine: mean, of each state with
    itself; shift: distance of the means, over the spread before (root of the
    mean square distance from the mean), 0 of a single state.
  """
  norm = functools.partial(np.linalg.norm, axis=1)
  a, b = np.float64(before), np.float64(after)
  spread = np.sqrt((norm(a - a.mean(0)) ** 2).mean())
  cosine = (a * b).sum(1) / (norm(a) * norm(b))
  return {
    'moved': float(norm(b - a).mean() / norm(a).mean()),
    'cosine': float(cosine.mean()),
    'shift': float(np.linalg.norm(b.mean(0) - a.mean(0)) / max(spread, 1e-30))
    if len(a) > 1
    else 0.0,
  }


def plane(
  before: Float[np.ndarray, 'Q D'], after: Float[np.ndarray, 'Q D'], how: str
) -> tuple[np.ndarray, np.ndarray]:
  """Both clouds [Q, 2] on one plane: 'pca' (of both) or 't-sne' (seeded)."""
  both = np.concatenate([before, after])
  if how == 'pca':
    flat = PCA(2, random_state=0).fit_transform(both)
  else:
    few = min(30.0, (len(both) - 1) / 3)
    flat = TSNE(2, perplexity=few, init='pca', random_state=0).fit_transform(
      PCA(min(50, *both.shape), random_state=0).fit_transform(both)
    )
  return flat[: len(before)], flat[len(before) :]
