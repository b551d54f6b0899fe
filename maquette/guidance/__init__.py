"""Score distillation: the direction in which a prior would move a rendered picture, as a loss."""
