"""Consistency: does what a model writes sound like its new fact?

MEMIT's reference score: the cosine of the TF-IDF vectors of the texts written
after a record's openings and of texts about things that have the new property.
"""

import json
import os
import pathlib
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from jedit.files import open_text, read_json
from jedit.records import Request
from jedit.types import JeditError

_SNIPPETS, _IDF, _VOCABULARY = (
  'attribute_snippets.json', 'idf.npy', 'tfidf_vocab.json',
)  # fmt: skip


class References(NamedTuple):
  """Texts by relation and target (its id or its name), and their terms."""

  texts: dict[tuple[str, str], str]
  vectorizer: TfidfVectorizer

  def score(self, request: Request, written: str) -> float | None:
    """0 to 1; None where there is no text about the request's target."""
    names = request.target_id, request.target
    found = (self.texts.get((request.relation or '', n or '')) for n in names)
    text = next((t for t in found if t), None)
    if text is None:
      return None
    vectors = self.vectorizer.transform([written, text])
    return float(cosine_similarity(vectors[0], vectors[1])[0, 0])


def read(path: str | os.PathLike) -> References:
  """Reads texts, and terms.

  Args:
    path: MEMIT's data folder (attribute_snippets.json, idf.npy,
      tfidf_vocab.json), or a file like the first, JSON or JSON lines, gzip or
      not, to which the terms are then fitted.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else None
  texts: dict[tuple[str, str], list[str]] = defaultdict(list)
  for where, record in read_json(folder / _SNIPPETS if folder else path):
    if isinstance(record, JeditError):
      raise record
    try:
      some = [s['text'].strip() for s in record['samples']]
      for name in {record.get('target_id'), record.get('target')} - {None}:
        texts[record['relation_id'], name] += some
    except (KeyError, TypeError, AttributeError) as e:
      raise JeditError(
        f'{where}: needs "relation_id", "target_id" and "samples", each with a '
        f'"text" ({type(e).__name__}: {e})'
      ) from e
  joined = {key: ' '.join(some) for key, some in texts.items() if some}
  if not joined:
    raise JeditError(f'{path}: no text in it')
  if folder is None:
    try:
      return References(joined, TfidfVectorizer().fit(joined.values()))
    except ValueError as e:
      raise JeditError(f'{path}: {e}') from e
  try:
    with open_text(folder / _VOCABULARY) as f:
      vectorizer = TfidfVectorizer(vocabulary=json.load(f))
    vectorizer.idf_ = np.load(folder / _IDF)
  except (OSError, ValueError) as e:
    raise JeditError(f'{folder}: {_IDF} and {_VOCABULARY}: {e}') from e
  return References(joined, vectorizer)
