"""Each paper's equation in NumPy float64, as its authors write or code it.

The papers hold one key per column; these functions take ours, one a row
(keys [B, F], values [B, D]), transpose on entry, and return dW as [F, D].
Nothing here is shared with jedit: no square roots, no gain, no Woodbury.
"""

import numpy as np


def _columns(*arrays):
  return [np.asarray(a, np.float64).T for a in arrays]


def rome(moment, key, old, new):
  """ROME, eq. 2, with one key for direction and divisor (r-ROME).

  W^ = W + L (C^-1 k)',  L = (v* - W k) / ((C^-1 k)' k).

  Args:
    moment: C [F, F].
    key: k [F].
    old: W k [D].
    new: v* [D].
  """
  u = np.linalg.inv(np.asarray(moment, np.float64)) @ key
  u = u / np.linalg.norm(u)
  return np.outer(new - old, u / (key @ u)).T


def emmet(moment, keys, residuals, weight, ridge):
  """EMMET: dW = R D^-1 K' C~^-1, D = K' C~^-1 K (+ ridge I if B > 1)."""
  k, r = _columns(keys, residuals)
  inverse = np.linalg.inv(weight * np.asarray(moment, np.float64))
  d = k.T @ inverse @ k
  if k.shape[1] > 1:
    d = d + ridge * np.eye(k.shape[1])
  return (r @ np.linalg.inv(d) @ k.T @ inverse).T


def memit(moment, keys, residuals, weight, past=None):
  """MEMIT, eq. 14: dW = R K' (weight C + past + K K')^-1.

  `past` [F, F] is the sum of earlier batches' K K' (MEMIT with history).
  """
  k, r = _columns(keys, residuals)
  left = weight * np.asarray(moment, np.float64) + k @ k.T
  left = left if past is None else left + past
  return (r @ np.linalg.solve(left, k).T).T


def pmet(moment, keys, residuals, weight, left):
  """PMET: MEMIT's solve on the residual over the square root of `left`."""
  k, r = _columns(keys, residuals)
  normal = k @ k.T + weight * np.asarray(moment, np.float64)
  return (r / np.sqrt(left) @ k.T @ np.linalg.inv(normal)).T


def projector(moment, threshold):
  """P onto the singular vectors of C with singular values below threshold."""
  left, size, _ = np.linalg.svd(np.asarray(moment, np.float64))
  left = left[:, size < threshold]
  return left @ left.T


def alphaedit(p, keys, residuals, ridge, past):
  """AlphaEdit, eq. 12: (P (K K' + past) + ridge I) X = P K R', dW = X'."""
  k, r = _columns(keys, residuals)
  left = p @ (k @ k.T + past) + ridge * np.eye(len(p))
  return np.linalg.solve(left, p @ k @ r.T)


def alphaedit_plus(p, keys, residuals, ridge, prior_keys, weights):
  """AlphaEdit+, eq. 8: R K' P (K_p L K_p' P + K K' P + ridge I)^-1."""
  k, r, kp = _columns(keys, residuals, prior_keys)
  left = (kp * weights @ kp.T + k @ k.T) @ p + ridge * np.eye(len(p))
  return (r @ k.T @ p @ np.linalg.inv(left)).T


def alphaedit_plus_objective(
  delta, keys, residuals, ridge, prior_keys, weights
):
  """AlphaEdit+, eq. 7, of dW [F, D]."""
  square = lambda x: np.sum(np.square(x))
  fit = square(keys @ delta - residuals)
  prior = square(np.sqrt(weights)[:, None] * (prior_keys @ delta))
  return fit + prior + ridge * square(delta)


def posterior(covariance, keys, noise):
  """Sigma - Sigma K' (K Sigma K' + diag noise)^-1 K Sigma."""
  k = np.asarray(keys, np.float64)
  s = np.asarray(covariance, np.float64)
  gain = s @ k.T @ np.linalg.inv(k @ s @ k.T + np.diag(noise))
  return s - gain @ k @ s


def rect(delta, weight, keep, epsilon=1e-8):
  """RECT: the entries whose relative change is among the largest `keep`."""
  change = np.abs(delta / (weight + epsilon))
  order = np.argsort(change, axis=None)[::-1]
  out = np.zeros(delta.size)
  most = order[: round(keep * delta.size)]
  out[most] = delta.ravel()[most]
  return out.reshape(delta.shape)


def prune(total, base):
  """PRUNE: singular values above the base's largest, restrained."""
  limit = np.linalg.svd(np.asarray(base, np.float64))[1].max()
  u, s, vt = np.linalg.svd(np.asarray(total, np.float64), full_matrices=False)
  s = np.where(s > limit, np.log(np.maximum(s, limit) / limit) + limit, s)
  return u * s @ vt


def srfusion(delta, rank, keep):
  """AdaEdit, eqs. 2-4, one singular vector after the other."""
  u, s, vt = np.linalg.svd(np.asarray(delta, np.float64), full_matrices=False)
  out = np.zeros(delta.shape)
  for i in range(rank):
    pair = []
    for vector in u[:, i], vt[i]:
      thin = np.zeros_like(vector)
      most = np.argsort(np.abs(vector))[::-1][: round(keep * vector.size)]
      thin[most] = vector[most]
      pair.append(thin * np.linalg.norm(vector) / np.linalg.norm(thin))
    out += s[i] * np.outer(*pair)
  return out
