"""Writes chat/<kind>/: small tokenizers of the kinds that chat models have, and what `transformers` makes of conversations.

Run: python tests/golden/make_chat_tokens.py
Needs transformers (5.24.0), without torch; the tests need it not.

Beside each tokenizer's files lies expected.json: [messages, ids of `apply_chat_template` with the assistant's turn begun].
"""

import json
import pathlib
import shutil

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
  'The harbour was flooded on Monday, and the market closed early. Name a tree. Hello! Why not? Yes, of course.',
  'user assistant system says "hi" to the world; 1 + 1 = 2, x < y > z, und Größe: 12 €.',
  'Summarise the text in one sentence.\n\nBe brief.\n  Indented.\tTab.',
]
USER = lambda text: [{'role': 'user', 'content': text}]
CONVERSATIONS = [
  USER('Hello'),
  USER(' Hello \n'),
  USER('Größe: 12 €\n\n  two'),
  USER('x<y>z </i> [a]'),
  [*USER('Hi.'), {'role': 'assistant', 'content': 'Yes?'}, *USER('Name a tree.')],
  [{'role': 'system', 'content': 'Be brief.'}, *USER('Why not?')],
]
CHATML = (
  "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
  "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'assistant' %}{{ '[INST] ' + message['content'] "
  "+ ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
  '{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}'
  "<|eot_id|>{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
  "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% set role = 'model' %}{% else %}"
  "{% set role = 'user' %}{% endif %}{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
RULES = (
  "{%- for m in messages %}\n{%- if m.role == 'system' %}\n{%- continue %}\n{%- endif %}\n{%- generation %}\n"
  "{{- '<|im_start|>' + m.role + ' ' + (m | tojson) + '<|im_end|>' }}\n{%- endgeneration %}\n{%- endfor %}\n"
  "{{- '<|im_start|>' + strftime_now('%Y')[:1] }}\n"
)
SPLIT = tokenizers.Regex(
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IM = ['<|im_start|>', '<|im_end|>']


def byte_level(special, *before, prefix=False, normalizer=None, **model):
  """GPT-2's bytes; `before` splits the text first."""
  result = tokenizers.Tokenizer(models.BPE(**model))
  if normalizer:
    result.normalizer = normalizer
  last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not before)
  result.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
  result.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet)
  result.train_from_iterator(TEXTS, trainer)
  return result


def sentencepiece(special, trainer, model, pre_tokenizer=None, normalizer=None):
  """Words with a mark in place of the blank before them."""
  result = tokenizers.Tokenizer(model)
  if normalizer:
    result.normalizer = normalizer
  if pre_tokenizer:
    result.pre_tokenizer = pre_tokenizer
  parts = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
  result.decoder = decoders.Sequence(parts)
  result.train_from_iterator(TEXTS, trainer(special))
  description = json.loads(result.to_str())
  # Bytes are words like others.
  tokens = [token for token in description['added_tokens'] if token['content'] in special]
  return tokenizers.Tokenizer.from_str(json.dumps(description | {'added_tokens': tokens}))


def unigram(special):
  """A trainer."""
  return trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token='<unk>')


def bpe(special):
  """A trainer whose words may come of any byte."""
  hexadecimal = [f'<0x{byte:02X}>' for byte in range(256)]
  return trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *hexadecimal])


