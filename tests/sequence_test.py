"""A stream of batches: resuming, and what must not move."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import alphaedit, values
from jedit.sequence import edit_sequence
from jedit.types import apply_updates
from tests import tiny


@pytest.fixture(scope='module')
def stream():
  """(jitted edit_sequence, params, state, batches, result of the whole)."""
  model, params = tiny.model()
  optimise = values.optimiser(model, steps=4, lr=1.5, clamp=4.0, stages=(1.0,))
  editor = alphaedit(
    model, tiny.moment(), ridge=1e-5, threshold=0.05, relative=True,
    optimise=optimise,
  )  # fmt: skip
  params = tiny.split(params)
  batches = tiny.stack([tiny.batch(3, seed=n, hard=()) for n in range(4)])
  run = jax.jit(functools.partial(edit_sequence, editor))
  state = editor.init(params)
  return run, params, state, batches, run(params, state, batches)


def test_resuming_changes_no_bit(stream):
  run, params, state, batches, whole = stream
  part = lambda a, b: jax.tree.map(lambda x: x[a:b], batches)
  first = run(params, state, part(0, 2))
  saved = jax.tree.map(lambda x: np.array(x), first[:2])  # as a checkpoint does
  second = run(*jax.tree.map(jnp.asarray, saved), part(2, 4))
  chex.assert_trees_all_equal(second[:2], whole[:2])
  joined = jax.tree.map(lambda *x: jnp.concatenate(x), first[2], second[2])
  chex.assert_trees_all_equal(joined, whole[2])


def test_frozen_leaves_keep_every_bit(stream):
  _, params, _, _, (edited, _, _) = stream
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  after = jax.tree.leaves(edited)
  moved = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for (path, x), y in zip(flat, after, strict=True)
    if np.asarray(x).tobytes() != np.asarray(y).tobytes()
  ]
  assert moved == ['site/mlp/down/kernel']
  chex.assert_trees_all_equal_shapes_and_dtypes(params, edited)


def test_reports_and_count(stream):
  _, _, _, _, (_, state, report) = stream
  assert int(state.count) == 12 and report.facts.tolist() == [3] * 4
  assert report.residual.shape == (4, 3) and (report.residual < 0.5).all()
  chex.assert_trees_all_equal(
    state.report, jax.tree.map(lambda x: x[-1], report)
  )


def test_later_batches_start_from_edited_weights(stream):
  run, params, state, batches, whole = stream
  alone = run(params, state, jax.tree.map(lambda x: x[2:], batches))
  assert not np.allclose(alone[2].loss[1], whole[2].loss[3], rtol=1e-3)


def test_apply_updates_refuses_unknown_names():
  params = {'a': {'b': jnp.ones(2)}, 'c': jnp.ones(1)}
  out = apply_updates(params, {'a': {'b': jnp.ones(2)}})
  np.testing.assert_array_equal(out['a']['b'], [2, 2])
  assert out['c'] is params['c'] and params['a']['b'][0] == 1
  with pytest.raises(ValueError, match="'d'.*'a', 'c'"):
    apply_updates(params, {'d': jnp.ones(1)})
