"""What a model writes itself: continuations, contexts and documents."""

from collections.abc import Callable

import jax
import numpy as np

from jedit import sharding
from jedit.generate import Sampling, generate, padded
from jedit.models.transformer import Model
from jedit.tokens import encoded, start_ids
from jedit.types import JeditError, Params


def complete(
  model: Model,
  params: Params,
  tokenizer,
  texts: list[str],
  length: int,
  how: Sampling = Sampling(),
  seed: int = 0,
) -> list[str]:
  """Continuations of texts, as texts; cut at the end-of-text token."""
  bos = start_ids(tokenizer)
  ids = [encoded(tokenizer, t, bos) for t in texts]
  return continued(model, params, tokenizer, ids, length, how, seed)


def continued(
  model: Model,
  params: Params,
  tokenizer,
  ids: list[list[int]],
  length: int,
  how: Sampling = Sampling(),
  seed: int = 0,
) -> list[str]:
  """`complete` for texts that are encoded already."""
  end = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
  out = extended(model, params, ids, length, how, seed, end)
  said = []
  marks = set(special_ids(tokenizer).tolist())  # a base model's end, too
  for before, row in zip(ids, out, strict=True):
    size = next((i for i, t in enumerate(row) if t in marks), len(row))
    said.append(_behind(tokenizer, before, row[:size]))
  return said


def extended(
  model: Model,
  params: Params,
  ids: list[list[int]],
  length: int,
  how: Sampling = Sampling(),
  seed: int = 0,
  stop: int = -1,
) -> list[list[int]]:
  """The `length` ids that follow each text's; all `stop` behind a first one."""
  prompt, sizes = padded(ids)
  key = jax.random.key(seed)
  out = generate(model, params, prompt, sizes, length, key, how, stop=stop)
  return sharding.fetch(out)[: len(ids)].tolist()


def _behind(tokenizer, before: list[int], more: list[int]) -> str:
  """`more` as it reads behind `before`.

  By itself SentencePiece's decoder takes the space off a text's beginning.
  """
  head, whole = (tokenizer.decode(i) for i in (before, [*before, *more]))
  if not whole.startswith(head):
    return tokenizer.decode(more)
  return whole[len(head) :]


CONTEXT_TOKENS = 10


def contexts(
  model: Model,
  params: Params,
  tokenizer,
  seed: int,
  length: int = CONTEXT_TOKENS,
) -> list[list[int]]:
  """Five short texts by the model itself, as ids, that go before prompts.

  MEMIT's: "The", "Therefore", "Because", "I", "You", continued to `length`
  tokens (BOS counted) by top-5 sampling; here seeded, without special tokens.
  """
  starts = ['The', 'Therefore', 'Because', 'I', 'You']
  bos = start_ids(tokenizer)
  ids = [tokenizer(s, add_special_tokens=False).input_ids for s in starts]
  prompt, sizes = padded([bos + i for i in ids])
  out = generate(
    model,
    params,
    prompt,
    sizes,
    length - len(bos) - 1,
    jax.random.key(seed),
    Sampling(top_k=5),
    special_ids(tokenizer),
  )
  return [
    (i + o.tolist())[: length - len(bos)]
    for i, o in zip(ids, sharding.fetch(out), strict=True)
  ]


def special_ids(tokenizer) -> np.ndarray:
  """Ids that are no text (BOS, EOS, chat marks)."""
  return np.array(sorted(set(tokenizer.all_special_ids)), np.int32)


def documents(
  model: Model,
  params: Params,
  tokenizer,
  tokens: int,
  length: int,
  seed: int,
  start: str = '',
  progress: Callable[[int], None] = lambda done: None,
  rows: int = 128,
) -> list[list[int]]:
  """Texts the model writes itself, as ids: a corpus without a corpus.

  Args:
    model: the network.
    params: unsplit params.
    tokenizer: its tokenizer.
    tokens: how many in all, rounded up to whole texts.
    length: tokens a text.
    seed: of the sampling (temperature 1, the whole distribution).
    start: the token a text begins after; '' is BOS, or else EOS.
    progress: called with the tokens written so far.
    rows: texts written together.
  """
  first = start or tokenizer.bos_token or tokenizer.eos_token
  if first not in tokenizer.get_vocab():
    raise JeditError(
      f'self_text_start={start!r}: name a token of this tokenizer, after which '
      'the model begins to write'
    )
  begin = tokenizer.convert_tokens_to_ids(first)
  prompt, one = np.full((rows, 1), begin, np.int32), np.ones(rows, np.int32)
  count = -(-tokens // length)
  banned, everything = special_ids(tokenizer), Sampling(top_k=0)
  out: list[list[int]] = []
  while len(out) < count:
    key = jax.random.fold_in(jax.random.key(seed), len(out))
    text = generate(model, params, prompt, one, length, key, everything, banned)
    out += sharding.fetch(text).tolist()
    progress(min(len(out), count) * length)
  return out[:count]
