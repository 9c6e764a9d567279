"""Memory of the host while a sharded model is read onto a mesh.

  python -m tests.benchmarks.loading --gigabytes=2 --data=1 --model=8

Writes a random Llama of that size in the published format, in several files,
reads it onto simulated devices, and prints the largest private memory (pages of
mapped files are not counted) above that before, over the size of the weights.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl import app, flags

from jedit import sharding
from jedit.models import hf
from jedit.models.transformer import build

_SIZE = flags.DEFINE_float('gigabytes', 2.0, 'Of weights.')
_DATA = flags.DEFINE_integer('data', 1, "Parts of the axis 'data'.")
_MODEL = flags.DEFINE_integer('model', 8, "Parts of the axis 'model'.")
_FSDP = flags.DEFINE_bool('fsdp', False, "Weights over 'data', too.")
_WRITE = flags.DEFINE_string('write', '', 'Write the folder, and no more.')
_LAYER = 4 * 2048 * 2048 + 3 * 2048 * 8192  # parameters of one


def private() -> int:
  """Bytes of this process that no file backs."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  found = dict(line.split(':', 1) for line in lines)
  return 1024 * sum(int(found[k].split()[0]) for k in ('RssAnon', 'RssShmem'))


def write(folder: pathlib.Path) -> None:
  """A random folder."""
  layers = round(_SIZE.value * 2**30 / (2 * _LAYER))
  config = {
    'model_type': 'llama', 'vocab_size': 2048, 'hidden_size': 2048,
    'intermediate_size': 8192, 'num_hidden_layers': layers,
    'num_attention_heads': 16, 'num_key_value_heads': 16,
    'max_position_embeddings': 512, 'rms_norm_eps': 1e-5,
    'tie_word_embeddings': False, 'hidden_act': 'silu',
  }  # fmt: skip
  (folder / 'config.json').write_text(json.dumps(config))
  model = build(hf.config(config))
  shapes = hf.flatten(jax.eval_shape(model.init, jax.random.key(0)))
  rng, where, files = np.random.default_rng(0), {}, {}
  for name, (path, layer, turned) in hf.table('llama', model).items():
    shape = shapes[path].shape[layer is not None :]
    shape = shape[::-1] if turned else shape
    values = rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)
    part = f'model-{(layer or 0) // 4:05d}.safetensors'
    where[name] = part
    files.setdefault(part, {})[name] = values
  for part, tensors in files.items():
    safetensors.numpy.save_file(tensors, folder / part)
  index = {'weight_map': where}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def main(_):
  if _WRITE.value:
    write(pathlib.Path(_WRITE.value))
    return
  jax.config.update('jax_num_cpu_devices', _DATA.value * _MODEL.value)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    again = [sys.executable, '-m', 'tests.benchmarks.loading']
    sizes = f'--write={folder}', f'--gigabytes={_SIZE.value}'
    subprocess.run([*again, *sizes], check=True)  # leaves no memory behind
    total = sum(f.stat().st_size for f in folder.glob('*.safetensors'))
    mesh = sharding.mesh(_DATA.value, _MODEL.value)
    jax.block_until_ready(
      sharding.place(np.ones((8, 8)), jax.NamedSharding(mesh, jax.P('model')))
    )
    peak, done = [private()], threading.Event()
    before = peak[0]

    def watch():
      while not done.wait(0.002):
        peak[0] = max(peak[0], private())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    start = time.perf_counter()
    _, params = hf.load(folder, sharding.placer(mesh, _FSDP.value))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    held = sum(
      s.data.nbytes
      for x in jax.tree.leaves(params)
      for s in x.addressable_shards
    )
    print(
      json.dumps(
        {
          'gigabytes': round(total / 2**30, 3),
          'mesh': dict(mesh.shape),
          'devices_hold': round(held / 2**30, 3),
          'peak_over_weights': round((peak[0] - before) / total, 3),
          'before_gib': round(before / 2**30, 3),
          'seconds': round(seconds, 1),
        }
      )
    )


if __name__ == '__main__':
  app.run(main)
