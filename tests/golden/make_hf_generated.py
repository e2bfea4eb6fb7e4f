"""Writes hf/<family>/generated.npz: what the decoder-only models of hf/ write greedily, and their logits in bfloat16.

Run: python tests/golden/make_hf_generated.py [FAMILY ...]
Needs torch (2.13.0) and transformers (5.24.0); the tests need neither. Without names all are made anew.

`prompts` [B, S], 0 after their ends; `greedy` [B, 32] in the model's own ids, 0 after an end; `bfloat16` [B, T, V]: the
logits of logits.npz, by the same model in bfloat16.
"""

import pathlib
import sys

import make_hf_models
import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).with_name('hf')
LENGTH, NUM_PROMPTS = 32, 4
# Logits of the first and the second choice are further apart than rounding in float32 can bring them.
MARGIN = 1e-2


def load(family: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
  kind = transformers.AutoModelForCausalLM
  path = ROOT / family
  return kind.from_pretrained(path, attn_implementation='eager', dtype=dtype).eval()


def greedy(model, prompt: np.ndarray) -> tuple[np.ndarray, float]:
  """What is written after a prompt, without what pads; and the smallest margin of a choice."""
  config = model.config
  pad = config.pad_token_id if config.pad_token_id not in (None, config.eos_token_id) else 0
  found = model.generate(
    torch.from_numpy(prompt).long()[None],
    do_sample=False,
    max_new_tokens=LENGTH,
    suppress_tokens=[pad],
    pad_token_id=pad,
    output_scores=True,
    return_dict_in_generate=True,
  )
  tokens = found.sequences[0, len(prompt) :].numpy()
  best = torch.stack(found.scores).topk(2, dim=-1).values[:, 0]
  return np.pad(tokens, (0, LENGTH - len(tokens))), float((best[:, 0] - best[:, 1]).min())


def make_texts(model, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts, ragged, whose continuations are clear; half of them at least are of full length."""
  rng = np.random.default_rng(seed)
  prompts, texts, num_short = [], [], 0
  while len(prompts) < NUM_PROMPTS:
    prompt = rng.integers(10, make_hf_models.VOCAB_SIZE, rng.integers(1, 13))
    text, margin = greedy(model, prompt)
    short = text[-1] == 0
    if margin < MARGIN or (short and num_short == NUM_PROMPTS // 2):
      continue
    num_short += short
    prompts.append(np.pad(prompt, (0, 12 - len(prompt))))
    texts.append(text)
  return np.stack(prompts).astype(np.int32), np.stack(texts).astype(np.int32)


def main():
  families = [name for name in make_hf_models.FAMILIES if 't5' not in name]
  for seed, family in enumerate(families):
    if family not in (sys.argv[1:] or families):
      continue
    prompts, texts = make_texts(load(family), seed)
    with np.load(ROOT / family / 'logits.npz') as golden:
      half = load(family, torch.bfloat16)
      inputs = golden['prompts'], golden['responses']
      with torch.no_grad():
        logits = bfloat16_logits(half, *inputs)
    np.savez_compressed(
      ROOT / family / 'generated.npz', prompts=prompts, greedy=texts, bfloat16=logits
    )
    lengths = (texts > 0).sum(1).tolist()
    print(family, 'lengths', lengths)


def bfloat16_logits(model, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
  """As `logits_of`, in float32."""
  rows = []
  for prompt, response in zip(prompts, responses, strict=True):
    length = np.count_nonzero(prompt)
    text = torch.from_numpy(np.concatenate([prompt[:length], response[:-1]])).long()
    rows.append(model(input_ids=text[None]).logits[0, length - 1 :].float().numpy())
  return np.stack(rows)


if __name__ == '__main__':
  main()
