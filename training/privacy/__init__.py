"""Whether a model's draws reveal which images it was trained on: a membership test."""
