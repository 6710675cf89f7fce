"""Three small trained models: a teacher, a student trained on data alone, and its twin distilled from the teacher.

They ship with the package (``toy-teacher``, ``toy-base``, ``toy-distilled``); docs/results/distillation.md says how
they were trained, what they can do, and what the comparison of the students shows.
"""
