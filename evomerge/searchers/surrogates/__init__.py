"""Quadratic surrogates of objectives: where to evaluate, how to fit, what front they predict.

*MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation* (Li et al. 2025,
https://arxiv.org/abs/2406.07529) and what it leaves open: links chosen by the values, weights from standard errors,
ridge where evaluations are few, leave-one-out errors, the posterior of the surrogate.
"""
