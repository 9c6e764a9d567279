"""Published records that are no single edit in a layout of records.py."""

import re
from collections.abc import Iterator

from jedit.records import nested

# "The mother of Ann is Eve." is a prompt and its target; all 2,807 sentences of
# RippleEdits match.
_SENTENCE = re.compile(
  r'(.* (?:is followed by|follows|are|is|was|were|has|have)) (.+?)\.?'
)
# What must follow from an edit there, and what must stay.
_RIPPLES = {
  'portability': (
    'Logical_Generalization', 'Compositionality_I', 'Compositionality_II',
    'Subject_Aliasing',
  ),
  'locality': ('Relation_Specificity', 'Forgetfulness'),
}  # fmt: skip


def unfold(record: object, id: str) -> Iterator[object]:
  """A record for each edit of one that asks for several.

  MQuAKE's are in CounterFact's layout; ConflictEdit's and RoundEdit's are
  triples with labels. RippleEdits' one edit is a sentence.
  """
  if not isinstance(record, dict):
    yield record
    return
  edits = record.get('requested_rewrite')
  triples = record.get('edits', record.get('edit'))
  id = record.get('case_id', record.get('id', id))
  if isinstance(edits, list) and edits:
    for number, edit in enumerate(edits):
      new = {'case_id': f'{id}.{number}', 'requested_rewrite': edit}
      if number < len(edits) - 1:
        new['questions'] = None  # they ask for all edits together
      yield {**record, **new}
  elif nested(record, 'edit', 'prompt') is not None:
    yield {'id': id, **_ripple(record)}
  elif triples and isinstance(triples, (dict, list)) and 'prompt' not in record:
    triples = [triples] if isinstance(triples, dict) else triples
    for number, triple in enumerate(triples):
      part = lambda *names, t=triple: nested(t, *names)
      yield {
        'id': f'{id}.{number}',
        'prompt': part('relation', 'prompt'),
        'subject': part('subject', 'label'),
        'target': part('new_object', 'label'),
        'old_target': part('object', 'label'),
        'relation': part('relation', 'id'),
      }
  else:
    yield record


def _ripple(record: dict) -> dict:
  """A record of RippleEdits in jedit's layout; it names no subject."""

  def parts(fact):
    text = nested(fact, 'prompt')
    found = _SENTENCE.fullmatch(text) if isinstance(text, str) else None
    return found.groups() if found else (text, None)

  edit = record['edit']
  prompt, target = parts(edit)
  before, old = parts(edit.get('original_fact'))
  out = {
    'prompt': prompt, 'target': target, 'relation': edit.get('relation'),
    'old_target': old if before == prompt else None,
  }  # fmt: skip
  several = lambda value: value if isinstance(value, list) else []
  for kind, names in _RIPPLES.items():
    tests = [test for name in names for test in several(record.get(name))]
    out[kind] = [
      {
        'prompt': nested(query, 'prompt'),
        'answers': [
          [nested(a, 'value'), nested(a, 'aliases')]
          for a in several(nested(query, 'answers'))
        ],
      }
      for test in tests
      for query in several(nested(test, 'test_queries'))
    ]
  return out
