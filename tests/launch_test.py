"""The programs on a tiny model: what they write, refuse and go on from."""

import fcntl
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
import safetensors.numpy

from jedit import checkpoint
from jedit.models import load
from jedit.records import Request
from jedit.types import JeditError
from launch import (
  devices,
  evaluate,
  foresee,
  grid,
  measure,
  method,
  report,
  stream,
  sweep,
  training,
)
from tests.folder import CITIES

_ROOT = pathlib.Path(__file__).parents[1]


def _program(home, name, *args, **kwargs):
  env = {
    **os.environ, 'JEDIT_CACHE': str(home / 'cache'),
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
  }  # fmt: skip
  return subprocess.Popen(
    [sys.executable, '-m', f'launch.{name}', *args], env=env, cwd=_ROOT,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
  )  # fmt: skip


def test_a_run_writes_its_folder_and_prints_it_again(
  make, run, tmp_path, capsys
):
  work = tmp_path / 'a'
  run(work, 'alphaedit', curve_at=(3, 8), spoken=3)
  results = json.loads((work / 'results.json').read_text())
  assert results['schema_version'] == 1
  assert results['num_edits'] == 8
  assert len(results['timing']['per_batch_seconds']) == 4
  points = [(p['num_edits'], p['schedule']) for p in results['curve']]
  schedules = 'immediate', 'so_far', 'first'
  assert points == [(n, s) for n in (4, 8) for s in schedules]
  found = {p: c['metrics']['counterfact'] for p, c in zip(
    points, results['curve'], strict=True)}  # fmt: skip
  assert found[4, 'immediate'] == found[4, 'so_far'] == found[4, 'first']
  final = results['metrics']['after']['counterfact']
  assert found[8, 'so_far'] == final
  for kind in 'efficacy', 'generalization', 'specificity':
    parts = (found[8, s]['probability'][kind] for s in ('immediate', 'first'))
    assert np.mean(list(parts)) == pytest.approx(final['probability'][kind])
  for when in 'before', 'after':
    for protocol in 'probability', 'argmax':
      row = results['metrics'][when]['counterfact'][protocol]
      assert set(row) == {'efficacy', 'generalization', 'specificity', 'score'}
      ends = results['metrics'][when]['intervals'][protocol]
      assert all(
        0 <= ends[k][0] <= v <= ends[k][1] <= 100 for k, v in row.items()
      )
  assert {p.name for p in work.iterdir()} == {
    'checkpoint', 'config.json', 'contexts.json', 'edits',
    'log.jsonl', 'records.jsonl', 'results.json',
  }  # fmt: skip
  lines = (work / 'records.jsonl').read_text().splitlines()
  found = [json.loads(line)['after']['jedit']['efficacy'] for line in lines]
  after = results['metrics']['after']['counterfact']['argmax']['efficacy']
  assert len(found) == 8 and np.mean(found) == pytest.approx(after)
  tables = results['metrics']['after']['tables']
  assert tables['jedit-spoken']['efficacy'] is not None
  assert f'{after:.2f}' in report.render([report.read(str(work))])
  capsys.readouterr()
  config = make('alphaedit')
  config.params = str(work)
  with devices.use(config):
    evaluate.run(config)
  line = capsys.readouterr().out.splitlines()[-1]
  assert json.loads(line)['metrics']['counterfact'] == final
  stamp = (work / 'results.json').stat().st_mtime_ns
  run(work, 'alphaedit', curve_at=(3, 8), spoken=3)
  assert 'finished' in capsys.readouterr().out
  assert (work / 'results.json').stat().st_mtime_ns == stamp
  with pytest.raises(JeditError, match='seed was 0, is 1'):
    run(work, 'alphaedit', curve_at=(3, 8), spoken=3, seed=1)


