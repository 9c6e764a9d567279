"""Data sets as they were published: how many records, which bytes, where.

Two files of one name are often not one set: KnowEdit's zsRE test set has 1,301
records at its publisher's and 1,304 in a copy, MQuAKE-CF-3k a second version.
A sha256 was found in two public places or more that do not know of each other,
those of known_1000.json and test_cf.json also computed from the records
(tests/editions_test.py). Three are of one place each: attribute_snippets.json's
of the pointer to a large file, MQuAKE-T's and recent_test.json's of lists of
what was fetched.
"""

from typing import NamedTuple

_BAULAB = 'https://rome.baulab.info/data/dsets/'
_MQUAKE = 'https://github.com/princeton-nlp/MQuAKE, datasets/'
_KNOWEDIT = 'hub:zjunlp/KnowEdit/benchmark/'


class Edition(NamedTuple):
  """A published file.

  Attributes:
    name: of the set.
    records: how many, 0 where they are not counted.
    sha256: of its bytes.
    source: where its publishers keep it; hub: is a path that jedit opens.
  """

  name: str
  records: int
  sha256: str
  source: str

  @property
  def file(self) -> str:
    return self.source.rpartition('/')[2]


PUBLISHED = (
  Edition(
    'CounterFact',
    21_919,
    'd017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f',
    _BAULAB + 'counterfact.json',
  ),
  Edition(
    'zsRE, as MEND evaluates',
    19_086,
    '8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd',
    _BAULAB + 'zsre_mend_eval.json',
  ),
  Edition(
    'zsRE, as MEND trains',
    163_196,
    '4f3ac245e9c0baaf633f9e6cb765ffa8e83d594a74520a6cc3539497328c0722',
    _BAULAB + 'zsre_mend_train.json',
  ),
  Edition(
    "ROME's known facts",
    1_209,
    '61daca55318bb5260c1e62e133debef9102c7b278bbc7b19dd2ac655543f333a',
    _BAULAB + 'known_1000.json',
  ),
  Edition(
    'attribute snippets (consistency)',
    0,
    '10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b',
    _BAULAB + 'attribute_snippets.json',
  ),
  Edition(
    'MQuAKE-CF',
    9_218,
    'fbf1ab9e5243e52da429f7636990096ae0b5f8fbf60f1d4d3a4bf0c9214cd6ea',
    _MQUAKE + 'MQuAKE-CF.json',
  ),
  Edition(
    'MQuAKE-CF-3k, first version',
    3_000,
    'ce27a39c39f2983512b9b5578fadea5fbe352e5368f49d64f38d37ce304edc80',
    _MQUAKE + 'MQuAKE-CF-3k.json',
  ),
  Edition(
    'MQuAKE-CF-3k, second version',
    3_000,
    'f82091cbb668cef8f2537f79f1768af1840184450b347ff8c344336090ddc71e',
    _MQUAKE + 'MQuAKE-CF-3k-v2.json',
  ),
  Edition(
    'MQuAKE-T',
    1_868,
    '58500a1d4aaf9e036c23a1d9dd6be2d73d693e35a695614842f211ea5aff59f2',
    _MQUAKE + 'MQuAKE-T.json',
  ),
  Edition(
    'KnowEdit, zsRE test',
    1_301,
    '0e0214dda853a906ef02bef58c7ce2978af5a962e91fc4a10827e0125459905c',
    _KNOWEDIT + 'ZsRE/ZsRE-test-all.json',
  ),
  Edition(
    'KnowEdit, Wiki counterfact test',
    839,
    'efc01ba398dfe04975939f729aab45523addb3c6b3cf41d7429ba5de1d45225b',
    _KNOWEDIT + 'wiki_counterfact/test_cf.json',
  ),
  Edition(
    'KnowEdit, Wiki recent test',
    1_266,
    'e5c4ce6de1e8e2d10d892164ad6f4cbd28c976ed509e29e78ae853b01de1797b',
    _KNOWEDIT + 'wiki_recent/recent_test.json',
  ),
)


def describe(file: str, sha256: str) -> str:
  """Which published file this is, or that it only has the name of one.

  Args:
    file: its name, without folders.
    sha256: of its bytes.

  Returns:
    A sentence; '' where nothing is known of it.
  """
  for known in PUBLISHED:
    if known.sha256 == sha256:
      count = f' ({known.records:,} records)' if known.records else ''
      return f'{file}: {known.name}{count}, as published'
  named = [known for known in PUBLISHED if known.file == file]
  if named:
    return (
      f'{file}: not the file of that name that {named[0].source} had '
      f'({named[0].name}, sha256 {named[0].sha256[:12]}..., here '
      f'{sha256[:12]}...); scores are of these records'
    )
  return ''
