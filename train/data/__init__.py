"""One source of clouds and captions a file: embedded shapes, ModelNet, Objaverse."""
