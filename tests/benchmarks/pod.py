"""Two processes, one of which is killed: the run goes on wherever it is.

  python -m tests.benchmarks.pod --facts=100 --batch=20

Runs launch.edit on CounterFact (JEDIT_DATA) on two processes of four simulated
devices each, whole; twice more, one process killed after the middle batch, then
to its end on the same layout and on one process with one device. Compares edits
and scores, and what one and eight devices solve for from the state that is
left, given the same keys and targets.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from safetensors.numpy import load_file

from jedit import checkpoint, condition, sharding
from tests.devices_test import change
from tests.field_data import FOLDER

_FACTS = flags.DEFINE_integer('facts', 100, 'Records, from the first.')
_BATCH = flags.DEFINE_integer('batch', 20, 'Facts solved together.')
_STEPS = flags.DEFINE_integer('steps', 25, 'Of the value optimiser.')


def command(work: pathlib.Path, *more: str) -> list[str]:
  """launch.edit of the facts."""
  return [
    sys.executable, '-m', 'launch.edit', f'--workdir={work}',
    f'--config.requests={FOLDER / "counterfact_full_500.jsonl.gz"}',
    f'--config.num_edits={_FACTS.value}',
    f'--config.batch_size={_BATCH.value}',
    f'--config.optimiser.steps={_STEPS.value}', *more,
  ]  # fmt: skip


def pod(work: pathlib.Path, kill_after: str = '') -> None:
  """Two processes to the end, or until a checkpoint is there."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  # Collectives of simulated devices hold threads of one pool, of NPROC.
  env = os.environ | {
    'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu', 'NPROC': '32',
  }  # fmt: skip
  where = f'--coordinator=127.0.0.1:{port}', '--processes=2'
  both = [
    subprocess.Popen(
      command(work, '--config.data_parallel=0', *where, f'--process={i}'),
      env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    while both[0].poll() is None:
      time.sleep(0.02)
      if kill_after and (work / 'checkpoint' / kill_after).is_dir():
        both[1].kill()
        both[0].wait(timeout=300)  # it does not wait for the other for ever
  finally:
    for process in both:
      process.kill()
      process.wait()
  if not kill_after and not (work / 'results.json').is_file():
    sys.exit(f'{work}: no results')


def efficacy(work: pathlib.Path) -> dict[str, float]:
  """Of a finished run, by both measures, in percent."""
  found = json.loads((work / 'results.json').read_text())['metrics']['after']
  return {k: v['efficacy'] for k, v in found['counterfact'].items()}


def solved(work: pathlib.Path) -> float:
  """How far one and eight devices are apart, from a run's last state."""
  root = load_file(work / 'edits' / 'state.safetensors')['0'][0]
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(_BATCH.value, len(root))).astype('f')
  goals = rng.normal(size=(_BATCH.value, 64)).astype('f')
  noise = np.ones(_BATCH.value, 'f')
  one = jax.jit(condition.condition)(root, keys, goals, noise)
  on = sharding.mesh(4, 2)
  with jax.set_mesh(on):
    put = lambda x, s: jax.device_put(x, jax.NamedSharding(on, s))
    place = put(root, jax.P(sharding.ROWS)), put(keys, jax.P())
    eight = jax.jit(condition.condition)(*place, goals, noise)
  far = [
    np.linalg.norm(a - b) / np.linalg.norm(a)
    for a, b in zip(jax.device_get(one), jax.device_get(eight), strict=True)
  ]
  return max(map(float, far))


def main(_):
  jax.config.update('jax_num_cpu_devices', 8)
  home = pathlib.Path(tempfile.mkdtemp())
  whole, same, other = (home / n for n in ('whole', 'same', 'other'))
  middle = f'{-(-_FACTS.value // _BATCH.value) // 2:06d}'
  began = time.perf_counter()
  pod(whole)
  print(f'whole: {time.perf_counter() - began:.0f} s', flush=True)
  pod(same, middle)
  shutil.copytree(same, other)
  print(f'killed at {checkpoint.steps(same / "checkpoint")}', flush=True)
  pod(same)
  one = os.environ | {'JAX_NUM_CPU_DEVICES': '1'}
  subprocess.run(command(other), env=one, check=True, stdout=subprocess.DEVNULL)
  want = change(whole)
  for name, work in {'same layout': same, 'one process': other}.items():
    found = change(work)
    far = np.linalg.norm(found - want) / np.linalg.norm(want)
    print(
      f'{name}: edits {far:.1e} from the whole run '
      f'({"the same bits" if (found == want).all() else "other bits"}), '
      f'efficacy {efficacy(work)}, whole {efficacy(whole)}',
      flush=True,
    )
  print(f'a solve on one and on eight devices: {solved(whole):.1e} apart')


if __name__ == '__main__':
  app.run(main)
