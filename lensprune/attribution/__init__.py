"""Attribute a model's answer to its parts: by patching, gradients, edges and paths."""

from lensprune.attribution.circuits import Circuit, circuit_metrics, greedy_circuit, top_circuit
from lensprune.attribution.counterfactuals import counterfactual_pairs
from lensprune.attribution.dla import DirectAttribution, direct_logit_attribution, source_attribution
from lensprune.attribution.eap import EdgeScores, edge_attribution
from lensprune.attribution.faithfulness import FaithfulnessCurve, faithfulness_curve
from lensprune.attribution.gradient import attribution_patching
from lensprune.attribution.graph import Edge, EdgeGraph
from lensprune.attribution.lens import logit_lens
from lensprune.attribution.pairs import PromptPair, pair_from_texts
from lensprune.attribution.patching import activation_patching
from lensprune.attribution.paths import direct_and_total_effects, path_effect, path_patching
from lensprune.attribution.qk import QKAttribution, qk_attribution

__all__ = [
    "Circuit",
    "DirectAttribution",
    "Edge",
    "EdgeGraph",
    "EdgeScores",
    "FaithfulnessCurve",
    "PromptPair",
    "QKAttribution",
    "activation_patching",
    "attribution_patching",
    "circuit_metrics",
    "counterfactual_pairs",
    "direct_and_total_effects",
    "direct_logit_attribution",
    "edge_attribution",
    "faithfulness_curve",
    "greedy_circuit",
    "logit_lens",
    "pair_from_texts",
    "path_effect",
    "path_patching",
    "qk_attribution",
    "source_attribution",
    "top_circuit",
]
