"""Readers of facts: what they accept, and what every bad input says."""

import dataclasses
import gzip
import json
import re

import huggingface_hub
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jedit import files, records, requests
from jedit.published import unfold
from jedit.records import Probe, Request
from jedit.types import JeditError

_OWN = {'prompt': 'The capital of {} is', 'subject': 'France', 'target': 'Rome'}
_COUNTERFACT = {
  'case_id': 17,
  'requested_rewrite': {
    'prompt': '{} works as',
    'subject': 'Ada',
    'relation_id': 'P106',
    'target_new': {'str': 'poet', 'id': 'Q1'},
    'target_true': {'str': 'engineer', 'id': 'Q2'},
  },
  'paraphrase_prompts': ['The job of Ada is', 'Ada is a '],
  'neighborhood_prompts': ['Bob works as'],
  'generation_prompts': ['Ada spends the day'],
}
_ZSRE = {
  'src': 'Who wrote Emma?',
  'subject': 'Emma',
  'answers': ['Ada', 'Bob'],
  'rephrase': 'Emma was written by whom?',
  'alt': 'Eve',
}


def write(path, records, form='lines'):
  text = (
    json.dumps(records)
    if form == 'list'
    else ''.join(
      (r if isinstance(r, str) else json.dumps(r)) + '\n' for r in records
    )
  )
  if path.suffix == '.gz':
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_text(text, encoding='utf-8')
  return path


def without(record, *keys):
  """A copy that lacks the field at this path."""
  record = json.loads(json.dumps(record))
  inner = record
  for key in keys[:-1]:
    inner = inner[key]
  del inner[keys[-1]]
  return record


def request(subject='France', target='Rome', **kwargs):
  return Request('0', 'The capital of {} is', subject, target, **kwargs)


def test_own_lines():
  full = {
    **_OWN, 'id': 'a', 'old_target': 'Paris', 'relation': 'capital',
    'paraphrases': 'France has the capital',
    'neighbours': ['The capital of Spain is'], 'openings': ['In France'],
  }  # fmt: skip
  assert records.parse(full, 'here', '3') == Request(
    'a', 'The capital of {} is', 'France', 'Rome', 'Paris', 'capital',
    ('France has the capital',), ('The capital of Spain is',), ('In France',),
  )  # fmt: skip
  least = records.parse(_OWN, 'here', '3')
  assert least == Request('3', 'The capital of {} is', 'France', 'Rome')
  assert least.text == 'The capital of France is'
  assert least.fact == ('France', 'The capital of {} is')


def test_counterfact():
  assert records.parse(_COUNTERFACT, 'here', '3') == Request(
    '17', '{} works as', 'Ada', 'poet', 'engineer', 'P106',
    ('The job of Ada is', 'Ada is a'), ('Bob works as',),
    ('Ada spends the day',), (), 'Q1',
  )  # fmt: skip


def test_zsre():
  assert records.parse(_ZSRE, 'here', '3') == Request(
    '3', 'Who wrote {}?', 'Emma', 'Ada',
    paraphrases=('Emma was written by whom?',),
  )  # fmt: skip


def test_zsre_has_two_targets():
  full = _ZSRE | {
    'loc': 'nq question: who', 'loc_ans': 'me',
    'portability': {'New Question': 'And?', 'New Answer': 'Adam'},
  }  # fmt: skip
  beside = Probe('locality', 'nq question: who?', ('me',))
  usual = records.parse(full, 'here', '3')
  assert (usual.target, usual.old_target) == ('Ada', None)
  assert usual.probes == (beside,)
  other = records.parse(full, 'here', '3', 'alt')
  assert (other.target, other.old_target) == ('Eve', 'Ada')
  assert other.probes == (beside, Probe('portability', 'And?', ('Adam',)))
  with pytest.raises(JeditError, match='no field "pred"'):
    records.parse(full, 'here', '3', 'pred')


