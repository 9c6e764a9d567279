"""Bytes and seconds a run needs, before anything heavy starts."""

import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jedit import sharding
from jedit.models import layers
from jedit.models.load import Loaded
from jedit.types import EditBatch, JeditError
from launch import common, method


def available() -> float:
  """Bytes of a device's memory; of a CPU, its share of the host's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  used = min(jax.local_device_count(), sharding.count())
  return host / used


def weights_of(loaded: Loaded, fsdp: bool) -> float:
  """Bytes of the weights that a device holds."""
  if not sharding.shape():
    return sum(x.nbytes for x in jax.tree.leaves(loaded.params))
  on = jax.sharding.get_mesh()
  where = sharding.specs(loaded.model.config, loaded.params, on, fsdp)
  part = lambda x, s: x.dtype.itemsize * math.prod(s.shard_shape(x.shape))
  return sum(jax.tree.leaves(jax.tree.map(part, loaded.params, where)))


def product_rate(rounded: bool, size: int = 1024) -> float:
  """Operations a second of the value engine's products."""
  x = jnp.ones((size, size))
  kernel = layers.narrow(x) if rounded else x
  multiply = jax.jit(layers.product)
  multiply(x, kernel).block_until_ready()
  start = time.perf_counter()
  for _ in range(5):
    multiply(x, kernel).block_until_ready()
  return 5 * 2 * size**3 / (time.perf_counter() - start)


def check(config: ConfigDict, loaded: Loaded, batches: EditBatch) -> None:
  """Prints the plan and refuses one that does not fit."""
  c, (lo, hi) = loaded.model.config, config.layers
  weights, devices = weights_of(loaded, config.fsdp), sharding.count()
  split = sharding.shape().get(sharding.MODEL, 1)  # of a matrix
  parts = batches.parts  # of a batch
  head, tail, plain, scored = batches.budget
  sites, above = hi - lo + 1, c.num_layers - 1 - hi
  asked, per = batches.valid.shape[1], batches.head_len.shape[2]
  slots = batches.prefix.shape[-1] + batches.head.shape[-1]
  size = loaded.params['layers']['mlp']['up']['kernel'].dtype.itemsize
  cached = 2 * size * above * asked * per * slots * c.num_kv_heads * c.head_dim
  twice = config.method.endswith('+blue')  # the first time through more layers
  held = 4 * (2 if twice else sites) * c.mlp_width
  state = held * config.editor.get('capacity', 0)
  if method.needs_moment(config):
    state += 3 * held * c.mlp_width
  below, deep, read = head + tail, above, scored + asked
  if config.optimiser:
    steps, tokens = config.optimiser.get('steps', 25) - 1, tail
    if twice:
      steps, deep = 2 * steps, above + sites - 1
  else:  # a gradient editor: the plain prompts, from the site on
    steps = config.editor.get('steps', 1) + config.editor.get('settle', 0) + 1
    tokens = below = plain + tail // (per - 1)
    deep, read, cached = above + sites, scored // (per - 1), 0
    state += 6 * 4 * sites * c.mlp_width * c.width  # Adam's
  wide = 4 * c.mlp_width / split + 10 * c.width
  saved = size * deep * tokens / parts * wide
  logits = 3 * 4 * read * c.vocab_size / (parts * split)
  cached /= parts * (1 if c.num_kv_heads % split else split)
  layer = 2 * (
    c.width * (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    + 3 * c.width * c.mlp_width
  )
  work = layer * (below * c.num_layers + 2 * steps * tokens * deep)
  work += 4 * steps * read * c.width * c.vocab_size
  if batches.validation is not None:  # two candidates a layer, or all
    *fed, _, scored = batches.validation.budget
    tokens = sum(fed)
    tries = sites * (config.editor.steps + 1 if config.editor.exhaustive else 2)
    work += tries * tokens * layer * (above + sites / 2)
    work += tries * 2 * scored * c.width * c.vocab_size
    logits = max(logits, 4 * scored * c.vocab_size / (parts * split))
  if config.network:
    files = pathlib.Path(config.network).rglob('*')
    state += sum(f.stat().st_size for f in files if f.is_file())
  rounded = config.optimiser.get('products') == 'bfloat16'
  rate = 0.6 * product_rate(rounded) * devices
  seconds = work * batches.valid.shape[0] / rate
  copies = 2 * layer * deep + 4 * c.width * c.vocab_size if rounded else 0
  parts = {
    'weights': 2 * weights + copies / split,
    'values' if config.optimiser else 'descent': saved + cached + logits,
    'prior': state / devices,
  }
  need = sum(parts.values())
  have = config.memory or available()
  listed = ', '.join(f'{k} {v / 2**30:.2f}' for k, v in parts.items())
  each = f' on each of {devices} devices' if devices > 1 else ''
  common.say(
    f'preflight: {need / 2**30:.2f} GiB of {have / 2**30:.1f}{each} '
    f'({listed}); editing takes at most about {seconds:.0f} s'
  )
  if need > have:
    raise JeditError(
      f'this run needs about {need / 2**30:.1f} GiB{each} and there are '
      f'{have / 2**30:.1f}: choose a smaller --config.batch_size (now '
      f'{config.batch_size}), fewer layers, or more devices '
      '(--config.model_parallel, --config.fsdp)'
    )
