// The map of one layer: an object a mark, on a canvas; the marks glide when the layer changes.
// Everything is drawn by `picture`, on the screen and into files alike, and all text is drawn or
// set as text, never as markup.

const GLIDE = 220; // milliseconds from one layer's map to the next one's
const REACH = 14; // pixels around the pointer in which an object is meant
const SLIP = 4; // pixels that a hand moves while it clicks
const SHAPES = { // around 0, 10 wide
  circle: "M5,0A5,5 0 1,1 -5,0A5,5 0 1,1 5,0Z",
  square: "M-4.4,-4.4H4.4V4.4H-4.4Z",
  diamond: "M0,-6L6,0L0,6L-6,0Z",
  "triangle-up": "M0,-5.5L5.5,4.5H-5.5Z",
  star: "M0,-6L1.5,-1.9L5.7,-1.9L2.4,0.8L3.5,4.9L0,2.5L-3.5,4.9L-2.4,0.8L-5.7,-1.9L-1.5,-1.9Z",
  hexagon: "M5,0L2.5,4.4H-2.5L-5,0L-2.5,-4.4H2.5Z",
  x: "M-5,-3.2L-3.2,-5L0,-1.8L3.2,-5L5,-3.2L1.8,0L5,3.2L3.2,5L0,1.8L-3.2,5L-5,3.2L-1.8,0Z",
};
const RING = "M8,0A8,8 0 1,1 -8,0A8,8 0 1,1 8,0ZM6,0A6,6 0 1,0 -6,0A6,6 0 1,0 6,0Z";

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".object-map");
  root.map ??= build(root);
  root.map.pick = (rows) => setTriggerValue("picked", rows);
  root.map.show(data);
}

function build(root) {
  const canvas = root.querySelector("canvas");
  const tip = root.querySelector(".tip");
  const map = { zoom: 1, shift: [0, 0], lasso: true, drawn: [], over: -1, asked: false };

  const size = () => [canvas.clientWidth, canvas.clientHeight];
  const ink = () => getComputedStyle(root);
  map.redraw = () => {
    if (map.asked) return;
    map.asked = true;
    requestAnimationFrame(() => {
      map.asked = false;
      const [width, height] = size();
      if (!width || !map.at) return;
      const [wide, high] = [width * devicePixelRatio, height * devicePixelRatio].map(Math.round);
      if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
      const context = canvas.getContext("2d");
      context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
      context.clearRect(0, 0, width, height);
      picture(map, onCanvas(context, devicePixelRatio), width, height, ink().color);
      if (map.drawn.length) outline(context, map.drawn, ink().color);
    });
  };

  map.show = (data) => {
    const rows = new Int32Array(bytes(data.rows));
    const at = new Float32Array(bytes(data.position));
    const before = map.at && new Map(Array.from(map.rows, (row, i) => [row, i]));
    const from = at.slice(); // where each object was, if it was there
    rows.forEach((row, i) => {
      const was = before?.get(row);
      if (was !== undefined) from.set(map.at.subarray(2 * was, 2 * was + 2), 2 * i);
    });
    const moved = map.at && from.some((value, i) => value !== at[i]);
    const frame = map.frame ?? data.frame;
    Object.assign(map, data, { rows, at: from, frame, over: -1 });
    map.colour = new Uint8Array(bytes(data.colour));
    tip.hidden = true;
    root.querySelector(".lasso").setAttribute("aria-pressed", map.lasso);
    canvas.setAttribute("aria-label", data.alt);
    glide(map, canvas, from.slice(), at, frame, data.frame, moved ? GLIDE : 0);
  };

  pointer(map, canvas, tip, size);
  keys(map, canvas, tip, size);
  const press = (name, act) => root.querySelector(name).addEventListener("click", act);
  press(".in", () => zoom(map, size(), 1.4));
  press(".out", () => zoom(map, size(), 1 / 1.4));
  press(".home", () => home(map));
  press(".png", () => savePng(map, size(), ink()));
  press(".svg", () => saveSvg(map, size(), ink()));
  press(".lasso", (event) => {
    map.lasso = !map.lasso;
    event.currentTarget.setAttribute("aria-pressed", map.lasso);
  });
  new ResizeObserver(map.redraw).observe(canvas);
  return map;
}