def test_a_sample_is_measured_as_all_are(run, tmp_path):
  """Those of the first score are kept in sight besides, not averaged."""
  found = {}
  for count in 0, 3:
    work = tmp_path / str(count)
    run(work, eval_records=count, curve_at=(2, 7), curve_records=2)
    lines = (work / 'records.jsonl').read_text().splitlines()
    results = json.loads((work / 'results.json').read_text())
    found[count] = {r['id']: r for r in map(json.loads, lines)}, results
  (all_, whole), (some, part) = found[0], found[3]
  assert list(some) == ['f0', 'f2', 'f5'] and part['num_measured'] == 3
  assert some == {name: all_[name] for name in some}
  after = part['metrics']['after']['tables']['jedit']
  for name in 'efficacy', 'generalization', 'specificity':
    rows = [r['after']['jedit'][name] for r in some.values()]
    assert after[name][0] == pytest.approx(np.mean(rows))
  points = [
    {(p['num_edits'], p['schedule']): p['metrics'] for p in r['curve']}
    for r in (whole, part)
  ]
  assert set(points[0]) == set(points[1]) and len(points[0]) == 6
  for edits in 2, 8:
    assert points[0][edits, 'first'] == points[1][edits, 'first']
  assert points[0][2, 'so_far'] == points[1][2, 'so_far']  # the same two
  counts = [points[1][8, s]['records'] for s in ('immediate', 'so_far')]
  assert counts == [2, 2]  # of f2 and f5; of f0, f2 and f5 at most two


def test_what_is_merged_is_scored_once(make, run, tmp_path, capsys):
  """By the program that scores, too; it needs no subject, either."""
  one = {'prompt': 'The capital of {} is', 'subject': 'A', 'target': 'B'}
  facts = [
    {**one, 'id': 'x', 'paraphrases': ['A has the capital']},
    {**one, 'id': 'y', 'old_target': 'C', 'neighbours': ['D is in']},
    {**one, 'id': 'z', 'subject': 'E', 'target': 'F'},
  ]
  path, work = tmp_path / 'facts.jsonl', tmp_path / 'a'
  path.write_text('\n'.join(map(json.dumps, facts)))
  of = dict(requests=str(path), num_edits=0, on_collision='merge')
  run(work, **of)
  results = json.loads((work / 'results.json').read_text())
  assert results['num_measured'] == 2  # x is in y
  capsys.readouterr()
  scored = lambda **more: _scored(make(params=str(work), **of | more), capsys)
  assert scored()['counterfact'] == (results['metrics']['after']['counterfact'])
  path.write_text('{"prompt": "It is", "target": "B"}')
  found = scored(on_bad_request='skip')
  assert found['tables']['jedit']['efficacy'] is not None


def _scored(config, capsys):
  with devices.use(config):
    evaluate.run(config)
  return json.loads(capsys.readouterr().out.splitlines()[-1])['metrics']


def test_what_the_base_said_is_of_these_prompts(run, home, tmp_path, capsys):
  facts = [
    json.loads(x) for x in (home / 'facts.jsonl').read_text().splitlines()
  ]
  facts[1]['prompt'] = 'The city of {} is in'
  other = tmp_path / 'other.jsonl'
  other.write_text('\n'.join(map(json.dumps, facts)))
  known = []
  for i, name in enumerate((home / 'facts.jsonl', other, other)):
    run(tmp_path / str(i), requests=str(name), eval_records=1, order='given')
    known.append('scores of the base model: ' in capsys.readouterr().out)
  assert known[1:] == [False, True]


