"""Each table against the published evaluation it is named after, from scratch.

The published code encodes prompt and target as one text, runs whole rows and
looks at their ends; jedit joins ids and runs a prompt once.
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from jedit import answers, evaluate, generate, metrics, speech, writing
from jedit.models import transformer
from jedit.records import Probe, Request
from tests import tiny
from tests.prompts_test import tokenizer

_WORDS = 'Paris', 'Marie', 'France', 'the chemist', 'a city', 'Rome'
_KINDS = 'plain', 'bos'


@functools.cache
def models():
  """(model, params before, params after); likely to say one of the words."""
  config = dataclasses.replace(
    tiny.CONFIGS['llama'], vocab_size=340, context_length=256
  )
  model, before = transformer.build(config), None
  out = []
  for seed in 0, 3:
    params = model.init(jax.random.key(seed))
    kernel = 0.3 * np.array(params['head']['kernel'])
    tok = tokenizer('plain')  # of both the ids are the same
    likely = {i for word in _WORDS[:4] for i in tok(' ' + word).input_ids}
    kernel[:, sorted(likely)] *= 9
    out.append({**params, 'head': {'kernel': kernel}})
  before, other = out
  mix = lambda a, b: 0.9 * a + 0.1 * b
  return model, before, jax.tree.map(mix, before, other)


def stream(kind):
  """Requests of all layouts' parts, some without some of them."""
  rng = np.random.default_rng(0)
  now = Published(kind, models()[2])

  def answer(*prompts):
    """A word, or what the edited model says to one of the prompts."""
    if prompts and rng.random() < 0.7:
      logits, _ = now.logits(str(rng.choice(prompts)))
      said = now.tok.decode([logits[-1].argmax()])
      if said[:1] == ' ' and said.strip():
        return said.strip()
    return str(rng.choice(_WORDS))

  for i in range(64):
    place, prompt = f'city {i}', 'The capital of {} is'
    others = [f'{place} has {w}, namely' for w in ('this', 'that')[: i % 3]]
    beside = [f'In {n}, {place} is' for n in range(i % 4)]
    stays, follows = f'The name of {i} is', f'Who was in {place}?'
    target = answer(prompt.format(place), *others)
    probes = (
      Probe('locality', stays, (answer(stays), answer())),
      Probe('portability', follows, (answer(follows),)),
    )
    yield Request(
      str(i), prompt, place, target, answer(*beside), None, tuple(others),
      tuple(beside), (f'{place} is a city and a city {i % 2}',),
      probes[: i % 4],
    )  # fmt: skip


class Published:
  """The published evaluators' scorers on one model."""

  def __init__(self, kind, params):
    self.tok, self.params = tokenizer(kind), params
    self.start = self.tok('').input_ids

  def logits(self, text):
    ids = self.tok(text).input_ids
    padded = np.zeros(48, np.int32)
    padded[: len(ids)] = ids
    out = tiny.trace(models()[0], self.params, padded).logits
    return np.asarray(out, np.float64)[: len(ids)], ids

  def target(self, text):
    return self.tok(' ' + text).input_ids[len(self.start) :]

  def ends(self, prompt, target):
    """(log-probabilities before each target token, its ids)."""
    logits, ids = self.logits(f'{prompt} {target}')
    wanted = self.target(target)
    assert ids[-len(wanted) :] == wanted
    logits = logits[-len(wanted) - 1 : -1]
    total = np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits - total, wanted

  def nll(self, prompt, target):
    """MEMIT's test_batch_prediction."""
    logs, wanted = self.ends(prompt, target)
    return -np.mean([row[i] for row, i in zip(logs, wanted, strict=True)])

  def argmax(self, prompt, target):
    logs, wanted = self.ends(prompt, target)
    return logs.argmax(-1) == wanted

  def grown(self, prompt, target):
    """zsRE's in MEMIT's and AlphaEdit's code: a text for each target token."""
    wanted = self.target(target)
    for i, token in enumerate(wanted):
      logits, _ = self.logits(f'{prompt}{self.tok.decode(wanted[:i])}')
      again = self.tok(self.tok.decode([token])).input_ids[len(self.start) :]
      yield logits[-1].argmax() == again[0]

  def speaks(self, prompt, length=1):
    """What a whole pass a token says."""
    row = self.tok(prompt).input_ids
    start = len(row)
    for _ in range(length):
      padded = np.zeros(48, np.int32)
      padded[: len(row)] = row
      logits = tiny.trace(models()[0], self.params, padded).logits
      row.append(int(logits[len(row) - 1].argmax()))
      if row[-1] == self.tok.eos_token_id:
        return self.tok.decode(row[start:-1])
    return self.tok.decode(row[start:])

  def says(self, prompt, target):
    return self.ends(prompt, target)[0].argmax(-1)


def mean(values):
  """In percent; NaN of nothing."""
  values = [np.mean(v) for v in values]
  return 100 * np.mean(values) if values else np.nan


def own(request, kind):
  return [p for p in request.probes if p.kind == kind]


