"""The few data types of jedit. Everything else is functions of these.

Axis letters, the same in every file:

  L layers     E edited ("site") layers    N batches   B requests in a batch
  R token rows of a request (rewriting contexts, then the KL row)
  C tokens of a row's context, the same for all requests
  P tokens from there to the lookup token  S tokens from the lookup token on
  T tokens     D model width               F MLP width       V vocabulary
  M tokens of a packed layout              H, G, A  kv heads, queries a kv
                                           head, head width

Params are nested dicts of arrays in Flax orientation (value = key @ kernel).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

Params = dict[str, Any]
# An editor is an optax transformation whose input is an EditBatch.
Editor = optax.GradientTransformation


class JeditError(ValueError):
  """Bad input. The message names the record, field or flag, and the remedy."""


@dataclasses.dataclass(frozen=True)
class EditBatch:
  """Requests that are solved together, as arrays; [N, ...] when stacked.

  Every row is cut at the lookup token (the last one of the subject, or of the
  prompt): `head` is what comes before, `tail` starts with the lookup token. All
  rows but the last put the request in a context and end with the target (row 0
  has no context); the last row is the KL prompt, whose tail is the lookup token
  alone, or nothing for a request without subject. What row r of every request
  starts with, its context, is kept once: `prefix`.

  Attributes:
    prefix: int32 [R, C], right-padded; empty for row 0 and the KL row.
    prefix_len: int32 [R].
    head: int32 [B, R, P], right-padded; without the prefix.
    head_len: int32 [B, R].
    tail: int32 [B, R, S], right-padded; without the target's last token.
    tail_len: int32 [B, R].
    label: int32 [B, R, S], the token wanted after each tail position; -1
      where nothing is scored.
    valid: bool [B], False for requests that only fill the batch up.
    budget: static sizes (head, tail, plain, scored) of the packed layouts, at
      least the number of tokens of all heads, all tails and all plain rows, and
      of scored ones, in a batch that is run with it.
    parts: static; into how many the requests are split over devices, in order,
      each with its share of the budget (parts.each_part).
    validation: None, or rows of the same requests to choose by, that no value
      is optimised on and no key is read from, with contexts of their own (no
      plain row; the KL row is empty).
  """

  prefix: jax.Array
  prefix_len: jax.Array
  head: jax.Array
  head_len: jax.Array
  tail: jax.Array
  tail_len: jax.Array
  label: jax.Array
  valid: jax.Array
  budget: tuple[int, int, int, int]
  validation: 'EditBatch | None' = None
  parts: int = 1


_STATIC = 'budget', 'parts'
jax.tree_util.register_dataclass(
  EditBatch,
  [f.name for f in dataclasses.fields(EditBatch) if f.name not in _STATIC],
  _STATIC,
)


@dataclasses.dataclass(frozen=True)
class Targets:
  """What a value engine found.

  Attributes:
    value: float32 [B, D], v* of each request.
    loss, steps, reached: [B], how it was reached (see EditReport).
    point: what v* is a value of: the last site layer's output ('block'), or
      its MLP's ('mlp').
  """

  value: jax.Array
  loss: jax.Array
  steps: jax.Array
  reached: jax.Array
  point: str = 'block'


jax.tree_util.register_dataclass(
  Targets, ['value', 'loss', 'steps', 'reached'], ['point']
)


class Spectrum(NamedTuple):
  """Eigendecomposition of a layer's second moment.

  Attributes:
    values: float64 [F], ascending.
    vectors: float32 [F, F], in columns.
  """

  values: np.ndarray
  vectors: np.ndarray


class SecondMoment(NamedTuple):
  """Uncentred second moment of keys over text, a mean over tokens.

  Attributes:
    moment: float32 [E, F, F].
    count: float [], tokens that were averaged.
    spectrum: of each layer, where that is known; else it is made when needed.
  """

  moment: jax.Array
  count: jax.Array
  spectrum: tuple[Spectrum, ...] | None = None


class EditReport(NamedTuple):
  """What one batch of edits did; the scan stacks it to [N, ...].

  Attributes:
    facts: int32 [], requests in the batch.
    reached: int32 [], those whose value objective fell below the stop.
    steps: int32 [], optimiser updates taken, summed over requests.
    loss: float32 [], mean objective when the requests stopped.
    residual: float32 [E], |R - K dW| / |R| after each layer's solve.
    notes: what else a method has to say of each layer, by name, [E] each.
  """

  facts: jax.Array
  reached: jax.Array
  steps: jax.Array
  loss: jax.Array
  residual: jax.Array
  notes: dict[str, jax.Array] = {}


class EditState(NamedTuple):
  """State of a closed-form editor.

  Attributes:
    prior: what the next batch's dW is solved from, leaves [E, F, ...]: for most
      a square root of the prior covariance of each column of dW, Sigma =
      prior @ prior.T, float32 [E, F, r].
    count: int32 [], requests seen.
    engine: what the value engine keeps; () for most.
    report: EditReport of the last batch.
  """

  prior: Any
  count: jax.Array
  engine: Any
  report: EditReport


def kernel_of(params: Params) -> jax.Array:
  """The kernels that are edited, [E, F, D], of split params or of updates."""
  return params['site']['mlp']['down']['kernel']


def with_kernel(params: Params, kernel: jax.Array) -> Params:
  """Split params with others in their place."""
  site = params['site']
  down = {**site['mlp']['down'], 'kernel': kernel}
  return {**params, 'site': {**site, 'mlp': {**site['mlp'], 'down': down}}}


def as_updates(delta: jax.Array) -> Params:
  """The sub-tree of split params that dW [E, F, D] is."""
  return {'site': {'mlp': {'down': {'kernel': delta}}}}


def apply_updates(params: Params, updates: Params) -> Params:
  """params + updates, where updates is a sub-tree; nothing else is touched."""
  out = dict(params)
  for name, update in updates.items():
    if name not in params:
      raise ValueError(f'updates name {name!r}, params have {sorted(params)}')
    nested = isinstance(update, dict)
    out[name] = (
      apply_updates(params[name], update) if nested else params[name] + update
    )
  return out
