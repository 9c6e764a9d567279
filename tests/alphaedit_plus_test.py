"""AlphaEdit+: its equations, its three parts, its lemmas."""

import importlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jedit
from jedit import condition, conflict
from jedit.models import transformer
from jedit.types import JeditError, SecondMoment
from jedit.validate import Score
from jedit.walk import Asked
from tests import oracle, tiny

_MODULE = 'jedit.editors.alphaedit_plus'
_F, _D, _M = 24, 6, 8
_RIDGE = 0.5


def spectrum(seed=0):
  """(C [1, F, F] whose eigenvalues grow from 1e-3 to 10, eigenvectors)."""
  rng = np.random.default_rng(seed)
  basis, _ = np.linalg.qr(rng.normal(size=(_F, _F)))
  values = np.logspace(-3, 1, _F)
  return (basis * values @ basis.T)[None], basis


_THRESHOLD = 0.02
_WIDTH = int((np.logspace(-3, 1, _F) < _THRESHOLD).sum())


def solver(monkeypatch, **arguments):
  """(memory of the one layer, solve) of an AlphaEdit+ without a model."""
  module, caught = importlib.import_module(_MODULE), []

  def catch(model, prior, solve, **_):
    caught.append((prior, solve))
    return optax.GradientTransformation(None, None)

  monkeypatch.setattr(module, 'least_squares', catch)
  moment = SecondMoment(np.float32(spectrum()[0]), np.float32(1.0))
  defaults = dict(ridge=_RIDGE, threshold=_THRESHOLD, capacity=_M)
  model = transformer.build(tiny.CONFIGS['llama'])
  module.alphaedit_plus(model, moment, **defaults | arguments)
  memory, solve = caught[0]
  return type(memory)(*(jnp.asarray(x[0]) for x in memory)), solve


def ask(seed=0, count=4, keys=None, score=None, layer=0):
  rng = np.random.default_rng(seed)
  keys = rng.normal(size=(count, _F)) if keys is None else keys
  residuals = (
    rng.normal(size=(len(keys), _D)) * (1 + np.arange(len(keys)))[:, None]
  )
  keys, residuals = np.float32(keys), np.float32(residuals)
  distance = np.linalg.norm(residuals, axis=1)
  valid = np.ones(len(keys), bool)
  return Asked(
    *map(jnp.asarray, (keys, keys, residuals, distance, valid)),
    jnp.asarray(layer), score,
  )  # fmt: skip


