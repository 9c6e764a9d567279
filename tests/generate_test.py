"""Generation: what is drawn, where it ends, and that rows do not interact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit import generate, writing
from jedit.generate import Sampling
from jedit.types import JeditError
from tests import tiny
from tests.prompts_test import tokenizer

_KEY = jax.random.key(0)


def prompts(count=5, wide=9):
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, wide + 1, count).astype(np.int32)
  sizes[0] = wide
  ids = rng.integers(1, tiny.VOCAB, (count, wide)).astype(np.int32)
  return ids * (np.arange(wide) < sizes[:, None]), sizes


def step_by_step(model, params, ids, size, length):
  """Greedy, a whole pass a token."""
  row = list(ids[:size])
  for _ in range(length):
    padded = np.zeros(32, np.int32)
    padded[: len(row)] = row
    logits = tiny.trace(model, params, padded).logits[len(row) - 1]
    row.append(int(jnp.argmax(logits)))
  return row[size:]


@pytest.mark.parametrize('family', ['llama', 'gpt', 'parallel'])
def test_greedy_rows_are_those_of_whole_passes(family):
  model, params = tiny.model(family)
  ids, sizes = prompts()
  got = generate.generate(model, params, ids, sizes, 7, _KEY)
  for row, text, size in zip(got, ids, sizes, strict=True):
    assert row.tolist() == step_by_step(model, params, text, size, 7)
  one = generate.generate(model, params, ids, sizes, 1, _KEY)
  np.testing.assert_array_equal(one, got[:, :1])


def test_a_row_ends_at_its_stop():
  model, params = tiny.model()
  ids, sizes = prompts()
  free = np.asarray(generate.generate(model, params, ids, sizes, 8, _KEY))
  stop = int(free[0, 3])
  got = np.asarray(
    generate.generate(model, params, ids, sizes, 8, _KEY, stop=stop)
  )
  for row, want in zip(got, free, strict=True):
    end = want.tolist().index(stop) if stop in want else 8
    np.testing.assert_array_equal(row[:end], want[:end])
    assert (row[end:] == stop).all()
  alone = generate.generate(  # the work ends with its one row
    model, params, ids[:1], sizes[:1], 8, _KEY, stop=stop
  )
  np.testing.assert_array_equal(alone, got[:1])


def test_banned_ids_are_never_said():
  model, params = tiny.model()
  ids, sizes = prompts()
  free = np.asarray(generate.generate(model, params, ids, sizes, 8, _KEY))
  banned = np.unique(free)[:3]
  for how in Sampling(), Sampling(top_k=0), Sampling(top_k=9, top_p=0.9):
    got = generate.generate(
      model, params, ids, sizes, 8, _KEY, how, banned.astype(np.int32)
    )
    assert not np.isin(got, banned).any()


def test_a_text_is_as_long_as_the_model_takes():
  model, params = tiny.model('gpt')  # whose positions are learned
  ids, sizes = prompts()
  room = model.config.context_length + 1 - int(sizes.max())
  out = generate.generate(model, params, ids, sizes, room, _KEY)
  few = generate.generate(model, params, ids, sizes, room - 1, _KEY)
  np.testing.assert_array_equal(out[:, :-1], few)
  with pytest.raises(JeditError, match='have 66, the model takes 64'):
    generate.generate(model, params, ids, sizes, room + 1, _KEY)


_CHANCE = np.array([0.4, 0.05, 0.3, 0.2, 0.04, 0.01])


@pytest.mark.parametrize('how, kept', [
  (Sampling(top_k=0), [0, 1, 2, 3, 4, 5]),
  (Sampling(top_k=3), [0, 2, 3]),
  (Sampling(top_k=50), [0, 1, 2, 3, 4, 5]),  # there are six
  (Sampling(top_k=0, top_p=0.69), [0, 2]),
  (Sampling(top_k=0, top_p=0.75), [0, 2, 3]),
  (Sampling(top_k=4, top_p=1.0, temperature=0.5), [0, 1, 2, 3]),
  (Sampling(top_k=2, top_p=0.3), [0]),
  (Sampling(top_k=1, temperature=9.0), [0]),
])  # fmt: skip
def test_what_is_drawn_how_often(how, kept):
  count = 20_000
  logits = jnp.asarray(np.tile(np.log(_CHANCE), (count, 1)))
  got = np.bincount(generate.draw(logits, _KEY, how), minlength=6) / count
  want = np.zeros(6)
  want[kept] = _CHANCE[kept] ** (1 / how.temperature)
  np.testing.assert_allclose(got, want / want.sum(), atol=0.015)
  assert (got[want == 0] == 0).all()


def test_a_seed_says_the_same_again():
  model, params = tiny.model()
  ids, sizes = prompts()
  run = lambda seed: np.asarray(
    generate.generate(
      model, params, ids, sizes, 8, jax.random.key(seed), Sampling(top_k=0)
    )
  )
  np.testing.assert_array_equal(run(1), run(1))
  assert (run(1) != run(2)).any()


def test_what_cannot_be_continued_is_refused():
  model, params = tiny.model()
  with pytest.raises(JeditError, match='a prompt without a token'):
    generate.generate(model, params, *generate.padded([[3], []]), 4, _KEY)
  with pytest.raises(JeditError, match="self_text_start='Once upon': name"):
    writing.documents(
      model, params, tokenizer('bos'), 8, 4, 0, start='Once upon'
    )
