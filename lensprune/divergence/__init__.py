"""How far a changed model's next-token distributions, states and answers are from the clean model's."""