const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;

function glide(map, canvas, from, to, frame, end, time) {
  const run = (map.run = {}); // a later one takes over
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let begun, frames = 0;
  const step = (now) => {
    if (map.run !== run) return;
    begun ??= now;
    const share = time && !still ? Math.min((now - begun) / time, 1) : 1;
    const t = share * share * (3 - 2 * share);
    for (let i = 0; i < to.length; i++) map.at[i] = from[i] + t * (to[i] - from[i]);
    map.frame = frame.map((ends, axis) => ends.map((one, i) => one + t * (end[axis][i] - one)));
    map.redraw();
    frames++;
    if (share < 1) requestAnimationFrame(step);
    else canvas.dataset.glided = JSON.stringify({ frames, milliseconds: Math.round(now - begun) });
  };
  requestAnimationFrame(step);
}

// Of data to the screen: both axes to one scale, the frame in the middle below the legend.
function projection(map, width, height) {
  const [[x0, x1], [y0, y1]] = map.frame, top = map.top ?? 30;
  const scale = map.zoom * Math.min(width / (x1 - x0), (height - top) / (y1 - y0));
  const middle = [width / 2 + map.shift[0], top + (height - top) / 2 + map.shift[1]];
  return (x, y) => [
    middle[0] + scale * (x - (x0 + x1) / 2),
    middle[1] - scale * (y - (y0 + y1) / 2),
  ];
}

function picture(map, paint, width, height, ink) {
  map.top = legend(map, paint, width, ink);
  const place = projection(map, width, height);
  const size = map.rows.length < 3000 ? 7 : 4.5;
  paint.clip(0, map.top, width, height - map.top);
  const order = map.marks.map((_, kind) => kind); // the grey ones first, below all others
  const kinds = order.length > 8 ? [null] : order;
  for (const kind of kinds) {
    for (let i = 0; i < map.rows.length; i++) {
      if (kind !== null && map.colour[i] !== kind) continue;
      const [x, y] = place(map.at[2 * i], map.at[2 * i + 1]);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      const mark = map.marks[map.colour[i]];
      paint.mark(x, y, SHAPES[mark.shape], size / 10, mark.colour, mark.opacity);
    }
  }
  const chosen = new Set(map.chosen);
  map.rows.forEach((row, i) => {
    if (!chosen.has(row) && i !== map.over) return;
    const [x, y] = place(map.at[2 * i], map.at[2 * i + 1]);
    paint.mark(x, y, RING, chosen.has(row) ? 1 : 0.8, chosen.has(row) ? map.ring : ink, 1);
  });
  paint.unclip();
}

// What colours and shapes mean, in one row or more; returns where it ends.
function legend(map, paint, width, ink) {
  let [x, y] = [4, 14];
  if (map.scale) {
    const { low, high, title } = map.scale;
    x += paint.text(x, y, `${title}: ${low}`, ink) + 8;
    const marks = map.marks.slice(0, -1); // the last one is for objects without a number
    marks.forEach((mark, i) => paint.block(x + (120 * i) / marks.length, y - 6, mark.colour));
    paint.text(x + 130, y, high, ink);
    return 30;
  }
  for (const mark of map.marks) {
    const long = paint.width(mark.name) + 34;
    if (x > 4 && x + long > width) [x, y] = [4, y + 20];
    paint.mark(x + 6, y, SHAPES[mark.shape], 1, mark.colour, 1);
    paint.text(x + 16, y, mark.name, ink);
    x += long;
  }
  return y + 16;
}

const FONT = "13px 'Source Sans', 'Source Sans Pro', sans-serif";

const stamps = new Map(); // a mark is drawn once, and then stamped: ten thousand stay fluid

