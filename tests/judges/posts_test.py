"""Posts: all that annotators score stands in the text, and real abstracts are read as documented."""

import pytest

from nlhf_jax.judges import posts


def test_generated_posts_state_their_facts_and_topics():
  generated = [posts.generate(number, seed=3) for number in range(200)]
  assert {len(post.sentences) for post in generated} == {4, 5, 6, 7, 8}
  for post in generated:
    for sentence, facts, topics, length in zip(*post[1:], strict=True):
      words = sentence.split()
      assert facts == set(words) & set(posts.FACTS)
      assert topics == set(words) & set(posts.TOPICS) == {words[0]}
      assert length == len(words)
      assert set(words) <= set(posts.word_list())


def test_generated_posts_follow_number_and_seed():
  assert posts.generate(5, seed=1) == posts.generate(5, seed=1)
  assert posts.generate(5, seed=1) != posts.generate(5, seed=2)
  assert posts.generate(5, seed=1) != posts.generate(6, seed=1)


def test_words_are_listed_once():
  words = posts.word_list()
  assert len(set(words)) == len(words) == 8 + 5 + 12 + 8


def test_marked_text_has_each_sentence_after_its_marker():
  assert posts.marked_text(['a b', 'c'], posts.markers()) == '<s1> a b <s2> c'


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('One. Two! Three? Four', ['One.', 'Two!', 'Three?', 'Four']),
    ('As in Lee et al. We go on. Then.', ['As in Lee et al. We go on.', 'Then.']),
    ('Some, e.g. Adam, i.e. Eve. End.', ['Some, e.g. Adam, i.e. Eve.', 'End.']),
    ('It is 1.5 times. lower case', ['It is 1.5 times. lower case']),
    ('  ', []),
  ],
)
def test_sentences_end_before_a_capital(text, expected):
  assert posts.split_sentences(text) == expected


def test_content_words_are_long_and_rare():
  assert posts.content_words('The Cat, and a DOG: of 12 dogs!') == {'cat', 'dog', 'dogs'}


def test_abstract_is_read_by_its_summary():
  """Facts: words that the summary has too. Topics: words that two sentences share. Five words count as one."""
  row = {
    'id': 'p',
    'post': 'Training networks is slow here. We make training fast. Nobody had tried before.',
    'summary': 'Fast training of networks.',
  }
  (post,) = posts.from_rows([row])
  assert post.sentences[1] == 'We make training fast.'
  assert post.facts == ({'training', 'networks'}, {'training', 'fast'}, set())
  assert post.topics == ({'training'}, {'training'}, set())
  assert post.words == (1.0, 0.8, 0.8)


def test_abstracts_of_one_sentence_are_left_out():
  row = {'id': 'p', 'post': 'One sentence only.', 'summary': 'One.'}
  assert posts.from_rows([row]) == []


def test_abstracts_keep_their_first_eight_sentences():
  row = {'id': 'p', 'post': ' '.join(f'Word{n}.' for n in range(12)), 'summary': 'Word.'}
  (post,) = posts.from_rows([row])
  assert post.sentences == tuple(f'Word{n}.' for n in range(8))