def memit(r, now, _):
  likelier = lambda prompt, a, b: now.nll(prompt, a) < now.nll(prompt, b)
  new, old = r.target, r.old_target
  return [
    mean([likelier(r.text, new, old)]),
    mean(likelier(p, new, old) for p in r.paraphrases),
    mean(likelier(p, old, new) for p in r.neighbours),
  ]


def ours(r, now, before):
  strict = lambda prompt, answer: now.argmax(prompt, answer).all()
  return [
    mean([strict(r.text, r.target)]),
    mean(strict(p, r.target) for p in r.paraphrases),
    mean(strict(p, r.old_target) for p in r.neighbours),
    mean(same(p, now, before) for p in own(r, 'locality')),
    mean(strict(p.prompt, p.answers[0]) for p in own(r, 'portability')),
    mean([not strict(r.denial, r.target)]),
  ]


def same(probe, now, before):
  ask = probe.prompt, probe.answers[0]
  return now.says(*ask) == before.says(*ask)


def alphaedit(r, now, _):
  token = lambda prompt, answer: list(now.grown(prompt, answer))
  return [
    mean([token(r.text, r.target)]),
    mean(token(p, r.target) for p in r.paraphrases),
    mean(token(p.prompt, p.answers[0]) for p in own(r, 'locality')),
  ]


def alphaedit_plus(r, now, _):
  token = lambda prompt: list(now.grown(prompt, r.target))
  return [
    mean([token(r.text)]),
    mean(token(p) for p in r.paraphrases),
    mean(now.argmax(p, r.old_target).all() for p in r.neighbours),
  ]


def easyedit(r, now, before):
  token = lambda prompt, answer: now.argmax(prompt, answer)
  beside = [Probe('', p, (r.old_target,)) for p in r.neighbours]
  return [
    mean([token(r.text, r.target)]),
    mean(token(p, r.target) for p in r.paraphrases),
    mean(same(p, now, before) for p in own(r, 'locality') + beside),
    mean(token(p.prompt, p.answers[0]) for p in own(r, 'portability')),
  ]


def spoken(right):
  """The answers themselves, greedy and from scratch, by a rule of ours."""

  def rule(r, now, _):
    said = lambda prompt, *answers: right(now.speaks(prompt), answers)
    return [
      mean([said(r.text, r.target)]),
      mean(said(p, r.target) for p in r.paraphrases),
      mean(said(p, r.old_target) for p in r.neighbours),
      *(
        mean(said(p.prompt, *p.answers) for p in own(r, kind))
        for kind in ('locality', 'portability')
      ),
    ]

  return rule


def written(r, now, _):
  return [100 * np.mean([answers.entropy(t) for t in r.openings]), 25.0]


_PUBLISHED = {
  'memit-2022-text': written,
  'wild-2025': spoken(answers.exact),
  'jedit-spoken': spoken(answers.contains),
  'memit-2022': memit,
  'jedit': ours,
  'alphaedit-2025': alphaedit,
  'alphaedit-plus-2026': alphaedit_plus,
  'easyedit-token': easyedit,
}


@pytest.mark.parametrize('kind', _KINDS)
def test_tables_are_the_published_evaluations(kind):
  model, *params = models()
  requests = list(stream(kind))
  everyone = range(len(requests))
  probe = evaluate.probe(tokenizer(kind), requests, openings=everyone)
  before, after = (
    evaluate.score(model, p, probe.questions, rows=16) for p in params
  )
  q, opens = probe.questions, metrics.ASKED.index('opening')
  ids = [
    row[:n].tolist() for row, n in zip(q.prompt, q.prompt_len, strict=True)
  ]
  said = speech.speak(model, params[1], tokenizer(kind), ids, length=1)
  said = {
    i: requests[r].openings[0] if k == opens else text
    for i, (r, k, text) in enumerate(
      zip(probe.record, probe.kind, said, strict=True)
    )
  }
  rest = dict.fromkeys(np.flatnonzero(probe.kind == opens).tolist(), 0.25)
  found = evaluate.by_record(
    after, probe, before.guess, said=said, consistency=rest
  )
  assert found.keys() == metrics.TABLES.keys() == {*_PUBLISHED, 'jedit-long'}
  assert np.isnan(found['jedit-long']).all()  # no answer here is long
  then, now = (Published(kind, p) for p in params)
  for name, rule in _PUBLISHED.items():
    want = np.array([rule(r, now, then) for r in requests])
    np.testing.assert_allclose(found[name], want, atol=1e-6, err_msg=name)
    assert len(set(want[:, 0])) > 1  # a test of something
    table = metrics.summary(found)[name]
    means = np.nanmean(want, axis=0)
    names = [m.name for m in metrics.TABLES[name].metrics]
    for key, value in zip(names, means, strict=True):
      assert table[key] == pytest.approx(value, abs=1e-6)
    if name == 'memit-2022':
      assert table['score'] == pytest.approx(3 / sum(1 / means))
    elif metrics.TABLES[name].mean:
      assert table['score'] == pytest.approx(means[:3].mean())


