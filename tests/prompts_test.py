"""Rows of token ids: what they spell, where they are cut, what is scored."""

import functools

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
  decoders,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from jedit import prompts, questions, tokens
from jedit.records import Request
from jedit.types import JeditError

_TEXT = [
  'The capital of France is Paris, and the capital of Italy is Rome.',
  "France's capital is a large city. Marie Curie was a chemist in Paris.",
  'Marie Curie is a name. Question: who? Answer: the chemist. It is a city.',
] * 3
_CHAT = (
  "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
  '[assistant] '
)
_CONTEXTS = ['It is', 'The chemist was in Rome', 'a']
_KINDS = 'plain', 'bos', 'merged'


@functools.cache
def tokenizer(kind):
  """Byte-level BPE: without BOS, with BOS, or with tokens across words."""
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=kind != 'merged'
  )
  bpe.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=340 if kind == 'merged' else 320,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  text = ["Marie Curie's"] * 9 if kind == 'merged' else _TEXT
  bpe.train_from_iterator(text, trainer)
  if kind == 'bos':
    bpe.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', bpe.token_to_id('<s>'))]
    )
  out = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bpe, bos_token='<s>', eos_token='</s>'
  )
  out.chat_template = ('<s>' if kind == 'bos' else '') + _CHAT
  return out


def spell(text):
  """Text as byte-level characters, one a byte."""
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return ''.join(piece for piece, _ in level.pre_tokenize_str(text))


def row(batch, tok, at):
  """(text to the lookup token, of it, of the rest; label ids) of a row."""
  n, _, r = at
  head = batch.prefix[n, r][: batch.prefix_len[n, r]].tolist()
  head += batch.head[at][: batch.head_len[at]].tolist()
  tail = batch.tail[at][: batch.tail_len[at]].tolist()
  if at[2] == 0 or tok('').input_ids:
    start = tok('').input_ids
    assert (head + tail)[: len(start)] == start
    head, tail = head[len(start) :], tail[max(len(start) - len(head), 0) :]
  read = lambda ids: ''.join(tok.convert_ids_to_tokens(ids))
  return read(head), read(tail[:1]), read(tail[1:]), batch.label[at]


def check_rows(tok, request, rendering='raw', text=None):
  """Every row of one request spells its text and is cut at the subject."""
  contexts = [tok(c, add_special_tokens=False).input_ids for c in _CONTEXTS]
  batch = prompts.edit_batches(tok, [[request]], contexts, 1, rendering)
  assert batch.head.shape[:3] == (1, 1, len(contexts) + 2)
  text = text or request.text
  gap = '' if rendering == 'chat' else ' '
  target = tokens.target_ids(tok, request.target, rendering)
  assert ''.join(tok.convert_ids_to_tokens(target)) == spell(
    gap + request.target
  )
  last = ''.join(tok.convert_ids_to_tokens(target[-1:]))
  for r, before in enumerate(['', *(f'{c}. ' for c in _CONTEXTS)]):
    head, lookup, rest, label = row(batch, tok, (0, 0, r))
    whole = spell(before + text + gap + request.target)
    assert head + lookup + rest + last == whole
    filled = before + text[: text.rindex(request.text)] + request.prompt
    end = len(spell(filled[: filled.rindex('{}')] + request.subject))
    assert len(head) < end <= len(head + lookup)
    assert label[label >= 0].tolist() == target
    scored = np.flatnonzero(label >= 0)
    length = batch.tail_len[0, 0, r]  # the target's tokens come last
    np.testing.assert_array_equal(
      scored, np.arange(length - len(target), length)
    )
    ids = batch.tail[0, 0, r]
    np.testing.assert_array_equal(ids[scored[1:]], target[:-1])
    assert not ids[length:].any()
    assert not batch.head[0, 0, r][batch.head_len[0, 0, r] :].any()
  head, lookup, rest, label = row(batch, tok, (0, 0, len(contexts) + 1))
  subject = spell(request.subject)
  assert not rest and (label == -1).all()  # the KL row ends at the lookup
  assert (head + lookup).startswith(subject) and len(head) < len(subject)
  assert batch.tail_len[0, 0, -1] == 1


@pytest.mark.parametrize('kind', _KINDS)
@pytest.mark.parametrize('prompt, subject', [
  ('The capital of {} is', 'France'),
  ('{} was a', 'Marie Curie'),
  ('Who was {}', 'Marie Curie'),
  ("What was {}'s capital? It is", 'France'),
  ("In {}'s", 'Marie Curie'),
  ('In {}, (the city)', 'Ōsaka 大阪'),
  ('The name {}…', '🙂'),
  ('a {}', 'a'),
  ('Curie, Marie Curie: {} is', 'Curie'),
])  # fmt: skip
@pytest.mark.parametrize('target', ['Rome', 'a chemist in Zürich'])
def test_rows(kind, prompt, subject, target):
  check_rows(tokenizer(kind), Request('0', prompt, subject, target))


