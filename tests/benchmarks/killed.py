"""SIGKILL at random moments of a run: the same bits as without.

  python -m tests.benchmarks.killed --facts=100 --kills=5 --seed=0

Runs launch.edit on CounterFact (JEDIT_DATA as in quality.py) once whole, then
killed `kills` times at random moments and run to the end; compares the edits
and the editor's state, and looks for half-written files. Exits with 1 if any
differ.
"""

import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from tests.field_data import FOLDER

_FACTS = flags.DEFINE_integer('facts', 100, 'Records, from the first.')
_BATCH = flags.DEFINE_integer('batch', 10, 'Facts solved together.')
_KILLS = flags.DEFINE_integer('kills', 5, 'Kills.')
_STEPS = flags.DEFINE_integer('steps', 25, 'Of the value optimiser.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')


def main(_):
  home = pathlib.Path(tempfile.mkdtemp())
  command = [
    sys.executable, '-m', 'launch.edit',
    f'--config.requests={FOLDER / "counterfact_full_500.jsonl.gz"}',
    f'--config.num_edits={_FACTS.value}',
    f'--config.optimiser.steps={_STEPS.value}',
    f'--config.batch_size={_BATCH.value}', '--config.on_collision=last',
  ]  # fmt: skip
  quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.PIPE}

  def start(name):
    return subprocess.Popen([*command, f'--workdir={home / name}'], **quiet)

  def finish(name) -> float:
    began = time.perf_counter()
    run = start(name)
    _, err = run.communicate()
    if run.returncode:
      sys.exit(f'{name}: exit code {run.returncode}\n{err.decode()[-2000:]}')
    return time.perf_counter() - began

  seconds = finish('whole')
  print(f'whole run: {seconds:.0f} s', flush=True)
  rng = random.Random(_SEED.value)
  for _ in range(_KILLS.value):
    wait = rng.uniform(0.2, 0.45) * seconds  # the first part is start-up
    run = start('cut')
    try:
      run.communicate(timeout=wait)
      how = 'ended by itself before'
    except subprocess.TimeoutExpired:
      run.send_signal(signal.SIGKILL)
      run.communicate()
      how = 'killed after'
    saved = sorted(p.name for p in (home / 'cut' / 'checkpoint').glob('*'))
    print(f'{how} {wait:.1f} s; checkpoints {saved}', flush=True)
  finish('cut')
  names = 'edits/delta.safetensors', 'edits/state.safetensors'
  same = [
    (home / 'whole' / n).read_bytes() == (home / 'cut' / n).read_bytes()
    for n in names
  ]
  left = [str(p) for p in (home / 'cut').rglob('*.part')]
  print(dict(zip(names, same, strict=True)), 'left over:', left)
  sys.exit(not all(same))


if __name__ == '__main__':
  app.run(main)
