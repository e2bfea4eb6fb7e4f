"""Bounds: against enumeration and each other; simulation is held against them in latent_preferences_test.py."""

import pytest

from nlhf_jax.personalisation import theory


@pytest.mark.parametrize('num_rounds', [1, 2, 5, 8, 11])
def test_proposition_1_is_the_best_of_all_sequences_of_actions(num_rounds):
  enumerated = theory.uncorrected_errors_by_enumeration(num_rounds)
  assert theory.uncorrected_errors(num_rounds) == pytest.approx(enumerated, abs=1e-12)


@pytest.mark.parametrize(('num_slots', 'all_slots'), [(1, False), (3, True), (2, False)])
def test_stale_errors_are_those_of_all_ways_to_switch(num_slots, all_slots):
  """One switch at a time u uniform in [0, 1] is stale for 1 − u on average, if it is of the slot that comes up."""
  share = 1 if all_slots else 1 / num_slots
  assert theory.stale_errors(100, 1, num_slots, 4, all_slots=all_slots) == pytest.approx(
    100 * share / 2
  )
  assert theory.stale_errors(100, 0, num_slots, 4, all_slots=all_slots) == 0
  # After very many switches a value is any.
  many = theory.stale_errors(100, 100_000, num_slots, 4, all_slots=all_slots)
  assert many == pytest.approx(100 * 3 / 4, rel=1e-3)


def parts(num_values, num_answers, num_questions):
  """Sizes of the parts that k balanced questions make, one after the other."""
  sizes = [num_values]
  for _ in range(num_questions):
    sizes = [(size + i) // num_answers for size in sizes for i in range(num_answers)]
  return [size for size in sizes if size]


@pytest.mark.parametrize('num_values', [1, 2, 5, 7, 36, 64])
@pytest.mark.parametrize('num_answers', [2, 3, 6])
@pytest.mark.parametrize('num_questions', [0, 1, 2, 3])
def test_error_after_answers_is_that_of_the_parts(num_values, num_answers, num_questions):
  error = sum(
    size / num_values * (1 - 1 / size) for size in parts(num_values, num_answers, num_questions)
  )
  assert theory.error_after_answers(num_values, num_answers, num_questions) == pytest.approx(
    error, abs=1e-12
  )
  assert error <= theory.odds_bound(num_values, num_answers, num_questions) + 1e-12
  assert error >= theory.claimed_error_after_answers(
    num_values, num_answers, num_questions
  ) - 1e-12 or (num_answers**num_questions >= num_values)


def test_assumption_a1_is_not_what_a_balanced_question_gives():
  assert theory.error_after_answers(64, 2, 1) == pytest.approx(0.96875)
  assert theory.claimed_error_after_answers(64, 2, 1) == pytest.approx(0.4921875)


@pytest.mark.parametrize(
  ('num_values', 'num_answers', 'number'),
  [(1, 2, 0), (2, 2, 1), (64, 2, 6), (65, 2, 7), (9, 3, 2), (6, 6, 1)],
)
def test_questions_to_settle(num_values, num_answers, number):
  assert theory.questions_to_settle(num_values, num_answers) == number
  assert theory.error_after_answers(num_values, num_answers, number) == 0
  if number:
    assert theory.error_after_answers(num_values, num_answers, number - 1) > 0


def test_theorem_adds_up():
  assert theory.errors_with_both(10, 6, 0.0, 2000, 6, 6, 1) == 10
  assert theory.errors_with_corrections(10, 6, 0.0, 2000, 6) == pytest.approx(15)
  assert theory.errors_with_both(0, 0, 0.5, 100, 64, 2, 1) == theory.asked_errors(
    0.5, 100, 64, 2, 1
  )
  assert theory.asked_errors(0.5, 100, 64, 2, 6) == 0


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: theory.uncorrected_errors(0), 'num_rounds must be at least 1'),
    (lambda: theory.uncorrected_errors_by_enumeration(20), 'num_rounds must be in 1…16'),
    (lambda: theory.error_after_answers(4, 1, 1), 'num_answers must be at least 2, got 1'),
    (lambda: theory.unasked_errors(1.2, 0.5, 10), r'ambiguity must be in \[0, 1\], got 1.2'),
    (lambda: theory.unasked_errors(0.2, 1.5, 10), r'ambiguous_share must be in \[0, 1\]'),
    (
      lambda: theory.errors_with_both(-1, 1, 0.1, 10, 4, 2, 1),
      'num_slot_switches must be at least 0',
    ),
  ],
)
def test_mistakes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
