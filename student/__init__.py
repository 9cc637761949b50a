"""The student stage: teacher features in, a text encoder out whose similarities rank as the teacher does."""