_REWRITE = _COUNTERFACT['requested_rewrite']
_SHORT = {
  'case_id': 5, 'template': '{} is in', 'subject': 'Oslo',
  'target_new': 'Asia', 'target_true': 'Europe', 'relation_id': 'P30',
  'rephrase_prompt': 'Oslo lies in', 'locality_prompt': 'Rome is in',
}  # fmt: skip
_EASY = {
  'prompt': 'Oslo is in', 'subject': 'Oslo', 'target_new': 'Asia',
  'ground_truth': [['Europe', 'EU']], 'rephrase': 'Oslo lies in',
  'locality': {'Relation_Specificity': []}, 'portability': {},
}  # fmt: skip
_LABEL = lambda name: {'id': 'Q1', 'label': name}
_TRIPLE = {
  'relation': {'id': 'P30', 'prompt': '{} is in', 'query': 'Where?'},
  'subject': _LABEL('Oslo'), 'object': _LABEL('Europe'),
  'new_object': _LABEL('Asia'),
}  # fmt: skip
_OSLO = Request('0', '{} is in', 'Oslo', 'Asia', 'Europe')
_P30 = dataclasses.replace(_OSLO, relation='P30')


@pytest.mark.parametrize('record, changes', [
  (_EASY, [{'paraphrases': ('Oslo lies in',)}]),
  (_EASY | {'locality': {'a': [{'prompt': ' Rome is in', 'ground_truth': [
     ['Italy', 'IT']]}], 'b': [{'prompt': 'Nothing', 'ground_truth': [[]]}]},
     'portability': {'c': [{'prompt': 'So', 'ground_truth': 'Far'}]}}, [
    {'paraphrases': ('Oslo lies in',), 'probes': (
      Probe('locality', 'Rome is in', ('Italy', 'IT')),
      Probe('portability', 'So', ('Far',)))}]),
  (_EASY | {'locality': {'neighborhood': {
     'prompt': ['Rome is in', 'Bonn is in'],
     'ground_truth': ['Italy', 'Germany']}}, 'answer': 'no one'}, [
    {'paraphrases': ('Oslo lies in',), 'probes': (
      Probe('locality', 'Rome is in', ('Italy',)),
      Probe('locality', 'Bonn is in', ('Germany',)))}]),
  (_EASY | {'locality': [{'loc': 'who', 'loc_ans': 'me'}]}, [
    {'paraphrases': ('Oslo lies in',), 'probes': (
      Probe('locality', 'who', ('me',)),)}]),
  (without(_EASY, 'ground_truth'), [
    {'old_target': None, 'paraphrases': ('Oslo lies in',)}]),
  (_EASY | {'ground_truth': [], 'rephrase': None}, [{'old_target': None}]),
  (_SHORT, [{'id': '5', 'relation': 'P30', 'paraphrases': ('Oslo lies in',),
             'neighbours': ('Rome is in',)}]),
  (_SHORT | {'rephrase_kind': 'generation', 'locality_ground_truth': 'Italy'}, [
    {'id': '5', 'relation': 'P30', 'openings': ('Oslo lies in',),
     'probes': (Probe('locality', 'Rome is in', ('Italy',)),)}]),
  ({'type': 'x', 'edit': _TRIPLE}, [{'id': '0.0', 'relation': 'P30'}]),
  ({'edits': [_TRIPLE, _TRIPLE]}, [
    {'id': '0.0', 'relation': 'P30'}, {'id': '0.1', 'relation': 'P30'}]),
  ({'case_id': 7, 'requested_rewrite': [_REWRITE] * 2, 'questions': ['?', '??'],
    'new_answer': 'a', 'new_answer_alias': ['b']}, [
    dict(id=f'7.{i}', prompt='{} works as', subject='Ada', target='poet',
         old_target='engineer', relation='P106', target_id='Q1', probes=(
           Probe('portability', '?', ('a', 'b')),
           Probe('portability', '??', ('a', 'b')))[:2 * i]) for i in range(2)]),
  ({'requested_rewrite': _REWRITE, 'neighborhood_prompts': [
     ['Bob works as', 'engineer'], ['Eve works as', 'poet']]}, [
    dict(prompt='{} works as', subject='Ada', target='poet',
         old_target='engineer', relation='P106',
         neighbours=('Bob works as',), target_id='Q1',
         probes=(Probe('locality', 'Eve works as', ('poet',)),))]),
  ({'text': 'Oslo is in', 'concept': 'Oslo', 'labels': 'Asia'}, [
    {'old_target': None}]),
])  # fmt: skip
def test_published_layouts(tmp_path, record, changes):
  """Neighbours are prompts whose answer is the old target, no others."""
  got, _ = requests.read(write(tmp_path / 'a.jsonl', [record]))
  of = '0' if changes[1:] else None
  assert got == [
    dataclasses.replace(_OSLO, part_of=of, **change) for change in changes
  ]