def test_a_record_of_several_edits_is_sampled_whole():
  part = lambda i: Request(
    str(i), '{} is', 'a', 'b', part_of=str(i // 4) if i < 16 else None
  )
  asked, every = [part(i) for i in range(18)], np.arange(18)
  spread = lambda most: measure._spread(asked, every, most).tolist()
  assert spread(2) == [0, 1, 2, 3, *range(12, 16)]
  assert spread(99) == every.tolist() and spread(0) == []


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_an_edit_applies_and_undoes_to_the_bit(
  run, home, tmp_path, monkeypatch, dtype
):
  monkeypatch.setenv('JEDIT_CACHE', str(tmp_path / 'cache'))
  work, model = tmp_path / 'a', tmp_path / 'model'
  base = load.load(home / 'model')
  cast = jax.tree.map(lambda x: x.astype(dtype), base.params)
  kernel = cast['layers']['mlp']['down']['kernel']
  kernel[:, ::2, 0], kernel[:, 1::2, 1] = -0.0, 1e-30
  load.save(model, base._replace(params=cast))
  run(work, 'memit+keep_largest+clamp_singular', model=str(model))
  base, edited = load.load(model), load.load(work)
  assert {str(x.dtype) for x in jax.tree.leaves(base.params)} == {dtype}
  kernels = [
    x.params['layers']['mlp']['down']['kernel'] for x in (base, edited)
  ]
  changed = (kernels[0] != kernels[1]).any((1, 2))
  np.testing.assert_array_equal(changed, [False, True, True, False, False])
  load.save(tmp_path / 'hf', edited)
  load.save(tmp_path / 'jedit', edited, 'jedit')
  for folder in tmp_path / 'hf', tmp_path / 'jedit':
    jax.tree.map(
      np.testing.assert_array_equal, load.load(folder).params, edited.params
    )
  back = checkpoint.apply_edit(edited.params, work / 'edits', undo=True)
  jax.tree.map(np.testing.assert_array_equal, back, base.params)
  assert checkpoint.fingerprint(back) == checkpoint.fingerprint(base.params)
  with pytest.raises(JeditError, match='other weights'):
    checkpoint.apply_edit(edited.params, work / 'edits')


def test_what_a_record_lacks_is_null(run, tmp_path):
  facts = tmp_path / 'own.jsonl'
  facts.write_text('{"prompt": "Oslo is in", "target": "Rome"}\n')
  work = tmp_path / 'a'
  with pytest.raises(JeditError, match="no subject; .* lookup='last'"):
    run(work, requests=str(facts))
  run(work, requests=str(facts), lookup='last')  # the folder is not spoilt
  after = json.loads((work / 'results.json').read_text())['metrics']['after']
  after = after['counterfact']
  assert after['probability'] == dict.fromkeys(
    ('efficacy', 'generalization', 'specificity', 'score')
  )
  assert after['argmax']['efficacy'] is not None
  assert after['argmax']['generalization'] is None


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'requests': 'nowhere.jsonl'}, 'nowhere.jsonl: no such file'),
    ({'num_edits': 99}, 'num_edits=99.*8 usable records'),
    ({'model': 'nowhere'}, 'nowhere: no such file or folder'),
    ({'layers': (3, 9)}, 'layers=.*choose'),
    ({'layers': (1, 2, 3)}, r'first and the last layer, like \(4, 8\)'),
    ({'rendering': 'loud'}, 'choose raw, qa, chat'),
    ({'rendering': 'chat'}, 'no chat template'),
    ({'order': 'random'}, 'choose given or shuffled'),
    ({'method': 'mimet'}, "method 'mimet': choose one of adaedit, "),
    ({'method': 'alphaedit'}, 'choose it as --config=FILE:METHOD'),
    ({'memory': 1000.0}, 'smaller --config.batch_size'),
    ({'max_norm': 0.5}, 'stopped after 2 facts.*max_norm'),
    ({'params': 'runs/a'}, "params='runs/a': .* named by --config.model"),
    ({'eval_records': -1}, 'eval_records=-1: at least 0'),
    ({'curve_at': (0, 4)}, r'curve_at=\(0, 4\): numbers of edits, like'),
    ({'corpus': 'nowhere.txt'}, 'nowhere.txt'),
  ],
)
def test_bad_input(run, tmp_path, fields, words):
  with pytest.raises(JeditError, match=words):
    run(tmp_path / 'w', **fields)
  assert not (tmp_path / 'w' / 'results.json').exists()


class _Sizes(NamedTuple):
  """Batches of which nothing but the room they need is known."""

  valid: np.ndarray


def test_batches_have_one_of_two_rooms(monkeypatch):
  room = lambda batches: (int(batches.valid.max()), 0)
  monkeypatch.setattr(stream, 'room_of', room)
  of = lambda *needs: [
    room for room, _ in stream.rooms(_Sizes(np.array(needs)), sum)
  ]
  few = [10] + 6 * [2]
  assert of(*few) == 7 * [10]  # too few for another program
  assert of(*few, 3) == [10] + 7 * [3]
  assert of(*few, 9, 1) == [10, *6 * [2], 10, 2]
  assert of(*8 * [5]) == 8 * [5]
  assert of(*7 * [97], 100) == 8 * [100]  # would save too little


