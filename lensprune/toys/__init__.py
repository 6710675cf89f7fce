"""Four small trained models: a teacher, a student trained on data alone, its twin distilled from the teacher, and the
twin's twin that thinks before it answers.

They ship with the package (``toy-teacher``, ``toy-base``, ``toy-distilled``, ``toy-thinker``);
docs/results/distillation.md says how they were trained, what they can do, and what the comparison of the students
shows.
"""
