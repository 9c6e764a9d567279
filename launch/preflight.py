"""Bytes and seconds a run needs, before anything heavy starts."""

import math
import os
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jedit import sharding
from jedit.models import layers
from jedit.models.transformer import Model
from jedit.types import EditBatch, JeditError, Params
from launch import common, method


def available() -> float:
  """Bytes of a device's memory; of a CPU, its share of the host's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  used = min(jax.local_device_count(), sharding.count())
  return host / used


def weights_of(params: Params) -> float:
  """Bytes of the weights that a device holds."""
  part = lambda x: x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
  return sum(map(part, jax.tree.leaves(params)))


def product_rate(rounded: bool, size: int = 1024) -> float:
  """Operations a second of the products above the site."""
  x = jnp.ones((size, size))
  kernel = layers.narrow(x) if rounded else x
  multiply = jax.jit(layers.product)
  multiply(x, kernel).block_until_ready()
  start = time.perf_counter()
  for _ in range(5):
    multiply(x, kernel).block_until_ready()
  return 5 * 2 * size**3 / (time.perf_counter() - start)


def _rounded(config: ConfigDict) -> bool:
  """Whether the factors of products above the site are rounded."""
  here = config.optimiser or config.editor
  return here.get('products') == 'bfloat16'


def check(
  config: ConfigDict, model: Model, params: Params, batches: EditBatch
) -> None:
  """Prints the plan and refuses one that does not fit."""
  c, devices, weights = model.config, sharding.count(), weights_of(params)
  size = params['layers']['mlp']['up']['kernel'].dtype.itemsize
  held = plan(config, c, size, batches, weights)
  rate = 0.6 * product_rate(_rounded(config)) * devices
  seconds = operations(config, c, batches) * batches.valid.shape[0] / rate
  listed = ', '.join(f'{k} {v / 2**30:.2f}' for k, v in held.items())
  rest = f'({listed}); editing takes at most about {seconds:.0f} s'
  need = max(sum(held.values()), 2 * weights)  # split and join copy
  _fits(config, 'preflight', need, rest)


def confirm(config: ConfigDict, compiled: jax.stages.Compiled) -> None:
  """The same of a compiled edit step, by what the compiler says it takes."""
  need = taken(compiled)
  if need:
    _fits(config, 'compiled', need, 'for the edit step')


def taken(compiled: jax.stages.Compiled) -> float:
  """Bytes of arguments, results and workspace on a device; 0: unknown."""
  m = compiled.memory_analysis()
  if m is None:
    return 0
  results = m.output_size_in_bytes - m.alias_size_in_bytes
  return m.argument_size_in_bytes + m.temp_size_in_bytes + results


def _fits(config: ConfigDict, name: str, need: float, rest: str) -> None:
  have, devices = config.memory or available(), sharding.count()
  each = f' on each of {devices} devices' if devices > 1 else ''
  common.say(
    f'{name}: {need / 2**30:.2f} GiB of {have / 2**30:.1f}{each} {rest}'
  )
  if need > have:
    raise JeditError(
      f'this run needs about {need / 2**30:.1f} GiB{each} and there are '
      f'{have / 2**30:.1f}: choose a smaller --config.batch_size (now '
      f'{config.batch_size}), fewer layers, or more devices '
      '(--config.model_parallel, --config.fsdp)'
    )


class _Shape(NamedTuple):
  """What of a run its bytes and its operations depend on.

  Attributes:
    sites: edited layers.
    deep: layers that the gradient goes through.
    below: tokens that run through all layers, once.
    tokens: tokens that run `deep`, forth and back at every step.
    read: tokens whose logits are computed.
    steps: how often.
  """

  sites: int
  deep: int
  below: int
  tokens: int
  read: int
  steps: int


def _shape(config: ConfigDict, c: layers.Config, batches: EditBatch) -> _Shape:
  head, tail, plain, scored = batches.budget
  lo, hi = config.layers
  sites, above = hi - lo + 1, c.num_layers - 1 - hi
  read = scored + batches.valid.shape[1]
  if config.optimiser:
    steps = config.optimiser.get('steps', 25) - 1
    if _twice(config):
      return _Shape(
        sites, above + sites - 1, head + tail, tail, read, 2 * steps
      )
    return _Shape(sites, above, head + tail, tail, read, steps)
  # A gradient editor: the plain prompts, from the site on.
  steps = config.editor.get('steps', 1) + config.editor.get('settle', 0) + 1
  scored //= batches.head_len.shape[2] - 1
  return _Shape(sites, above + sites, plain, plain, scored, steps)


def _twice(config: ConfigDict) -> bool:
  """Whether a batch is walked twice, the first time through more layers."""
  return config.method.endswith('+blue')


def _matrices(c: layers.Config) -> int:
  """Of an MLP: gate, up, down, or up and down."""
  return 3 if c.family == 'llama' else 2


def layer_entries(c: layers.Config) -> int:
  """Entries of a layer's matrices."""
  heads = 2 * c.num_heads + 2 * c.num_kv_heads
  return c.width * (heads * c.head_dim + _matrices(c) * c.mlp_width)


