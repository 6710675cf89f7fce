"""Four small trained models: a teacher, a student trained on data alone, a student distilled from the teacher, and the
distilled student trained further to think before it answers.

They ship with the package (``toy-teacher``, ``toy-base``, ``toy-distilled``, ``toy-thinker``). See
docs/results/distillation.md for their training, their abilities, and the comparison of the students.
"""
