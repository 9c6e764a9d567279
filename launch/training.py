"""The training of MEND's network: its optimiser, its step, its loop."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jedit
from jedit import checkpoint, evaluate, hypernetwork
from jedit.hypernetwork import Network
from jedit.models.load import load
from jedit.models.transformer import Model
from jedit.types import JeditError, kernel_of
from launch import common, examples, folder


class Carry(NamedTuple):
  """All that training goes on from."""

  network: Network
  optimiser: Any
  cursor: jax.Array


def means(terms: Sequence[Sequence[jax.Array]], sizes=None) -> dict:
  """{'loss', 'nll', 'kl'} of batches, of as many examples each or `sizes`."""
  each = np.average(jax.device_get(terms), axis=0, weights=sizes).tolist()
  return dict(zip(('loss', 'nll', 'kl'), each, strict=True))


def optimiser(
  lr: float = 1e-6, rate_lr: float = 1e-4
) -> optax.GradientTransformation:
  """Adam with a rate of its own for the edit rates; clipped at 100."""
  each = optax.partition(
    {'blocks': optax.adam(lr), 'rate': optax.adam(rate_lr)},
    {'blocks': 'blocks', 'rate': 'rate'},
  )
  return optax.chain(optax.clip_by_global_norm(100.0), each)


def stepper(model: Model, tx: optax.GradientTransformation) -> Callable:
  """step(params, carry, examples) -> (carry, (loss, NLL, KL), their gradients).

  Of the gradients the norm of each leaf. The carry is donated.
  """

  @functools.partial(jax.jit, donate_argnums=1)
  def step(params, carry, examples):
    got = hypernetwork.factors(model, params, examples.edit)
    network = hypernetwork.observe(carry.network, got)
    (total, terms), grads = jax.value_and_grad(
      hypernetwork.objective, has_aux=True
    )(network.params, network, model, params, got, *examples[1:])
    updates, state = tx.update(grads, carry.optimiser, network.params)
    network = network._replace(
      params=optax.apply_updates(network.params, updates)
    )
    new = Carry(network, state, carry.cursor + 1)
    norms = jax.tree.map(jnp.linalg.norm, {**grads.pop('blocks'), **grads})
    return new, (total, *terms), norms

  return step


def judge(model: Model) -> Callable:
  """score(params, network, examples) -> (loss, NLL, KL), nothing learned."""

  @jax.jit
  def score(params, network, examples):
    got = hypernetwork.factors(model, params, examples.edit)
    total, terms = hypernetwork.objective(
      network.params, network, model, params, got, *examples[1:]
    )
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


def run(config, train, workdir, steps, save_every, sane, **settings) -> None:
  """From config and records to a trained network in the run folder."""
  if not train:
    raise JeditError('--train: name a file of zsRE records as MEND has them')
  inputs = {'train': common.file_hash(train), **settings}
  loaded = load(config.model)
  model = loaded.model
  lo, hi = common.check_layers(config, loaded)
  inputs['model'] = checkpoint.fingerprint(loaded.params)
  home = folder.open_folder(workdir, config, inputs)
  params = jax.tree.map(jnp.asarray, loaded.params)
  prose = loaded.tokenizer(common.PROSE.read_text(encoding='utf-8')).input_ids
  base = float(evaluate.perplexity(model, params, jnp.asarray(prose)[None]))
  if not base < sane:
    raise JeditError(
      f'{config.model} has perplexity {base:.1f} on plain prose, {sane:.1f} is '
      'the most (--sane): is it the model you mean?'
    )
  shown, held = examples.divide(
    examples.read(
      train, loaded.tokenizer, config.rendering, model.config.context_length
    ),
    settings['held_out'],
  )
  params = jedit.split(params, lo, hi)
  count, size = len(shown.edit.valid), settings['batch']
  groups = examples.order(config.seed, count, steps, size)
  shown = examples.with_room(shown, groups)
  tests = np.arange(settings['held_out'])
  tests = [tests[i : i + size] for i in range(0, len(tests), size)]
  held = examples.with_room(held, tests)
  tx = optimiser(settings['lr'], settings['rate_lr'])
  network = hypernetwork.init(
    jax.random.key(config.seed),
    kernel_of(params).shape,
    settings['rank'],
    settings['rate'],
  )
  zero = jnp.zeros((), jnp.int32)
  carry = Carry(network, tx.init(network.params), zero)
  carry = resume(home / 'checkpoint', carry)
  carry = jax.tree.map(jnp.copy, carry)  # nothing twice: it is donated
  cursor = int(carry.cursor)
  common.say(
    f'{config.model}: perplexity {base:.1f}; layers {lo}-{hi}, {count} '
    f'examples, steps {cursor} to {steps} of {size} edits; run folder {home}'
  )
  step, score = stepper(model, tx), judge(model)
  copy = jax.tree.map(jnp.copy, carry)
  _, _, norms = step(params, copy, examples.at(shown, groups[0]))
  started = bool(carry.network.params['blocks']['u'].any())
  check_gradients(jax.device_get(norms), started)

  def validate():
    ask = lambda group: score(params, carry.network, examples.at(held, group))
    return means([ask(group) for group in tests], [len(g) for g in tests])

  log, recent, began = folder.Log(home, cursor), [], time.perf_counter()
  if not log.lines:
    log.add(cursor=0, held_out=validate(), base_perplexity=base)
  with common.bar(steps, 'training', 'step') as progress:
    progress.update(cursor)
    while cursor < steps:
      carry, terms, _ = step(params, carry, examples.at(shown, groups[cursor]))
      recent.append(terms)
      cursor += 1
      progress.update(1)
      if cursor % save_every == 0 or cursor == steps:
        log.add(
          cursor=cursor,
          train=means(recent),
          held_out=validate(),
          rate=carry.network.params['rate'].tolist(),
          seconds=time.perf_counter() - began,
        )
        common.say(f'\n{log.lines[-1]}')
        save(home / 'checkpoint', carry)
        recent, began = [], time.perf_counter()
  about = {'model': config.model, 'layers': [lo, hi], 'steps': cursor}
  about['batch'] = size
  hypernetwork.save(home, carry.network, about | {'base_hash': inputs['model']})
  common.say(f'network: {home}')