def test_two_rooms_edit_as_one(run, home, tmp_path, monkeypatch, capsys):
  facts = (home / 'facts.jsonl').read_text()
  first, rest = facts.split('\n', 1)
  first = json.loads(first)
  first['target'] = 'a city of long, long, long names'
  path = tmp_path / 'facts.jsonl'
  path.write_text(json.dumps(first) + '\n' + rest)

  kernel = lambda path: load.load(path).params['layers']['mlp']['down'][
    'kernel'
  ]

  def edit(name, programs, **settings):
    monkeypatch.setattr(stream, '_SOME', 4 if programs == 2 else 99)
    run(
      tmp_path / name, 'alphaedit', requests=str(path), batch_size=2,
      checkpoint_every=3, **settings,
    )  # fmt: skip
    assert f'programs: {programs}' in capsys.readouterr().out
    return kernel(tmp_path / name)

  base, one = kernel(home / 'model'), edit('one', 1)
  mesh = dict(data_parallel=2, model_parallel=2)
  for two in edit('two', 2), edit('many', 2, **mesh):
    np.testing.assert_allclose(two, one, atol=1e-3 * np.abs(one - base).max())


def test_mend_is_trained_and_edits(make, run, tmp_path):
  records = tmp_path / 'train.jsonl'
  with records.open('w') as f:
    for i, city in enumerate(CITIES):
      record = {
        'src': f'{city} is a city in', 'alt': CITIES[i - 1], 'loc': 'It is in',
        'rephrase': f'Travel to {city}, in', 'loc_ans': city,
      }  # fmt: skip
      print(json.dumps(record), file=f)
  work, settings = (
    tmp_path / 'mend',
    dict(batch=2, held_out=3, rank=4, lr=1e-3, rate=-1e-3, rate_lr=1e-3),
  )
  train = lambda sane: training.run(
    make('mend'), str(records), work, 2, 2, sane, **settings
  )
  with pytest.raises(JeditError, match='perplexity .* on plain prose, 2.0 is'):
    train(2.0)
  train(1e9)
  lines = [json.loads(x) for x in (work / 'log.jsonl').read_text().splitlines()]
  assert [x['cursor'] for x in lines] == [0, 2]
  assert all(x['held_out']['nll'] > 0 for x in lines)
  config = make('mend')
  with pytest.raises(JeditError, match='config.network: name the folder'):
    method.build(config, None, None)
  config.update({'network': str(work), 'layers': (2, 3)})
  with pytest.raises(JeditError, match='is trained for layers .1, 2., config'):
    method.build(config, None, None)
  with pytest.raises(JeditError, match='is trained on other weights .*model'):
    method.check_network(config, 'another hash')
  run(tmp_path / 'a', 'mend', network=str(work))
  run(tmp_path / 'b', 'mend', network=str(work), model=str(tmp_path / 'a'))
  run(tmp_path / 'c', 'mend', network=str(work), data_parallel=2)
  ratios = []
  for name in 'a', 'b', 'c':
    log = (tmp_path / name / 'log.jsonl').read_text().splitlines()
    ratios.append(json.loads(log[-1])['norm_ratio'])
    assert ratios[-1] != [1.0, 1.0] and json.loads(log[-1])['reached'] is None
  np.testing.assert_allclose(ratios[0], ratios[2], rtol=1e-4)


def test_skip_lists_what_it_skipped(run, home, tmp_path):
  facts = tmp_path / 'facts.jsonl'
  good = (home / 'facts.jsonl').read_text()
  long = {'prompt': '{} is ' + 'far ' * 99, 'subject': 'Oslo', 'target': 'Rome'}
  asks = {**long, 'prompt': '{} is in', 'paraphrases': ['far ' * 300]}
  bad = ['{"prompt": "x"', json.dumps(long), json.dumps(asks)]
  facts.write_text('\n'.join([*bad, good]))
  with pytest.raises(JeditError, match='line 1: not JSON'):
    run(tmp_path / 'a', requests=str(facts))
  run(tmp_path / 'b', requests=str(facts), on_bad_request='skip')
  results = json.loads((tmp_path / 'b' / 'results.json').read_text())
  assert results['num_edits'] == 8
  assert 'line 1: not JSON' in results['skipped'][0]
  assert 'tokens; the model takes 246' in results['skipped'][1]
  assert 'a question and its answer have' in results['skipped'][2]