def gap(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def projector(width):
  basis = spectrum()[1][:, :width]
  return basis @ basis.T


def greedy(keys, residuals, prior_keys, weights, group, gain):
  """Algorithm 1, lines 4-10, by solving anew for every candidate."""
  args = keys, residuals, _RIDGE, prior_keys, weights
  value = lambda width: oracle.alphaedit_plus_objective(
    oracle.alphaedit_plus(projector(width), *args), *args
  )
  width, best = _WIDTH, value(_WIDTH)
  while width + group <= _F:
    new = value(width + group)
    if (best - new) / best <= gain:
      break
    width, best = width + group, new
  return width


@pytest.mark.parametrize('compat', ['', 'alphaedit-plus'])
def test_two_batches_equal_the_equations(monkeypatch, compat):
  """Weights, span and dW of the second batch, whose keys meet the first's."""
  released = compat == 'alphaedit-plus'
  gain, beta, layer = 0.02, 3.0, 2
  memory, solve = solver(
    monkeypatch, compat=compat, gain=gain, beta=beta, smooth=False
  )
  first, second = ask(0), ask(1, layer=layer)
  _, memory, _ = solve(memory, first)
  near = np.asarray(second.keys) + 0.5 * np.asarray(first.keys)
  second = second._replace(keys=jnp.asarray(near))
  delta, memory, notes = solve(memory, second)
  kp, k = (np.asarray(x.keys, np.float64) for x in (first, second))
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  weights = 1 - np.abs(unit(kp) @ unit(k).T).max(1)
  scaled = weights * beta * (layer + 1 if released else 1)
  r = np.asarray(second.residuals, np.float64)
  group = 10 if released else 1
  width = greedy(k, r, kp, scaled, group, gain * group)
  assert int(notes['rank']) == width - _WIDTH > 0
  np.testing.assert_allclose(
    notes['weights'], np.linalg.norm(weights), rtol=1e-4
  )
  want = oracle.alphaedit_plus(projector(width), k, r, _RIDGE, kp, scaled)
  assert gap(delta, want) < 1e-4
  assert int(memory.seen) == 8
  np.testing.assert_array_equal(memory.keys, np.concatenate([kp, k]))


def test_equations_in_float64(monkeypatch, x64):
  """As above to 1e-10: the algebra, not the dtype."""
  memory, solve = solver(monkeypatch, perturb=False, smooth=False)
  moment, basis = spectrum()
  signs = np.sign(np.sum(basis * np.asarray(memory.basis), axis=0))
  wide = lambda a: jnp.asarray(np.asarray(a, np.float64))
  memory = memory._replace(basis=wide(basis * signs), keys=wide(memory.keys))
  first, second = (
    a._replace(keys=wide(a.keys), residuals=wide(a.residuals))
    for a in (ask(0), ask(1))
  )
  _, memory, _ = solve(memory, first)
  delta, _, _ = solve(memory, second)
  weights = 1 - np.asarray(conflict.conflict(first.keys, second.keys))
  want = oracle.alphaedit_plus(
    projector(_WIDTH),
    second.keys,
    second.residuals,
    _RIDGE,
    first.keys,
    weights,
  )
  assert gap(delta, want) < 1e-10


def test_lemma_4(monkeypatch):
  """No conflict, no far fact: AlphaEdit, over two batches."""
  memory, solve = solver(monkeypatch, tau=1e9)
  null = spectrum()[1][:, :_WIDTH].T  # orthonormal keys of the null space
  batches = [ask(0, keys=3 * null[:4]), ask(1, keys=2 * null[4:8])]
  root, _ = condition.null_space_prior(
    SecondMoment(np.float32(spectrum()[0]), np.float32(1)), _RIDGE, _THRESHOLD
  )
  root = jnp.asarray(root[0])
  for asked in batches:
    delta, memory, notes = solve(memory, asked)
    args = asked.keys, asked.residuals, jnp.ones(4)
    want, root = condition.condition(root, *args)
    assert gap(delta, want) < 1e-6
    assert not notes['rank'] and not notes['candidates']
    assert notes['smoothing'] == 10
  assert abs(notes['weights'] - 2.0) < 1e-5  # of four prior keys, all 1


def test_old_keys_are_forgotten_last_in_first_kept(monkeypatch):
  memory, solve = solver(monkeypatch, smooth=False)
  batches = [ask(n, count=3) for n in range(4)]
  batches[1] = batches[1]._replace(valid=jnp.array([True, False, True]))
  for asked in batches:
    _, memory, _ = solve(memory, asked)
  real = np.concatenate(
    [np.asarray(a.keys)[np.asarray(a.valid)] for a in batches]
  )
  assert int(memory.seen) == 11
  want = np.concatenate([real[8:], real[3:8]])
  np.testing.assert_array_equal(memory.keys, want)


@pytest.mark.parametrize('exhaustive, best, tried', [
  (True, 3, 11), (True, 0, 11), (True, 10, 11),
  (False, 10, 2), (False, 9, 3), (False, 3, 9), (False, 0, 11),
])  # fmt: skip
def test_smoothing(monkeypatch, exhaustive, best, tried):
  """The candidate that scores best is taken; all of it is one solve."""
  seen = []

  def score(delta):
    t = 10 - 20 * share_of(delta)
    seen.append(t)
    value = 0.9 - 0.1 * jnp.abs(t - best)
    return Score(value, 1 - value)

  asked = ask(0, count=10, score=score)
  memory, solve = solver(monkeypatch, exhaustive=exhaustive, perturb=False)
  full, _, _ = solve(memory, asked._replace(score=None))
  hard = np.argsort(np.asarray(asked.distance))[-2:]  # the top 20 percent
  less = np.asarray(asked.residuals).copy()
  less[hard] = 0
  without, _, _ = solve(memory, asked._replace(
    residuals=jnp.asarray(less), score=None))  # fmt: skip
  part = full - without

  def share_of(delta):
    return jnp.sum((full - delta) * part) / jnp.sum(part * part)

  delta, _, notes = solve(memory, asked)
  assert (int(notes['smoothing']), int(notes['candidates'])) == (best, tried)
  want = full - (10 - best) / 20 * part
  np.testing.assert_allclose(delta, want, atol=1e-5)


def test_lemma_1_conflict_with_what_is_kept():
  """|e| = ridge / (ridge + 1 - s^2) |r| for a unit key."""
  basis = spectrum()[1]
  root = jnp.asarray(basis[:, :_WIDTH] / np.sqrt(_RIDGE), jnp.float32)
  r = jnp.asarray(np.random.default_rng(0).normal(size=(1, _D)), jnp.float32)
  for s in (0.0, 0.3, 0.9):
    key = s * basis[:, -1] + np.sqrt(1 - s**2) * basis[:, 0]
    k = jnp.asarray(key[None], jnp.float32)
    kept = jnp.asarray(basis[:, -1:].T, jnp.float32)
    assert abs(conflict.conflict(k, kept)[0] - s) < 1e-6
    delta, _ = condition.condition(root, k, r, jnp.ones(1))
    want = _RIDGE / (_RIDGE + 1 - s**2) * np.linalg.norm(r)
    assert abs(np.linalg.norm(k @ delta - r) - want) < 1e-6


def test_lemma_2_conflict_with_a_prior_edit():
  """|e| = ridge (ridge + 1) / ((ridge + 1)^2 - s^2) |r|, unit keys."""
  root = jnp.eye(_F) / np.sqrt(_RIDGE)
  r = jnp.asarray(np.random.default_rng(0).normal(size=(1, _D)), jnp.float32)
  for s in (0.0, 0.5, 0.99):
    prior = np.eye(_F, dtype=np.float32)[:1]
    key = np.float32(s * prior + np.sqrt(1 - s**2) * np.eye(_F)[1:2])
    _, after = condition.condition(
      root, jnp.asarray(prior), jnp.zeros((1, _D)), jnp.ones(1)
    )
    delta, _ = condition.condition(after, jnp.asarray(key), r, jnp.ones(1))
    want = _RIDGE * (_RIDGE + 1) / ((_RIDGE + 1) ** 2 - s**2)
    got = np.linalg.norm(key @ delta - r) / np.linalg.norm(r)
    assert abs(got - want) < 1e-6


def test_lemma_3_a_far_fact_burdens_the_others():
  """The bounds hold, and are reached where r_2 points against g_12 r_1."""
  rng = np.random.default_rng(0)
  root = jnp.eye(_F) / np.sqrt(_RIDGE)
  keys = rng.normal(size=(2, _F)) / 3
  g = keys @ keys.T
  r1 = rng.normal(size=_D)
  det = (_RIDGE + g[0, 0]) * (_RIDGE + g[1, 1]) - g[0, 1] ** 2
  for rho in (1.0, 4.0):
    bound = _RIDGE / det * np.linalg.norm(r1)
    bound = bound * np.array([
      _RIDGE + g[1, 1] + rho * abs(g[0, 1]),
      abs(g[0, 1]) + rho * (_RIDGE + g[0, 0]),
    ])  # fmt: skip
    other = rng.normal(size=_D)
    other *= np.linalg.norm(r1) / np.linalg.norm(other)
    for r2, tight in (
      (rho * other, False),
      (-rho * np.sign(g[0, 1]) * r1, True),
    ):
      r = jnp.asarray(np.stack([r1, r2]), jnp.float32)
      k = jnp.asarray(keys, jnp.float32)
      delta, _ = condition.condition(root, k, r, jnp.ones(2))
      size = np.linalg.norm(k @ delta - r, axis=1)
      assert (size < bound + 1e-5).all()
      assert not tight or np.abs(size - bound).max() < 1e-5


def test_conflict_of_nothing():
  some = jnp.ones((2, 3))
  assert not conflict.conflict(some, jnp.zeros((4, 3))).any()
  assert not conflict.conflict(some, jnp.zeros((0, 3))).any()


def test_bad_arguments(monkeypatch):
  with pytest.raises(JeditError, match="compat='alphaedit'"):
    solver(monkeypatch, compat='alphaedit')
  with pytest.raises(JeditError, match='steps=0, capacity=8'):
    solver(monkeypatch, steps=0)


@pytest.mark.parametrize('arguments, words', [
  ({}, 'chooses by validation rows'),
  ({'smooth': False, 'capacity': 3}, 'capacity=3: at least the batch size, 4'),
])  # fmt: skip
def test_a_batch_it_cannot_take(arguments, words):
  model, _ = tiny.model()
  editor = jedit.alphaedit_plus(
    model, tiny.moment(), threshold=0.05, relative=True, **arguments
  )
  with pytest.raises(JeditError, match=words):
    editor.update(tiny.batch(4), None, None)
