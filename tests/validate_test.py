"""What candidates are scored by, in the walk, against the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jedit import values
from jedit.editors.least_squares import least_squares
from jedit.models import transformer
from jedit.types import Targets, apply_updates
from tests import tiny


def scores(model, params, held):
  """(probability, accuracy) by whole rows: first row and others, half each."""
  tokens, _, label = tiny.whole_rows(held)
  tokens, label = tokens[:, :-1], label[:, :-1]
  logits = np.asarray(tiny.trace(model, params, jnp.asarray(tokens)).logits)
  chance = np.asarray(jax.nn.softmax(logits))
  scored = label >= 0
  at = np.maximum(label, 0)[..., None]
  share = np.take_along_axis(chance, at, -1)[..., 0]
  right = logits.argmax(-1) == label
  out = []
  for x in (share, right):
    rows = (x * scored).sum(-1) / np.maximum(scored.sum(-1), 1)
    some = scored.any(-1)
    others = rows[:, 1:].sum(-1) / np.maximum(some[:, 1:].sum(-1), 1)
    parts = some[:, 0].astype(int) + some[:, 1:].any(-1)
    facts = (rows[:, 0] + others) / np.maximum(parts, 1)
    out.append(facts[held.valid].mean())
  return out


def test_scores_are_those_of_the_whole_model():
  """At every layer, with the changes of the layers before it made."""
  model, params = tiny.model()
  split = tiny.split(params)
  held = tiny.batch(4, contexts=2, seed=5, invalid=[3])
  held.label[1, 1] = -1  # a row less
  batch = tiny.batch(4, invalid=[3])
  batch = dataclasses.replace(batch, validation=held)
  shape = split['site']['mlp']['down']['kernel'].shape
  step = 0.05 * jax.random.normal(jax.random.key(0), shape)

  def solve(step, asked):
    found = asked.score(2 * step)
    return step, step, {'p': found.probability, 'a': found.accuracy}

  def targets(params, rows, batch, state):
    zeros = jnp.zeros(4)
    value = jnp.zeros((4, model.config.width))
    return Targets(value, zeros, zeros.astype(int), batch.valid)

  editor = least_squares(
    model, step, solve, remember=False, notes=('p', 'a'),
    optimise=values.Optimise(lambda params: (), targets),
  )  # fmt: skip
  _, state = jax.jit(editor.update)(batch, editor.init(split), split)
  notes, seen = state.report.notes, []
  for e in range(len(step)):
    change = step.at[e].multiply(2).at[e + 1 :].set(0)
    change = {'site': {'mlp': {'down': {'kernel': change}}}}
    whole = transformer.join(apply_updates(split, change))
    p, a = scores(model, whole, held)
    np.testing.assert_allclose(notes['p'][e], p, rtol=1e-4)
    np.testing.assert_allclose(notes['a'][e], a, rtol=1e-4)
    seen.append(p)
  assert len(set(np.round(seen, 6))) == len(seen)
