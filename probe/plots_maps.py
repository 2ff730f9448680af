"""Colours and shapes of objects on a map: of classes, and of the two sides of a question."""

# Tol 2021, "bright": told apart by colour-blind readers, on light and on dark; shapes for print
CLASS_COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
CLASS_SHAPES = ("circle", "square", "diamond", "triangle-up", "star", "hexagon")
REST = "#9A9A9A"
RING = "#E66100"  # seen on light and on dark
TWO = {  # colour and shape of the sides of a question, the least of interest first
    "not asked": (REST, "circle"),
    "gallery": (REST, "circle"),
    "query": ("#AA3377", "circle"),
    "right": ("#4477AA", "circle"),
    "wrong": ("#EE6677", "x"),
}
SCALE = "Viridis"  # read alike by all eyes, and in grey
MOST_CLASSES = len(CLASS_COLOURS)
