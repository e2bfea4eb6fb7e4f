"""Accelerators, by their vendors' figures."""

from typing import NamedTuple


class Chip(NamedTuple):
  """Vendor peaks of one chip."""

  # Bytes.
  memory: float
  # A second, dense products of bfloat16.
  operations: float
  # Of its memory, bytes a second.
  bandwidth: float
  # To the other chips of a slice or node, bytes a second that it can send.
  interconnect: float
  # Number of chips that share this interconnect.
  node: int
  # To chips beyond these, bytes a second.
  network: float


# Sources: cloud.google.com/tpu/docs/{v5e,v5p}; NVIDIA's data sheets of H100 SXM and H200 SXM, 400 Gb/s a chip beyond a node.
CHIPS = {
  'v5e': Chip(16e9, 197e12, 0.82e12, 200e9, 256, 3e9),
  'v5p': Chip(95e9, 459e12, 2.77e12, 600e9, 8960, 3e9),
  'h100': Chip(80e9, 989e12, 3.35e12, 450e9, 8, 50e9),
  'h200': Chip(141e9, 989e12, 4.8e12, 450e9, 8, 50e9),
}
