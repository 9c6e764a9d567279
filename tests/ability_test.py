"""General ability: what is asked, what is right, and how sure a number is."""

import jax
import numpy as np
import pytest
from sklearn import metrics as scores

from jedit import ability
from jedit.files import read_json
from jedit.types import JeditError
from launch import ability as program
from tests.compat_test import Published, models

_RTE = {'sentence1': 'It rains.', 'sentence2': 'It is dry.', 'label': 1}
_RECORDS = {
  'sst2': {'sentence': 'Fine.', 'label': 1},
  'sentiment': {'sentence': 'Fine.', 'label': '1'},
  'mrpc': {'sentence1': 'a', 'sentence2': 'b', 'label': 0},
  'cola': {'sentence': 'Me is.', 'label': 0},
  'rte': _RTE,
  'rte/alphaedit-2025': _RTE,
  'nli': {**_RTE, 'label': 'entailment'},
  'mmlu': {'question': 'How many?', 'choices': ['1', '2'], 'answer': 1},
  'dialogue': {'article': 'Hi', 'options': ['a', 'b'], 'answers': 'B'},
  'boolq': {'passage': 'p', 'question': 'q', 'answer': True},
  'csqa': {
    'question': {'stem': 'Where?', 'choices': [{'text': 'a'}, {'text': 'b'}]},
    'answerKey': 'A',
  },
  'triviaqa': {'question': 'Who?', 'golden_answers': ['Ann', 'Anna']},
  'nq': {'question': 'who', 'golden_answers': ['Ann']},
  'gsm8k': {'question': 'How many?', 'answer': 'It is 2.\n#### 1,200'},
  'bbh': {'input': 'not True is', 'target': 'False'},
}
_RIGHT = {
  'sst2': 'positive', 'sentiment': 'positive', 'mrpc': 'No', 'cola': 'No',
  'rte': 'False', 'rte/alphaedit-2025': 'True', 'nli': 'True', 'mmlu': 'B',
  'dialogue': 'b', 'boolq': 'Yes', 'csqa': 'a',
}  # fmt: skip
_FILES = {
  'sst2': ('glue_alphaedit_sst2', 856),
  'sentiment': ('glue_alphaedit_sentiment_analysis', 872),
  'mrpc': ('glue_alphaedit_mrpc', 258),
  'cola': ('glue_alphaedit_cola', 644),
  'rte': ('glue_alphaedit_rte', 262),
  'nli': ('glue_alphaedit_nli', 800),
  'mmlu': ('glue_alphaedit_mmlu', 1516),
  'dialogue': ('glue_alphaedit_dialogue', 886),
  'boolq': ('boolq_closedqa_300', 300),
  'csqa': ('commonsenseqa_dev_400', 400),
  'triviaqa': ('triviaqa_500', 500),
  'nq': ('nq_500', 500),
  'gsm8k': ('gsm8k_test_400', 400),
  'bbh': ('bbh_12_per_task', 324),
}


def test_every_task_has_its_answer_the_right_way_round():
  assert _RECORDS.keys() == ability.TASKS.keys()
  for name, record in _RECORDS.items():
    [item] = ability.items(name, [('here', record)])
    assert item.prompt and item.prompt == item.prompt.rstrip()
    if name in _RIGHT:
      assert item.options[item.answer] == _RIGHT[name]
    else:
      assert item.answer and not item.options
  [item] = ability.items('gsm8k', [('here', _RECORDS['gsm8k'])])
  assert item.answer == ('1,200',)


@pytest.mark.parametrize('name', ability.TASKS)
def test_a_record_of_something_else(name):
  broken = [{'text': 'a'}, [], 'a', None]
  if 'label' in _RECORDS[name]:
    broken += [{**_RECORDS[name], 'label': label} for label in (None, -1, 2)]
  if 'golden_answers' in _RECORDS[name]:
    wrong = 'Paris', [], [1969], ['Ann', ' ']
    broken += [{**_RECORDS[name], 'golden_answers': w} for w in wrong]
  if 'target' in _RECORDS[name]:
    broken.append({**_RECORDS[name], 'target': 3})
  for record in broken:
    with pytest.raises(JeditError, match='here: not a record of'):
      ability.items(name, [('here', record)])
  with pytest.raises(JeditError, match="'rtf': choose one of sst2"):
    ability.items('rtf', [])


