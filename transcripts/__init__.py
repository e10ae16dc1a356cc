"""Transcripts as people read them: who wrote what, code and formulas, what the learner made of each token."""
