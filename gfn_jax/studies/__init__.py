"""The paper's tables and figures, and the comparisons beside them: what they are made of, run and reported."""
