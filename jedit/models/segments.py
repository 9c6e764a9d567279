"""Params as below | site | above, and back."""

import jax
import jax.numpy as jnp
import numpy as np

from jedit.types import JeditError, Params, kernel_of


def split(params: Params, lo: int, hi: int) -> Params:
  """Cuts 'layers' into 'below' [0, lo), 'site' [lo, hi] and 'above'.

  The site's down-projections, which are edited, become float32.

  Args:
    params: unsplit params, NumPy or JAX.
    lo: first edited layer, counted from 0, as in the papers' "layers 4-8".
    hi: last edited layer.
  """
  params = dict(params)
  layers = params.pop('layers')
  count = layers['mlp']['down']['kernel'].shape[0]
  if not 0 <= lo <= hi < count:
    raise JeditError(
      f'layers {lo}-{hi}: the model has layers 0-{count - 1}, the first '
      'edited layer comes first'
    )
  cut = lambda a, b: jax.tree.map(lambda x: x[a:b], layers)
  site = cut(lo, hi + 1)
  down = site['mlp']['down']
  down['kernel'] = down['kernel'].astype(np.float32, copy=False)
  return {
    **params,
    'below': cut(None, lo),
    'site': site,
    'above': cut(hi + 1, None),
  }


def strung(params: Params) -> Params:
  """Unsplit params whose 'layers' are the segments, for transformer.run.

  Nothing is copied but the site's kernels, which get the dtype of the others.
  """
  params = dict(params)
  below, *rest = (params.pop(name) for name in ('below', 'site', 'above'))
  same = lambda like, x: x.astype(like.dtype, copy=False)
  rest = [jax.tree.map(same, below, part) for part in rest]
  return {**params, 'layers': (below, *rest)}


def join(params: Params) -> Params:
  """Undoes split; the site's kernels get the dtype of the other layers'."""
  params = strung(params)
  segments = params['layers']
  xp = np if isinstance(jax.tree.leaves(segments)[0], np.ndarray) else jnp
  cat = lambda *parts: xp.concatenate(parts)
  return {**params, 'layers': jax.tree.map(cat, *segments)}


def narrow(params: Params, layer: int) -> Params:
  """Split params with the site narrowed to one of its layers.

  The others go to 'below' and 'above', which become tuples of segments.
  """
  cut = lambda a, b: jax.tree.map(lambda x: x[a:b], params['site'])
  count = kernel_of(params).shape[0]
  before = (cut(None, layer),) if layer else ()
  after = (cut(layer + 1, None),) if layer + 1 < count else ()
  return {
    **params,
    'below': (*_segments(params['below']), *before),
    'site': cut(layer, layer + 1),
    'above': (*after, *_segments(params['above'])),
  }


def _segments(layers):
  return layers if isinstance(layers, tuple) else (layers,)
