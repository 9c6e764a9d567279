"""Trains MEND's network, of edits to the layers of a config.

  python -m launch.train_mend --config=configs/smollm2_135m.py:mend \\
    --train=zsre_mend_train.jsonl.gz --workdir=runs/mend
  python -m launch.edit --config=configs/smollm2_135m.py:mend \\
    --config.network=runs/mend

A record has src, alt, rephrase, loc and loc_ans, as MEND publishes zsRE. Each
step edits one; ten make an update of Adam. The same --workdir goes on where a
killed run left off; more --steps go on from a finished one.
"""

import time

import jax
import jax.numpy as jnp
from absl import flags

import jedit
from jedit import checkpoint, evaluate, hypernetwork
from jedit.models.load import load
from jedit.types import JeditError
from launch import common, folder, training

_CONFIG = common.config_flag()
_TRAIN = flags.DEFINE_string('train', '', 'Records to train on.')
_HOME = flags.DEFINE_string('workdir', '', 'Run folder; "" makes a new one.')
_STEPS = flags.DEFINE_integer('steps', 10_000, 'Edits.')
_EVERY = flags.DEFINE_integer('save_every', 500, 'Steps; then it is validated.')
_HELD = flags.DEFINE_integer('held_out', 50, 'Records to validate on.')
_RANK = flags.DEFINE_integer('rank', 1920, 'Of the network.')
_LR = flags.DEFINE_float('lr', 1e-6, "Adam's, of the network.")
_RATE = flags.DEFINE_float('rate', 1e-4, 'Edit rate to begin with.')
_RATE_LR = flags.DEFINE_float('rate_lr', 1e-4, "Adam's, of the edit rates.")
_SANE = flags.DEFINE_float('sane', 100.0, 'Largest perplexity of the base.')


def main(_):
  config = _CONFIG.value
  settings = {
    'held_out': _HELD.value, 'rank': _RANK.value, 'lr': _LR.value,
    'rate': _RATE.value, 'rate_lr': _RATE_LR.value,
  }  # fmt: skip
  run(
    config, _TRAIN.value, _HOME.value, _STEPS.value, _EVERY.value,
    _SANE.value, **settings,
  )  # fmt: skip


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
  prose = loaded.tokenizer(common.PROSE.read_text()).input_ids
  base = float(evaluate.perplexity(model, params, jnp.asarray(prose)[None]))
  if not base < sane:
    raise JeditError(
      f'{config.model} has perplexity {base:.1f} on plain prose, {sane:.1f} is '
      'the most (--sane): is it the model you mean?'
    )
  examples, held = training.split(
    training.read(
      train, loaded.tokenizer, config.rendering, model.config.context_length
    ),
    settings['held_out'],
  )
  count, params = len(examples.edit.valid), jedit.split(params, lo, hi)
  tx = training.optimiser(settings['lr'], settings['rate_lr'])
  network = hypernetwork.init(
    jax.random.key(config.seed),
    params['site']['mlp']['down']['kernel'].shape,
    settings['rank'],
    settings['rate'],
  )
  zero = jnp.zeros((), jnp.int32)
  carry = training.Carry(network, tx.init(network.params), zero)
  carry = training.resume(home / 'checkpoint', carry)
  cursor = int(carry.cursor)
  common.say(
    f'{config.model}: perplexity {base:.1f}; layers {lo}-{hi}, {count} '
    f'examples, steps {cursor} to {steps}; run folder {home}'
  )
  step, score = training.stepper(model, tx), training.judge(model)
  example = lambda n: training.at(
    examples, training.choose(config.seed, n, count)
  )
  copy = jax.tree.map(jnp.copy, carry)
  _, _, norms = step(params, copy, example(cursor))
  training.check_gradients(jax.device_get(norms), cursor > 0)

  def validate():
    which = range(len(held.edit.valid))
    ask = lambda i: score(params, carry.network, training.at(held, i))
    return training.means([ask(i) for i in which])

  log, recent, began = folder.Log(home, cursor), [], time.perf_counter()
  if not cursor:
    log.add(cursor=0, held_out=validate(), base_perplexity=base)
  with common.bar(steps, 'training', 'edit') as progress:
    progress.update(cursor)
    while cursor < steps:
      carry, terms, _ = step(params, carry, example(cursor))
      recent.append(terms)
      cursor += 1
      progress.update(1)
      if cursor % save_every == 0 or cursor == steps:
        log.add(
          cursor=cursor,
          train=training.means(recent),
          held_out=validate(),
          rate=carry.network.params['rate'].tolist(),
          seconds=time.perf_counter() - began,
        )
        common.say(f'\n{log.lines[-1]}')
        training.save(home / 'checkpoint', carry)
        recent, began = [], time.perf_counter()
  about = {'model': config.model, 'layers': [lo, hi], 'steps': cursor}
  hypernetwork.save(home, carry.network, about | {'base_hash': inputs['model']})
  common.say(f'network: {home}')


if __name__ == '__main__':
  common.run(main)
