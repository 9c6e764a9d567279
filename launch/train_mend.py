"""Trains MEND's network, of edits to the layers of a config.

  python -m launch.train_mend --config=configs/smollm2_135m.py:mend \\
    --train=zsre_mend_train.jsonl.gz --workdir=runs/mend
  python -m launch.edit --config=configs/smollm2_135m.py:mend \\
    --config.network=runs/mend

A record has src, alt, rephrase, loc and loc_ans, as MEND publishes zsRE. A step
updates the network by a --batch of edits, each made alone. The same --workdir
goes on where a killed run left off; more --steps go on from a finished one.
"""

from absl import flags

from launch import common, training

_CONFIG = common.config_flag()
_TRAIN = flags.DEFINE_string('train', '', 'Records to train on.')
_HOME = common.workdir_flag()
_STEPS = flags.DEFINE_integer(
  'steps', 1000, 'Updates of the network.', lower_bound=1
)
_BATCH = flags.DEFINE_integer('batch', 10, 'Edits of a step.', lower_bound=1)
_EVERY = flags.DEFINE_integer(
  'save_every', 100, 'Steps; then it is validated.', lower_bound=1
)
_HELD = flags.DEFINE_integer(
  'held_out', 50, 'Records to validate on.', lower_bound=1
)
_RANK = flags.DEFINE_integer('rank', 1920, 'Of the network.')
_LR = flags.DEFINE_float('lr', 1e-6, "Adam's, of the network.")
_RATE = flags.DEFINE_float('rate', 1e-4, 'Edit rate to begin with.')
_RATE_LR = flags.DEFINE_float('rate_lr', 1e-4, "Adam's, of the edit rates.")
_SANE = flags.DEFINE_float('sane', 100.0, 'Largest perplexity of the base.')


def main(_):
  config = _CONFIG.value
  settings = {
    'batch': _BATCH.value, 'held_out': _HELD.value, 'rank': _RANK.value,
    'lr': _LR.value, 'rate': _RATE.value, 'rate_lr': _RATE_LR.value,
  }  # fmt: skip
  training.run(
    config, _TRAIN.value, _HOME.value, _STEPS.value, _EVERY.value,
    _SANE.value, **settings,
  )  # fmt: skip


if __name__ == '__main__':
  common.run(main)