function stamp(path, scale, colour, opacity, ratio) {
  const key = `${path} ${scale} ${colour} ${opacity} ${ratio}`;
  if (!stamps.has(key)) {
    const side = 2 * Math.ceil(9 * scale * ratio + 1), one = new OffscreenCanvas(side, side);
    const pen = one.getContext("2d");
    pen.setTransform(scale * ratio, 0, 0, scale * ratio, side / 2, side / 2);
    pen.globalAlpha = opacity;
    pen.fillStyle = colour;
    pen.fill(new Path2D(path));
    stamps.set(key, one.transferToImageBitmap());
  }
  return stamps.get(key);
}

function onCanvas(context, ratio) {
  context.font = FONT;
  context.textBaseline = "middle";
  return {
    mark(x, y, path, scale, colour, opacity) {
      const one = stamp(path, scale, colour, opacity, ratio), half = one.width / 2;
      const [left, top] = [Math.round(x * ratio) - half, Math.round(y * ratio) - half];
      context.drawImage(one, left / ratio, top / ratio, one.width / ratio, one.width / ratio);
    },
    text(x, y, words, colour) {
      context.fillStyle = colour;
      context.fillText(words, x, y);
      return context.measureText(words).width;
    },
    block(x, y, colour) {
      context.fillStyle = colour;
      context.fillRect(x, y, 3, 12);
    },
    width: (words) => context.measureText(words).width,
    clip(x, y, width, height) {
      context.save();
      context.beginPath();
      context.rect(x, y, width, height);
      context.clip();
    },
    unclip: () => context.restore(),
  };
}