@pytest.mark.parametrize('kind', _KINDS)
def test_padding_rows_and_order_change_no_score(kind):
  """Beyond 1e-5 in a -log p, and no measure at all."""
  model, params, _ = models()
  requests = list(stream(kind))
  probe = evaluate.probe(tokenizer(kind), requests)
  whole = evaluate.score(model, params, probe.questions, rows=128)
  few = evaluate.score(model, params, probe.questions, rows=5)
  q = probe.questions
  wider = q._replace(
    prompt=np.pad(q.prompt, ((0, 0), (0, 9))),
    target=np.pad(q.target, ((0, 0), (0, 0), (0, 3))),
  )
  wide = evaluate.score(model, params, wider, rows=7)
  order = np.random.default_rng(0).permutation(len(q.prompt_len))
  other = evaluate.score(model, params, type(q)(*(a[order] for a in q)), rows=9)
  back = np.argsort(order)
  for scores in few, wide, other._replace(nll=other.nll[back]):
    np.testing.assert_allclose(scores.nll, whole.nll, atol=1e-5)
  np.testing.assert_array_equal(few.correct, whole.correct)
  np.testing.assert_array_equal(wide.correct, whole.correct)
  np.testing.assert_array_equal(other.correct[back], whole.correct)


def test_free_texts_have_their_openings():
  model, params, _ = models()
  tok = tokenizer('bos')
  requests = list(stream('bos'))[:6]
  asked = evaluate.probe(tok, requests, openings={1, 2})
  done = []
  said = speech.of_probe(model, params, tok, asked, done.append)
  opens = asked.kind == metrics.ASKED.index('opening')
  assert opens.sum() == 2 and done[-1] == len(said) == len(opens)
  q = asked.questions
  assert set(speech.lengths(q)) == {32}
  for i, text in enumerate(said):
    ids = q.prompt[i, : q.prompt_len[i]].tolist()
    if opens[i]:
      assert text.startswith(tok.decode(ids, skip_special_tokens=True))
    else:
      [want] = speech.speak(model, params, tok, [ids])
      assert text == want
  assert speech.of_probe(model, params, tok, asked) == said


def test_what_is_written_goes_on_through_an_end_of_text():
  """MEMIT's generator has no stop; n-gram entropy grows with the length."""
  model, params, _ = models()
  tok = tokenizer('bos')
  bias = {**params, 'head': {'kernel': np.array(params['head']['kernel'])}}
  bias['head']['kernel'][:, tok.eos_token_id] *= -9
  ids = [tok('The city').input_ids, tok('In Rome, Marie').input_ids]
  said = speech.write(model, bias, tok, ids, rows=1)
  assert tok.eos_token not in ''.join(said)
  for text, opening in zip(said, ('The city', 'In Rome, Marie'), strict=True):
    assert text.startswith(opening) and '\n\n' not in text
  ends = writing.extended(
    model, bias, ids, 40, generate.Sampling(top_k=5), seed=0
  )
  on = lambda row: list(itertools.pairwise(i == tok.eos_token_id for i in row))
  assert all((True, False) in on(row) for row in ends)


class _Sentences:
  """Decodes as SentencePiece does: no space at the beginning of a text."""

  def decode(self, ids, **_):
    return ''.join(' is Paris'[3 * i : 3 * i + 3] for i in ids).lstrip(' ')


def test_what_follows_keeps_the_space_before_it():
  tok = _Sentences()
  assert tok.decode([1, 2]) == 'Paris'
  assert writing._behind(tok, [0], [1, 2]) == ' Paris'


def test_a_long_answer_is_measured_by_its_words():
  """It has the tokens of the right one to be said in, a phrase has 32."""
  model, params, _ = models()
  tok, long = tokenizer('bos'), ' '.join(['Rome is a city in France'] * 8)
  stream = [
    Request('1', 'Tell me of {}', 'Rome', long, paraphrases=('What is Rome?',)),
    Request('2', 'The capital of {} is', 'city 1', 'Rome'),
  ]
  asked = evaluate.probe(tok, stream)
  size = len(tok(' ' + long, add_special_tokens=False).input_ids)
  assert size > metrics.PHRASE and asked.long == {0}
  room = speech.lengths(asked.questions)
  assert size <= room[0] == room[1] < size + metrics.PHRASE
  first = asked.record == 1
  assert (room[first] == metrics.PHRASE).all()
  said = speech.of_probe(model, params, tok, asked)
  assert len(tok(said[0], add_special_tokens=False).input_ids) > metrics.PHRASE
  half = ' '.join(['Rome is a city in France'] * 4)
  said = dict.fromkeys(range(len(said)), half) | {1: long}
  scores = evaluate.score(model, params, asked.questions)
  found = evaluate.by_record(scores, asked, said=said)['jedit-long']
  np.testing.assert_allclose(found[0], [50, 100, np.nan])
  assert np.isnan(found[1]).all()
