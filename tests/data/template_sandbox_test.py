"""Chat templates that would take hours or gigabytes end in a moment, and those that models bring are not touched."""

import time

import pytest

from nlhf_jax.data import template_sandbox

LONG = "{% set x = 'a' * 4000000 %}"
DOUBLED = (
  "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}"
)
EXCEEDING = {
  'loops': '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
  'loops without words': '{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %}',
  'macros': '{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
  'repeated text': "{{ 'x' * 10**10 }}",
  'joined text': DOUBLED.replace('EXPRESSION', 'ns.x ~ ns.x'),
  'added text': DOUBLED.replace('EXPRESSION', 'ns.x + ns.x'),
  'lists of lists': DOUBLED.replace('EXPRESSION', '[ns.x, ns.x]') + '{{ ns.x }}',
  'large numbers': DOUBLED.replace("'ab'", '3').replace('EXPRESSION', 'ns.x * ns.x'),
  'powers': '{{ 10 ** (10 ** 10) }}',
  'a width': "{{ 'a'|center(10000000000) }}",
  'a width of a method': "{{ 'a'.center(10000000000) }}",
  'a format': "{{ '%10000000000d' % 3 }}",
  'a format of a method': "{{ '{:10000000000}'.format(3) }}",
  'a format with its width': "{{ '{:{w}}'.format(3, w=10000000000) }}",
  'replacements': LONG + "{{ x|replace('a', x) }}",
  'replacements of a method': LONG + "{{ x.replace('a', x) }}",
  'what stands between': LONG + '{{ x|join(x) }}',
  'a long output': LONG + '{% for i in range(9) %}{{ x }}{% endfor %}',
  'an indent': '{{ [1]|tojson(indent=10000000000) }}',
}  # fmt: skip


@pytest.mark.parametrize('kind', EXCEEDING)
def test_what_takes_too_much_ends(kind, monkeypatch):
  monkeypatch.setattr(template_sandbox, 'MAX_SECONDS', 0.3)
  start = time.monotonic()
  with pytest.raises(template_sandbox.ExceededError, match='it '):
    template_sandbox.render(EXCEEDING[kind])
  assert time.monotonic() - start < 20


def test_what_templates_do_is_as_ever():
  source = (
    "{%- macro turn(m) %}<{{ m['role'] }}>{{ m.content | trim }}{% endmacro -%}"
    "{% set ns = namespace(n=0) %}{% for m in messages if m.role != 'x' %}{% set ns.n = ns.n + 1 %}"
    '{{ loop.index0 }}{{ turn(m) }}{% if not loop.last %}, {% endif %}{% endfor %}'
    "{% for a, b in [('k', 2 * 3), ('l', 2 ** 4)] %} {{ a ~ b }}{% endfor %}"
    " {{ messages | map(attribute='role') | join('+') }} {{ 'a b'.split(' ')[-1] }}"
    " {{ 'ab'.replace('a', 'c') }} {{ '%05d' % 3 }} {{ '{:>3}'.format('r') }} {{ 'x' * 3 }} {{ {'a': [1]} | tojson }}"
    " {{ 'l\\nm' | indent(2) }} {% generation %}g{% endgeneration %} {{ messages[1:] | length }} {{ ns.n }}"
  )
  messages = [{'role': 'user', 'content': ' hi '}, {'role': 'bot', 'content': 'yes'}]
  text = '0<user>hi, 1<bot>yes k6 l16 user+bot b cb 00003   r xxx {"a": [1]} l\n  m g 1 2'
  assert template_sandbox.render(source, messages=messages) == text
