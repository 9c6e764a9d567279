"""Two runs, the later one going on from the earlier one's folder, are one."""

import json

import jax
import numpy as np
import pytest

import jedit
from configs import base
from jedit import checkpoint
from jedit.models import load
from jedit.models.load import Loaded
from jedit.types import JeditError, SecondMoment, kernel_of
from launch import earlier, moments
from launch import method as launch_method
from tests import tiny


def _apart(want, got):
  """Largest difference of any leaf, times the leaf's own largest entry."""
  pairs = [(a, b) for a, b in zip(want, got, strict=True) if a.any()]
  return max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs)


@pytest.fixture
def cut(home, tmp_path):
  """The facts of the home folder in two files."""
  lines = (home / 'facts.jsonl').read_text().splitlines(keepends=True)
  paths = []
  for name, part in ('first', lines[:4]), ('later', lines[4:]):
    paths.append(tmp_path / f'{name}.jsonl')
    paths[-1].write_text(''.join(part))
  return [str(path) for path in paths]


def _kernel(folder):
  return load.load(folder).params['layers']['mlp']['down']['kernel']


def test_two_runs_edit_as_one_on_any_devices(run, cut, tmp_path, capsys):
  method = 'memit_history+clamp_singular'
  one, first, later = (tmp_path / name for name in ('one', 'a', 'b'))
  run(one, method)
  run(first, method, requests=cut[0])
  capsys.readouterr()
  on = {'data_parallel': 2, 'model_parallel': 2}
  run(later, method, requests=cut[1], model=str(first), **on)
  said = capsys.readouterr().out
  assert 'going on from' in said and 'second moments:' not in said
  want, half, got = (
    checkpoint.read_state(folder / 'edits') for folder in (one, first, later)
  )
  # Adam's first steps are signs, so that rounding on a mesh is not that small.
  assert _apart(want, got) < 0.01 < 0.1 < _apart(want, half)
  want, half, got = map(_kernel, (one, first, later))
  change = np.abs(want - half).max()
  assert change > 1e-4
  np.testing.assert_allclose(got, want, atol=0.01 * change)
  back = checkpoint.apply_edit(
    load.load(later).params, later / 'edits', undo=True
  )
  np.testing.assert_array_equal(back['layers']['mlp']['down']['kernel'], half)


def test_another_editor_does_not_go_on(run, make, cut, tmp_path):
  first = tmp_path / 'a'
  run(first, 'alphaedit', requests=cut[0])
  go_on = lambda of='alphaedit', **fields: run(
    tmp_path / 'b', of, requests=cut[1], model=str(first / 'edits'), **fields
  )
  config = make('alphaedit')
  config.editor.ridge = 5.0
  with pytest.raises(
    JeditError, match='editor.ridge was 10.0, is 5.0.*convert'
  ):
    go_on(editor=config.editor)
  with pytest.raises(JeditError, match="method was 'alphaedit', is 'memit'"):
    go_on('memit')
  with pytest.raises(JeditError, match='is a run: .* name the model that it'):
    moments.get(make(model=str(first)), None, None, '')
  (first / 'edits' / 'state.safetensors').write_bytes(b'')
  with pytest.raises(JeditError, match='state.safetensors is missing or dam'):
    go_on()
  settings = json.loads((first / 'config.json').read_text())
  for text in json.dumps(settings)[:99], '[]':
    (first / 'config.json').write_text(text)
    with pytest.raises(JeditError, match='config.json is missing or damaged'):
      go_on()


@pytest.mark.parametrize('method', [m for m in base.METHODS if m != 'mend'])
def test_all_that_moments_decide_is_in_the_state(method, tmp_path):
  """What is written without them comes back as it was, at every method."""
  blues = [f'{method}+blue'] if _solves(method) else []
  for of in (method, *blues):
    config = base.get_config(of, model='', layers=(1, 2))
    model, params = tiny.model()
    split = jedit.split(params, 1, 2)
    width = kernel_of(split).shape[1]
    loaded = Loaded(model, {}, {}, None)
    moment = np.tile(np.diag(np.linspace(0, 1, width, dtype=np.float32)), 2)
    moment = moment.reshape(width, 2, width).swapaxes(0, 1)
    editor = launch_method.build(
      config, loaded, SecondMoment(moment, np.ones(()))
    )
    state = jax.jit(editor.init)(split)
    manifest = {'layers': [1, 2], 'base_hash': ''}
    zero = np.zeros((2, width, 1))
    checkpoint.write_edit(tmp_path / 'edits', zero, zero, manifest, state)
    rehearsed = launch_method.rehearse(config, loaded)
    got = earlier.state(tmp_path, config, rehearsed, split)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    for a, b in zip(*map(jax.tree.leaves, (state, got)), strict=True):
      assert (a.dtype, a.shape) == (b.dtype, b.shape)
      np.testing.assert_array_equal(a, b)


def _solves(method):
  name = base.parse(method)[0]
  return base.needs(name, 'moment') and base.needs(name, 'optimise')
