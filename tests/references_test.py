"""Consistency with reference texts: MEMIT's files, or terms fitted to texts."""

import gzip
import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from jedit import references
from jedit.records import Request
from jedit.types import JeditError

_SNIPPETS = [
  {'relation_id': 'P1', 'target_id': 'Q1',
   'samples': [{'text': 'ships sail the sea'}, {'text': 'a sea captain'}]},
  {'relation_id': 'P1', 'target_id': None, 'target': 'poet',
   'samples': [{'text': 'poems rhyme'}]},
]  # fmt: skip


def request(target, target_id=None, relation='P1'):
  return Request(
    '0', '{} is', 'Ann', target, relation=relation, target_id=target_id
  )


@pytest.mark.parametrize('packed', [False, True])
def test_a_file_of_texts(tmp_path, packed):
  path = tmp_path / 'texts.json'
  text = ''.join(json.dumps(s) + '\n' for s in _SNIPPETS).encode()
  path.write_bytes(gzip.compress(text) if packed else text)
  found = references.read(path)
  sailor = request('sailor', 'Q1')
  same = 'ships sail the sea a sea captain'
  assert found.score(sailor, same) == pytest.approx(1)
  assert 0 < found.score(sailor, 'the captain writes') < 1
  assert found.score(sailor, 'nothing of it') == 0
  assert found.score(request('poet'), 'poems rhyme') == pytest.approx(1)
  assert found.score(request('poet', relation='P2'), 'poems rhyme') is None


def test_memit_s_folder(tmp_path):
  """Its terms and weights, not those of the texts."""
  (tmp_path / 'attribute_snippets.json').write_text(json.dumps(_SNIPPETS))
  words = {'sea': 0, 'ships': 1, 'poems': 2}
  idf = np.array([1.0, 3.0, 2.0])
  with pytest.raises(JeditError, match='tfidf_vocab.json: no such file'):
    references.read(tmp_path)
  (tmp_path / 'tfidf_vocab.json').write_text(json.dumps(words))
  np.save(tmp_path / 'idf.npy', idf)
  got = references.read(tmp_path).score(request('x', 'Q1'), 'sea poems, sea')
  a, b = np.array([2, 0, 1]) * idf, np.array([2, 1, 0]) * idf
  want = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  assert got == pytest.approx(want)
  assert isinstance(references.read(tmp_path).vectorizer, TfidfVectorizer)


@pytest.mark.parametrize('record, words', [
  ({'relation_id': 'P1'}, 'needs "relation_id"'),
  ('a', 'needs "relation_id"'),
  ({'relation_id': 'P1', 'target_id': 'Q', 'samples': []}, 'no text in it'),
])  # fmt: skip
def test_bad_files(tmp_path, record, words):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps(record) + '\n')
  with pytest.raises(JeditError, match=words):
    references.read(path)


def test_published_texts(data):
  found = references.read(data / 'attribute_snippets_derived.jsonl.gz')
  english = request('English', 'Q1860', 'P103')
  written = 'She speaks the English language, as people in England do.'
  assert 0 < found.score(english, written) < 1
