"""Transformations of dW against their papers, alone and behind every editor."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jedit import updates
from jedit.sequence import edit_sequence
from jedit.types import apply_updates
from tests import editors_test, oracle

ALL = {
  'fuse': updates.fuse(3, 0.5, size=4),
  'keep_largest': updates.keep_largest(0.4),
  'keep_top': updates.keep_top(0.3),
  'drop_random': updates.drop_random(0.5),
  'clip': optax.clip_by_global_norm(0.1),
  'clamp_singular': updates.clamp_singular(),
}
IDENTITIES = {
  'keep_largest': updates.keep_largest(1.0),
  'keep_top': updates.keep_top(1.0),
  'drop_random': updates.drop_random(1.0),
  'fuse': updates.fuse(8, 1.0),
}


def tree(kernel):
  return {'site': {'mlp': {'down': {'kernel': jnp.asarray(kernel)}}}}


def matrices(seed=0, rank=8, scale=1.0):
  """(dW [2, 40, 24] of a rank, W [2, 40, 24]), float32."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=(2, *shape))
  delta = draw(40, rank) @ draw(rank, 24)
  return np.float32(scale * delta), np.float32(draw(40, 24))


def once(transformation, delta, weight):
  params = tree(weight)
  state = transformation.init(params)
  out, state = jax.jit(transformation.update)(tree(delta), state, params)
  return np.asarray(out['site']['mlp']['down']['kernel']), state


def gap(got, want):
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize('keep', [0.4, 0.2, 1e-9])
def test_keep_largest(keep):
  delta, weight = matrices()
  got, _ = once(updates.keep_largest(keep), delta, weight)
  keep = max(keep, 1 / delta[0].size)
  want = [oracle.rect(d, w, keep) for d, w in zip(delta, weight, strict=True)]
  np.testing.assert_array_equal(got, np.float32(want))


def test_keep_top():
  delta, weight = matrices()
  got, _ = once(updates.keep_top(0.25), delta, weight)
  assert ((got != 0).sum((1, 2)) == 240).all()
  for new, old in zip(got, delta, strict=True):
    np.testing.assert_array_equal(new[new != 0], old[new != 0])
    assert np.abs(old[new == 0]).max() <= np.abs(new[new != 0]).min()


def test_drop_random():
  delta, weight = matrices()
  drop = updates.drop_random(0.3, seed=1)
  first, state = once(drop, delta, weight)
  second, _ = drop.update(tree(delta), state)
  second = np.asarray(second['site']['mlp']['down']['kernel'])
  for got in first, second:
    assert 0.25 < (got != 0).mean() < 0.35
    np.testing.assert_array_equal(got[got != 0], delta[got != 0])
  assert (first != second).any()
  np.testing.assert_array_equal(once(drop, delta, weight)[0], first)


def test_clamp_singular():
  delta, weight = matrices()
  got, state = once(updates.clamp_singular(), delta, weight)
  want = np.stack(list(map(oracle.prune, delta, weight)))
  assert np.linalg.norm(want - delta) > 0.3 * np.linalg.norm(delta)
  assert gap(got, want) < 1e-5
  np.testing.assert_array_equal(state.given, got)
  small = delta / 99
  np.testing.assert_allclose(
    once(updates.clamp_singular(), small, weight)[0], small, atol=1e-9
  )


def test_clamp_singular_restrains_the_sum():
  """However many steps, and with empty ones between: PRUNE of all of it."""
  _, weight = matrices()
  clamp = updates.clamp_singular()
  asked, given = np.zeros_like(weight), np.zeros_like(weight)
  state = clamp.init(tree(weight))
  for seed in range(3):
    delta, _ = matrices(seed, rank=2, scale=2.0)
    for change in delta, 0 * delta:
      out, state = clamp.update(tree(change), state)
      out = np.asarray(out['site']['mlp']['down']['kernel'])
      asked, given = asked + change, given + out
      want = np.stack(list(map(oracle.prune, asked, weight)))
      assert gap(given, want) < 1e-5
    assert not out.any()
  assert np.linalg.norm(asked) > 1.5 * np.linalg.norm(given)


@pytest.mark.parametrize('rank, keep', [(8, 0.2), (5, 0.5), (1, 1.0)])
def test_fuse(rank, keep):
  delta, weight = matrices()
  got, _ = once(updates.fuse(rank, keep, size=8), delta, weight)
  want = np.stack([oracle.srfusion(d, rank, keep) for d in delta])
  assert gap(got, want) < 1e-5


@pytest.mark.parametrize('name', IDENTITIES)
def test_identities(name):
  delta, weight = matrices()
  assert gap(once(IDENTITIES[name], delta, weight)[0], delta) < 1e-6


@pytest.mark.parametrize('name', [n for n in ALL if n != 'clip'])
def test_no_change_stays_none(name):
  delta, weight = matrices()
  got, _ = once(ALL[name], 0 * delta, weight)
  np.testing.assert_array_equal(got, 0)


@pytest.mark.parametrize('make, words', [
  (lambda: updates.keep_largest(0.0), 'keep=0.0'),
  (lambda: updates.keep_top(1.5), 'keep=1.5'),
  (lambda: updates.drop_random(-1.0), 'keep=-1'),
  (lambda: updates.fuse(5, size=4), 'rank=5: from 1 to size=4'),
])  # fmt: skip
def test_bad_arguments(make, words):
  with pytest.raises(ValueError, match=words):
    make()


_BEHIND = optax.chain(*ALL.values())
_behind = jax.jit(_BEHIND.update)


@pytest.mark.parametrize(
  'host', [*editors_test.EDITORS, *editors_test.GRADIENT]
)
def test_every_editor_takes_them_all(host):
  """In one chain (a compilation a pair takes minutes): scanned as in a loop."""
  editor, params, start, batches = editors_test.make(host)
  chain = optax.chain(editor, _BEHIND)
  scan = jax.jit(lambda *args: edit_sequence(chain, *args))
  scanned, scanned_state, report = scan(params, chain.init(params), batches)
  assert report.facts.tolist() == [4, 3, 4]
  state, now = (start, _BEHIND.init(params)), params
  for n in range(len(batches.valid)):
    out, first = editors_test.step(host)(
      editors_test.batch_of(n), state[0], now
    )
    out, second = _behind(out, state[1], now)
    chex.assert_trees_all_equal_shapes_and_dtypes((first, second), state)
    state, now = (first, second), apply_updates(now, out)
  chex.assert_trees_all_close((now, state), (scanned, scanned_state), atol=1e-4)
  kernel = editors_test.kernel
  moved = np.linalg.norm(kernel(scanned) - kernel(params))
  assert 1e-3 < moved < 0.1 * len(batches.valid) + 1e-6
