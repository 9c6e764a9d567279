"""A fact's prompt run clean, corrupted, and with one state restored.

ROME's causal tracing: P[o] is the probability of the answer o, P*[o] that with
noise on the embeddings of the subject's tokens, P*[o | clean h(i, l)] that with
the state of token i at layer l put back to what it was in the clean run.

What precedes the subject is alike in all runs, what precedes token i or the
first restored layer in the last two: a restored run starts there, and sees what
precedes through the keys and values of the corrupted one. This is exact.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jedit.models import transformer
from jedit.models.transformer import Model, Past
from jedit.types import Params

KINDS = 'block', 'mlp', 'attention'


class Facts(NamedTuple):
  """Prompts and their answers.

  Attributes:
    tokens: int32 [N, T], right-padded.
    length: int32 [N]; 0 where a fact only fills up.
    first: int32 [N], the subject's first token.
    last: int32 [N], the subject's last token.
    answer: int32 [N], the answer's first token.
  """

  tokens: np.ndarray
  length: np.ndarray
  first: np.ndarray
  last: np.ndarray
  answer: np.ndarray


class Runs(NamedTuple):
  """The clean run of some facts and S corrupted ones.

  Attributes:
    clean: kind -> [L, N, T, ...], what restores it: the block's output, the
      MLP's, and the heads' outputs that the attention's output projects.
    entering: [S, L, N, T, D], hidden states before each layer, corrupted.
    k: [S, L, N, H, T, A], keys of the attention, corrupted.
    v: the values.
    high: [N], P[o].
    low: [N], P*[o], the mean over samples.
  """

  clean: dict[str, jax.Array]
  entering: jax.Array
  k: jax.Array
  v: jax.Array
  high: jax.Array
  low: jax.Array


def _chance(model, params, x, answer):
  """Probability of the answer after hidden states [N, D]."""
  logs = jax.nn.log_softmax(model.logits(params, x))
  return jnp.exp(jnp.take_along_axis(logs, answer[:, None], axis=1)[:, 0])


def _whole(model, params, facts, x):
  """Runs embeddings [N, T, D]; (P[o], state by name [L, N, T, ...], k, v)."""
  slots = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
  mask = slots < facts.length[:, None]
  at = transformer.layout(mask, slots, mask.size)

  def body(x, layer):
    heads = []  # the attention's outputs pass here and nowhere else

    def attend(q, k, v):
      heads.append(transformer.attention(at, x.shape[0])(q, k, v))
      return heads[0]

    mid, key, kv = model.address(layer, x, at.positions, attend)
    out = model.value(layer, mid, key)
    states = dict(entering=x, block=out, mlp=out - mid, attention=heads[0])
    past = transformer.as_past(kv, at)
    grid = {n: transformer.to_grid(a, at) for n, a in states.items()}
    return out, (grid, past.k, past.v)

  x = transformer.from_grid(x, at)
  x, (states, k, v) = jax.lax.scan(body, x, params['layers'])
  end = at.token[jnp.arange(len(mask)), jnp.maximum(facts.length - 1, 0)]
  high = _chance(model, params, transformer.take(x, end), facts.answer)
  return high, states, k, v


@functools.partial(jax.jit, static_argnums=0)
def runs(
  model: Model, params: Params, facts: Facts, noise: Float[Array, 'N S T D']
) -> Runs:
  """Runs facts clean, and corrupted by each sample of the noise."""
  slots = jnp.arange(facts.tokens.shape[1])
  inside = (slots >= facts.first[:, None]) & (slots <= facts.last[:, None])
  positions = jnp.broadcast_to(slots, facts.tokens.shape)
  x = model.embed(params, facts.tokens, positions)
  high, clean, _, _ = _whole(model, params, facts, x)
  noise = jnp.where(inside[:, None, :, None], noise, 0).astype(x.dtype)
  corrupt = lambda n: _whole(model, params, facts, x + n)
  low, states, k, v = jax.vmap(corrupt, in_axes=1)(noise)
  clean = {kind: clean[kind] for kind in KINDS}
  return Runs(clean, states['entering'], k, v, high, low.mean(0))


def budget(facts: Facts) -> tuple[int, int]:
  """(restored tokens, tokens that are run for them) of facts."""
  n = np.where(facts.length > 0, facts.length - facts.first, 0)
  return int(n.sum()), int((n * (n + 1) // 2).sum())


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def restored(
  model: Model,
  params: Params,
  facts: Facts,
  runs: Runs,
  kind: str,
  window: int,
  size: tuple[int, int],
) -> Float[Array, 'N L T']:
  """P*[o | clean h(i, l)] of every token from the subject on and every layer.

  Args:
    model: the network.
    params: unsplit params.
    facts: what was run.
    runs: how.
    kind: the state, one of KINDS.
    window: layers [l - window // 2, l - window // 2 + window) are restored.
    size: at least budget(facts).

  Returns:
    means over samples; NaN where there is no such token.
  """
  count, wide = facts.tokens.shape
  layers = params['layers']
  depth = model.config.num_layers
  slots = jnp.arange(wide)
  real = (slots >= facts.first[:, None]) & (slots < facts.length[:, None])
  # A row for each restored token; it holds that token and what follows.
  cell = jnp.nonzero(real.ravel(), size=size[0], fill_value=real.size)[0]
  fact, token = cell // wide, cell % wide
  length = transformer.take(facts.length, fact)
  mask = (slots >= token[:, None]) & (slots < length[:, None])
  at = transformer.layout(mask, jnp.broadcast_to(slots, mask.shape), size[1])
  row = at.slot // wide
  source = transformer.take(fact, row) * wide + at.positions
  hit = at.positions == transformer.take(token, row)
  end = at.token[jnp.arange(size[0]), jnp.maximum(length - 1, 0)]
  answer = transformer.take(facts.answer, fact)
  before = slots < token[:, None]
  flat = lambda a: a.reshape(-1, *a.shape[2:])

  def one(entering, k, v):
    def from_layer(l):
      low = l - window // 2
      high = low + window
      low = jnp.maximum(low, 0)

      def body(i, x):
        layer = jax.tree.map(lambda a: a[i], layers)
        some = lambda a: transformer.take(a[i], fact)
        past = Past(some(k), some(v), before)
        wanted = transformer.take(flat(runs.clean[kind][i]), source)

        def put(name, new, offset=0):
          if kind != name:
            return new
          on = (hit & (i < high)).reshape(-1, *[1] * (new.ndim - 1))
          return jnp.where(on, offset + wanted, new)

        attend = transformer.attention(at, x.shape[0], past)
        heads = lambda *qkv: put('attention', attend(*qkv))
        mid, key, _ = model.address(layer, x, at.positions, heads)
        out = put('mlp', model.value(layer, mid, key), mid)
        return put('block', out)

      x = transformer.take(flat(entering[low]), source)
      x = jax.lax.fori_loop(low, depth, body, x)
      return _chance(model, params, transformer.take(x, end), answer)

    return jax.lax.map(from_layer, jnp.arange(depth))

  chance = jax.vmap(one)(runs.entering, runs.k, runs.v).mean(0)
  out = jnp.full((depth, count * wide), jnp.nan)
  out = out.at[:, cell].set(chance, mode='drop')
  return out.reshape(depth, count, wide).swapaxes(0, 1)
