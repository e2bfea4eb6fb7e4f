"""Nash learning from human feedback (Munos et al. 2024) in JAX.

The map: `algorithms` is the table of methods, `losses` their mathematics, `policy`, `mixture`, `preference_model` and
`reward_model` what they are made of, and `types` what passes between them. `training.loop` runs a method on any
iterator of NumPy batches; `games` holds the exact theory on tables. `data` (seqio) and `main` (gin) are imported by
whoever needs them.
"""

__version__ = '0.1.0'
