"""What a run is said to need, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import base
from jedit.types import JeditError
from launch import preflight, stream
from tests import tiny


def test_a_compiled_step_that_does_not_fit_is_refused():
  config = base.get_config('memit', model='', layers=(1, 2))
  x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  compiled = jax.jit(lambda x: x @ x).lower(x).compile()
  assert preflight.taken(compiled) >= 2 * 256 * 256 * 4  # x and the result
  preflight.confirm(config, compiled)
  config.memory = 1000.0
  with pytest.raises(JeditError, match='smaller --config.batch_size'):
    preflight.confirm(config, compiled)


def test_a_plan_grows_with_the_batch_and_shrinks_with_the_steps():
  config = base.get_config('memit', model='', layers=(1, 2))
  model, _ = tiny.model()
  batches = tiny.stack([tiny.batch()])
  plan = lambda b, c=config: preflight.plan(c, model.config, 4, b, 1000.0)
  one = plan(batches)
  assert one['weights'] >= 1000 and one['prior'] > 0
  twice = tuple(2 * n for n in batches.budget)
  more = plan(dataclasses.replace(batches, budget=twice))
  assert more['values'] > one['values'] and more['prior'] == one['prior']
  work = preflight.operations(config, model.config, batches)
  config.optimiser.steps //= 2
  assert 0 < preflight.operations(config, model.config, batches) < work


def test_the_base_weights_are_let_go_before_the_first_edit(
  run, tmp_path, monkeypatch
):
  whole = (5, 32, 64)  # a matrix of all layers (tests/folder.py)
  alive = lambda: {id(x): x for x in jax.live_arrays() if x.shape == whole}
  before, seen, edit = set(alive()), [], stream.run

  def look(*args):
    seen.append([x for i, x in alive().items() if i not in before])
    return edit(*args)

  monkeypatch.setattr(stream, 'run', look)
  run(tmp_path / 'a')
  assert seen == [[]]
