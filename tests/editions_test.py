"""Published files, by their bytes."""

import gzip
import hashlib
import json
import re

import pytest

from configs import smollm2_135m
from jedit import editions, requests
from launch import common
from tests.field_data import FOLDER


def test_every_entry_can_be_told_from_the_others():
  hashes = [known.sha256 for known in editions.PUBLISHED]
  files = [known.file for known in editions.PUBLISHED]
  assert all(re.fullmatch('[0-9a-f]{64}', h) for h in hashes)
  assert len(set(hashes)) == len(hashes) and len(set(files)) == len(files)
  assert all(re.fullmatch(r'[\w.-]+\.json', name) for name in files)


@pytest.mark.parametrize('known', editions.PUBLISHED, ids=lambda k: k.file)
def test_a_file_is_known_by_its_bytes_whatever_its_name(known):
  same = editions.describe('other.json', known.sha256)
  assert known.name in same and 'as published' in same
  other = editions.describe(known.file, '0' * 64)
  assert 'not the file' in other and known.sha256[:12] in other
  assert not editions.describe('other.json', '0' * 64)


def test_a_run_says_which_edition_it_reads(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'mine.json'
  path.write_text(
    json.dumps([{'prompt': '{} is', 'subject': 'A', 'target': 'B'}])
  )
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  entry = editions.Edition('a set', 1, digest, 'https://x/y.json')
  monkeypatch.setattr(editions, 'PUBLISHED', (entry,))
  for _ in range(2):  # but once
    common.usable_requests(smollm2_135m.get_config(), path, None)
  said = capsys.readouterr().out
  assert said == 'mine.json: a set (1 records), as published\n'


# How the publishers wrote the records that are at hand.
_WRITTEN = {
  'known_facts.jsonl.gz': ('known_1000.json', {'indent': 2}, '\n'),
  'knowedit_wiki_counterfact_test.jsonl.gz': ('test_cf.json', {}, ''),
}


@pytest.mark.parametrize('name', _WRITTEN)
def test_records_at_hand_written_as_published_have_the_sha256(name, tmp_path):
  if not (FOLDER / name).is_file():
    pytest.skip('no field data')
  file, how, end = _WRITTEN[name]
  with gzip.open(FOLDER / name, 'rt', encoding='utf-8') as f:
    records = [json.loads(line) for line in f]
  path = tmp_path / file
  path.write_text(json.dumps(records, **how) + end)
  about = editions.describe(file, common.file_hash(path))
  assert f'({len(records):,} records), as published' in about
  if file == 'test_cf.json':
    assert len(requests.read(path)[0]) == len(records)
