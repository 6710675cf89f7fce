"""Gradient rules for estimates: the plain gradient, or one that looks past norms, saturated attention and gates.

A rule leaves every number of the forward pass as it is, bit for bit, and changes only what flows backward
(`lensprune.engine.gradients`).

``plain``: the gradient itself.

``relp``: relevance coefficients instead (Jafari et al. 2025, arXiv 2508.21258). Norms are linear maps with their scale
held constant; attention patterns are constants, so gradients flow through values only; an activation function is
x · [f(x) / x] with the bracket held constant; and a product of gate and up projection passes half to each. Nothing
flows to queries and keys, so this rule misses what a part does by moving attention. On a network without biases, the
activations of any layer times their gradients add up to the metric.

``gim``: Gradient Interaction Modifications (Edin et al. 2025, arXiv 2505.17630). Norms as above; attention's softmax
has its Jacobian at temperature 2, diag(p) − p pᵀ for p = softmax(scores / 2); products split their gradient evenly:
half to values and half to the pattern, whose half is split between queries and keys.
"""

from __future__ import annotations

from lensprune.errors import unknown_name

__all__ = ["GRADIENT_RULES", "TEMPERATURE", "check_rule"]

GRADIENT_RULES = ("plain", "relp", "gim")
"""Names of the rules."""
TEMPERATURE = 2.0
"""Temperature at which ``gim`` takes the softmax's Jacobian."""


def check_rule(rule: str) -> None:
    """Raise `UserError` if there is no such rule."""
    if rule not in GRADIENT_RULES:
        raise unknown_name("gradient rule", rule, GRADIENT_RULES)