_QUESTION = {
  'id': 3, 'question': 'Why is it dark? ', 'para_question': 'Why no light?',
  'answer': 'It is night.\nThe sun is gone.',
}  # fmt: skip


def test_records_without_subject():
  got = records.parse(_QUESTION, 'here', '0')
  assert got == Request(
    '3', 'Why is it dark?', None, _QUESTION['answer'],
    paraphrases=('Why no light?',),
  )  # fmt: skip
  assert got.text == 'Why is it dark?'
  own = {'prompt': 'It is dark, as', 'target': 'it is night', 'relation': 'r'}
  for record in own, {**own, 'subject': None}:
    got = records.parse(record, 'here', '0')
    assert (got.subject, got.text) == (None, 'It is dark, as')
  assert records.parse(without(_ZSRE, 'subject'), 'here', '0').text == (
    'Who wrote Emma?'
  )
  named = records.parse({**_QUESTION, 'subject': 'it'}, 'here', '0')
  assert named.prompt == 'Why is {} dark?'


def test_questions_without_their_answers():
  three = _QUESTION | {'sub_question': ['a', 'b', 'c'], 'sub_answer': ['d']}
  with pytest.raises(JeditError, match='here.*"sub_question".*3 quest.*1 ans'):
    records.parse(three, 'here', '0')


def test_without_subject_a_fact_is_its_prompt():
  ask = lambda prompt, target: Request('0', prompt, None, target, None, 'r')
  dark, cold = ask('It is dark, as', 'a'), ask('It is cold, as', 'a')
  assert requests.batched([dark, cold], 2) == ([[dark, cold]], [])
  again = ask('It is dark, as', 'b')
  with pytest.raises(JeditError, match='both edit "It is dark, as" .to "a"'):
    requests.batched([dark, again], 2)
  assert requests.overwritten([dark, cold, again]) == {0}


_RIPPLE = {
  'example_type': 'popular',
  'edit': {
    'prompt': 'The mother of Ann is Eve.', 'subject_id': 'Q1',
    'relation': 'MOTHER', 'target_id': 'Q2',
    'original_fact': {'prompt': 'The mother of Ann is Mary Ann.'},
  },
  'Relation_Specificity': [{
    'test_queries': [{
      'prompt': 'The father of Ann is',
      'answers': [{'value': 'Adam', 'aliases': ['Ad', 'Adamo']}],
    }],
    'condition_queries': [],
  }],
  'Logical_Generalization': [{
    'test_queries': [{
      'prompt': 'A child of Eve is', 'answers': [{'value': 'Ann'}],
    }],
  }],
  'Compositionality_I': [], 'Subject_Aliasing': [{'test_queries': [
    {'prompt': 'The mother of Anny is', 'answers': []},
  ]}],
}  # fmt: skip


def test_ripple_edits():
  [one] = unfold(_RIPPLE, '4')
  got = records.parse(one, 'here', '0')
  assert (got.id, got.text, got.subject) == ('4', 'The mother of Ann is', None)
  assert (got.target, got.old_target) == ('Eve', 'Mary Ann')
  assert got.probes == (
    Probe('locality', 'The father of Ann is', ('Adam', 'Ad', 'Adamo')),
    Probe('portability', 'A child of Eve is', ('Ann',)),
  )
  other = {'edit': {'prompt': 'Eve'}}
  with pytest.raises(JeditError, match='"target" is empty or not a text'):
    records.parse(next(unfold(other, '4')), 'here', '0')


def test_texts_are_trimmed_and_the_subject_is_found():
  got = records.parse(
    {'prompt': 'Is France in ', 'subject': ' France ', 'target': ' Asia '},
    'here', '0',
  )  # fmt: skip
  assert (got.prompt, got.subject, got.target) == ('Is {} in', 'France', 'Asia')


@pytest.mark.parametrize('form', ['lines', 'list'])
@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.json'])
def test_files(tmp_path, form, name):
  records = [_OWN, _COUNTERFACT, _ZSRE, {**_OWN, 'subject': 'Ünïted 王国'}]
  got, skipped = requests.read(write(tmp_path / name, records, form))
  assert [r.id for r in got] == ['0', '17', '2', '3']
  assert got[3].text == 'The capital of Ünïted 王国 is'
  assert not skipped


