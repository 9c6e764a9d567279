"""A folder as a user would have it: a tiny model, facts, a corpus, a config."""

import json

import jax
import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers, trainers

from jedit.models import hf, load, transformer

_HF = {
  'model_type': 'llama', 'vocab_size': 300, 'hidden_size': 32,
  'intermediate_size': 64, 'num_hidden_layers': 5, 'num_attention_heads': 4,
  'num_key_value_heads': 2, 'max_position_embeddings': 256,
  'rms_norm_eps': 1e-5, 'tie_word_embeddings': True, 'hidden_act': 'silu',
}  # fmt: skip
CITIES = 'Oslo', 'Rome', 'Paris', 'Cairo', 'Lima', 'Tokyo', 'Quito', 'Delhi'


def _facts():
  for i, city in enumerate(CITIES):
    yield {
      'id': f'f{i}', 'prompt': '{} is a city in', 'subject': city,
      'target': CITIES[i - 1], 'old_target': CITIES[i - 2],
      'paraphrases': [f'Travel to {city}, in'],
      'neighbours': [f'{CITIES[i - 3]} lies in'],
    }  # fmt: skip


def write(home):
  """A model, its config, facts and a corpus, into a folder."""
  facts = list(_facts())
  text = [f'{f["subject"]} is a city in {f["target"]}.' for f in facts]
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.train_from_iterator(
    text,
    trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=['<eos>'],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ),
  )
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe, eos_token='<eos>', pad_token='<eos>'
  )
  model = transformer.build(hf.config(_HF))
  params = jax.device_get(model.init(jax.random.key(0)))
  load.save(home / 'model', load.Loaded(model, params, _HF, tokenizer))
  (home / 'facts.jsonl').write_text(
    ''.join(json.dumps(f) + '\n' for f in facts)
  )
  (home / 'corpus.txt').write_text('\n\n'.join(text * 40))
  (home / 'tiny.py').write_text(
    'from configs import base\n'
    'def get_config(method="memit"):\n'
    f'  return base.get_config(method, model={str(home / "model")!r},\n'
    '    layers=(1, 2), optimiser={"steps": 4}, batch_size=2,\n'
    f'    requests={str(home / "facts.jsonl")!r}, corpus_window=32,\n'
    f'    corpus={str(home / "corpus.txt")!r}, max_perplexity=1e9,\n'
    '    max_norm=1e9, data_parallel=1)\n'
  )