def plan(
  config: ConfigDict,
  c: layers.Config,
  size: int,
  batches: EditBatch,
  weights: float,
) -> dict[str, float]:
  """Bytes that editing a batch holds on a device.

  Args:
    config: of the run.
    c: shapes of the model.
    size: bytes of an entry of its weights.
    batches: the stream (or its shapes).
    weights: bytes of the weights that a device holds.

  Returns:
    weights; values (or descent): what the gradient needs; prior: the editor's
    state.
  """
  s, split = _shape(config, c, batches), sharding.shape().get(sharding.MODEL, 1)
  parts = batches.parts
  read = s.read / parts
  if batches.validation is not None:
    read = max(read, batches.validation.budget[-1] / parts / 3)
  # XLA's CPU backend multiplies bfloat16 as float32, and keeps it so.
  widened = jax.default_backend() == 'cpu' and size < 4
  wide = 4 if widened else size
  projected = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  inner = (_matrices(c) - 1) * c.mlp_width + projected
  saved = wide * s.deep * s.tokens / parts * (2 * c.width + inner / split)
  logits = 3 * 4 * read * c.vocab_size / split
  used = s.deep * layer_entries(c) + c.width * c.vocab_size
  copies = 4 * used / split if widened else 0
  if _rounded(config):  # above the site
    inside = 0 if config.optimiser else s.sites
    copies += 2 * (used - inside * layer_entries(c)) / split
  name, cached = 'descent', 0
  rows = batches.valid.shape[1] / parts
  long = batches.tail.shape[-1]
  slots = looking = batches.head.shape[-1] + long
  if config.optimiser:
    name, looking = 'values', long
    rows *= batches.head_len.shape[2]
    slots += batches.prefix.shape[-1]
    heads = c.num_kv_heads / (1 if c.num_kv_heads % split else split)
    # Keys and values, as computed and as the loop over layers wants them.
    past = rows * (slots - long)
    cached = (size + wide) * 2 * s.deep * past * heads * c.head_dim
  # The attention's weights.
  saved += 4 * s.deep * rows * c.num_heads / split * looking * slots
  held = 4 * (2 if _twice(config) else s.sites) * c.mlp_width
  state = held * config.editor.get('capacity', 0)
  if method.needs_moment(config):
    state += 3 * held * c.mlp_width
  if not config.optimiser:
    state += 6 * 4 * s.sites * c.mlp_width * c.width  # Adam's
  network = 0  # whole on each device
  if config.network:
    files = pathlib.Path(config.network, 'network').rglob('*')
    network = sum(f.stat().st_size for f in files if f.is_file())
  return {
    'weights': weights + copies,
    name: saved + cached + logits,
    'prior': state / sharding.count() + network,
  }


def operations(
  config: ConfigDict, c: layers.Config, batches: EditBatch
) -> float:
  """Of the products of one batch, at most."""
  s, layer = _shape(config, c, batches), 2 * layer_entries(c)
  work = layer * (s.below * c.num_layers + 2 * s.steps * s.tokens * s.deep)
  work += 4 * s.steps * s.read * c.width * c.vocab_size
  if batches.validation is not None:  # two candidates a layer, or all
    *fed, _, scored = batches.validation.budget
    tries = config.editor.steps + 1 if config.editor.exhaustive else 2
    above = c.num_layers - 1 - config.layers[1] + s.sites / 2
    one = sum(fed) * layer * above + 2 * scored * c.width * c.vocab_size
    work += s.sites * tries * one
  return work