@pytest.mark.parametrize('name', _FILES)
def test_published_files(data, name):
  file, count = _FILES[name]
  records = list(read_json(data / f'{file}.jsonl.gz'))
  assert len(ability.items(name, records)) == count


def test_the_likeliest_option_is_chosen():
  """Against whole rows; options differ in number and in tokens."""
  model, params, _ = models()
  options = ('Paris', 'Marie', 'the chemist'), ('France', 'a city'), ('Rome',)
  asked = [
    ability.Item(f'The city {i} is', options[i % 3], 0) for i in range(12)
  ]
  tok = Published('bos', params)
  got = ability.choose(model, params, tok.tok, asked, rows=5)
  want = [np.argmin([tok.nll(i.prompt, o) for o in i.options]) for i in asked]
  np.testing.assert_array_equal(got, want)
  assert len(set(want)) > 1


def test_a_broken_model_is_never_right():
  model, params, _ = models()
  tok = Published('bos', params).tok
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
  asked = ability.items('sst2', [('here', _RECORDS['sst2'])] * 2)
  asked.append(asked[0]._replace(answer=0))
  np.testing.assert_array_equal(ability.choose(model, broken, tok, asked), -1)
  table = ability.run('sst2', asked, model, broken, tok)
  assert table['accuracy'][0] == table['mcc'][0] == 0


def test_a_task_is_run_as_it_says():
  model, params, _ = models()
  tok = Published('bos', params).tok
  found = ability.items('sst2', [('here', _RECORDS['sst2'])] * 3)
  table = ability.run('sst2', found, model, params, tok)
  assert table['accuracy'][0] in (0, 100) and 'mcc' in table
  done = []
  found = ability.items('nq', [('here', _RECORDS['nq'])] * 3)
  table = ability.run('nq', found, model, params, tok, done.append)
  assert set(table) == {'accuracy'} and done == [3]


def test_a_table_is_scikit_learn_s():
  rng = np.random.default_rng(0)
  truth, taken = rng.integers(0, 3, (2, 200))
  taken = np.where(rng.random(200) < 0.4, truth, taken)
  asked = [ability.Item('', ('a', 'b', 'c'), int(t)) for t in truth]
  got = ability.table(asked, truth == taken, taken)
  want = {
    'accuracy': scores.accuracy_score(truth, taken),
    'f1': scores.f1_score(truth, taken, average='weighted'),
    'mcc': scores.matthews_corrcoef(truth, taken),
    'majority': np.bincount(truth).max() / 200,
  }
  assert got.keys() == want.keys()
  for name, value in want.items():
    mean, low, high = got[name]
    assert mean == pytest.approx(100 * value)
    assert low < mean < high
  p = want['accuracy']
  _, low, high = got['accuracy']
  spread = 100 * np.sqrt(p * (1 - p) / 200)
  assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
  free = ability.table(asked, truth == taken, None)
  assert free == {'accuracy': pytest.approx(got['accuracy'], abs=2)}


def test_the_program_prints_models_side_by_side(capsys):
  row = lambda model, task: {
    'model': model, 'task': task, 'items': 3, 'accuracy': (50.0, 40.0, 60.0),
  }  # fmt: skip
  rows = [row(m, t) for m in ('base', 'edited') for t in ('nq', 'sst2')]
  program.show(rows)
  lines = capsys.readouterr().out.splitlines()
  names = [line[:14].strip() for line in lines[2:6]]
  assert names == ['nq base', 'nq edited', 'sst2 base', 'sst2 edited']
  assert '50.0 (40.0 - 60.0)' in lines[2]
