"""Bytes a device of the edit step of full-size models, and how long it takes.

  python -m tests.benchmarks.fits --model=llama3_8b,gptj_6b,qwen3_8b
  python -m tests.benchmarks.fits --model=llama3_8b,gpt2_xl --parts=1 --run

Compiles one batch of edits on a mesh of simulated devices from shapes alone (no
weights, no moments), reads what each device holds and compares it with what
launch.preflight plans. With --run, on the devices there are (a GPU), the step
is run with random weights and facts of the usual lengths, all updates forced:
the share is of the operations that the values need, over the peak of bfloat16
products.
"""

import dataclasses
import importlib
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jedit import parts as in_parts
from jedit import sharding, values
from jedit.editors.least_squares import gaussian, least_squares
from jedit.models import hf
from jedit.models.transformer import build, split
from jedit.sequence import edit_sequence
from jedit.types import EditBatch, EditReport, EditState
from launch import preflight
from tests.benchmarks.speed import needed, peak

_MODELS = flags.DEFINE_list('model', ['llama3_8b'], 'Files of configs/.')
_DATA = flags.DEFINE_integer('data', 1, "Parts of the axis 'data'.")
_MODEL = flags.DEFINE_integer('parts', 8, "Parts of the axis 'model'.")
_FSDP = flags.DEFINE_bool('fsdp', False, "Weights over 'data', too.")
_FACTS = flags.DEFINE_integer('facts', 100, 'In a batch.')
_RUN = flags.DEFINE_bool('run', False, 'Run it, too.')
_GPT2_XL = {
  'model_type': 'gpt2', 'activation_function': 'gelu_new', 'n_embd': 1600,
  'n_head': 25, 'n_layer': 48, 'n_positions': 1024, 'vocab_size': 50257,
  'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': True,
}  # fmt: skip
_GPTJ = {
  'model_type': 'gptj', 'activation_function': 'gelu_new', 'n_embd': 4096,
  'n_head': 16, 'n_layer': 28, 'n_positions': 2048, 'rotary_dim': 64,
  'vocab_size': 50400, 'layer_norm_epsilon': 1e-5, 'tie_word_embeddings': False,
}  # fmt: skip
_LLAMA = {
  'model_type': 'llama', 'hidden_act': 'silu', 'hidden_size': 4096,
  'intermediate_size': 14336, 'num_hidden_layers': 32,
  'num_attention_heads': 32, 'num_key_value_heads': 8, 'vocab_size': 128256,
  'max_position_embeddings': 8192, 'rms_norm_eps': 1e-5,
  'rope_theta': 500000.0, 'tie_word_embeddings': False,
}  # fmt: skip
_QWEN = {
  'model_type': 'qwen3', 'hidden_act': 'silu', 'hidden_size': 4096,
  'intermediate_size': 12288, 'num_hidden_layers': 36, 'head_dim': 128,
  'num_attention_heads': 32, 'num_key_value_heads': 8, 'vocab_size': 151936,
  'max_position_embeddings': 40960, 'rms_norm_eps': 1e-6,
  'rope_theta': 1000000.0, 'tie_word_embeddings': False,
}  # fmt: skip
_HF = {
  'gpt2_xl': _GPT2_XL, 'gptj_6b': _GPTJ, 'llama3_8b': _LLAMA,
  'qwen3_8b': _QWEN,
}  # fmt: skip


