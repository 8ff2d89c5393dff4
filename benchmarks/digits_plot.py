"""The curves of digits.py as a picture: python benchmarks/digits_plot.py CURVES.json PICTURE.svg

Needs matplotlib, which nothing else here does: pip install matplotlib.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

NAMES = {
    "m2n2": "M2N2",
    "no-split": "without split point",
    "no-attraction": "without attraction",
    "no-competition": "without competition",
    "ga": "without both",
    "map-elites": "MAP-Elites",
    "cma-es": "CMA-ES",
}


def main(source: str, picture: str) -> None:
    """Draw mean and 1.96 standard errors of each variant: evomerge's solid, the authors' code's dashed."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "evomerge", "font.size": 9}
    read = json.loads(Path(source).read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (variant, sides) in enumerate(read["curves"].items()):
        for side, style in (("ours", "-"), ("theirs", "--")):
            if side not in sides:
                continue
            curves = np.array(sides[side])
            evaluations = read["every"] * np.arange(1, curves.shape[1] + 1)
            mean, error = curves.mean(0), 1.96 * curves.std(0, ddof=1) / len(curves) ** 0.5
            label = NAMES[variant] if side == "ours" else None
            axes.plot(evaluations, mean, style, color=f"C{number}", linewidth=1.2, label=label)
            if side == "ours":
                axes.fill_between(evaluations, mean - error, mean + error, color=f"C{number}", alpha=0.15, linewidth=0)
    axes.set(xlabel="evaluations", ylabel="test accuracy")
    axes.legend(title="solid: evomerge, dashed: the authors' code", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(picture, metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
