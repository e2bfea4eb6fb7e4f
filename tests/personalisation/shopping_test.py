"""The shopping benchmark: its rules by hand, its files and their mistakes, and the released data where they are."""

import json

import pytest

from nlhf_jax.personalisation import shopping
from nlhf_jax.personalisation.shopping import Task
from tests.personalisation import tiny_shopping

TIERS = {'s0': 2, 's1': 1, 's2': 0, 's3': 0, 'b0': 2, 'b1': 1, 'b2': 0, 'b3': 0}


def task(*options):
  options = tuple(tuple(x.split()) for x in options)
  return Task('Ann', 'lamp', options, shopping.label(options, TIERS))


@pytest.mark.parametrize(
  ('options', 'right'),
  [
    (('s1 b1', 's0 b1', 's2 b0'), 'B'),
    # Nothing liked most makes up for what is disliked.
    (('s2 b0', 's0 b3', 's1 b2'), 'D'),
    # Equally good: the first letter.
    (('s2 b0', 's0 b1', 's1 b0'), 'B'),
  ],
)
def test_rule_of_labels(options, right):
  assert task(*options).label == right


def test_feedback_by_rule():
  offered = task('s1 b1', 's0 b1', 's2 b0')
  assert shopping.feedback(offered, 'B', TIERS).is_right
  said = shopping.feedback(offered, 'D', TIERS)
  assert (said.letter, said.value) == ('B', None)
  said = shopping.feedback(offered, 'C', TIERS)
  assert (said.letter, said.value, said.tier) == (None, 's2', 0)
  assert "won't work" in said.text
  # All of it was liked before.
  said = shopping.feedback(offered, 'C', TIERS, TIERS | {'s2': 1})
  assert said.text.startswith('I used to like s2')
  said = shopping.feedback(offered, 'C', TIERS, TIERS | {'s2': 1, 'b0': 0})
  assert "won't work" in said.text
  said = shopping.feedback(offered, 'A', TIERS)
  assert (said.letter, said.value, said.tier) == ('B', 's0', 2)
  assert shopping.feedback(task('s0 b1', 's1 b1', 's2 b0'), 'B', TIERS).value == 's0'


def test_feedback_on_an_equal_answer_names_the_first_letter():
  """s0 b1 and s1 b0 are as good as each other, and the second one counts as wrong."""
  said = shopping.feedback(task('s2 b0', 's0 b1', 's1 b0'), 'C', TIERS)
  assert not said.is_right
  assert (said.letter, said.value) == ('B', 's0')
  with pytest.raises(ValueError, match="'E' is none of A, B, C, D"):
    shopping.feedback(task('s2 b0', 's0 b1', 's1 b0'), 'E', TIERS)


def test_files_are_read(tmp_path):
  benchmark = shopping.read(tiny_shopping.write(tmp_path))
  assert {phase: len(tasks) for phase, tasks in benchmark.tasks.items()} == dict.fromkeys(
    (1, 2, 3, 4), 48
  )
  assert [x.tiers for x in benchmark.products['desk']] == [(2, 1, 1)] * 2
  assert benchmark.taste('Ann', 1) == benchmark.before['Ann'] != benchmark.taste('Ann', 3)
  # The tasks of phase 3 are those of phase 1, and their labels are not.
  first, third = benchmark.tasks[1], benchmark.tasks[3]
  assert [x.options for x in first] == [x.options for x in third]
  assert [x.label for x in first] != [x.label for x in third]


def change(name, edit):
  def apply(directory):
    path = directory / name
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))

  return apply


def swap_phases(directory):
  for old, new in (('phase1', 'x'), ('phase3', 'phase1'), ('x', 'phase3')):
    (directory / f'{old}.json').rename(directory / f'{new}.json')


SHADE = ('Ann', 'persona_info', 'lamp', 'shade')


def shade(content):
  for key in SHADE:
    content = content[key]
  return content


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda d: (d / 'phase2.json').unlink(), 'No file .*phase2.json'),
    (lambda d: (d / 'phase2.json').write_text('[{'), r'phase2.json is no JSON'),
    (change('phase2.json', lambda x: x.clear()), 'phase2.json holds no list of tasks'),
    (change('phase2.json', lambda x: x[5].pop('gt')), "phase2.json: entry 5 has no 'gt'"),
    (change('phase2.json', lambda x: x.insert(0, 'text')), "phase2.json: entry 0 has no 'User'"),
    (change('phase2.json', lambda x: x[3].update(User='Zoe')), "entry 3: user 'Zoe' has no persona"),
    (change('phase2.json', lambda x: x[3].update(product='car')), "entry 3: user 'Ann' has no taste in 'car'"),
    (change('phase2.json', lambda x: x[0]['Option B'].pop()), 'entry 0: option B needs one value of'),
    (change('phase2.json', lambda x: x[0].update({'Option C': ['s0', 'zz']})), 'entry 0: option C needs one value of'),
    (change('phase1.json', lambda x: x[0].update(gt='A' if x[0]['gt'] != 'A' else 'B')), 'phase1.json: entry 0: gt is'),
    (swap_phases, 'phase1.json: entry .* is this the phase that the persona file is of'),
    (change('persona_info.json', lambda x: x.clear()), 'persona_info.json holds no users'),
    (change('persona_info.json', lambda x: x.pop('Ann')), "user 'Ann' is in one of"),
    (change('persona_info.json', lambda x: x['Ann'].clear()), "user 'Ann' has no persona_info"),
    (change('persona_info.json', lambda x: shade(x).pop('dislike')), "feature 'shade' needs like_most"),
    (change('persona_info.json', lambda x: shade(x).update(like_most=3)), "feature 'shade' needs one text in like_most"),
    (change('persona_info.json', lambda x: shade(x)['dislike'].append(shade(x)['like_most'])), 'has two tiers'),
    (change('persona_info.json', lambda x: shade(x)['dislike'].append('s9')), 'has other features, values or numbers'),
  ],
)  # fmt: skip
def test_malformed_files_are_one_line(spoil, message, tmp_path):
  directory = tiny_shopping.write(tmp_path)
  spoil(directory)
  with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
    shopping.read(directory)
  assert '\n' not in str(error.value)


def test_no_directory(tmp_path):
  with pytest.raises(FileNotFoundError, match='No directory'):
    shopping.read(tmp_path / 'nowhere')


def test_released_benchmark_is_what_its_notes_say(test_data):
  """3,600 labels agree with the rule, or `read` would have raised."""
  directory = test_data / 'pahf_shopping'
  if not directory.is_dir():
    pytest.skip(f'no {directory}')
  benchmark = shopping.read(directory)
  assert len(benchmark.before) == 20
  assert len(benchmark.products) == 10
  assert {len(x) for x in benchmark.tasks.values()} == {900}
  labels = {phase: [x.label for x in tasks] for phase, tasks in benchmark.tasks.items()}
  assert [labels[phase].count('D') for phase in (1, 2, 3, 4)] == [300, 300, 619, 610]
  changed = [sum(a != b for a, b in zip(labels[p], labels[p + 2], strict=True)) for p in (1, 2)]
  assert changed == [630, 622]