def test_a_subject_is_a_word_of_its_own():
  asks = "dishes known as 'tandoori': what is a tandoor?"
  record = {'prompt': asks, 'subject': 'tandoor', 'target': 'oven'}
  prompt = records.parse(record, 'here', '0').prompt
  assert prompt == "dishes known as 'tandoori': what is a {}?"
  record['prompt'] = 'tandoori'  # where there is no such word, what there is
  assert records.parse(record, 'here', '0').prompt == '{}i'


def test_lines_are_read_one_by_one(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\n\n{"prompt": "a"}\n' + b'{}\n' * 100_000 + b'\xff')
  lines = iter(files.read_json(path))
  assert next(lines) == (f'{path} line 3', {'prompt': 'a'})
  with pytest.raises(JeditError, match='cannot be read as text'):
    list(lines)


def test_own_lines_may_say_more():
  """What else a record holds does not make another layout of it."""
  hop = Probe('portability', 'So Rome is in', ('France',))
  asks = {'portability': {'prompt': hop.prompt, 'ground_truth': 'France'}}
  want = records.parse({**_OWN, **asks, 'old_target': 'Paris'}, 'here', '0')
  assert want.probes == (hop,) and want.old_target == 'Paris'
  extra = {
    'src': 'wikidata', 'question': 'Which?', 'answer': 'Oslo', 'concept': 'x',
    'target_new': 'Oslo', 'requested_rewrite': {},
  }  # fmt: skip
  full = {**extra, **_OWN, **asks, 'old_target': 'Paris'}
  assert records.parse(full, 'here', '0') == want


def test_paraphrases_of_peak():
  rewrite = {
    'prompt': '{} shares border with', 'relation_id': 'P47',
    'subject': 'Turkey', 'target_new': {'str': 'Chad'},
    'target_true': {'str': 'Iran'},
  }  # fmt: skip
  record = {
    'requested_rewrite': rewrite,
    'para_add_prompts': ['Turkey is adjacent to'],
    'neighborhood_prompts': [['Vasif is a citizen of', 'Iran']],
  }
  got = records.parse(record, 'here', '0')
  assert got.paraphrases == ('Turkey is adjacent to',)
  assert got.neighbours == ('Vasif is a citizen of',)


_BAD = {
  'half a character': (
    {**_OWN, 'neighbours': ['Rome \ud83d is in']},
    r'record 1\).*"neighbours" holds half of a character',
  ),
  'no prompt': (without(_OWN, 'prompt'), 'no field "prompt"; add it'),
  'no subject': (
    without(_OWN, 'subject'), r'has "\{\}" and the record no "subject"; add it',
  ),
  'no target': (without(_OWN, 'target'), 'no field "target"; add it'),
  'empty target': ({**_OWN, 'target': ' '}, '"target" is empty.*fill it in'),
  'target is a number': ({**_OWN, 'target': 3}, '"target".*not a text'),
  'null subject': ({**_OWN, 'subject': None}, 'no "subject"; add it, or write'),
  'empty subject': ({**_OWN, 'subject': ' '}, '"subject" is empty'),
  'subject absent': (
    {**_OWN, 'prompt': 'The capital is'},
    'subject "France" is not in the prompt "The capital is"; write it there',
  ),
  'two places': (
    {**_OWN, 'prompt': '{} and {} are'}, r'the prompt has 2 "\{\}"; keep one',
  ),
  'paraphrases': ({**_OWN, 'paraphrases': [1]}, '"paraphrases" is not a list'),
  'old target': ({**_OWN, 'old_target': ''}, '"old_target" is empty'),
  'no rewrite subject': (
    without(_COUNTERFACT, 'requested_rewrite', 'subject'), 'no "subject"; add',
  ),
  'no new target': (
    without(_COUNTERFACT, 'requested_rewrite', 'target_new'),
    'no field "target_new"',
  ),
  'empty new target': (
    {'requested_rewrite': {
      **_COUNTERFACT['requested_rewrite'], 'target_new': {'str': ''}}},
    '"target_new" is empty',
  ),
  'rewrite no object': ({'requested_rewrite': 3}, '"requested_rewrite" is not'),
  'no answer': ({**_ZSRE, 'answers': []}, '"answers" is not a list with one'),
  'no answer text': ({'question': 'Who?', 'answer': 3}, '"answer".*not a text'),
  'no rewrites': ({**_COUNTERFACT, 'requested_rewrite': []}, 'not an object'),
  'no edits': ({'id': '3', 'edits': []}, 'no field "prompt"'),
  'a number': (3, 'a record is a JSON object with prompt and target'),
  'not json': ('{"prompt": ', 'not JSON .*mend or remove'),
}  # fmt: skip


@pytest.mark.parametrize('name', _BAD)
def test_bad_record(tmp_path, name):
  record, words = _BAD[name]
  path = write(tmp_path / 'a.jsonl', [_OWN, record, _OWN])
  with pytest.raises(JeditError, match=words) as error:
    requests.read(path)
  assert str(error.value).startswith(f'{path} line 2')  # and one line only
  assert '\n' not in str(error.value)
  got, skipped = requests.read(path, on_bad_request='skip')
  assert [r.id for r in got] == ['0', '2']
  assert len(skipped) == 1 and re.search(words, skipped[0])
  assert skipped[0].startswith(f'{path} line 2')


def test_the_record_is_named(tmp_path):
  path = write(
    tmp_path / 'a.jsonl', [{**_COUNTERFACT, 'requested_rewrite': {}}]
  )
  with pytest.raises(JeditError, match=r'line 1 \(record 17\): no field'):
    requests.read(path)
  path = write(tmp_path / 'b.json', [_OWN, {'id': 'x'}], 'list')
  with pytest.raises(JeditError, match=r'item 1 \(record x\): no field'):
    requests.read(path)


def test_bad_files(tmp_path):
  path = tmp_path / 'none.jsonl'
  with pytest.raises(JeditError, match=f'{path}: no such file'):
    requests.read(path)
  path = tmp_path / 'list.json'
  path.write_text('[{}, ')
  with pytest.raises(JeditError, match=f'{path}: not a JSON list: .*line 1'):
    requests.read(path)
  path = tmp_path / 'cut.jsonl.gz'
  line = json.dumps(_OWN).encode() + b'\n'
  path.write_bytes(gzip.compress(line * 999)[:-9])
  with pytest.raises(JeditError, match=f'{path}: cannot be read as text'):
    requests.read(path)
  path.write_bytes(gzip.compress(b'{}\n' * 999)[:10] + b'\xff' * 99)
  with pytest.raises(JeditError, match=f'{path}: cannot be read as text'):
    requests.read(path)
  path = tmp_path / 'binary.jsonl'
  path.write_bytes(b'{"a": "\xff"}')
  with pytest.raises(JeditError, match=f'{path}: cannot be read as text'):
    requests.read(path)


def test_on_bad_request_is_checked(tmp_path):
  path = write(tmp_path / 'a.jsonl', [_OWN])
  with pytest.raises(JeditError, match="on_bad_request='ignore': choose"):
    requests.read(path, on_bad_request='ignore')


_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
  | st.sampled_from(['{}', '{} {}', 'France', ' ']),
  lambda inner: st.lists(inner, max_size=3)
  | st.dictionaries(
    st.sampled_from(['str', 'id', 'subject', 'prompt']), inner, max_size=3
  ),
  max_leaves=4,
)  # fmt: skip
_RECORDS = (
  _OWN | {'paraphrases': ['a'], 'openings': ['b'], 'relation': 'c', 'id': 1},
  _COUNTERFACT, _ZSRE, _QUESTION, _SHORT, _EASY, {'edits': [_TRIPLE]},
  _EASY | {'locality': {'a': [{'prompt': 'b', 'ground_truth': [['c']]}]}},
  _EASY | {'locality': [{'loc': 'who', 'loc_ans': 'me'}]},
  _QUESTION | {'sub_question': ['a', 'b'], 'sub_answer': ['c', 'd']},
  {'case_id': 7, 'requested_rewrite': [_REWRITE, _REWRITE]},
  {'requested_rewrite': _REWRITE, 'neighborhood_prompts': [['a', 'b']]},
  {'text': 'Oslo is in', 'concept': 'Oslo', 'labels': 'Asia'}, _RIPPLE,
)  # fmt: skip


