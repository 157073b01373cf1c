"""Distillation: kernel ridge regression on the training videos is the teacher, its soft labels are what students learn
(docs/distillation.md)."""