def kinds():
  """Name → tokenizer, template, special tokens by name."""
  metaspace = lambda scheme: pre_tokenizers.Metaspace(prepend_scheme=scheme)
  legacy = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  blanks = normalizers.Replace(' ', '▁')
  basic = ['<pad>', '<s>', '</s>', '<unk>']
  ends = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  fallback = lambda: models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True)
  split = lambda: pre_tokenizers.Split(SPLIT, 'isolated')
  digits = pre_tokenizers.Digits(individual_digits=True)
  chat = {'eos_token': '<|im_end|>'}
  llama3 = ['<pad>', '<|begin|>', '<|eot_id|>', '<|start_header_id|>', '<|end_header_id|>']
  turns = ['<pad>', '<bos>', '<eos>', '<unk>', '<start_of_turn>', '<end_of_turn>']
  gemma = {'bos_token': '<bos>', 'eos_token': '<eos>', 'unk_token': '<unk>'}
  stripping = byte_level(['<pad>', '<|end|>'])
  stripping.add_special_tokens(
    [
      tokenizers.AddedToken(f'<|{role}|>', rstrip=True, lstrip=role == 'user')
      for role in ('user', 'assistant', 'system')
    ]
  )
  thinking = byte_level(['<pad>', *IM], normalizer=normalizers.NFC())
  thinking.add_tokens(
    [tokenizers.AddedToken('<think>', normalized=False), tokenizers.AddedToken('</i>')]
  )
  words = tokenizers.Tokenizer(models.WordPiece(unk_token='<unk>'))
  words.normalizer, words.pre_tokenizer = (
    normalizers.BertNormalizer(),
    pre_tokenizers.BertPreTokenizer(),
  )
  words.decoder = decoders.WordPiece()
  words.train_from_iterator(
    TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=[*basic, *IM])
  )
  return {
    'byte_level': (byte_level(['<pad>', *IM]), CHATML, chat),
    'byte_level_prefix': (byte_level(['<pad>', *IM], prefix=True), CHATML, chat),
    'byte_level_digits': (
      byte_level(['<pad>', *IM], digits, pre_tokenizers.ByteLevel(False, use_regex=True)),
      CHATML,
      chat,
    ),
    'llama_3': (
      byte_level(llama3, split(), ignore_merges=True),
      HEADERS,
      {'bos_token': '<|begin|>', 'eos_token': '<|eot_id|>'},
    ),
    'added_words': (thinking, CHATML, chat),
    'stripping': (stripping, ZEPHYR, {'eos_token': '<|end|>'}),
    'llama_2': (sentencepiece(basic, bpe, fallback(), normalizer=legacy), INST, ends),
    'metaspace_first': (
      sentencepiece(basic, unigram, models.Unigram(), metaspace('first')),
      INST,
      ends,
    ),
    'metaspace_always': (
      sentencepiece(basic, unigram, models.Unigram(), metaspace('always')),
      ZEPHYR,
      ends,
    ),
    'metaspace_never': (
      sentencepiece(basic, unigram, models.Unigram(), metaspace('never')),
      ZEPHYR,
      ends,
    ),
    'gemma': (sentencepiece(turns, bpe, fallback(), normalizer=blanks), GEMMA, gemma),
    'word_pieces': (words, CHATML, chat | {'unk_token': '<unk>'}),
    'rules': (byte_level(['<pad>', *IM]), RULES, chat),
  }


def main() -> None:
  """Writes all kinds anew."""
  root = pathlib.Path(__file__).parent / 'chat'
  shutil.rmtree(root, ignore_errors=True)
  for kind, (tokenizer, template, special) in kinds().items():
    directory = root / kind
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / 'tokenizer.json'), pretty=False)
    settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': template,
      'pad_token': '<pad>',
    } | special
    settings['clean_up_tokenization_spaces'] = False
    (directory / 'tokenizer_config.json').write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    expected = [
      [
        messages,
        list(theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)),
      ]
      for messages in CONVERSATIONS
    ]
    (directory / 'expected.json').write_text(json.dumps(expected))
    end = tokenizer.token_to_id(special['eos_token'])
    config = {
      'model_type': 'llama',
      'vocab_size': tokenizer.get_vocab_size(),
      'eos_token_id': end,
      'pad_token_id': 0,
    }
    config |= {
      'hidden_size': 16,
      'intermediate_size': 16,
      'num_hidden_layers': 1,
      'num_attention_heads': 2,
    }
    (directory / 'config.json').write_text(json.dumps(config))


if __name__ == '__main__':
  main()