def test_a_token_may_reach_past_the_subject():
  tok = tokenizer('merged')
  request = Request('0', "In {}'s", 'Marie Curie', 'Rome')
  batch = prompts.edit_batches(tok, [[request]], [], 1)
  _, lookup, _, _ = row(batch, tok, (0, 0, 0))
  assert lookup.endswith("'s") and len(lookup) > 2  # or this tests nothing
  check_rows(tok, request)


@pytest.mark.parametrize('kind', ['plain', 'bos'])
@given(
  before=st.text(max_size=12), after=st.text(max_size=12),
  subject=st.text(min_size=1, max_size=9), target=st.text('aRŌ大 ', min_size=1),
)  # fmt: skip
def test_any_text(kind, before, after, subject, target):
  subject, target = subject.strip() or 'x', target.strip() or 'y'
  before, after = before.replace('{}', ''), after.replace('{}', '')
  request = Request('0', f'{before}{{}}{after}'.strip(), subject, target)
  check_rows(tokenizer(kind), request)


@pytest.mark.parametrize('prompt, subject', [
  ('{}? The capital of France is', 'France'),
  ('{} speaks Iranian', 'Iran'),
  ('a {} a', 'a'),
])  # fmt: skip
def test_the_subject_counts_where_the_prompt_puts_it(prompt, subject):
  check_rows(tokenizer('plain'), Request('0', prompt, subject, 'Rome'))


@pytest.mark.parametrize('kind', ['plain', 'bos'])
@pytest.mark.parametrize('rendering, text', [
  ('qa', 'Question: The capital of France is\nAnswer:'),
  ('chat', '[user] The capital of France is\n[assistant] '),
])  # fmt: skip
def test_renderings(kind, rendering, text):
  tok = tokenizer(kind)
  request = Request('0', 'The capital of {} is', 'France', 'Rome')
  assert tokens.render(tok, request.text, 'raw') == request.text
  got = tokens.render(tok, request.text, rendering)
  assert got.removeprefix('<s>') == text
  batch = prompts.edit_batches(tok, [[request]], [], 1, rendering)
  head, lookup, rest, label = row(batch, tok, (0, 0, 0))
  assert (head + lookup).endswith('France'[-len(lookup) :])
  target = tokens.target_ids(tok, 'Rome', rendering)
  assert label[label >= 0].tolist() == target
  last = ''.join(tok.convert_ids_to_tokens(target[-1:]))
  gap = '' if rendering == 'chat' else ' '
  assert head + lookup + rest + last == spell(text + gap + 'Rome')
  check_rows(tok, request, rendering, text)
  rows = prompts.edit_batches(tok, [[request]], [[5]], 1, rendering)
  head, lookup, rest, _ = row(rows, tok, (0, 0, 1))
  assert '<s>' not in head + lookup + rest  # but once, before the context


@pytest.mark.parametrize('kind', ['plain', 'bos'])
@pytest.mark.parametrize('rendering', ['raw', 'qa', 'chat'])
@pytest.mark.parametrize('subject', [None, 'France'])
def test_lookup_at_the_last_token(kind, rendering, subject):
  tok = tokenizer(kind)
  prompt = f'The capital of {"{}" if subject else "France"} is'
  request = Request('0', prompt, subject, 'a city')
  batch = prompts.edit_batches(
    tok, [[request]], [[5]], 1, rendering, lookup='last'
  )
  text = spell(tokens.render(tok, request.text, rendering).removeprefix('<s>'))
  context = ''.join(tok.convert_ids_to_tokens([5])) + spell('. ')
  target = tokens.target_ids(tok, 'a city', rendering)
  for r in range(2):
    head, lookup, rest, label = row(batch, tok, (0, 0, r))
    assert (head + lookup).replace('<s>', '') == context * r + text
    assert len(lookup) <= len('[assistant] ')
    assert ''.join(tok.convert_ids_to_tokens(target[:-1])) == rest
    assert label[: len(target)].tolist() == target
  if subject is None:
    assert batch.tail_len[0, 0, 2] == batch.head_len[0, 0, 2] == 0
  else:
    head, lookup, rest, _ = row(batch, tok, (0, 0, 2))
    assert head + lookup == spell('France is a') and not rest
    assert head != spell('France is a') and batch.tail_len[0, 0, 2] == 1
  assert (batch.label[0, 0, 2] == -1).all()


def test_start_ids():
  assert tokens.start_ids(tokenizer('plain')) == []
  bos = tokenizer('bos')
  assert tokens.start_ids(bos) == [bos.bos_token_id]
  for around, want in ('<s> $A </s>', [0]), ('$A </s>', []):
    other = tokenizers.Tokenizer.from_str(bos.backend_tokenizer.to_str())
    other.post_processor = processors.TemplateProcessing(
      single=around, special_tokens=[('<s>', 0), ('</s>', 1)]
    )
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=other)
    assert tokens.start_ids(other) == want


