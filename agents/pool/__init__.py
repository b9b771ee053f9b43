"""The pool: which experts there are, how they are grouped, and what they cost."""
