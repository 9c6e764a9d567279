"""The body shared by the closed-form editors: targets, then a walk of the site.

The value engine says what the values should be (values.py), walk.py what each
site layer is asked for, and a solver, most often condition.py, its dW.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jedit import values
from jedit.condition import condition
from jedit.models.transformer import Model
from jedit.parts import Whole, each_part
from jedit.rows import enter
from jedit.sharding import by_rows
from jedit.types import (
  EditBatch,
  Editor,
  EditReport,
  EditState,
  Params,
  as_updates,
  kernel_of,
)
from jedit.walk import Solve, walk


def gaussian(noise: float | Callable[[jax.Array], jax.Array]) -> Solve:
  """The one formula; the prior is a root of its covariance, [F, r].

  Args:
    noise: variance nu of every observation, or a function of the number of
      facts in the batch.
  """

  def solve(root, asked):
    nu = noise(asked.valid.sum()) if callable(noise) else noise
    nu = jnp.where(asked.valid, nu, 1.0)
    return *condition(root, asked.keys, asked.residuals, nu), {}

  return solve


def least_squares(
  model: Model,
  prior: Any,
  solve: Solve,
  *,
  remember: bool,
  optimise: values.Optimise,
  spread: Literal['left', 'sqrt', 'full'] = 'left',
  plain_weight: float | None = 0.5,
  notes: tuple[str, ...] = (),
) -> Editor:
  """Editor that solves for dW layer by layer from keys and residuals.

  Args:
    model: the network; params must be split at the site.
    prior: what `solve` starts from, leaves [E, F, ...]; the root of a prior
      covariance for most.
    solve: one layer's solution.
    remember: keep the posterior as the prior of the next batch.
    optimise: the value engine (values.optimiser).
    spread: the residual of a layer is R / left, R / sqrt(left) or all of R,
      "left" counting the site layers still to come, this one included.
    plain_weight: weight of the plain prompt in a key; the other contexts share
      the rest (1/2 in all published code of the MEMIT family). None weighs all
      alike.
    notes: names of what `solve` reports, a number a layer.

  Returns:
    optax transformation: update(batch, state, params) gives
    {'site': {'mlp': {'down': {'kernel': dW [E, F, D]}}}} and an EditState.
  """

  def init(params):
    kernel = kernel_of(params)
    shape = jax.tree.leaves(prior)[0].shape[:2]
    if shape != kernel.shape[:2]:
      raise ValueError(
        f'the prior is for keys {shape}, the site has {kernel.shape[:2]}: make '
        'the second moments of these layers'
      )
    zero, layers = jnp.zeros((), jnp.int32), len(kernel)
    start = by_rows(prior, shape[1])
    state = EditState(start, zero, optimise.init(params), None)
    none = jnp.zeros(layers)
    report = EditReport(
      zero, zero, zero, jnp.zeros(()), none, dict.fromkeys(notes, none)
    )
    return state._replace(report=report)

  def update(batch: EditBatch, state: EditState, params: Params):
    def part(batch: EditBatch, whole: Whole):
      rows = enter(model, params, batch)
      targets = optimise.run(params, rows, batch, state.engine)
      delta, posterior, residual, said = walk(
        model,
        params,
        rows,
        batch,
        targets,
        state.prior,
        solve,
        spread,
        plain_weight,
        whole,
      )
      total = lambda x: whole.sum(x.sum())
      facts = total(batch.valid)
      report = EditReport(
        facts,
        total(targets.reached),
        total(targets.steps),
        total(targets.loss * batch.valid) / jnp.maximum(facts, 1),
        residual,
        said,
      )
      return delta, posterior, report

    delta, posterior, report = each_part(part, batch)
    new = state._replace(
      prior=posterior if remember else state.prior,
      count=state.count + report.facts,
      report=report,
    )
    return as_updates(delta), new

  return optax.GradientTransformation(init, update)
