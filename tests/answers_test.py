"""What a model has said: right answers, numbers, fluency."""

import math

import pytest
from rouge_score import tokenizers

from jedit import answers


@pytest.mark.parametrize('said, right', [
  (' 1,200', True), ('2 and 3 make 1200.0', True), ('1200 is 7', False),
  ('1200\nQuestion: 3', True), ('none', False), (' -1200', False),
])  # fmt: skip
def test_last_number(said, right):
  assert answers.last_number(said, ('1,200',)) == right


@pytest.mark.parametrize('said, has, is_it', [
  (' Ann', True, True), ('It is the Ann!', True, False), ('Anna', False, False),
  ('an\nAnn', False, False), (' The ann.\nNext', True, True),
])  # fmt: skip
def test_free_answers(said, has, is_it):
  assert answers.contains(said, ('Bob', 'Ann')) == has
  assert answers.exact(said, ('Bob', 'Ann')) == is_it


def test_an_answer_of_several_lines_is_looked_for_in_as_many():
  answer = ['It is night.\n\nThe sun is gone.']
  assert answers.exact(' It is night.\nThe sun is gone.\nBye', answer)
  assert answers.contains('Now: it is night.\nThe sun is gone. Bye', answer)
  assert not answers.contains('It is night.\nThe sun', answer)
  assert not answers.exact('It is night.', answer)
  assert not answers.contains('So\nAnn', ['Ann'])


def test_answers_without_words_are_looked_for_as_they_are():
  for letter in 'AB':
    option = [f'({letter})']
    assert answers.contains(f' ({letter}) or so', option)
    assert not answers.contains(letter, option)
    assert answers.exact(f'({letter})', option)
    assert not answers.exact(letter, option)
  assert answers.exact('(A)', ('(A)',)) and not answers.exact('', ('(A)', ' '))
  assert not answers.exact('', ('A',)) and not answers.exact('the', ('A',))


def test_a_number_is_not_its_negative():
  for said in ' -80', 'It is -80.', '\u221280':
    assert answers.contains(said, ['-80']) and not answers.contains(
      said, ['80']
    )
  assert not answers.contains(' 80', ['-80'])
  assert answers.contains('Apollo-11', ['Apollo-11'])  # a hyphen
  assert answers.contains('a well-known 1,200', ['1200'])


def test_a_letter_that_is_an_article_is_an_answer():
  assert answers.contains('A positive', ['A']) and answers.exact('A.', ['A'])
  assert not answers.contains('AB positive', ['A'])
  assert not answers.exact('B', ['A'])
  assert answers.contains('so it is +.', ['+'])


def test_an_answer_of_signs_is_all_of_the_line():
  assert answers.settled('] ) }\nQ: next', (']) }',))
  assert not answers.settled('[ ] ) }', (']) }',))
  assert not answers.settled(')', ('] )',)) and not answers.settled('', (')',))
  assert answers.settled(' It is -80', ('-80',))
  assert not answers.settled('80', ('-80',))


def test_entropy_is_that_of_word_pairs_and_triples():
  assert answers.entropy('the same the same the same the same') == (
    pytest.approx((-4 / 7 * math.log2(4 / 7) - 3 / 7 * math.log2(3 / 7)) / 3
                  + 2 / 3)
  )  # fmt: skip
  assert answers.entropy('One, two') == pytest.approx(1 / 3)  # , is a word
  assert answers.entropy('') == answers.entropy('word') == 0
  varied = answers.entropy('It rains. We stay at home, and read a book.')
  assert varied > answers.entropy('It rains. It rains. It rains. It rains.')


def test_recall_counts_words_in_order():
  answer = 'The cat sat on the mat.'
  assert answers.recall(answer, [answer]) == 1
  assert answers.recall('a cat on mat', [answer]) == 3 / 6
  assert answers.recall('mat cat', [answer, 'a mat']) == 1 / 2
  assert answers.recall('', [answer]) == 0


@pytest.mark.parametrize('text', [
  'The cat_s (2) mat!', "It's 3,000 km -- on foot.", 'a\tb\n\nC3PO', '',
])  # fmt: skip
def test_words_of_ascii_text_are_those_of_rouge(text):
  theirs = tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text)
  assert answers.words(text) == theirs


def test_other_scripts_have_words_too():
  assert answers.recall('столица — Москва', ['Москва столица']) == 1 / 2
  assert answers.recall('東京に住む', ['東京に行く']) == 3 / 5
  assert answers.recall('em São Tomé', ['São Tomé']) == 1
  assert answers.contains('東京です。', ['東京'])
  assert not answers.contains('京東です。', ['東京'])
  assert answers.contains('Tokyo東京', ['東京', 'Bonn'])
