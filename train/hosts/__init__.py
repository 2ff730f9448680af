"""One published system a file: its point positions, its target and its unembedding."""
