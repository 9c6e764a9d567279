"""The facts that jedit ships."""

import collections
import re

from jedit import requests
from launch import common


def test_the_shipped_facts_are_whole():
  facts, skipped = requests.read(common.FACTS)
  assert not skipped
  assert len(facts) >= 60
  assert len({f.subject for f in facts}) == len(facts)
  assert len({f.fact for f in facts}) == len(facts)
  relations = collections.Counter(f.relation for f in facts)
  assert len(relations) >= 10
  for fact in facts:
    assert fact.old_target and fact.old_target != fact.target
    assert len(fact.paraphrases) == 2
    assert len(fact.neighbours) >= 5
    assert fact.openings
    assert all(fact.subject in p for p in fact.paraphrases + fact.openings)
    word = re.compile(rf'\b{re.escape(fact.subject)}\b')
    assert not any(word.search(n) for n in fact.neighbours)
