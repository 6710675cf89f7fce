"""Fidelity: how close a variant's next-token distributions, states and answers stay to the clean model's."""