@pytest.mark.parametrize('kind', _KINDS)
def test_target_ids(kind):
  tok = tokenizer(kind)
  ids = tokens.target_ids(tok, 'Rome')
  assert ids == tokens.target_ids(tok, '  Rome ') and tok.decode(ids) == ' Rome'
  assert tok.decode(tokens.target_ids(tok, 'Rome', 'chat')) == 'Rome'


def test_a_batch_has_room_for_its_requests():
  request = Request('0', 'The capital of {} is', 'France', 'Rome')
  with pytest.raises(JeditError, match='batch_size=1: a batch has 2 requests'):
    prompts.edit_batches(tokenizer('plain'), [[request] * 2], [[5]], 1)


def test_batches_are_padded_with_inert_requests():
  tok = tokenizer('bos')
  make = lambda i, s: Request(str(i), 'The capital of {} is', s, 'a long city')
  requests = [make(i, s) for i, s in enumerate(['France', 'Marie', 'Rome'])]
  batch = prompts.edit_batches(tok, [requests[:2], requests[2:]], [[5]], 3)
  assert batch.head.shape[:3] == (2, 3, 3) == batch.tail.shape[:3]
  np.testing.assert_array_equal(batch.valid, [[1, 1, 0], [1, 0, 0]])
  assert batch.valid.dtype == bool
  empty = ~batch.valid
  for name in ('head', 'tail', 'head_len', 'tail_len'):
    assert getattr(batch, name).dtype == np.int32
    assert not getattr(batch, name)[empty].any()
  assert (batch.label[empty] == -1).all() and batch.label.dtype == np.int32
  alone = prompts.edit_batches(tok, [requests[2:]], [[5]], 1)
  for name in ('head_len', 'tail_len'):  # what shares a batch changes nothing
    np.testing.assert_array_equal(
      getattr(batch, name)[1, 0], getattr(alone, name)[0, 0]
    )
  text = lambda b, n: [row(b, tok, (n, 0, r))[:3] for r in (0, 2)]
  assert text(batch, 1) == text(alone, 0)


def spelled(batch, tok, at):
  """(text, scored target ids) of a row."""
  head, lookup, rest, label = row(batch, tok, at)
  return head + lookup + rest, label[label >= 0].tolist()


def test_validation_rows():
  """Held-out contexts written out, or the plain prompt and paraphrases."""
  tok = tokenizer('bos')
  request = Request(
    '0', '{} was a', 'Marie Curie', 'a chemist', paraphrases=('Who was Curie?',)
  )
  ids = [tok(c, add_special_tokens=False).input_ids for c in _CONTEXTS]
  make = lambda held: prompts.edit_batches(
    tok, [[request, request]], ids[:2], 3, validation=held
  )
  alone, _ = spelled(make(()), tok, (0, 0, 0))
  assert make(()).validation is None
  batch = make(ids[2:]).validation
  target = tokens.target_ids(tok, request.target)
  assert batch.head.shape[2] == 2 and not batch.prefix_len[:, 1].any()
  assert batch.valid.tolist() == [[True, True, False]]
  text, label = spelled(batch, tok, (0, 1, 0))
  again = prompts.edit_batches(tok, [[request]], ids[2:], 1)
  assert text == spelled(again, tok, (0, 0, 1))[0] != alone
  assert label == target
  batch = make('test_prompts').validation
  assert spelled(batch, tok, (0, 1, 0)) == (alone, target)
  text, label = spelled(batch, tok, (0, 1, 1))
  assert tok('Who was Curie?').input_ids == batch.head[0, 1, 1][
    : batch.head_len[0, 1, 1]
  ].tolist() + [batch.tail[0, 1, 1, 0]]
  assert label == target
  assert not batch.tail_len[..., -1].any()  # no KL row
  assert not batch.tail_len[0, 2].any()


@pytest.mark.parametrize('parts', [1, 4])
def test_budget_holds_every_part_of_every_batch(parts):
  tok = tokenizer('plain')
  make = lambda i: Request(
    '0', 'The capital of {} is', 'France ' * i + 'x', 'a'
  )
  batches = [[make(i) for i in range(1, 30)], [make(40)]]
  contexts = [tok('It is a city', add_special_tokens=False).input_ids] * 5
  batch = prompts.edit_batches(tok, batches, contexts, 29, parts=parts)
  assert batch.parts == parts and batch.valid.shape == (
    2,
    29 if parts == 1 else 32,
  )
  plain = (batch.head_len + batch.tail_len)[:, :, 0]
  need = batch.head_len, batch.tail_len, plain, batch.label >= 0
  for size, real in zip(batch.budget, need, strict=True):
    each = real.reshape(2 * parts, -1).sum(1)
    assert each.max() <= size // parts < each.max() + 16
    assert size % (parts * 16) == 0
    if parts > 1:  # of the first batch, as many tokens for each part
      assert np.ptp(each[:parts]) <= 0.15 * each[:parts].max()