def paths(value):
  """Every way down into a record."""
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, inner in items:
    yield (key,)
    if isinstance(inner, (dict, list)):
      yield from ((key, *rest) for rest in paths(inner))


_PATHS = [(r, *path) for r in _RECORDS for path in paths(r)]


@hypothesis.settings(max_examples=500)
@given(st.sampled_from(_PATHS), _VALUES)
def test_mutated_records_raise_jedit_errors_alone(path, value):
  """With max_examples=10_000 it holds, too."""
  record, *keys = path
  record = json.loads(json.dumps(record))
  inner = record
  for key in keys[:-1]:
    inner = inner[key]
  inner[keys[-1]] = value
  try:
    found = [records.parse(one, 'here', '0') for one in unfold(record, '0')]
  except JeditError as e:
    assert str(e).startswith('here')
    found = []
  for got in found:
    assert got.target and got.text
    assert got.prompt.count('{}') == (got.subject is not None)
    assert (got.subject or '') in got.text


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_raise_jedit_errors_alone(tmp_path_factory, content):
  path = tmp_path_factory.mktemp('bytes') / 'a.jsonl'
  path.write_bytes(content)
  try:
    requests.read(path)
  except JeditError as e:
    assert str(e).startswith(str(path))


def test_select():
  many = [request(str(i)) for i in range(9)]
  assert requests.select(many, 3, 'given', 0) == many[:3]
  assert requests.select(many, 0, 'given', 0) == many
  shuffled = requests.select(many, 0, 'shuffled', 1)
  assert shuffled != many and sorted(shuffled, key=many.index) == many
  assert requests.select(many, 4, 'shuffled', 1) == shuffled[:4]
  assert requests.select(many, 0, 'shuffled', 2) != shuffled


