"""GPT-2 and GPT-J."""

import functools

import flax.linen as nn

from jedit.models.layers import Attention, Config, Mlp

# One pass over x for mean and variance would cancel where |mean| is large.
final_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class Block(nn.Module):
  """GPT-2 runs attention, then the MLP; GPT-J runs both from one norm."""

  config: Config

  def setup(self):
    """Names the parts as the params do."""
    self.attn_norm = final_norm(epsilon=self.config.norm_eps)
    self.attn = Attention(self.config)
    if not self.config.parallel:
      self.mlp_norm = final_norm(epsilon=self.config.norm_eps)
    self.mlp = Mlp(self.config, gated=False)

  def address(self, x, positions, attend):
    """Returns (mid [.., D], key [.., F], (k, v)): all but the memory."""
    out, kv = self.attn(self.attn_norm(x), positions, attend)
    mid = x + out
    return mid, self.key(x, mid), kv

  def key(self, x, mid):
    """The key [.., F] of a block that reads x and holds mid after attention."""
    parallel = self.config.parallel
    return self.mlp.key(self.attn_norm(x) if parallel else self.mlp_norm(mid))

  def value(self, mid, key):
    """What the memory adds: mid + key @ W_down + bias."""
    return mid + self.mlp.down(key)

  def __call__(self, x, positions, attend):
    """The whole block: x [.., D] -> [.., D]."""
    mid, key, _ = self.address(x, positions, attend)
    return self.value(mid, key)


# Published tensor name -> (path in params, transpose?), both ways. `{}` is the
# layer, axis 0 of a stacked leaf. Entries whose path a config lacks are unused.
_L = 'transformer.h.{}.'
_WEIGHT = {'weight': 'kernel', 'bias': 'bias'}
_SCALE = {'weight': 'scale', 'bias': 'bias'}


def _table(linear, norms, transpose):
  return {
    'transformer.wte.weight': ('embed/tokens', False),
    'transformer.wpe.weight': ('embed/positions', False),
    'lm_head.weight': ('head/kernel', True),
    'lm_head.bias': ('head/bias', False),
    **{
      f'{a}.{n}': (f'{b}/{m}', transpose and n == 'weight')
      for a, b in linear.items()
      for n, m in _WEIGHT.items()
    },
    **{
      f'{a}.{n}': (f'{b}/{m}', False)
      for a, b in norms.items()
      for n, m in _SCALE.items()
    },
  }


# GPT-2 publishes its kernels as [in, out]; GPT-J as [out, in].
GPT2_TABLE = _table(
  {
    _L + 'attn.c_attn': 'layers/attn/qkv',
    _L + 'attn.c_proj': 'layers/attn/out',
    _L + 'mlp.c_fc': 'layers/mlp/up',
    _L + 'mlp.c_proj': 'layers/mlp/down',
  },
  {
    _L + 'ln_1': 'layers/attn_norm',
    _L + 'ln_2': 'layers/mlp_norm',
    'transformer.ln_f': 'final_norm',
  },
  transpose=False,
)
GPTJ_TABLE = _table(
  {
    _L + 'attn.q_proj': 'layers/attn/q',
    _L + 'attn.k_proj': 'layers/attn/k',
    _L + 'attn.v_proj': 'layers/attn/v',
    _L + 'attn.out_proj': 'layers/attn/out',
    _L + 'mlp.fc_in': 'layers/mlp/up',
    _L + 'mlp.fc_out': 'layers/mlp/down',
  },
  {_L + 'ln_1': 'layers/attn_norm', 'transformer.ln_f': 'final_norm'},
  transpose=True,
)


_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
}


def config_from_hf(c: dict) -> Config:
  """Config of a Hugging Face config.json (defaults filled in) as a dict."""
  gptj = c['model_type'] == 'gptj'
  head_dim = c['n_embd'] // c['n_head']
  return Config(
    family='gpt',
    vocab_size=c['vocab_size'],
    width=c['n_embd'],
    mlp_width=c.get('n_inner') or 4 * c['n_embd'],
    num_layers=c['n_layer'],
    num_heads=c['n_head'],
    num_kv_heads=c['n_head'],
    head_dim=head_dim,
    context_length=c['n_positions'],
    norm_eps=c['layer_norm_epsilon'],
    tied=bool(c.get('tie_word_embeddings')),
    activation=_ACTIVATIONS[c['activation_function']],
    rotary_dim=(c.get('rotary_dim') or head_dim) if gptj else 0,
    rope_interleaved=gptj,
    positions=not gptj,
    parallel=gptj,
    fused_qkv=not gptj,
    qkv_bias=not gptj,
    out_bias=not gptj,
    mlp_bias=True,
    head_bias=gptj,
  )
