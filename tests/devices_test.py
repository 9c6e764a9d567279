"""The programs on several devices, and in several processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jedit import checkpoint
from jedit.types import JeditError
from launch import devices

_ROOT = pathlib.Path(__file__).parents[1]


def change(work):
  """What a finished run did to its matrices."""
  _, deltas = checkpoint.read_edit(work / 'edits')
  return np.stack([deltas[layer] for layer in sorted(deltas)])


def close(found, want, tolerance=1e-4):
  """Of small changes of weights in float32."""
  assert np.linalg.norm(found - want) < tolerance * np.linalg.norm(want)


@pytest.mark.parametrize('sizes', [(4, 2), (2, 4)])
def test_a_run_on_a_mesh(run, tmp_path, sizes):
  run(tmp_path / 'one', 'alphaedit', batch_size=4)
  data, model = sizes
  settings = dict(data_parallel=data, model_parallel=model, fsdp=model == 2)
  run(tmp_path / 'many', 'alphaedit', batch_size=4, **settings)
  close(change(tmp_path / 'many'), change(tmp_path / 'one'))
  read = lambda name: json.loads((tmp_path / name / 'results.json').read_text())
  assert read('many')['metrics'] == read('one')['metrics']


def test_a_run_goes_on_on_other_devices(run, tmp_path, monkeypatch):
  run(tmp_path / 'one', 'alphaedit', batch_size=4)
  saved = checkpoint.save_step

  def killed(store, number, tree):
    saved(store, number, tree)
    raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint, 'save_step', killed)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'two', 'alphaedit', batch_size=4, data_parallel=4)
  monkeypatch.undo()
  settings = dict(data_parallel=1, model_parallel=2)
  run(tmp_path / 'two', 'alphaedit', batch_size=4, **settings)
  close(change(tmp_path / 'two'), change(tmp_path / 'one'))


@pytest.mark.parametrize('method', ['null_space', 'kde', 'ultraedit'])
def test_editors_without_targets_on_two_devices(run, tmp_path, method):
  for count in 1, 2:
    run(tmp_path / str(count), method, data_parallel=count)
  close(change(tmp_path / '2'), change(tmp_path / '1'), 1e-4)


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed(home, run, tmp_path):
  run(tmp_path / 'one', 'alphaedit')
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  work = tmp_path / 'two'
  env = os.environ | {
    'JEDIT_CACHE': str(home / 'cache'), 'JAX_NUM_CPU_DEVICES': '4',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'JAX_PLATFORMS': 'cpu',
  }  # fmt: skip
  args = [
    sys.executable, '-m', 'launch.edit', f'--workdir={work}',
    f'--config={home / "tiny.py"}:alphaedit', '--config.data_parallel=0',
    f'--coordinator=127.0.0.1:{port}', '--processes=2',
  ]  # fmt: skip
  both = [
    subprocess.Popen(
      [*args, f'--process={i}'], env=env, cwd=_ROOT, text=True,
      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    begin = time.monotonic()
    while not (work / 'checkpoint' / '000001').is_dir():
      assert time.monotonic() < begin + 200 and both[0].poll() is None, both[
        0
      ].communicate()[1][-3000:]
      time.sleep(0.01)
    both[1].kill()
    both[0].communicate(timeout=200)  # it does not wait for the other for ever
  finally:
    for process in both:
      process.kill()
      process.communicate()
  assert not (work / 'results.json').is_file()
  left = checkpoint.steps(work / 'checkpoint')
  assert 1 <= left[-1] < 4
  run(work, 'alphaedit')
  close(change(work), change(tmp_path / 'one'))
  read = lambda at: json.loads((at / 'results.json').read_text())['metrics']
  assert read(work) == read(tmp_path / 'one')


@pytest.mark.parametrize(
  'given, word',
  [
    ({'coordinator': 'host:1'}, '--processes=N'),
    ({'processes': 2}, '--coordinator=HOST:PORT'),
    ({'coordinator': 'h:1', 'processes': 2, 'distributed': True}, 'cluster'),
    ({'coordinator': 'h:1', 'processes': 2, 'process': 2}, '--process=2'),
  ],
)
def test_flags_that_do_not_go_together(given, word):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**given), pytest.raises(JeditError, match=word):
    devices.connect()


@pytest.mark.parametrize('data, model', [(9, 1), (0, 16), (4, 4), (-1, 1)])
def test_more_devices_than_there_are(make, data, model):
  with pytest.raises(JeditError, match='there are 8 devices'):
    devices.use(make(data_parallel=data, model_parallel=model))
