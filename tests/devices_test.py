"""The programs on several devices, and in several processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

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


@pytest.mark.parametrize('data, model', [(9, 1), (0, 16), (4, 4), (-1, 1)])
def test_more_devices_than_there_are(make, data, model):
  with pytest.raises(JeditError, match='there are 8 devices'):
    devices.use(make(data_parallel=data, model_parallel=model))
