"""What can be proved about learning from questions and corrections: the propositions and the theorem, with what they need to hold.

Errors of T rounds; K switches; a share γ of rounds is ambiguous: the best action errs with probability ε₀ or more given all that was
heard. As published (by notes on it): A1, an answer of m divides the probability of wrong actions by m; A2, a correction settles a value
until it switches.

- A1 does not hold for a balanced question: of N equally likely values k answers leave an error of 1 − m^k/N. What an answer divides by m
  are the odds of an error, hence (N − 1) m^{−k}.
- K counts switches of single slots. One event that switches all S slots may cost S errors.
- γ is no constant where things return: an answer that is stored, or a correction, ends the ambiguity. γT is reached only by things that
  come up once.

Source: Liang et al. (2026), arXiv:2602.16173, propositions 1 and 2, theorem 1.
"""

import itertools
import math

import numpy as np


def uncorrected_errors(num_rounds: int) -> float:
  """⌊T²/4⌋/T: what any agent that is never corrected errs at least, on average over when the one switch comes (proposition 1).

  Two actions, a switch before a round drawn from 1…T, no other news: by round t it has come with probability t/T, so that the best
  action errs with min(t, T − t)/T.

  Args:
    num_rounds: T ≥ 1.
  """
  _at_least('num_rounds', num_rounds, 1)
  return (num_rounds**2 // 4) / num_rounds


def uncorrected_errors_by_enumeration(num_rounds: int) -> float:
  """The same, as the least of all 2^T sequences of actions; an agent that hears nothing has no more than these to choose from.

  Args:
    num_rounds: T from 1 to 16.
  """
  if not 1 <= num_rounds <= 16:
    raise ValueError(f'num_rounds must be in 1…16 to enumerate all actions, got {num_rounds}.')
  rounds = np.arange(1, num_rounds + 1)
  # [switch, round]
  right = (rounds >= rounds[:, None]).astype(int)
  plans = itertools.product((0, 1), repeat=num_rounds)
  return min(float(np.mean(np.sum(right != np.array(plan), axis=1))) for plan in plans)


def stale_errors(
  num_rounds: int, num_switches: int, num_slots: int, num_values: int, *, all_slots: bool = False
) -> float:
  """T (1 − 1/N) (1 − (1 − c^{K+1})/((K + 1)(1 − c))): errors expected of what was learnt once and never corrected; linear in T.

  A value that jumps to another at random is the old one after i jumps with probability 1/N + (1 − 1/N)(−1/(N − 1))^i. A switch
  multiplies that power's mean by c = 1 − N/(S(N − 1)) where it is of one slot of S, by c = −1/(N − 1) where it is of all; and switches have
  come by a round as if each by itself, at a time uniform over the rounds. Leaves out the rounds before a slot is first seen.

  Args:
    num_rounds: T, many more than S and K.
    num_switches: K ≥ 0.
    num_slots: S ≥ 1.
    num_values: N ≥ 2.
    all_slots: whether a switch is of all slots.
  """
  _at_least('num_rounds', num_rounds, 1)
  _at_least('num_switches', num_switches, 0)
  _at_least('num_slots', num_slots, 1)
  _at_least('num_values', num_values, 2)
  kept = 1 - num_values / ((1 if all_slots else num_slots) * (num_values - 1))
  same = (1 - kept ** (num_switches + 1)) / ((num_switches + 1) * (1 - kept))
  return num_rounds * (1 - 1 / num_values) * (1 - same)


def error_after_answers(num_values: int, num_answers: int, num_questions: int) -> float:
  """1 − m^k/N, not below 0: the error that k balanced answers of m leave of N equally likely values; exact.

  Of a part of n values one errs with 1 − 1/n, and there are min(m^k, N) parts.

  Args:
    num_values: N ≥ 1.
    num_answers: m ≥ 2.
    num_questions: k ≥ 0.
  """
  _check_questions(num_values, num_answers, num_questions)
  return 1 - min(num_answers**num_questions, num_values) / num_values


def claimed_error_after_answers(num_values: int, num_answers: int, num_questions: int) -> float:
  """(1 − 1/N) m^{−k}: what assumption A1 says of the same question. It is too small wherever 1 < m^k < N."""
  _check_questions(num_values, num_answers, num_questions)
  return (1 - 1 / num_values) * float(num_answers) ** -num_questions


def odds_bound(num_values: int, num_answers: int, num_questions: int) -> float:
  """(N − 1) m^{−k}, not above 1: the odds of an error shrink by m, and bound its probability."""
  _check_questions(num_values, num_answers, num_questions)
  return min(1.0, (num_values - 1) * float(num_answers) ** -num_questions)


def questions_to_settle(num_values: int, num_answers: int) -> int:
  """⌈log_m N⌉: after so many answers a single value is left.

  Args:
    num_values: N ≥ 1.
    num_answers: m ≥ 2.
  """
  _check_questions(num_values, num_answers, 0)
  number = 0
  while num_answers**number < num_values:
    number += 1
  return number


def unasked_errors(ambiguity: int | float, ambiguous_share: int | float, num_rounds: int) -> float:
  """ε₀ γ T: what any agent that never asks errs at least (proposition 2), where what is ambiguous does not return.

  Args:
    ambiguity: ε₀ in [0, 1].
    ambiguous_share: γ in [0, 1], after all that was heard.
    num_rounds: T ≥ 1.
  """
  _share('ambiguity', ambiguity)
  _share('ambiguous_share', ambiguous_share)
  _at_least('num_rounds', num_rounds, 1)
  return ambiguity * ambiguous_share * num_rounds


def asked_errors(
  ambiguous_share: int | float,
  num_rounds: int,
  num_values: int,
  num_answers: int,
  num_questions: int,
) -> float:
  """γ T (1 − m^k/N): errors of an agent that asks, without a switch (proposition 2, with A1 put right). 0 from k = ⌈log_m N⌉ on."""
  error = error_after_answers(num_values, num_answers, num_questions)
  return unasked_errors(error, ambiguous_share, num_rounds)


def errors_with_both(
  num_slot_switches: int | float,
  num_slots: int,
  ambiguous_share: int | float,
  num_rounds: int,
  num_values: int,
  num_answers: int,
  num_questions: int,
) -> float:
  """K + (S + γT)(1 − m^k/N): errors at most, with questions and with corrections free of noise (theorem 1, put right).

  Each switch of a slot costs at most one error, since the correction settles it; each slot's first visit, and each thing that does
  not return, costs what the answers leave.

  Args:
    num_slot_switches: K, of single slots.
    num_slots: S, those that return.
    ambiguous_share: γ, the share of rounds about what comes up once.
    num_rounds: T.
    num_values: N.
    num_answers: m.
    num_questions: k, in a round.
  """
  _at_least('num_slot_switches', num_slot_switches, 0)
  _at_least('num_slots', num_slots, 0)
  first_visits = num_slots * error_after_answers(num_values, num_answers, num_questions)
  asked = asked_errors(ambiguous_share, num_rounds, num_values, num_answers, num_questions)
  return num_slot_switches + first_visits + asked


def errors_with_corrections(
  num_slot_switches: int | float,
  num_slots: int,
  ambiguous_share: int | float,
  num_rounds: int,
  num_values: int,
) -> float:
  """K + (S + γT)(1 − 1/N): errors at most with corrections alone, free of noise: `errors_with_both` for k = 0."""
  return errors_with_both(
    num_slot_switches, num_slots, ambiguous_share, num_rounds, num_values, 2, 0
  )


def _check_questions(num_values: int, num_answers: int, num_questions: int) -> None:
  _at_least('num_values', num_values, 1)
  _at_least('num_answers', num_answers, 2)
  _at_least('num_questions', num_questions, 0)


def _at_least(name: str, value: int | float, least: int) -> None:
  if not (value >= least and math.isfinite(value)):
    raise ValueError(f'{name} must be at least {least}, got {value}.')


def _share(name: str, value: int | float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f'{name} must be in [0, 1], got {value}.')
