"""The work: one module a stage, plain typed functions over records and keys."""