def batches_of(facts: int, parts: int) -> EditBatch:
  """One batch of the usual lengths, as shapes: [1, B, ...]."""
  rows, wide, long = 7, 24, 16
  int32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  grid = 1, facts, rows
  step = lambda n, to: parts * (-(-n // (parts * to)) * to)
  budget = (
    step(36 * facts, 16), step(50 * facts, 16), step(12 * facts, 16),
    step(12 * facts, 16),
  )  # fmt: skip
  return EditBatch(
    int32(1, rows, 12), int32(1, rows), int32(*grid, wide), int32(*grid),
    int32(*grid, long), int32(*grid), int32(*grid, long),
    jax.ShapeDtypeStruct((1, facts), bool), budget, parts=parts,
  )  # fmt: skip


def facts_of(shapes: EditBatch, vocabulary: int) -> EditBatch:
  """Random facts of such a batch: 5 tokens, 5 from the subject on, 2 wanted."""
  rng = np.random.default_rng(0)
  tokens = lambda x: rng.integers(1, vocabulary, x.shape, dtype=np.int32)
  each = lambda x, n: np.full(x.shape, n, np.int32)
  context, label = each(shapes.prefix_len, 10), each(shapes.label, -1)
  context[:, [0, -1]] = 0
  label[:, :, :-1, 5:7] = rng.integers(1, vocabulary, 2)
  return dataclasses.replace(
    shapes,
    prefix=tokens(shapes.prefix), prefix_len=context,
    head=tokens(shapes.head), head_len=each(shapes.head_len, 5),
    tail=tokens(shapes.tail), tail_len=each(shapes.tail_len, 7),
    label=label, valid=np.ones(shapes.valid.shape, bool),
  )  # fmt: skip


def timed(compiled, model, params, state, batches, steps: int, deep: int):
  """Of the second of two batches: seconds a fact, and share of the peak."""
  key = jax.random.key(0)

  def fill(x):
    make = lambda: (0.02 * jax.random.normal(key, x.shape)).astype(x.dtype)
    if not jnp.issubdtype(x.dtype, jnp.floating):
      make = lambda: jnp.zeros(x.shape, x.dtype)
    return jax.jit(make, out_shardings=x.sharding)()

  where = jax.tree.map(lambda x: x.sharding, batches)
  facts = facts_of(batches, model.config.vocab_size)
  placed = sharding.place(facts, where)
  params, state = jax.tree.map(fill, (params, state))
  for _ in range(2):
    start = time.perf_counter()
    params, state, report = jax.block_until_ready(
      compiled(params, state, placed)
    )
    seconds = time.perf_counter() - start
  first = jax.tree.map(lambda a: a[0], facts)
  work = needed(model, first, steps, deep)
  fast = peak(False, 4096, dtype=jnp.bfloat16)
  updates = float(report.steps.sum()) / _FACTS.value
  return {
    'device': jax.devices()[0].device_kind,
    'seconds_a_fact': round(seconds / _FACTS.value, 4),
    'updates_a_fact': round(updates, 1),
    'share_of_peak': round(work / seconds / fast, 3),
  }


def measure(name: str, mesh) -> dict:
  """What the compiler says of a model's edit step."""
  config = importlib.import_module(f'configs.{name}').get_config('memit')
  lo, hi = config.layers
  model = build(hf.config(_HF[name]))
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  half = lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
  shapes = jax.tree.map(half, shapes)
  shapes = jax.eval_shape(lambda p: split(p, lo, hi), shapes)
  where = sharding.specs(model.config, shapes, mesh, _FSDP.value)
  on = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  params = jax.tree.map(on, shapes, where)
  layers, width = hi - lo + 1, model.config.mlp_width
  whole = jax.NamedSharding(mesh, jax.P())
  scalar = lambda t, *s: jax.ShapeDtypeStruct(s, t, sharding=whole)
  int32 = scalar(jnp.int32)
  rows = jax.NamedSharding(mesh, jax.P(None, sharding.ROWS))
  prior = jax.ShapeDtypeStruct(
    (layers, width, width), jnp.float32, sharding=rows
  )
  report = EditReport(
    int32, int32, int32, scalar(jnp.float32), scalar(jnp.float32, layers)
  )
  state = EditState(prior, int32, (), report)
  batches = batches_of(_FACTS.value, mesh.shape['data'])
  batches = jax.tree.map(on, batches, in_parts.specs(batches, mesh))
  never = {'stop': 0.0} if _RUN.value else {}
  optimise = values.optimiser(model, **{**config.optimiser, **never})
  editor = least_squares(
    model, np.zeros((layers, 1)), gaussian(1.0), remember=True,
    optimise=optimise,
  )  # fmt: skip
  sharded = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
  fn = jax.jit(
    lambda *args: edit_sequence(editor, *args),
    donate_argnums=0,
    out_shardings=(sharded(params), sharded(state), None),
  )
  start = time.perf_counter()
  compiled = fn.lower(params, state, batches).compile()
  seconds = time.perf_counter() - start
  need, m = preflight.taken(compiled), compiled.memory_analysis()
  gib = lambda n: round(n / 2**30, 3)
  weights = preflight.weights_of(params)
  planned = preflight.plan(config, model.config, 2, batches, weights)
  ran, above = {}, model.config.num_layers - 1 - hi
  if _RUN.value:
    steps = config.optimiser.steps - 1
    ran = timed(compiled, model, params, state, batches, steps, above)
  return {
    'model': name,
    'mesh': dict(mesh.shape),
    'arguments': gib(m.argument_size_in_bytes),
    'temporary': gib(m.temp_size_in_bytes),
    'all': gib(need),
    'planned': gib(sum(planned.values())),
    'plan': {k: gib(v) for k, v in planned.items()},
    'compile_seconds': round(seconds, 1),
    **ran,
  }


def main(_):
  if not _RUN.value:
    jax.config.update('jax_num_cpu_devices', _DATA.value * _MODEL.value)
  mesh = sharding.mesh(_DATA.value, _MODEL.value)
  with jax.set_mesh(mesh):
    for name in _MODELS.value:
      print(json.dumps(measure(name, mesh)), flush=True)


if __name__ == '__main__':
  app.run(main)