def test_statistics_of_another_model_are_refused(run, home, tmp_path):
  run(tmp_path / 'a')
  (path,) = (home / 'cache' / 'moments').glob('*.npz')
  kept = path.read_bytes()
  with np.load(path) as f:
    arrays = dict(f)
  try:
    arrays['identity'] = np.array('{"weights": "other"}')
    np.savez(path, **arrays)
    with pytest.raises(JeditError, match='second moments of something else'):
      run(tmp_path / 'b')
    path.write_bytes(kept[:100])
    with pytest.raises(JeditError, match='remove it'):
      run(tmp_path / 'c')
  finally:
    path.write_bytes(kept)


def test_a_damaged_checkpoint_is_named(run, tmp_path):
  work = tmp_path / 'a'
  run(work)
  (work / 'results.json').unlink()
  newest = work / 'checkpoint' / '000004'
  for file in [p for p in newest.rglob('*') if p.is_file()]:
    file.write_bytes(file.read_bytes()[:3])
  with pytest.raises(JeditError, match='000004 is damaged.*remove it'):
    run(work)
  shutil.rmtree(newest)
  run(work)
  assert (work / 'results.json').is_file()


def test_killed_runs_go_on_to_the_same_bits(home, tmp_path):
  method = 'memit_history+clamp_singular'
  args = f'--config={home}/tiny.py:{method}', '--config.batch_size=1'
  whole = _program(home, 'edit', *args, f'--workdir={tmp_path / "whole"}')
  run = _program(home, 'edit', *args, f'--workdir={tmp_path / "cut"}')
  target = tmp_path / 'cut' / 'checkpoint' / '000003'
  while not target.is_dir() and run.poll() is None:
    time.sleep(0.002)
  run.send_signal(signal.SIGKILL)
  run.communicate()
  run = _program(home, 'edit', *args, f'--workdir={tmp_path / "cut"}')
  out, err = run.communicate(timeout=300)
  assert run.returncode == 0, err
  assert 'resuming after batch' in out or 'finished' in out
  _, err = whole.communicate(timeout=300)
  assert whole.returncode == 0, err
  for name in 'edits/delta.safetensors', 'edits/state.safetensors':
    files = [tmp_path / which / name for which in ('whole', 'cut')]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_one_process_at_a_time_writes_to_a_folder(run, tmp_path):
  work = tmp_path / 'w'
  work.mkdir()
  other = os.open(work, os.O_RDONLY)
  fcntl.flock(other, fcntl.LOCK_EX)
  with pytest.raises(JeditError, match='another process is at work there'):
    run(work)
  assert not list(work.iterdir())
  os.close(other)


def test_damaged_contexts_are_named(run, tmp_path):
  work = tmp_path / 'w'
  with pytest.raises(JeditError, match='smaller --config.batch_size'):
    run(work, memory=1000.0)
  (work / 'contexts.json').write_text('[[1, 2')
  with pytest.raises(JeditError, match='contexts.json is damaged .*remove it'):
    run(work)


