"""Lists of layers as people write them: 4,8,...,32."""

import re


def parse_layers(text: str, depth: int) -> list[int]:
    """Read a list of layers such as `4,8,...,32`, `all`, `0`, `4-8` or a mix of them.

    text  : items separated by commas; `...` continues the step of the two layers before it up to
            the layer after it; `a-b` is every layer from a to b; `all` is 0 to depth.
    depth : number of blocks of the model; layer 0 is what enters block 1.

    Returns the layers in rising order, each once. Raises ValueError that names the depth and the
    bad item.
    """
    layers: list[int] = []
    items = [item.strip() for item in text.split(",")]
    for place, item in enumerate(items):
        if item == "all":
            layers += range(depth + 1)
        elif item in ("...", "…"):
            layers += _progression(text, items, place, layers, depth)
        elif span := re.fullmatch(r"(\d+)-(\d+)", item):
            first, last = int(span[1]), int(span[2])
            if first > last:
                raise _bad_layers(text, item, depth, f"{first} is after {last}")
            layers += range(first, last + 1)
        elif re.fullmatch(r"\d+", item):
            layers.append(int(item))
        else:
            raise _bad_layers(text, item, depth, "it is not a layer, a span, 'all' or '...'")
        if wrong := [layer for layer in layers if layer > depth]:
            raise _bad_layers(text, item, depth, f"there is no layer {wrong[0]}")
    return sorted(set(layers))


def _progression(text: str, items: list[str], place: int, before: list[int], depth: int) -> range:
    """The layers that `...` stands for: from the last one written to the one after the dots."""
    item = items[place]
    if place < 2 or not all(re.fullmatch(r"\d+", each) for each in items[place - 2 : place]):
        raise _bad_layers(text, item, depth, "two layers must stand before it, as in 4,8,...,32")
    if place + 1 >= len(items) or not re.fullmatch(r"\d+", items[place + 1]):
        raise _bad_layers(text, item, depth, "a last layer must stand after it, as in 4,8,...,32")
    step, last = before[-1] - before[-2], int(items[place + 1])
    if step <= 0 or last <= before[-1] or (last - before[-1]) % step:
        raise _bad_layers(text, item, depth, f"steps of {step} from {before[-1]} don't meet {last}")
    if last > depth:
        raise _bad_layers(text, items[place + 1], depth, f"there is no layer {last}")
    return range(before[-1] + step, last, step)


def _bad_layers(text: str, item: str, depth: int, why: str) -> ValueError:
    like = f"4,8,...,{depth}" if depth >= 12 and depth % 4 == 0 else f"1-{depth}"
    return ValueError(
        f"layers {text!r}: bad item {item!r}, {why}; there are layers 0 (what enters block 1) to "
        f"{depth}, written like {like} or all"
    )
