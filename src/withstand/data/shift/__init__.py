"""The public benchmarks of distribution shift: what they hold, where they lie, how their images are shown to a model."""