def test_a_full_disk_at_the_end_is_a_message(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise safetensors.SafetensorError('No space left on device')

  monkeypatch.setattr(safetensors.numpy, 'save_file', full)
  kernel = np.ones((1, 2, 2), 'f')
  with pytest.raises(JeditError, match='delta.safetensors cannot be written'):
    checkpoint.write_edit(tmp_path / 'a', kernel, kernel, {'layers': [1]})
  assert not (tmp_path / 'a').exists()


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
  checkpoint.save(tmp_path / 'a', {'x': np.ones(3, 'f')})
  like = lambda n: {'x': jax.ShapeDtypeStruct((n,), 'float32')}
  found = checkpoint.load(tmp_path / 'a', like(3))['x']
  assert isinstance(found, np.ndarray) and (found == 1).all()
  with pytest.raises(JeditError, match='damaged or of another run'):
    checkpoint.load(tmp_path / 'a', like(4))


def test_a_device_that_is_full_does_not_damage_a_checkpoint(
  tmp_path, monkeypatch
):
  checkpoint.save(tmp_path / 'a', {'x': np.ones(3, 'f')})
  like = {'x': np.zeros(3, 'f')}

  def full(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(checkpoint.ocp, 'load', full)
  with pytest.raises(jax.errors.JaxRuntimeError, match='EXHAUSTED'):
    checkpoint.load(tmp_path / 'a', like)


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
  old, new, other = (
    tmp_path / name for name in ('a.txt.1.part', 'a.txt.2.part', 'b.txt.3.part')
  )
  for path in old, new, other:
    path.write_text('half')
  for path in old, other:
    os.utime(path, (0, 0))
  checkpoint.write_text(tmp_path / 'a.txt', 'whole')
  left = {p.name for p in tmp_path.iterdir()}
  assert left == {'a.txt', new.name, other.name}


def test_several_processes_use_all_their_devices(make, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(JeditError, match='several processes use all their 8'):
    devices.use(make(data_parallel=1))


def test_a_full_disk_is_one_message_and_loses_nothing(home, tmp_path):
  """A limit on the size of files stands for the full disk."""
  kept = resource.getrlimit(resource.RLIMIT_FSIZE)
  start = lambda room: _program(
    home, 'edit', f'--config={home}/tiny.py:memit',
    f'--workdir={tmp_path / str(room)}',
  )  # fmt: skip
  runs = {}
  for room in 1_000, 8_000:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, kept[1]))
    try:  # inherited by the program
      runs[room] = start(room)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, kept)
  for run in runs.values():
    _, err = run.communicate(timeout=300)
    assert run.returncode == 2, err
    assert 'free space' in err
    assert 'Traceback' not in err
  run = start(room)  # goes on where the later one stopped
  out, err = run.communicate(timeout=300)
  assert run.returncode == 0, err
  assert 'run folder' in out


def test_a_cache_that_cannot_be_written_has_a_remedy(home, tmp_path):
  (tmp_path / 'file').write_text('')
  run = _program(
    tmp_path / 'file', 'edit', f'--config={home}/tiny.py:memit',
    f'--workdir={tmp_path / "run"}',
  )  # fmt: skip
  _, err = run.communicate(timeout=300)
  assert run.returncode == 2, err
  assert 'file/cache/compiled: Not a directory; ' in err
  assert 'or let JEDIT_CACHE name another folder' in err