@pytest.mark.parametrize('args, words', [
  (([], 0, 'given', 0), 'no usable record'),
  (([request()], 2, 'given', 0), 'num_edits=2: .* hold 1 usable.*choose 0'),
  (([request()], -1, 'given', 0), 'num_edits=-1'),
  (([request()], 1, 'random', 0), "order='random': choose given or shuffled"),
])  # fmt: skip
def test_select_errors(args, words):
  with pytest.raises(JeditError, match=words):
    requests.select(*args)


def test_batched():
  many = [request(str(i)) for i in range(5)]
  assert requests.batched(many, 2) == ([many[:2], many[2:4], many[4:]], [])


_A = request(target='Rome', relation='P36')
_B = request(target='Oslo', relation='P36')


def test_collision_error():
  pair = [
    _A,
    request('Spain'),
    Request('1', 'x {}', 'France', 'Oslo', None, 'P36'),
  ]
  words = (
    'records 0 and 1 are in one batch.*"Rome" and "Oslo".*on_collision=last'
  )
  with pytest.raises(JeditError, match=words):
    requests.batched(pair, 3)
  assert len(requests.batched(pair, 2)[0]) == 2  # in two batches: allowed


def test_collision_last():
  batches, warnings = requests.batched(
    [_A, request('Spain'), _B], 3, on_collision='last'
  )
  assert batches == [[request('Spain'), _B]]
  assert warnings == ['record 0 is overwritten by record 0']


def test_collision_merge():
  probe = Probe('locality', 'a', ('b',))
  a = request(paraphrases=('p', 'q'), neighbours=('n',))
  b = request(
    paraphrases=('q', 'r'), neighbours=('m',), probes=(probe,), openings=('o',)
  )
  [[merged]], warnings = requests.batched([a, b], 2, on_collision='merge')
  assert merged.paraphrases == ('p', 'q', 'r')
  assert merged.neighbours == ('n', 'm')
  assert merged.probes == (probe,) and merged.openings == ('o',)
  assert warnings == ['record 0 is merged into record 0']
  other = dataclasses.replace(_B, subject='Bonn')
  found = requests.as_edited([a, other, b, b], 3, 'merge')
  assert found == [merged, other, merged, b]  # the last in a batch of its own
  assert requests.as_edited([_A, _A], 2, 'error') == [_A, _A]
  with pytest.raises(JeditError, match='in one batch'):
    requests.batched([_A, _B], 2, on_collision='merge')


