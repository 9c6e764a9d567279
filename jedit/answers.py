"""What a model has said, in words: is it right, and is it still language?"""

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from nltk.tokenize import NLTKWordTokenizer
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer


def normal(text: str) -> str:
  """Lower case, without punctuation, articles and double spaces (SQuAD's)."""
  kept = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', kept).split())


# Scripts without spaces between words: each character is taken as one.
_ALONE = '\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff'


def words(text: str) -> list[str]:
  """Words as ROUGE has them, but of any script."""
  return re.findall(rf'[{_ALONE}]|[^\W_{_ALONE}]+', text.lower())


class _Words(Tokenizer):
  def tokenize(self, text):
    return words(text)


def _apart(text: str) -> str:
  return ' '.join(re.sub(f'([{_ALONE}])', r' \1 ', normal(text)).split())


def _lines(text: str) -> list[str]:
  return [line.strip() for line in text.splitlines() if line.strip()]


def _begin(said: str, answer: str) -> str:
  """The first line, or as many as the answer has."""
  return ' '.join(_lines(said)[: len(_lines(answer))])


def _has_words(answer: str) -> bool:
  """Not "(A)", which is the letter of an option, nor "+", nor "A" alone."""
  letter = re.fullmatch(r'\([A-Za-z]\)', answer.strip())
  return bool(normal(answer)) and not letter


def _minus(text: str) -> str:
  """Minus signs as letters, that `normal` keeps; a hyphen is none."""
  return re.sub(r'(?<!\w)[-\u2212](?=\d)', 'minus', text)


def contains(said: str, answers: Sequence[str]) -> bool:
  """Whether an answer is among the words of the first line.

  Of as many lines as the answer has, that is. An answer without a word of its
  own, like "(B)", is looked for as it is; 80 is not -80.
  """

  def has(answer):
    begin = _begin(said, answer)
    if not _has_words(answer):
      alone = rf'(?<!\w){re.escape(answer.strip())}(?!\w)'
      return bool(re.search(alone, begin))
    answer, begin = (_apart(_minus(text)) for text in (answer, begin))
    return f' {answer} ' in f' {begin} '

  return any(has(a) for a in answers if a.strip())


def exact(said: str, answers: Sequence[str]) -> bool:
  """Whether the first line, or as many as an answer has, is that answer."""

  def same(answer):
    begin = _begin(said, answer)
    if not _has_words(answer):
      return begin in (answer.strip(), f'{answer.strip()}.')
    return normal(begin) == normal(answer)

  return any(same(a) for a in answers if a.strip())


def settled(said: str, answers: Sequence[str]) -> bool:
  """`contains`; an answer of signs alone must be all of the first line."""
  signs = [a for a in answers if not re.search(r'\w', a)]
  same = lambda a: ''.join(_begin(said, a).split()) == ''.join(a.split())
  rest = [a for a in answers if a not in signs]
  return any(map(same, signs)) or contains(said, rest)


def recall(said: str, answers: Sequence[str]) -> float:
  """ROUGE-L recall: of an answer's words, those said in its order, at best."""
  scorer = RougeScorer(['rougeL'], tokenizer=_Words())
  return max(scorer.score(a, said)['rougeL'].recall for a in answers)


def last_number(said: str, answers: Sequence[str]) -> bool:
  """Whether the last number before a next question is the answer."""
  found = re.findall(
    r'(?<!\d)-?\d[\d,]*(?:\.\d+)?', said.partition('Question:')[0]
  )
  value = lambda text: float(text.replace(',', ''))
  return bool(found) and value(found[-1]) == value(answers[0])


def entropy(text: str) -> float:
  """Fluency: a third of the entropy of word pairs, two of word triples, bits.

  MEMIT's n-gram entropy (x 100 in tables) with NLTK's word tokenizer; a text
  that repeats itself has little.
  """
  words = [
    word
    for sentence in re.split(r'(?<=[.!?])\s+', text)
    for word in NLTKWordTokenizer().tokenize(sentence)
  ]

  def bits(n):
    times = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = times.total()
    return -sum(t / total * math.log2(t / total) for t in times.values())

  return bits(2) / 3 + 2 * bits(3) / 3