def test_parts_hold_the_same_requests():
  tok = tokenizer('plain')
  make = lambda i: Request(str(i), 'Capital of {} is', 'France ' * i, 'a')
  batches = [[make(i) for i in (3, 1, 4, 1, 5, 9, 2)], [make(6)]]
  one, three = (
    prompts.edit_batches(tok, batches, [], 7, parts=parts) for parts in (1, 3)
  )
  assert three.valid.shape == (2, 9) and three.valid.sum() == 8
  for n in range(2):
    rows = [
      sorted(b.head[n][b.valid[n]].reshape(-1, b.head.shape[-1]).tolist())
      for b in (one, three)
    ]
    assert rows[0] == rows[1]


def test_questions():
  tok = tokenizer('bos')
  texts = 'The capital of France is', 'Who?'
  got = questions.questions(tok, texts, [['Paris', 'Rome'], ['Curie', None]])
  for q, text in enumerate(texts):
    ids = got.prompt[q, : got.prompt_len[q]]
    assert ids.tolist() == tok(text).input_ids
    assert not got.prompt[q, got.prompt_len[q] :].any()
  read = lambda q, k: tok.decode(got.target[q, k, : got.target_len[q, k]])
  assert [read(0, 0), read(0, 1), read(1, 0)] == [' Paris', ' Rome', ' Curie']
  assert got.target_len[1, 1] == 0 and not got.target[1, 1].any()
  chat = questions.questions(tok, ['Who?'], [['Curie']], 'chat')
  ids = chat.prompt[0, : chat.prompt_len[0]].tolist()
  assert tok.decode(ids) == '<s>[user] Who?\n[assistant] '  # one BOS


def ascii_only():
  """A tokenizer that has no token for anything but small letters."""
  vocab = {c: i for i, c in enumerate('abcdefghijklmnopqrstuvwxyz')}
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  bpe.normalizer = normalizers.Replace(tokenizers.Regex('[^a-z\\s]'), '')
  bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)


@pytest.mark.parametrize('request_, kwargs, words', [
  (Request('7', 'a {} is', '大阪', 'b'), {}, 'record 7: subject "大阪" has no'),
  (Request('7', 'a {} is', 'bX', 'b'), {}, 'record 7: the tok.*"bX" read "b"'),
  (Request('7', 'a {} is', 'b', '大'), {}, 'record 7: the target has no token'),
  (Request('7', 'a {} is', 'b', 'c' * 30), {'max_length': 30},
   'record 7: prompt and target have 33 tokens; the model takes 30.*shorten'),
  (Request('7', 'a {} is', 'b', 'c'), {'rendering': 'chat'},
   'rendering=chat: this tokenizer has no chat template'),
  (Request('7', 'a b is', None, 'c'), {},
   "record 7: no subject; add one, or set lookup='last'"),
  (Request('7', '大', None, 'c'), {'lookup': 'last'},
   'record 7: the prompt has no token'),
  (Request('7', 'a {} is', 'b', 'c'), {'lookup': 'first'},
   "lookup='first': choose subject or last"),
  (Request('7', 'a {} is', 'b', 'c'), {'rendering': 'prose'},
   "rendering='prose': choose raw, qa, chat"),
])  # fmt: skip
def test_errors(request_, kwargs, words):
  with pytest.raises(JeditError, match=words):
    prompts.edit_batches(ascii_only(), [[request_]], [], 1, **kwargs)


def test_usable_leaves_out_what_cannot_be_edited():
  ask = lambda id, subject, target: Request(id, 'a {} is', subject, target)
  good = [ask('1', 'b', 'c'), ask('4', 'b', 'd')]
  bad = [ask('2', '大阪', 'c'), ask('3', 'b', 'c' * 30)]
  asked = [good[0], *bad, good[1]]
  got, reasons = prompts.usable(ascii_only(), asked, 'raw', 30)
  assert got == good
  assert [r.split(':')[0] for r in reasons] == ['record 2', 'record 3']
  with pytest.raises(JeditError, match='no chat template'):
    prompts.usable(ascii_only(), asked, 'chat', 30)
  bare = Request('5', 'a b is', None, 'c')
  got, reasons = prompts.usable(ascii_only(), [bare], 'raw', 30)
  assert not got and 'record 5: no subject' in reasons[0]
  assert prompts.usable(ascii_only(), [bare], 'raw', 30, 'last')[0] == [bare]