function onSvg(width) {
  const parts = [], plain = (text) => String(text).replace(/[&<>"]/g, (one) => `&#${one.charCodeAt(0)};`);
  return {
    parts,
    mark(x, y, path, scale, colour, opacity) {
      const at = `translate(${x.toFixed(1)},${y.toFixed(1)})scale(${scale})`;
      parts.push(`<path d="${path}" transform="${at}" fill="${colour}" fill-opacity="${opacity}"/>`);
    },
    text(x, y, words, colour) {
      parts.push(`<text x="${x}" y="${y + 4}" fill="${colour}">${plain(words)}</text>`);
      return width(words);
    },
    block: (x, y, colour) => parts.push(`<rect x="${x}" y="${y}" width="3" height="12" fill="${colour}"/>`),
    width,
    clip(x, y, wide, high) {
      parts.push(`<clipPath id="in"><rect x="${x}" y="${y}" width="${wide}" height="${high}"/></clipPath>`);
      parts.push('<g clip-path="url(#in)">');
    },
    unclip: () => parts.push("</g>"),
  };
}

function savePng(map, [width, height], { color, backgroundColor }) {
  const sheet = new OffscreenCanvas(2 * width, 2 * height), context = sheet.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = backgroundColor;
  context.fillRect(0, 0, width, height);
  picture(map, onCanvas(context, 2), width, height, color);
  sheet.convertToBlob().then((blob) => save(blob, `${map.name}.png`));
}

function saveSvg(map, [width, height], { color, backgroundColor }) {
  const ruler = new OffscreenCanvas(1, 1).getContext("2d");
  ruler.font = FONT;
  const paint = onSvg((words) => ruler.measureText(words).width);
  picture(map, paint, width, height, color);
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" ` +
    `style="background:${backgroundColor}" font-family="sans-serif" font-size="13">`;
  save(new Blob([head, ...paint.parts, "</svg>"], { type: "image/svg+xml" }), `${map.name}.svg`);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function outline(context, path, colour) {
  context.beginPath();
  path.forEach(([x, y]) => context.lineTo(x, y));
  context.closePath();
  context.strokeStyle = colour;
  context.setLineDash([5, 4]);
  context.stroke();
  context.setLineDash([]);
}

// Position in `rows` of the object under the pointer, or -1.
function nearest(map, [x, y], [width, height]) {
  const place = projection(map, width, height);
  let best = -1, least = REACH;
  for (let i = 0; i < map.rows.length; i++) {
    const [px, py] = place(map.at[2 * i], map.at[2 * i + 1]);
    const gap = Math.hypot(px - x, py - y);
    if (gap < least) [best, least] = [i, gap];
  }
  return best;
}

function within(map, path, [width, height]) {
  const place = projection(map, width, height);
  return Array.from(map.rows).filter((_, i) => {
    const [x, y] = place(map.at[2 * i], map.at[2 * i + 1]);
    let inside = false;
    path.forEach(([ax, ay], j) => {
      const [bx, by] = path[(j + 1) % path.length];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
    });
    return inside;
  });
}

function point(map, tip, over, [width, height]) {
  if (over === map.over) return;
  map.over = over;
  tip.hidden = over < 0;
  if (over >= 0) {
    const [x, y] = projection(map, width, height)(map.at[2 * over], map.at[2 * over + 1]);
    tip.textContent = `${map.samples[over]}: ${map.names[map.name_of[over]]}`;
    tip.style.top = `${y + 14}px`;
    tip.style.left = x < width / 2 ? `${x + 12}px` : "";
    tip.style.right = x < width / 2 ? "" : `${width - x + 12}px`;
  }
  map.redraw();
}

function zoom(map, [width, height], by, [x, y] = [width / 2, (height + map.top) / 2]) {
  const centre = [width / 2, map.top + (height - map.top) / 2];
  const next = Math.min(Math.max(map.zoom * by, 0.5), 60);
  map.shift = map.shift.map((shift, axis) => {
    const off = [x, y][axis] - centre[axis];
    return off - ((off - shift) * next) / map.zoom;
  });
  map.zoom = next;
  map.redraw();
}

function home(map) {
  Object.assign(map, { zoom: 1, shift: [0, 0] });
  map.redraw();
}

function pointer(map, canvas, tip, size) {
  const where = (event) => [event.offsetX, event.offsetY];
  let down = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    down = { at: where(event), last: where(event), drag: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = where(event);
    if (!down) return point(map, tip, nearest(map, here, size()), size());
    const [dx, dy] = [here[0] - down.at[0], here[1] - down.at[1]];
    if (!down.drag && Math.hypot(dx, dy) < SLIP) return;
    if (!down.drag) map.drawn = map.lasso ? [down.at] : [];
    down.drag = true;
    if (map.lasso) map.drawn.push(here);
    else map.shift = map.shift.map((shift, axis) => shift + here[axis] - down.last[axis]);
    down.last = here;
    point(map, tip, -1, size());
    map.redraw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!down) return;
    const { drag, at } = down;
    down = null;
    if (drag) {
      const path = map.drawn;
      map.drawn = [];
      if (path.length > 2) map.pick(within(map, path, size()));
      return map.redraw();
    }
    const over = nearest(map, at, size());
    if (over < 0) return map.pick([]);
    const others = event.shiftKey ? map.chosen.filter((row) => row !== map.rows[over]) : [];
    map.pick([map.rows[over], ...others]);
  });
  canvas.addEventListener("pointerleave", () => point(map, tip, -1, size()));
  canvas.addEventListener("dblclick", () => home(map));
  const turn = (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoom(map, size(), Math.exp(-event.deltaY / 300), where(event));
  };
  canvas.addEventListener("wheel", turn, { passive: false });
}

// Arrows go from object to object, Enter selects, + and - zoom, 0 shows all.
function keys(map, canvas, tip, size) {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const way = ways[event.key];
    if (way) point(map, tip, beyond(map, way, size()), size());
    else if (event.key === "Enter" && map.over >= 0) map.pick([map.rows[map.over]]);
    else if (event.key === "Escape") map.pick([]);
    else if (event.key === "+") zoom(map, size(), 1.4);
    else if (event.key === "-") zoom(map, size(), 1 / 1.4);
    else if (event.key === "0") home(map);
    else return;
    event.preventDefault();
  });
}

// The nearest object that lies in a direction from the one that is pointed at.
function beyond(map, [dx, dy], [width, height]) {
  const place = projection(map, width, height);
  const at = (i) => place(map.at[2 * i], map.at[2 * i + 1]);
  const [x, y] = map.over < 0 ? [width / 2, height / 2] : at(map.over);
  let best = map.over, least = Infinity;
  for (let i = 0; i < map.rows.length; i++) {
    const [px, py] = at(i);
    const along = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    if (along > 0.5 && along + 2 * aside < least) [best, least] = [i, along + 2 * aside];
  }
  return best;
}
