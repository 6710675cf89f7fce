"""Three small trained models: a teacher, a student trained on data alone, and its twin distilled from the teacher."""