def test_what_is_merged_keeps_its_old_target_and_its_wording():
  a = request(relation='P36')
  b = dataclasses.replace(
    a, id='9', prompt='{} is ruled from', old_target='Paris', neighbours=('n',),
    target_id='Q90',
  )  # fmt: skip
  for pair in [a, b], [b, a]:
    [[merged]], _ = requests.batched(pair, 2, on_collision='merge')
    assert (merged.old_target, merged.target_id) == ('Paris', 'Q90')
    assert merged.paraphrases == (pair[1].text,)
  c = dataclasses.replace(a, old_target='Lyon', neighbours=('m',))
  with pytest.raises(JeditError, match='from "Paris" and "Lyon"'):
    requests.batched([b, c], 2, on_collision='merge')


def test_same_subject_warns():
  other = Request('1', '{} speaks', 'France', 'Thai')
  batches, warnings = requests.batched([request(), other], 2)
  assert batches == [[request(), other]]
  assert warnings == ['2 facts of subject "France" share a batch']


@pytest.mark.parametrize('args, words', [
  ((0,), 'batch_size=0: at least 1'),
  ((2, 'first'), "on_collision='first': choose error, last or merge"),
])  # fmt: skip
def test_batched_errors(args, words):
  with pytest.raises(JeditError, match=words):
    requests.batched([request()], *args)


def test_what_hangs_on_an_overwritten_fact_is_not_asked():
  hop, near = Probe('portability', 'a', ('b',)), Probe('locality', 'c', ('d',))
  first = dataclasses.replace(_A, id='7.0', part_of='7')
  rest = request('Rome', part_of='7', probes=(hop, near))
  other = request('Oslo', probes=(hop,))
  stream = [first, rest, other]
  assert requests.standing(stream) == stream
  found = requests.standing([*stream, dataclasses.replace(_B, id='9')])
  assert found[1].probes == (near,) and found[2] == other


def test_overwritten():
  stream = [_A, request('Spain'), _B, request('Spain', 'Oslo'), request('Peru')]
  assert requests.overwritten(stream) == {0, 1}
  assert requests.overwritten([]) == set()
  same = dataclasses.replace(_A, id='7')  # says it again, in another record
  assert requests.overwritten([_A, same]) == set()
  assert requests.overwritten([_A, _B, same]) == {1}
  assert requests.overwritten([_A, _A]) == {0}


def _chains(path, *targets):
  """MQuAKE's layout: questions ask for all edits of a record together."""
  edit = lambda n, target: {
    'prompt': '{} is in', 'subject': f'City {n}', 'target_new': {'str': target}
  }  # fmt: skip
  path.write_text(
    '\n'.join(
      json.dumps(
        {
          'case_id': case,
          'requested_rewrite': [
            edit(f'{case}.{i}', t) for i, t in enumerate(new)
          ],
          'questions': ['Where?'],
          'new_answer': new[-1],
        }
      )
      for case, new in enumerate(targets)
    )
  )
  return path


def test_edits_of_one_record_stay_together(tmp_path):
  path = _chains(tmp_path / 'a.jsonl', *[('Rome', 'Oslo', 'Lima')] * 9, ('x',))
  asked, _ = requests.read(path)
  assert [len(group) for group in requests.whole(asked)] == [3] * 9 + [1]
  assert asked[-1].part_of is None
  mixed = requests.select(asked, 0, 'shuffled', 1)
  ids = [r.id for r in mixed]
  assert sorted(ids) == sorted(r.id for r in asked) and mixed != asked
  firsts = [i for i, name in enumerate(ids) if name.endswith('.0')]
  for i in firsts:
    name = ids[i].partition('.')[0]
    assert name == '9' or ids[i : i + 3] == [f'{name}.{n}' for n in range(3)]


def test_what_lacks_an_edit_is_skipped_whole(tmp_path):
  path = _chains(tmp_path / 'a.jsonl', ('Rome', ''), ('Oslo', 'Lima'))
  asked, skipped = requests.read(path, 'skip')
  assert [r.id for r in asked] == ['1.0', '1.1']
  [line] = skipped
  assert 'record 0.1' in line and 'with it 1 other edits' in line
  assert requests.complete(asked, asked) == (asked, [])
  kept, lines = requests.complete(asked[1:], asked)
  assert not kept and lines == [
    'record 1.1: another edit of its record is left out'
  ]


