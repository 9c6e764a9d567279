"""What is foreseen of a stream, against whole rows and float64."""

import jax
import numpy as np

from jedit import foresight
from jedit.models import transformer
from tests import editors_test, oracle, tiny

_SETTINGS = dict(
  ridge=editors_test._RIDGE, threshold=editors_test._THRESHOLD, relative=True
)


def read(params, batches):
  """Keys [N, E, B, F] and values [N, B, D] of the unedited model, float64."""
  model, _ = tiny.model()
  low, high = tiny.SITE
  keys, values = [], []
  for n in range(len(batches.valid)):
    batch = jax.tree.map(lambda x, n=n: np.asarray(x[n]), batches)
    tokens, lookup, _ = tiny.whole_rows(batch)
    whole = tiny.trace(model, transformer.join(params), tokens)
    index = lookup[:, :, None, None]
    at = lambda x, i, index=index: np.take_along_axis(
      np.asarray(x)[:, :, i], index, 2
    )[:, :, 0].astype(np.float64)
    mean = lambda k: 0.5 * (k[:, 0] + k[:, 1:-1].mean(1))
    key = [mean(at(whole.key, i)) for i in range(low, high + 1)]
    keys.append(np.stack(key) * batch.valid[:, None])
    values.append(at(whole.out, high)[:, 0] * batch.valid[:, None])
  return np.stack(keys), np.stack(values)


def test_foresight():
  model, _ = tiny.model()
  _, params, _, batches = editors_test.make('alphaedit')
  engine = editors_test.fixed('alphaedit')
  got = foresight.foresee(
    model, params, tiny.moment(), batches, engine, **_SETTINGS
  )
  keys, now = read(params, batches)
  goal = editors_test.goals('memit').value
  valid = np.asarray(batches.valid)
  away = (goal - now) * valid[..., None]
  unit = lambda k: (
    k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-9)
  )
  norm = lambda x: np.linalg.norm(x, axis=-1)
  np.testing.assert_allclose(got.distance, norm(away), rtol=1e-4)
  moment = tiny.moment().moment.astype(np.float64)
  for e in range(len(moment)):
    limit = _SETTINGS['threshold'] * np.linalg.eigvalsh(moment[e]).max()
    p = oracle.projector(moment[e], limit)
    past, earlier = np.zeros_like(p), np.zeros((0, len(p)))
    for n in range(len(keys)):
      k, r, here = keys[n, e], away[n], valid[n]
      inside = norm(unit(k) @ p)
      np.testing.assert_allclose(
        got.preserved[n, e], np.sqrt(1 - inside**2) * here, atol=2e-3
      )
      near = np.abs(unit(k) @ unit(earlier).T).max(1, initial=0.0)
      np.testing.assert_allclose(got.prior[n, e], near * here, atol=1e-4)
      ridge = _SETTINGS['ridge']
      alone = ridge / (ridge + norm(k @ p) ** 2) * here
      np.testing.assert_allclose(got.alone[n, e], alone, rtol=1e-3)
      rest = r - k @ oracle.alphaedit(p, k, r, ridge, past)
      share = norm(rest) / np.maximum(norm(r), 1e-30)
      np.testing.assert_allclose(got.left[n, e], share, atol=1e-4)
      total = np.linalg.norm(rest) / np.linalg.norm(r)
      np.testing.assert_allclose(got.batch_left[n, e], total, atol=1e-4)
      past, earlier = past + k.T @ k, np.concatenate([earlier, k[here]])
  _, state = editors_test.first('alphaedit')
  np.testing.assert_allclose(
    got.batch_left[0, 0], state.report.residual[0], atol=1e-5
  )
  assert got.prior[1:].max() > 0.1 and not got.prior[0].any()
