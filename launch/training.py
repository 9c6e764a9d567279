"""The training of MEND's network: its examples, its optimiser, its loop."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jedit import checkpoint, files, hypernetwork, prompts
from jedit.hypernetwork import Network
from jedit.models.transformer import Model
from jedit.requests import Request
from jedit.types import EditBatch, JeditError

_FIELDS = 'src', 'alt', 'rephrase', 'loc', 'loc_ans'


class Examples(NamedTuple):
  """What to edit, the same in other words, and what must stay: [N, 1, ...]."""

  edit: EditBatch
  rephrased: EditBatch
  local: EditBatch


def means(terms: Sequence[Sequence[jax.Array]]) -> dict:
  """{'loss', 'nll', 'kl'} of some steps."""
  each = np.mean(jax.device_get(terms), axis=0).tolist()
  return dict(zip(('loss', 'nll', 'kl'), each, strict=True))


class Carry(NamedTuple):
  """All that training goes on from."""

  network: Network
  optimiser: Any
  cursor: jax.Array


def read(path, tokenizer, rendering: str, max_length: int) -> Examples:
  """Examples of records with src, alt, rephrase, loc and loc_ans.

  `alt` is what the edit makes of the answer.
  """
  kinds = [], [], []
  for where, record in files.read_json(path):
    if isinstance(record, JeditError):
      raise record
    lacks = [f for f in _FIELDS if not isinstance(record.get(f), str)]
    if lacks:
      raise JeditError(f'{where}: no text "{lacks[0]}"; add it or leave it out')
    src, alt, rephrase, loc, answer = (record[f].strip() for f in _FIELDS)
    pairs = (src, alt), (rephrase, alt), (loc, answer)
    for kind, (prompt, target) in zip(kinds, pairs, strict=True):
      kind.append([Request(where, prompt, None, target)])
  if not kinds[0]:
    raise JeditError(f'{path}: no record')
  make = lambda kind: prompts.edit_batches(
    tokenizer, kind, [], 1, rendering, max_length, 'last'
  )
  return Examples(*map(make, kinds))


def split(examples: Examples, held_out: int) -> tuple[Examples, Examples]:
  """(those to train on, the last `held_out`)."""
  cut = len(examples.edit.valid) - held_out
  if cut < 1:
    raise JeditError(
      f'{cut + held_out} examples, of which {held_out} are held out: give more'
    )
  part = lambda *at: jax.tree.map(lambda a: np.asarray(a)[slice(*at)], examples)
  return part(None, cut), part(cut, None)


def at(examples: Examples, index: int) -> Examples:
  """One example."""
  return jax.tree.map(lambda a: jnp.asarray(a[index]), examples)


def choose(seed: int, cursor: int, count: int) -> int:
  """The example of a step: all of them, shuffled anew in each epoch."""
  epoch, place = divmod(cursor, count)
  return int(np.random.default_rng([seed, epoch]).permutation(count)[place])


def optimiser(
  lr: float = 1e-6, rate_lr: float = 1e-4, accumulate: int = 10
) -> optax.GradientTransformation:
  """Adam with a rate of its own for the edit rates; clipped at 100."""
  each = optax.partition(
    {'blocks': optax.adam(lr), 'rate': optax.adam(rate_lr)},
    {'blocks': 'blocks', 'rate': 'rate'},
  )
  inner = optax.chain(optax.clip_by_global_norm(100.0), each)
  return optax.MultiSteps(inner, accumulate)


def stepper(model: Model, tx: optax.GradientTransformation) -> Callable:
  """step(params, carry, example) -> (carry, (loss, NLL, KL), gradients' norms).

  The carry is donated.
  """

  @functools.partial(jax.jit, donate_argnums=1)
  def step(params, carry, example):
    got = hypernetwork.factors(model, params, example.edit)
    network = hypernetwork.observe(carry.network, got)
    (total, terms), grads = jax.value_and_grad(
      hypernetwork.objective, has_aux=True
    )(
      network.params, network, model, params, got,
      example.rephrased, example.local,
    )  # fmt: skip
    updates, state = tx.update(grads, carry.optimiser, network.params)
    network = network._replace(
      params=optax.apply_updates(network.params, updates)
    )
    new = Carry(network, state, carry.cursor + 1)
    norms = jax.tree.map(jnp.linalg.norm, {**grads.pop('blocks'), **grads})
    return new, (total, *terms), norms

  return step


def judge(model: Model) -> Callable:
  """score(params, network, example) -> (loss, NLL, KL), nothing learned."""

  @jax.jit
  def score(params, network, example):
    got = hypernetwork.factors(model, params, example.edit)
    total, terms = hypernetwork.objective(
      network.params, network, model, params, got,
      example.rephrased, example.local,
    )  # fmt: skip
    return total, *terms

  return score


def check_gradients(norms: dict, started: bool) -> None:
  """Refuses a network that could not learn.

  U is 0 to begin with: until its first update, what it multiplies (v) and what
  multiplies its product (scale) have no gradient, and may have none.
  """
  free = () if started else ('v', 'scale')
  dead = [k for k, n in norms.items() if not 0 < n < np.inf and k not in free]
  if dead:
    raise JeditError(
      f'the gradient of {", ".join(dead)} is 0 or not finite: an edit does not '
      'reach the loss; choose other layers or examples'
    )


def save(store: pathlib.Path, carry: Carry) -> None:
  """Checkpoint number `cursor` of a folder."""
  tree = {f'{i:03d}': leaf for i, leaf in enumerate(jax.tree.leaves(carry))}
  checkpoint.save_step(store, int(carry.cursor), tree, keep=1)


def resume(store: pathlib.Path, carry: Carry) -> Carry:
  """The last checkpoint of a folder, or `carry` where there is none."""
  found = checkpoint.steps(store)
  if not found:
    return carry
  leaves, form = jax.tree.flatten(carry)
  like = {f'{i:03d}': leaf for i, leaf in enumerate(leaves)}
  saved = checkpoint.load(store / f'{found[-1]:06d}', like)
  return jax.tree.unflatten(form, [saved[k] for k in sorted(saved)])