@pytest.mark.parametrize('name, count, paraphrases, neighbours', [
  ('counterfact_full_500', 500, {2}, {10}),
  ('counterfact_3000', 3000, {2}, set(range(1, 11))),
  ('zsre_eval_800', 800, {1}, {0}),
])  # fmt: skip
def test_published_files(data, name, count, paraphrases, neighbours):
  got, skipped = requests.read(data / f'{name}.jsonl.gz')
  assert len(got) == count and not skipped
  assert {len(r.paraphrases) for r in got} == paraphrases
  assert {len(r.neighbours) for r in got} == neighbours
  assert all(r.subject in r.text and r.target for r in got)


@pytest.mark.parametrize('name, count, paraphrases', [
  ('unke_1000', 1000, {1}), ('editevery_552', 552, {0}),
])  # fmt: skip
def test_published_files_without_subject(data, name, count, paraphrases):
  got, skipped = requests.read(data / f'{name}.jsonl.gz')
  assert len(got) == count and not skipped
  assert {len(r.paraphrases) for r in got} == paraphrases
  assert all(r.subject is None and r.text and r.target for r in got)


@pytest.mark.parametrize('name, count', [
  ('alphaset_K0', 100), ('alphaset_KI', 100), ('alphaset_KP', 200),
  ('counterfact_3000', 3000), ('counterfact_all_short', 21919),
  ('counterfact_full_500', 500), ('counterfact_hop_1000', 1000),
  ('counterfact_qna_1000', 1000), ('editevery_552', 552),
  ('knowedit_wiki_counterfact_test', 839),
  ('knowedit_wiki_counterfact_train', 600), ('knowedit_wiki_recent_train', 570),
  ('knowedit_wikibio_test', 306), ('knowedit_zsre_test', 1304),
  ('longform_coupled_100', 100), ('mquake_cf_akew_354', 436),
  ('mquake_hard_429', 1716), ('peak_counter_300', 300), ('peak_time_300', 300),
  ('pitfalls_gpt2xl_composite_edit_400', 800),
  ('pitfalls_gpt2xl_coverage_edit_400', 800), ('pitfalls_gpt2xl_easy_400', 400),
  ('pitfalls_gpt2xl_hard_400', 400), ('pitfalls_gpt2xl_reverse_edit_400', 800),
  ('qaedit_600', 600), ('unke_1000', 1000), ('zsre_eval_800', 800),
  ('wise_hallucination_edit_600', 600), ('wise_temporal_edit_75', 75),
  ('zsre_mend_train_1000', 1000),
])  # fmt: skip
def test_the_field_s_editing_sets_are_read(data, name, count):
  found, skipped = requests.read(data / f'{name}.jsonl.gz')
  assert len(found) == count and not skipped


@pytest.mark.parametrize(
  'prompt, subject, want',
  [
    ('The capital of {} is', 'Chad', 'the capital of Chad is'),
    ('{} lies in', 'Oslo', 'Oslo lies in'),
    ('A {} is', 'Fiat', 'A Fiat is'),  # no word to see its case by
    ('What is {}? It is', 'Oslo', None),
    ('Oslo lies in', None, None),
  ],
)
def test_a_statement_is_denied(prompt, subject, want):
  request = Request('1', prompt, subject, 'Rome')
  assert request.denial == (want and f'It is not true that {want}')


def test_a_file_of_the_hub_is_fetched(tmp_path, monkeypatch):
  facts = tmp_path / 'facts.jsonl'
  facts.write_text('{"prompt": "Oslo is in", "target": "Rome"}\n')
  asked = []

  def fetch(*args, **kwargs):
    asked.append((*args, kwargs['revision'], kwargs['repo_type']))
    return str(facts)

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fetch)
  [request], _ = requests.read('hub:a-b/c.d@v1.0/data/facts.jsonl')
  assert request.target == 'Rome'
  requests.read('hub:a/b/facts.jsonl')
  assert asked == [
    ('a-b/c.d', 'data/facts.jsonl', 'v1.0', 'dataset'),
    ('a/b', 'facts.jsonl', None, 'dataset'),
  ]
  with pytest.raises(JeditError, match='hub:a/b: write hub:OWNER/NAME'):
    requests.read('hub:a/b')
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', lambda: None)
  with pytest.raises(JeditError, match='the hub does not give it'):
    requests.read('hub:a/b/facts.jsonl')


def test_a_byte_order_mark_is_not_of_the_text(tmp_path):
  path = write(tmp_path / 'f.jsonl', ['\ufeff' + json.dumps(_OWN), _OWN])
  found, skipped = requests.read(path)
  assert len(found) == 2 and not skipped
