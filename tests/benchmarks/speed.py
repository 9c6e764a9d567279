"""Seconds a fact, and the value engine's share of the matmul peak.

  python -m tests.benchmarks.speed --batch=50 --batches=10 --forced --plain=2

Everything between request and weights, steady state, AlphaEdit, CounterFact,
by the value engine of --config (--config.optimiser.steps=5). The share counts
needed products with weights only, of real tokens: those from the lookup on x
steps x layers above, forward and backward, the head at the scored positions,
and once, forward, what comes before: all tokens up to the site, and what
precedes the lookup in the layers above. The peak is of all devices at once.
`--plain` facts are also optimised in the order of the references, one at a
time through the whole model at every step, and the evaluation of the records
is timed. All devices are used: with JAX_NUM_CPU_DEVICES=2 each of two cores
has half of a batch. JEDIT_DATA as in quality.py.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jedit
from jedit import evaluate, requests, sharding, values, writing
from jedit.models import layers
from jedit.parts import each_part
from jedit.rows import enter
from jedit.types import SecondMoment
from launch import common, devices, preflight, stream
from tests import tiny
from tests.field_data import FOLDER
from tests.values_test import plain

_CONFIG = common.config_flag()
_SIZE = flags.DEFINE_integer('batch', 50, 'Facts solved together.')
_COUNT = flags.DEFINE_integer('batches', 4, 'Batches.')
_FORCED = flags.DEFINE_bool('forced', False, 'All steps, no early stop.')
_PLAIN = flags.DEFINE_integer('plain', 0, "Facts for the references' order.")


def peak(
  rounded: bool, size: int = 2048, repeats: int = 10, dtype=jnp.float32
) -> float:
  """Operations a second of the best of some products of the engine's kind.

  On every device one, at once.
  """
  count, best = jax.device_count(), np.inf
  with jax.set_mesh(sharding.mesh()):
    x = sharding.constrain(
      jnp.ones((count * size, size), dtype), sharding.DATA, None
    )
    kernel = jnp.ones((size, size), dtype)
    kernel = layers.narrow(kernel) if rounded else kernel
    multiply = jax.jit(layers.product)
    for _ in range(repeats):
      start = time.perf_counter()
      multiply(x, kernel).block_until_ready()
      best = min(best, time.perf_counter() - start)
  return 2 * count * size**3 / best


def needed(model, batch, steps: int, above: int) -> float:
  """Operations that value optimisation cannot do without, see above."""
  c = model.config
  before = int(batch.prefix_len.sum() + batch.head_len.sum())
  weights = preflight.layer_entries(c)
  scored = (batch.label >= 0).sum() + batch.valid.sum()
  tokens = int(batch.tail_len.sum())
  forward = tokens * above * weights + scored * c.width * c.vocab_size
  first = before * c.num_layers + tokens * (c.num_layers - above)
  return float(2 * (2 * steps * forward + first * weights))


def plain_seconds(model, params, batch, count, layer, **kwargs) -> float:
  """Seconds a fact of the values alone, compilation excluded."""
  pick = lambda i: tiny.pick(batch, [i])
  plain(model, params, pick(0), layer, **kwargs | {'steps': 2})
  start = time.perf_counter()
  for i in range(count):
    plain(model, params, pick(i), layer, **kwargs)
  return (time.perf_counter() - start) / count


def main(_):
  with devices.use(_CONFIG.value):
    measure(_CONFIG.value)


def measure(config):
  """All figures, one after the other."""
  loaded = devices.load(config, config.model)
  model = loaded.model
  whole = devices.put(config, loaded)
  split = jedit.split(whole, *config.layers)
  asked, _ = requests.read(FOLDER / 'counterfact_full_500.jsonl.gz')
  asked = asked[: _SIZE.value * _COUNT.value]
  groups, _ = requests.batched(asked, _SIZE.value, 'last')
  texts = writing.contexts(model, whole, loaded.tokenizer, 0)
  batches = jedit.edit_batches(loaded.tokenizer, groups, texts, _SIZE.value)
  width = model.config.mlp_width
  count = config.layers[1] - config.layers[0] + 1
  flat = np.tile(1e-3 * np.eye(width, dtype='f'), (count, 1, 1))
  flat = SecondMoment(flat, 1.0)
  engine = config.optimiser.to_dict()
  engine |= {'stop': 0.0} if _FORCED.value else {}
  optimise = values.optimiser(model, **engine)
  editor = jedit.alphaedit(model, flat, optimise=optimise)
  state = editor.init(split)
  one = lambda i: stream.chunk(batches, i, 1)
  edit = jax.jit(functools.partial(jedit.edit_sequence, editor))
  start = time.perf_counter()
  compiled = edit.lower(split, state, one(0)).compile()
  print(f'compile {time.perf_counter() - start:.1f} s')

  @jax.jit
  def targets(params, batch):
    def of_part(part, whole):
      rows = enter(model, params, part)
      return whole.gather(optimise.run(params, rows, part, ()).value)

    return each_part(of_part, jax.tree.map(lambda a: a[0], batch))

  params, spent = split, []
  for i in range(len(groups)):
    start = time.perf_counter()
    params, state, report = jax.block_until_ready(
      compiled(params, state, one(i))
    )
    seconds = time.perf_counter() - start
    spent.append(seconds)
    print(
      f'batch {i + 1}: {seconds / len(groups[i]):.3f} s a fact; '
      f'{int(report.reached.sum())} reached, {int(report.steps.sum())} updates',
      flush=True,
    )
  if _FORCED.value:
    above = model.config.num_layers - config.layers[1] - 1
    first = jax.tree.map(lambda a: np.asarray(a[0]), batches)
    work = needed(model, first, engine['steps'] - 1, above)
    run = targets.lower(split, one(0)).compile()
    rounded = engine['products'] == 'bfloat16'
    fast = peak(rounded)
    start = time.perf_counter()
    run(split, one(0)).block_until_ready()
    seconds = time.perf_counter() - start
    fast = max(fast, peak(rounded))  # machines share their cores
    print(
      f'values of batch 1: {work / len(groups[0]) / 1e12:.3f} TFLOP a fact in '
      f'{seconds / len(groups[0]):.3f} s: {work / seconds / 1e9:.0f} of '
      f'{fast / 1e9:.0f} GFLOP/s, {work / seconds / fast:.0%} of peak'
    )
  rates = [s / len(g) for s, g in zip(spent, groups, strict=True)]
  rate = float(np.median(rates))
  print(f'median {rate:.3f} s a fact; batches {np.round(spent, 1).tolist()} s')
  if _PLAIN.value:
    first = jax.tree.map(lambda a: np.asarray(a[0]), batches)
    names = 'steps', 'lr', 'clamp', 'stop', 'weight_decay', 'kl_factor'
    same = {n: engine[n] for n in names}
    slow = plain_seconds(
      model, whole, first, _PLAIN.value, config.layers[1], **same
    )
    print(
      f"the references' order: {slow:.1f} s a fact, {slow / rate:.1f} times"
    )
  few = asked[:100]
  probe = evaluate.probe(loaded.tokenizer, few)
  for name in 'with compilation', 'again':
    start = time.perf_counter()
    evaluate.score(model, whole, probe.questions)
    seconds = (time.perf_counter() - start) / len(few)
    print(f'evaluation: {seconds:.3f} s a record ({name})', flush=True)


if __name__ == '__main__':
  app.run(main)
