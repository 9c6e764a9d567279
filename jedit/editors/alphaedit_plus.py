"""AlphaEdit+ (Findings of ACL 2026), eqs. 7-9.

    dW = (ridge I + P' (K_p' L K_p + K' K))^-1 P' K' R^t        P' = P + P~

Row "AlphaEdit+" of the table in README: AlphaEdit with three parts, each with a
switch. P~ gives back directions of the spectrum that the batch needs (perturb);
L = diag(1 - s(k_j, K)) lets go of prior keys K_p that contradict the batch
(reweigh); R^t shortens the residuals of the facts furthest from their targets,
from half (t = 0) to all (t = T), as held-out rows score best (smooth).

Prior keys are rows sqrt(beta L_j) k_j with residual 0, so L = 0 is harmless.
beta is 1 as in the equations; the paper's experiments take 100. The score is
that of the batch's own facts after a context that no value was optimised on; in
the paper kept and earlier facts have a part in it. Its walk begins at t = 0 and
ends where the score changes little, ours begins at t = T and ends where it
falls: neighbours differ by 1e-4, so that the paper's would end where it begins.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jedit import condition, spectrum, values
from jedit.conflict import conflict, furthest, pick_smoothing, widen
from jedit.editors.least_squares import least_squares
from jedit.models.transformer import Model
from jedit.types import Editor, JeditError, SecondMoment
from jedit.walk import Asked

_NOTES = 'rank', 'weights', 'smoothing', 'candidates'
_HIGHEST = jax.lax.Precision.HIGHEST


class Memory(NamedTuple):
  """What AlphaEdit+ knows of each layer.

  Attributes:
    basis: [E, F, F], eigenvectors of C, smallest eigenvalues first.
    width: int32 [E], how many of them span the null space.
    keys: [E, M, F], keys of earlier edits; zero where there is none.
    seen: int32 [E], keys that were put there.
  """

  basis: jax.Array
  width: jax.Array
  keys: jax.Array
  seen: jax.Array


def alphaedit_plus(
  model: Model,
  moment: SecondMoment,
  *,
  ridge: float = 10.0,
  threshold: float = 0.02,
  relative: bool = False,
  perturb: bool = True,
  gain: float = 2e-4,
  reweigh: bool = True,
  beta: float = 1.0,
  capacity: int = 1000,
  smooth: bool = True,
  steps: int = 10,
  top: float = 0.2,
  tau: float = 0.0,
  exhaustive: bool = False,
  compat: str = '',
  optimise: values.Optimise | None = None,
) -> Editor:
  """AlphaEdit+ as an optax transformation of EditBatches.

  Args:
    model: the network; params must be split at the site.
    moment: second moments of the keys of the site layers.
    ridge: L2 of the reference code.
    threshold: eigenvalues of C below it span the null space.
    relative: whether the threshold is a share of the largest eigenvalue.
    perturb: search P~.
    gain: least share by which an eigenvector lowers the objective (epsilon).
    reweigh: weigh prior keys by their conflict; else all by 1.
    beta: weight of prior keys.
    capacity: M, prior keys kept; beyond, the oldest are forgotten.
    smooth: choose among smoothed residuals. Needs batches with validation rows
      (edit_batches(validation=...)).
    steps: T.
    top: share of the batch that is smoothed, those furthest from their targets.
    tau: smooth those with |v* - h| above it instead; 0 goes by `top`.
    exhaustive: try all T + 1 candidates and take the best one, of equals the
      smoothest; else go from t = T downwards as long as the score rises.
    compat: 'alphaedit-plus' does as the released code: prior keys weigh
      beta (i + 1) in layer i, eigenvectors come in groups of ten with ten times
      the gain, and token accuracy is the score. Its numbers are beta 100, tau
      30, exhaustive; its rows edit_batches(validation='test_prompts').
    optimise: the value engine; values.optimiser(model) by default.

  The report's notes are, of each layer: rank of P~, norm of L's diagonal over
  the prior keys, the t chosen (T where nothing was smoothed), candidates tried.
  """
  if compat not in ('', 'alphaedit-plus'):
    raise JeditError(f'compat={compat!r}: "" or "alphaedit-plus"')
  if steps < 1 or capacity < 1:
    raise JeditError(
      f'steps={steps}, capacity={capacity}: at least 1; smooth=False smooths '
      'nothing'
    )
  released = compat == 'alphaedit-plus'
  group, meant = (10, 'accuracy') if released else (1, 'probability')
  mm = lambda a, b: jnp.matmul(a, b, precision=_HIGHEST)

  def solve(memory: Memory, asked: Asked):
    real = jnp.arange(capacity) < memory.seen
    weights = 1 - conflict(memory.keys, asked.keys) if reweigh else 1.0
    weights = jnp.where(real, weights, 0.0)
    scale = beta * (asked.layer + 1 if released else 1)
    prior = jnp.sqrt(scale * weights)[:, None] * memory.keys
    z = mm(jnp.concatenate([asked.keys, prior]), memory.basis)
    pad = lambda r: jnp.concatenate([r, jnp.zeros((capacity, r.shape[1]))])
    hard = furthest(asked.distance, asked.valid, tau, top) & smooth
    begin = jnp.where(hard, 0.5, 1.0)[:, None] * asked.residuals
    width = memory.width
    if perturb:
      width = widen(z, pad(begin), width, ridge, gain * group, group)
    z = z * (jnp.arange(z.shape[1]) < width)
    gram = jnp.eye(len(z)) + mm(z, z.T) / ridge
    both = jnp.concatenate(
      [asked.residuals, hard[:, None] * asked.residuals], axis=1
    )
    lower = jnp.linalg.cholesky(gram)
    both = jax.scipy.linalg.cho_solve((lower, True), pad(both))
    full, part = jnp.split(mm(memory.basis, mm(z.T, both)) / ridge, 2, axis=1)
    share, chosen, tried = 0.0, steps, 0
    if smooth and asked.score:
      measure = lambda b: getattr(asked.score(full - b * part), meant)
      chosen, tried = pick_smoothing(measure, steps, exhaustive, hard.any())
      share = (steps - chosen) / (2 * steps)
    delta = full - share * part
    put = (memory.seen + jnp.cumsum(asked.valid) - 1) % capacity
    put = jnp.where(asked.valid, put, capacity)
    after = memory._replace(
      keys=memory.keys.at[put].set(asked.keys, mode='drop'),
      seen=memory.seen + asked.valid.sum(),
    )
    notes = width - memory.width, jnp.linalg.norm(weights), chosen, tried
    notes = [jnp.asarray(n, jnp.float32) for n in notes]
    return delta, after, dict(zip(_NOTES, notes, strict=True))

  body = least_squares(
    model,
    _memory(moment, ridge, threshold, relative, capacity),
    solve,
    remember=True,
    optimise=optimise or values.optimiser(model),
    notes=_NOTES,
  )

  def update(batch, state, params):
    if smooth and batch.validation is None:
      raise JeditError(
        'alphaedit_plus chooses by validation rows: make the batches by '
        'edit_batches(validation=contexts), or set smooth=False'
      )
    if capacity < batch.valid.size:
      raise JeditError(
        f'capacity={capacity}: at least the batch size, {batch.valid.size}'
      )
    return body.update(batch, state, params)

  return optax.GradientTransformation(body.init, update)


def _memory(moment, ridge, threshold, relative, capacity) -> Memory:
  """Nothing seen yet."""
  if ridge <= 0:
    raise JeditError(f'ridge={ridge}: must be above 0')
  layers, size = moment.moment.shape[:2]
  every, kept = np.empty(moment.moment.shape, np.float32), []
  found = spectrum.of(moment)
  for basis, (sizes, vectors) in zip(every, found, strict=True):
    basis[:] = vectors
    kept.append(condition.small(sizes, threshold, relative))
  return Memory(
    every,
    np.array(kept, np.int32),
    np.zeros((layers, capacity, size), np.float32),
    np.zeros(layers, np.int32),
  )
