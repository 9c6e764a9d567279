"""How many vectors and entries may SRFusion drop? AdaEdit's rank and keep.

  python -m launch.edit --config=configs/smollm2_135m.py:adaedit \\
    --config.editor.keep=1.0 --config.requests=counterfact_full_500.jsonl.gz \\
    --config.num_edits=100 --config.batch_size=100 --workdir=runs/whole
  python -m tests.benchmarks.fusion --run=runs/whole \\
    --ranks=10,25,50,100 --keeps=0.2,0.5,0.8,1

Fuses what a run of one batch changed, and scores it. AdaEdit fuses a batch once
all its layers are solved, so this is what it gives with that rank and keep.
Efficacy / generalization / specificity / score by probability and by argmax,
and the largest norm of a matrix, times its own.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import ConfigDict

from jedit import checkpoint, evaluate, metrics, requests, updates
from jedit.models import transformer
from jedit.models.load import load

_RUN = flags.DEFINE_string('run', None, 'Finished run folder.', required=True)
_RANKS = flags.DEFINE_list('ranks', ['10', '25', '50', '100'], 'Vectors kept.')
_KEEPS = flags.DEFINE_list('keeps', ['0.2', '0.5', '0.8', '1'], 'Of entries.')
_TABLES = {
  'probability': metrics.TABLES['memit-2022'],
  'argmax': metrics.Table(metrics.TABLES['jedit'].metrics[:3], 'arithmetic'),
}


def main(_):
  home = pathlib.Path(_RUN.value)
  config = ConfigDict(json.loads((home / 'config.json').read_text()))
  loaded = load(config.model)
  model, size = loaded.model, config.batch_size
  if config.num_edits > size:
    raise app.UsageError(f'{home} has several batches: fused are those of one')
  _, found = checkpoint.read_edit(home / 'edits')
  delta = jnp.stack([found[i] for i in sorted(found)]).astype(jnp.float32)
  split = transformer.split(
    jax.tree.map(jnp.asarray, loaded.params), *config.layers
  )
  base = split['site']['mlp']['down']['kernel']
  asked, _ = requests.read(config.requests)
  probe = evaluate.probe(loaded.tokenizer, asked[: config.num_edits])

  def show(name, kernel):
    mlp = split['site']['mlp']
    mlp = {**mlp, 'down': {**mlp['down'], 'kernel': kernel}}
    params = transformer.join({**split, 'site': {**split['site'], 'mlp': mlp}})
    scores = evaluate.score(model, params, probe.questions)
    rows = evaluate.by_record(scores, probe, tables=_TABLES)
    rows = metrics.summary(rows, _TABLES).values()
    shown = [' '.join(format(v, '5.1f') for v in r.values()) for r in rows]
    norm = lambda x: np.linalg.norm(x, axis=(1, 2))
    ratio = float((norm(kernel) / norm(base)).max())
    print(f'{name:<20} | {" | ".join(shown)} | {ratio:.4f}', flush=True)

  show('before', base)
  for rank in map(int, _RANKS.value):
    for keep in map(float, _KEEPS.value):
      fuse = updates.fuse(min(rank, size), keep, size)
      fused, _ = fuse.update(delta, optax.EmptyState())
      show(f'rank {rank}, keep {keep:g}', base + fused)


if __name__ == '__main__':
  app.run(main)
