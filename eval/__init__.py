"""Third program: does the student rank like its teacher, and find what it should? `python -m eval CONFIG`."""
