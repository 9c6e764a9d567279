"""The one formula: condition a Gaussian prior of dW on K dW = R.

    G = Sigma K' (K Sigma K' + diag nu)^-1      dW = G R
    Sigma+ = Sigma - G K Sigma

Every closed-form editor is a prior Sigma_0 and noise variances nu (see the
table in README). The covariance is carried as a square root S, Sigma = S S'.
At the papers' settings both forms drift alike (8e-7 after 2,000 facts); under
weak priors, where Sigma shrinks by many orders of magnitude, S keeps 5 to 250
times more digits (README, design notes), and AlphaEdit's S is thin.

    Z = (K S)'    A = Z' Z + diag nu = L L'
    dW = S Z A^-1 R
    S+ = S - S Z L^-T (L + diag sqrt(nu))^-1 Z'

The square-root update is Andrews' (A square root formulation of the Kalman
covariance equations, 1968).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jedit import spectrum
from jedit.types import JeditError, SecondMoment

_HIGHEST = jax.lax.Precision.HIGHEST


def condition(
  root: Float[Array, 'F r'],
  keys: Float[Array, 'B F'],
  residuals: Float[Array, 'B D'],
  noise: Float[Array, 'B'],
) -> tuple[Float[Array, 'F D'], Float[Array, 'F r']]:
  """Posterior mean of dW and the root of its posterior covariance.

  Args:
    root: S with Sigma = S S'; any number r of columns.
    keys: K, one request a row. A zero row with noise 1 is inert.
    residuals: R, how far each value is from its target.
    noise: nu, variance of each observation; 0 is an equality constraint.

  Returns:
    (dW, S+), in the dtype of `root`.
  """
  z = jnp.matmul(keys, root, precision=_HIGHEST)  # [B, r], Z'
  gram = jnp.matmul(z, z.T, precision=_HIGHEST) + jnp.diag(noise)
  lower = jnp.linalg.cholesky(gram)
  solve = lambda a, b, trans=0: jax.scipy.linalg.solve_triangular(
    a, b, trans=trans, lower=True
  )
  out = solve(lower, solve(lower, residuals), 1)
  sz = jnp.matmul(root, z.T, precision=_HIGHEST)  # [F, B]
  delta = jnp.matmul(sz, out, precision=_HIGHEST)
  back = solve(lower, solve(lower + jnp.diag(jnp.sqrt(noise)), z), 1)
  return delta, root - jnp.matmul(sz, back, precision=_HIGHEST)


def ridge_prior(
  moment: SecondMoment, weight: float, penalty: float = 0.0, floor: float = 1e-9
) -> np.ndarray:
  """Root of (weight C + penalty I)^-1, float32 [E, F, F]: MEMIT, EMMET, ROME.

  Eigenvalues of C below `floor` times the largest are raised to it, so that
  directions that the text never used cannot take an unbounded update.
  """
  if weight <= 0 or penalty < 0:
    raise JeditError(
      f'weight={weight}, penalty={penalty}: the weight of C must be above 0, '
      'the penalty not below'
    )
  out = np.empty(moment.moment.shape, np.float32)
  for root, (values, vectors) in zip(out, spectrum.of(moment), strict=True):
    values = np.maximum(values, floor * values[-1])
    root[:] = vectors / np.sqrt(weight * values + penalty)
  return out


def small(
  values: Float[np.ndarray, 'F'], threshold: float, relative: bool
) -> int:
  """How many eigenvalues of C, ascending, span the null space.

  Those below the threshold.
  """
  kept = int((values < threshold * (values[-1] if relative else 1.0)).sum())
  if not kept:
    raise JeditError(
      f'threshold={threshold}: a layer has no eigenvalue below it (smallest '
      f'{values[0]:.3g}); raise the threshold'
    )
  return kept


def null_space_prior(
  moment: SecondMoment, ridge: float, threshold: float, relative: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Root of P / ridge and the share of directions kept a layer: AlphaEdit.

  P projects onto the eigenvectors of C with eigenvalues below `threshold`
  (absolute, the paper's; or relative to the largest eigenvalue).

  Returns:
    (root, float32 [E, F, r] with r the most directions any layer keeps and
    zero columns elsewhere; shares, float64 [E]).
  """
  if ridge <= 0:
    raise JeditError(f'ridge={ridge}: must be above 0')
  roots = []
  for values, vectors in spectrum.of(moment):
    kept = small(values, threshold, relative)
    roots.append((vectors[:, :kept] / np.sqrt(ridge)).astype(np.float32))
  widths = [root.shape[1] for root in roots]
  out = np.zeros((*moment.moment.shape[:2], max(widths)), np.float32)
  for padded, root in zip(out, roots, strict=True):
    padded[:, : root.shape[1]] = root
  return out, np.array(widths) / moment.moment.shape[1]