def test_a_sweep_makes_what_is_new(make, tmp_path, monkeypatch):
  measured, loads = [], []
  run_one, load_one = measure.Measurer._run, sweep.load
  count = lambda judge, params, name: (
    measured.append(name) or run_one(judge, params, name)
  )
  monkeypatch.setenv('JEDIT_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(measure.Measurer, '_run', count)
  monkeypatch.setattr(
    sweep, 'load', lambda name: loads.append(name) or load_one(name)
  )
  config, home = make(num_edits=2), tmp_path / 'grid'
  with pytest.raises(JeditError, match='1 of 2 runs failed .*=0.5: stop'):
    sweep.run(config, ['editor.weight=1', 'max_norm=0.5,9'], str(home))
  assert measured == ['before', 'after'] and len(loads) == 1
  head, _, bad, good = (home / 'table.md').read_text().splitlines()
  cells = lambda line: [cell.strip() for cell in line.split('|')[1:-1]]
  assert len(cells(head)) == len(cells(bad)) == len(cells(good))
  assert cells(bad)[1].startswith('failed: stopped after 2 facts')
  name, *row = cells(good)
  assert name == 'editor.weight=1.0__max_norm=9.0'
  results = json.loads((home / name / 'results.json').read_text())
  after = results['metrics']['after']['counterfact']
  line = json.loads((home / name / 'log.jsonl').read_text())
  want = [
    *after['probability'].values(), *after['argmax'].values(),
    results['timing']['edit_seconds_per_fact'], max(line['norm_ratio']),
  ]  # fmt: skip
  assert row == [f'{v:.2f}' for v in want]
  assert (home / 'table.png').read_bytes()[:4] == b'\x89PNG'

  measured.clear()
  sweep.run(config, ['editor.weight=1', 'max_norm=9'], str(home))
  assert not measured
  assert (home / 'table.md').read_text().splitlines()[2:] == [good]


def test_a_grid_is_a_product(make):
  found = grid.points(
    make('rect'), ['layers=(0,1),(2,3)', 'updates.keep_largest.keep=.5,1']
  )
  got = [(c.layers, c.updates.keep_largest.keep) for c in found.values()]
  assert got == [((0, 1), 0.5), ((0, 1), 1.0), ((2, 3), 0.5), ((2, 3), 1.0)]
  assert next(iter(found)) == 'layers=0-1__updates.keep_largest.keep=0.5'
  found = grid.points(make(), ['optimiser.early_stop=0.1,inf'])
  assert [c.optimiser.early_stop for c in found.values()] == [0.1, np.inf]
  axes = ['editor.weight=2', 'method=rect,memit']
  found = list(grid.points(make('rome'), axes[1:], make).values())
  assert [c.editor.name for c in found] == ['memit'] * 2
  found = list(grid.points(make(), axes, make).values())
  assert [c.method for c in found] == ['rect', 'memit']
  assert [c.editor.weight for c in found] == [2.0, 2.0]
  with pytest.raises(JeditError, match='--grid=updates.keep_largest.keep=0.5'):
    grid.points(
      make(), ['method=rect,memit', 'updates.keep_largest.keep=.5'], make
    )
  found = grid.points(make(), ['model=a/b,c'])
  assert [c.model for c in found.values()] == ['a/b', 'c']
  assert list(found) == ['model=ab', 'model=c']


@pytest.mark.parametrize(
  'axes, words',
  [
    (['editor.wieght=1'], "no field 'editor.wieght'"),
    (['editor=1'], 'name one of editor.name, editor'),
    (['seed'], 'write FIELD=VALUE'),
    (['seed=one'], 'write values as Python does, like 0'),
    (['seed=1', 'seed=1.5'], 'seed=1.5: .*type'),
    (['editor.weight=1,1.0'], 'editor.weight=1.0 comes twice'),
    (['layers=(1,2),(3,9)'], 'layers=3-9: config.layers.*choose'),
    (['layers=(1,)'], 'layers=1: '),
    (['corpus=nowhere.txt'], 'corpus=nowhere.txt: .*nowhere.txt'),
    (['rendering=raw,loud'], 'rendering=loud: .*choose raw, qa, chat'),
    (['method=rome'], 'choose it as --config=FILE:METHOD'),
    (['num_edits=2,99'], '8 usable records'),
    (['editor.weight=0.0'], 'weight=0.0, penalty=0.0: the weight of C must'),
    (['optimiser.steps=0'], 'steps=0, stages=.*: at least one step'),
    (['optimiser.clamp=-1.0'], 'clamp=-1.0: a share of'),
    (['curve_at=soon'], 'curve_at=soon'),
  ],
)
def test_a_bad_grid_is_refused_before_the_first_run(
  make, tmp_path, axes, words
):
  with pytest.raises(JeditError, match=words):
    sweep.run(make(), axes, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()


def test_what_is_foreseen_stands_beside_what_came(make, run, tmp_path, capsys):
  run(tmp_path / 'a', 'alphaedit')
  capsys.readouterr()
  work = tmp_path / 'b'
  foresee.run(make('alphaedit'), str(work), str(tmp_path / 'a'))
  text = capsys.readouterr().out
  head = next(x for x in text.splitlines() if 's(k, K0)' in x)
  assert head.split()[-1] == 'measured'
  found = json.loads((work / 'foresight.json').read_text())['requests']
  assert len(found) == 8 and 0 < found[0]['left'] < 1
  assert found == sorted(found, key=lambda r: -r['left'])
  log = (tmp_path / 'a' / 'log.jsonl').read_text().splitlines()
  first = np.mean([json.loads(x)['residual'][0][0] for x in log])
  rows = [x.split() for x in text.splitlines() if x[:5].strip() in ('1', '2')]
  assert float(rows[0][-1]) == pytest.approx(first, abs=1e-3)
  other = dict(
    seed=1, order='shuffled', lookup='last', rendering='qa',
    on_collision='last', on_bad_request='skip',
  )  # fmt: skip
  for field, value in other.items():
    with pytest.raises(JeditError, match=f'not of these .*[ (]{field}[^)]*dif'):
      foresee.run(make('alphaedit', **{field: value}), '', str(tmp_path / 'a'))
  with pytest.raises(JeditError, match='choose alphaedit or'):
    foresee.run(make('memit'), '')
  with pytest.raises(JeditError, match='choose alphaedit or'):
    foresee.run(make('alphaedit+blue'), '')
  with pytest.raises(JeditError, match='--run=.*: no results.json'):
    foresee.run(make('alphaedit'), str(work), str(tmp_path / 'none'))


def test_tracing_names_layers(home, tmp_path, monkeypatch):
  """Its head being tied, a model of large embeddings says "in" after "in"."""
  loaded = load.load(home / 'model')
  loaded.params['embed']['tokens'] *= 8
  load.save(tmp_path / 'model', loaded)
  facts = [json.loads(line) for line in (home / 'facts.jsonl').open()]
  known = facts[:1] + [f | {'old_target': 'in'} for f in facts[1:4]]
  path, work = tmp_path / 'facts.jsonl', tmp_path / 'out'
  path.write_text(''.join(json.dumps(f) + '\n' for f in known))
  run = _program(
    home, 'trace', f'--config={home}/tiny.py', f'--config.requests={path}',
    '--facts=2', '--samples=2', f'--workdir={work}',
    f'--config.model={tmp_path}/model',
  )  # fmt: skip
  text, err = run.communicate(timeout=300)
  assert run.returncode == 0, err
  out = json.loads((work / 'trace.json').read_text())
  assert out['facts'] == ['f1', 'f3']
  assert out['windows'] == {'block': 1, 'mlp': 1, 'attention': 1}
  lo, hi = out['layers']
  assert f'--config.layers="({lo}, {hi})"' in text
  assert hi == lo + 1 < 4
  table = np.array(out['effect']['mlp, window 1'], float)
  peak = table[:, out['roles'].index('last subject token')].argmax()
  assert lo <= peak <= hi or peak == 4
  whole = np.array(out['effect']['block, window 1'], float)
  gain = out['probability']['clean'] - out['probability']['corrupted']
  np.testing.assert_allclose(whole[-1, -1], gain, rtol=1e-4)
  assert abs(gain) > 1e-3
  assert (work / 'trace.png').read_bytes()[:4] == b'\x89PNG'
  again = _program(
    home, 'trace', f'--config={home}/tiny.py', f'--workdir={work}'
  )
  assert 'holds a trace; name another' in again.communicate(timeout=300)[1]
  assert again.returncode == 2


def test_the_other_programs(home, tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONIOENCODING', 'ascii')  # a screen without UTF-8
  config = f'--config={home}/tiny.py'
  calls = {
    'stats': [config],
    'evaluate': [config],
    'convert': [f'--base={home}/model', f'--out={tmp_path}/out'],
    'generate': [f'--params={home}/model', '--prompt=Oslo ✓', '--length=3'],
  }
  wrong = [
    ('edit', [f'{config}:memmit'], 'choose one of adaedit, alphaedit'),
    ('edit', ['--config.nothing=1'], "no field 'nothing'"),
    ('convert', [f'--base={home}/model', f'--out={home}'], 'exists'),
    (
      'convert',
      [f'--base={home}/model', f'--out={tmp_path}/back', '--undo'],
      '--undo: name the edit',
    ),
    ('report', ['--runs='], '--runs: name a run folder'),
    (
      'generate',
      [f'--params={home}/model', '--prompt=Oslo', '--temperature=2'],
      '--top_k=0',
    ),
  ]
  good = [_program(home, name, *args) for name, args in calls.items()]
  for run in good:
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert out
  bad = [_program(home, name, *args) for name, args, _ in wrong]
  for run, (_, _, words) in zip(bad, wrong, strict=True):
    _, err = run.communicate(timeout=300)
    assert run.returncode == 2
    assert words in err
    assert 'Traceback' not in err
