"""Three small trained models: a teacher, a student trained on data alone, and its twin distilled from the teacher.

The recipe is not settled: an earlier one learnt worked steps of three numbers within 1,000 steps (95%
right), but 1,000 steps into the present beginning retrieval among four pairs stood at chance (26%). No weights ship.
"""
