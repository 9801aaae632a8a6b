"""The page of an evaluation, for people: what the gates said and why, where the challenger helps, and whom it fails."""
