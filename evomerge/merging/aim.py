"""AIM: merged weights drawn back towards the base where the base's activations are large.

Heyrani Nobari et al. 2025, "Activation-Informed Merging of Large Language Models", https://arxiv.org/abs/2502.02421.
It goes on top of any merge method. The authors' code leaves embeddings as they are merged; so do we, as they have no
input to measure.
"""

from __future__ import annotations

import torch


def relax(merged: torch.Tensor, base: torch.Tensor, scale: torch.Tensor | None, omega: float) -> torch.Tensor:
    """Return θ₀ + (1 − s / max s · (1 − ω)) (θ − θ₀), float32.

    Args:
        merged: θ, float32, of any shape.
        base: θ₀, of the same shape and any floating dtype.
        scale: s, mean absolute input of each of the weight's input channels over the calibration set, of the base;
            of a shape that broadcasts to the weight's, such as (1, inputs). None where it is not known: the merged
            tensor then stays as it is.
        omega: in [0, 1]: the share of the change that is left at the most active channel; 1 changes nothing.
    """
    if scale is None:
        return merged
    importance = scale.to(merged.device, torch.float32)
    largest = importance.max() if importance.numel() else importance.sum()
    if not largest > 0:  # no input ever reached the weight
        return merged
    start = base.float()
    return start + (1 - importance / largest * (1 - omega)) * (merged - start)
