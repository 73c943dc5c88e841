"use strict";
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const state = { map: null, alpha: null, region: 0, row: -1 };
const CURVES = ["#dc4a46", "#3a8bd0", "#a163c0"];

/* ---- what is stored: integers of a step, their bytes in planes, deflated, in base64 */
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpacked({ low, step, log, size, count, data }) {
  const planes = await inflated(data);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    let whole = 0;
    for (let k = size - 1; k >= 0; k--) whole = 256 * whole + planes[k * count + i];
    const value = whole === 0 ? NaN : low + (whole - 1) * step;
    values[i] = log ? Math.exp(value) : value;
  }
  return values;
}

async function unpackAll() {
  const all = async (list) => Promise.all(list.map(unpacked));
  data.inside.values = await unpacked(data.inside);
  data.background.values = await unpacked(data.background);
  for (const map of data.maps) {
    map.values = await all(map.values);
    if (!map.uncertainty) continue;
    map.uncertainty.values = await all(map.uncertainty.values);
    if (map.bounds && map.uncertainty.kind === "interval") // an end on a bound is not a multiple of the step
      for (const ends of map.uncertainty.values) ends.forEach((end, i) => { ends[i] = clipped(end, map.bounds); });
  }
  if (data.regions) data.regions.values = await unpacked(data.regions.values);
  const s = data.sample;
  for (const name of ["rows", "measured", "sigma"]) s[name] = await unpacked(s[name]);
  if (s.left_out) s.left_out = await unpacked(s.left_out);
  for (const name in s.curves) s.curves[name] = await unpacked(s.curves[name]);
  data.rowOf = new Int32Array(data.inside.values.length).fill(-1);
  let rows = 0;
  data.inside.values.forEach((inside, voxel) => { if (inside) data.rowOf[voxel] = rows++; });
  data.rows = rows;
  s.positionOf = new Map(Array.from(s.rows, (row, position) => [row, position]));
}

/* ---- maps: each parameter at its alpha, as `labelwise map --alpha` gives it */
function blended(map, alpha = state.alpha) {
  if (map.values.length < 2) return map.values[0];
  const share = alpha[map.name], [one, other] = map.values;
  const out = new Float32Array(one.length);
  for (let i = 0; i < out.length; i++)
    out[i] = clipped(share * one[i] + (1 - share) * other[i], map.bounds);
  return out;
}

const clipped = (value, [low, high]) => Math.max(high === "inf" ? value : Math.min(value, high), low);

function widths(map) {
  const [low, high] = map.uncertainty.values;
  return high ? low.map((value, i) => (high[i] - value) / 2) : low;
}

const byName = (name) => data.maps.find((map) => map.name === name);
const estimates = () => data.maps.filter((map) => map.uncertainty !== undefined);

/* ---- numbers and words */
function number(value) {
  if (!Number.isFinite(value)) return "none";
  value = Number(value.toPrecision(3));
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential();
  const places = size === 0 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(size)));
  return value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function symbol(map) {
  if (map.symbol === map.name || map.symbol.includes("\\")) return map.name;
  const made = element("span");
  for (const [, plain, low] of map.symbol.matchAll(/([^_]+)|_(\{[^}]*\}|.)/g))
    made.append(plain ?? element("sub", { textContent: low.replace(/[{}]/g, "") }));
  return made;
}

/* ---- what is shown: a map, or the uncertainty of one */
function options() {
  const groups = { Estimates: [], Uncertainty: [], Quality: [] };
  for (const map of data.maps) {
    groups[map.uncertainty === undefined ? "Quality" : "Estimates"].push([map.name, map.name]);
    if (map.uncertainty) {
      const words = map.uncertainty.kind === "interval" ? "half interval of" : "standard error of";
      groups.Uncertainty.push([`${map.name} uncertainty`, `${words} ${map.name}`]);
    }
  }
  for (const [label, entries] of Object.entries(groups)) {
    if (!entries.length) continue;
    const made = entries.map(([value, textContent]) => element("option", { value, textContent }));
    $("map").append(element("optgroup", { label }, ...made));
  }
}

function chosen() {
  const [name, uncertainty] = state.map.split(" ");
  const map = byName(name);
  if (!uncertainty) {
    const gray = map.limits && map.limits[0] === 0 && map.unit === "a.u.";
    return { map, values: blended(map), limits: map.limits, span: map.span ?? map.limits, colours: gray ? "gray" : map.uncertainty === undefined ? "inferno" : "viridis", about: map.about };
  }
  return { map, values: widths(map), limits: map.widths, span: map.widths, colours: "magma", about: map.uncertainty.about, uncertainty };
}

/* ---- the viewer */
let viewer = null, layer = null;

function nifti(values) {
  const header = new DataView(new ArrayBuffer(352));
  const size = data.affine.slice(0, 3).map((_, k) => Math.hypot(...data.affine.slice(0, 3).map((row) => row[k])));
  header.setInt32(0, 348, true);
  [3, ...data.shape, 1, 1, 1, 1].forEach((n, k) => header.setInt16(40 + 2 * k, n, true));
  header.setInt16(70, 16, true);
  header.setInt16(72, 32, true);
  [1, ...size, 0, 0, 0, 0].forEach((n, k) => header.setFloat32(76 + 4 * k, n, true));
  header.setFloat32(108, 352, true);
  header.setFloat32(112, 1, true);
  header.setInt16(254, 1, true);
  data.affine.slice(0, 3).flat().forEach((n, k) => header.setFloat32(280 + 4 * k, n, true));
  [110, 43, 49, 0].forEach((n, k) => header.setUint8(344 + k, n));
  const file = new Uint8Array(352 + values.byteLength);
  file.set(new Uint8Array(header.buffer));
  file.set(new Uint8Array(values.buffer), 352);
  return file.buffer;
}

function spread(values, none) {
  const grid = new Float32Array(data.rowOf.length);
  for (let voxel = 0; voxel < grid.length; voxel++) {
    const row = data.rowOf[voxel];
    grid[voxel] = row < 0 ? none : values[row];
  }
  return grid;
}

async function startViewer() {
  const script = new TextDecoder().decode(await inflated($("viewer").textContent));
  document.head.append(element("script", { textContent: script }));
  const { Niivue, NVImage } = window.niivue;
  viewer = new Niivue({
    logLevel: "silent", dragAndDropEnabled: false, isNearestInterpolation: true, loadingText: "",
    isRadiologicalConvention: true, isOrientationTextVisible: data.oriented, scrollRequiresFocus: true,
    showAllOrientationMarkers: true,
    crosshairColor: [1, 1, 1, 0.55], crosshairWidth: 0.25, crosshairGap: 3, fontColor: [1, 1, 1, 0.9],
    dragMode: 3, multiplanarShowRender: 0, multiplanarPadPixels: 6, isAntiAlias: false,
  });
  await viewer.attachToCanvas($("volumes"), false);
  const back = await NVImage.new(nifti(data.background.values), "input.nii", "gray", 1, null, ...data.background.limits);
  layer = await NVImage.new(nifti(spread(shades(chosen()), 0)), "map.nii", "viridis", 1, null, 0, 255);
  viewer.addVolume(back);
  viewer.addVolume(layer);
  const flat = data.shape.indexOf(1);
  if (flat >= 0) {
    const column = data.affine.slice(0, 3).map((row) => Math.abs(row[flat]));
    const across = column.indexOf(Math.max(...column));
    viewer.setSliceType([viewer.sliceTypeSagittal, viewer.sliceTypeCoronal, viewer.sliceTypeAxial][across]);
  }
  viewer.onLocationChange = () => selectVoxel(position());
}

const through = (affine, at) => affine.slice(0, 3).map((row) => row[0] * at[0] + row[1] * at[1] + row[2] * at[2] + row[3]);

function position() {
  const mm = viewer.frac2mm(viewer.scene.crosshairPos, 0, true);
  return through(data.inverse, mm).map(Math.round);
}

function moveTo(voxel) {
  viewer.scene.crosshairPos = viewer.mm2frac(through(data.affine, voxel), 0, true);
  viewer.drawScene();
}

/* Shades are counted here, since NiiVue has no colour for NaN and for the lowest value alike: 0 is
   none and has no colour, 1 to 255 are the colours of the map; each class has an equal part. */
function shades({ map, values, limits: [low, high] = [] }) {
  const share = map.classes ? (value) => (value + 0.5) / map.classes.length : (value) => (value - low) / (high - low);
  return values.map((value) => (Number.isNaN(value) ? 0 : 1 + 254 * Math.min(1, Math.max(0, share(value)))));
}

function palette({ map, colours }) {
  const base = window.niivue.cmapper.colormap(colours, false);
  const rgb = Array.from({ length: 255 }, (_, k) => {
    if (!map.classes) return [...base.slice(4 * k + 4, 4 * k + 7)];
    const { colour } = map.classes[Math.floor((k * map.classes.length) / 255)];
    return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  });
  const column = (k) => [0, ...rgb.map((each) => each[k])];
  const name = `labelwise ${map.classes ? map.name : colours}`;
  window.niivue.cmapper.addColormap(name, { R: column(0), G: column(1), B: column(2), A: [0, ...rgb.map(() => 255)], I: column(0).map((_, k) => k) });
  return name;
}

function drawMap() {
  if (!viewer) return;
  const shown = chosen();
  layer.img = spread(shades(shown), 0);
  layer.colormap = palette(shown);
  [layer.cal_min, layer.cal_max] = [0, 255];
  layer.opacity = Number($("opacity").value);
  viewer.updateGLVolume();
}

function drawLegend() {
  const shown = chosen(), { map, limits, about } = shown;
  $("legend").replaceChildren();
  if (map.classes) {
    const items = map.classes.map(({ words, colour }) => {
      const mark = element("i");
      mark.style.background = colour;
      return element("li", {}, mark, words);
    });
    $("legend").append(element("ul", { className: "classes" }, ...items));
  } else {
    const strip = element("canvas", { width: 255, height: 1 });
    if (viewer) {
      const bar = window.niivue.cmapper.colormap(palette(shown), false).slice(4);
      strip.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(bar), 255, 1), 0, 0);
    }
    $("legend").append(element("div", { className: "scale" }, number(limits[0]), strip, `${number(limits[1])} ${map.unit}`));
  }
  const thin = data.thinned > 1 ? ` This page holds every ${data.thinned}. voxel along each axis.` : "";
  $("about").textContent = `${about[0].toUpperCase()}${about.slice(1)}. Voxels without colour have no value.${thin}` + (data.oriented ? " Left is shown on the right, as in radiology." : " The image holds no orientation.");
}

/* ---- statistics */
function regionRows() {
  const wanted = state.region - 1;
  return wanted < 0 || !data.regions ? null : (row) => data.regions.values[row] === wanted;
}

function within(values) {
  const inside = regionRows();
  return values.filter((value, row) => Number.isFinite(value) && (!inside || inside(row)));
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1), k = Math.floor(at);
  return sorted[k] + (at - k) * ((sorted[k + 1] ?? sorted[k]) - sorted[k]);
}

function summary(values) {
  const sorted = within(values).sort();
  const n = sorted.length;
  if (!n) return { n };
  const mean = sorted.reduce((sum, value) => sum + value, 0) / n;
  const sd = Math.sqrt(sorted.reduce((sum, value) => sum + (value - mean) ** 2, 0) / Math.max(1, n - 1));
  return { n, mean, sd, quartiles: [0.25, 0.5, 0.75].map((share) => quantile(sorted, share)) };
}

function drawStatistics() {
  const cell = (textContent, className = "number") => element("td", { textContent, className });
  const rows = estimates().map((map) => {
    const { n, mean, sd, quartiles } = summary(blended(map));
    const head = element("th", { scope: "row" }, symbol(map));
    if (!n) return element("tr", {}, head, cell("none"), cell(""), cell(""), cell("0"), cell(map.unit, ""));
    const [low, median, high] = quartiles.map(number);
    return element("tr", {}, head, cell(median), cell(`${low} to ${high}`), cell(`${number(mean)} ± ${number(sd)}`), cell(n.toLocaleString("en")), cell(map.unit, ""));
  });
  $("statistics").replaceChildren(...rows);
}

function svg(width, height, ...children) {
  const made = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  made.append(...children);
  return made;
}

function drawn(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const BINS = 48;
function counts(values, [low, high], step) { // a stored value stands for a step, over which it is spread
  const bins = new Array(BINS).fill(0);
  within(values).forEach((value, i) => {
    const away = value > low && value < high ? step * (((0.618034 * i) % 1) - 0.5) : 0;
    const bin = Math.floor((BINS * (value + away - low)) / (high - low));
    bins[Math.min(BINS - 1, Math.max(0, bin))]++;
  });
  return bins;
}

function drawHistogram() {
  const { map, values, span, uncertainty } = chosen();
  $("shown").replaceChildren(uncertainty ? `the ${map.uncertainty.kind === "interval" ? "half interval" : "standard error"} of ` : "", symbol(map));
  const width = 400, height = 150, floor = height - 22;
  const parts = [drawn("path", { class: "axis", d: `M0 ${floor}.5H${width}` })];
  if (map.classes) {
    const found = map.classes.map((_, k) => within(values).filter((value) => value === k).length);
    const total = Math.max(1, found.reduce((a, b) => a + b, 0));
    $("histogram").replaceChildren(element("table", {}, element("tbody", {}, ...map.classes.map(({ words }, k) =>
      element("tr", {}, element("td", { textContent: words }), element("td", { className: "number", textContent: `${found[k].toLocaleString("en")} (${((100 * found[k]) / total).toPrecision(3)} %)` }))))));
    $("counted").textContent = "";
    return;
  }
  const step = uncertainty ? 0 : map.step ?? 0;
  const bins = counts(values, span, step);
  const run = map.values.length > 1 && !uncertainty ? counts(blended(map, data.alpha), span, step) : bins;
  const most = Math.max(...bins, ...run, 1);
  const y = (n) => floor - ((floor - 6) * n) / most;
  bins.forEach((n, k) => parts.push(drawn("rect", { class: "bars", x: (width * k) / BINS + 0.4, width: width / BINS - 0.8, y: y(n), height: floor - y(n) })));
  if (run.some((n, k) => n !== bins[k]))
    parts.push(drawn("path", { class: "ghost", d: "M" + run.map((n, k) => `${(width * k) / BINS} ${y(n)}H${(width * (k + 1)) / BINS}`).join("L") }));
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]])
    parts.push(drawn("text", { x: share * width, y: height - 6, "text-anchor": anchor }, number(span[0] + share * (span[1] - span[0]))));
  $("histogram").replaceChildren(svg(width, height, ...parts));
  const ghost = run === bins || !run.some((n, k) => n !== bins[k]) ? "" : " Line: at the alpha of the run.";
  $("counted").textContent = `${within(values).length.toLocaleString("en")} voxels (${$("region").selectedOptions[0].textContent})${map.unit && `, in ${map.unit}`}; the outermost bars hold all values beyond.${ghost}`;
}

/* ---- one voxel */
function selectVoxel(voxel) {
  const [x, y, z] = voxel;
  const [X, Y, Z] = data.shape;
  const inGrid = x >= 0 && y >= 0 && z >= 0 && x < X && y < Y && z < Z;
  state.row = inGrid ? data.rowOf[x + X * (y + Y * z)] : -1;
  state.voxel = voxel.map((n, k) => n * data.thinned + data.first[k]);
  drawVoxel();
}

function drawVoxel() {
  const row = state.row;
  $("moved").hidden = !data.alpha || Object.entries(data.alpha).every(([name, alpha]) => state.alpha[name] === alpha);
  $("where").textContent = state.voxel ? state.voxel.join(", ") : "";
  if (row < 0) {
    $("state").textContent = state.voxel ? "Outside the mask." : "Click a voxel of the map.";
    $("voxel").replaceChildren();
    $("plot").replaceChildren();
    $("plotted").textContent = "";
    return;
  }
  const words = ["status", "outside"].map(byName).filter(Boolean).map((map) => map.classes[map.values[0][row]].words);
  const residual = byName("residual").values[0][row];
  $("state").textContent = `${[...new Set(words)].join("; ")}; residual ${number(residual)}.`.replace(/^./, (c) => c.toUpperCase());
  const cell = (textContent, className = "number") => element("td", { textContent, className });
  $("voxel").replaceChildren(...estimates().map((map) => {
    const value = blended(map)[row];
    let error = "";
    if (map.uncertainty) {
      const [low, high] = map.uncertainty.values;
      error = high ? `${number(low[row])} to ${number(high[row])}` : `± ${number(low[row])}`;
    }
    return element("tr", {}, element("th", { scope: "row" }, symbol(map)), cell(number(value)), cell(error), cell(map.unit, ""));
  }));
  drawPlot(data.sample.positionOf.get(row));
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((n) => n * power >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(Number(at.toPrecision(8)));
  return found;
}

function drawPlot(at) {
  const s = data.sample;
  if (at === undefined) {
    $("plot").replaceChildren();
    $("plotted").textContent = `This page holds the measurements of ${s.rows.length.toLocaleString("en")} voxels, ${/\D/.test(s.slices) ? "slices" : "slice"} ${s.slices}; this voxel is not among them.`;
    return;
  }
  const M = s.measured_at.length, G = s.curve_at.length;
  const measured = s.measured.slice(at * M, (at + 1) * M);
  const curves = Object.entries(s.curves).map(([name, all], k) => [name, all.slice(at * G, (at + 1) * G), CURVES[k]]);
  const width = 420, height = 230, left = 44, floor = height - 34, right = 14;
  const everything = [...measured, ...curves.flatMap(([, curve]) => [...curve])].filter(Number.isFinite);
  const top = Math.max(...everything, 0) * 1.04, bottom = Math.min(0, ...everything);
  const first = Math.min(...s.measured_at), last = Math.max(...s.measured_at);
  const x = (v) => left + 6 + ((width - left - 6 - right) * (v - first)) / (last - first || 1);
  const y = (v) => floor - ((floor - 8) * (v - bottom)) / (top - bottom || 1);
  const parts = [];
  for (const tick of ticks(bottom, top, 4)) {
    parts.push(drawn("path", { class: "grid", d: `M${left} ${y(tick)}H${width}` }));
    parts.push(drawn("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tick.toLocaleString("en")));
  }
  for (const tick of ticks(first, last, 5)) parts.push(drawn("text", { x: x(tick), y: floor + 15, "text-anchor": "middle" }, tick.toLocaleString("en")));
  parts.push(drawn("path", { class: "axis", d: `M${left}.5 4V${floor}.5H${width}` }));
  parts.push(drawn("text", { x: width - 4, y: height - 4, "text-anchor": "end" }, `${s.setting} (${s.unit})`));
  measured.forEach((value, k) => {
    const gone = s.left_out && s.left_out[at * M + k] > 0;
    const [cx, cy] = [x(s.measured_at[k]), y(value)];
    if (Number.isFinite(value))
      parts.push(gone ? drawn("path", { class: "gone", d: `M${cx - 3} ${cy - 3}l6 6m0-6l-6 6` }) : drawn("circle", { class: "point", cx, cy, r: 2.6 }));
  });
  const key = [];
  for (const [name, curve, colour] of curves) {
    if (!curve.every(Number.isFinite)) continue;
    if (s.smooth) parts.push(drawn("polyline", { class: "curve", stroke: colour, points: Array.from(curve, (v, k) => `${x(s.curve_at[k])},${y(v)}`).join(" ") }));
    else curve.forEach((v, k) => parts.push(drawn("path", { class: "curve", stroke: colour, d: `M${x(s.curve_at[k]) - 4} ${y(v)}h8` })));
    key.push([name, colour]);
  }
  const words = width - 8 - 6.5 * Math.max(12, ...key.map(([name]) => name.length));
  key.forEach(([name, colour], k) => {
    parts.push(drawn("path", { class: "curve", stroke: colour, d: `M${words - 24} ${14 + 16 * k}h18` }));
    parts.push(drawn("text", { x: words, y: 18 + 16 * k }, name));
  });
  $("plot").replaceChildren(svg(width, height, ...parts));
  const gone = s.left_out && measured.some((_, k) => s.left_out[at * M + k] > 0) ? " Crosses: left out." : "";
  $("plotted").textContent = `Circles: the measurements. ${s.smooth ? "Lines" : "Dashes"}: what the estimate predicts, the mean of the noise (sigma ${number(s.sigma[at])}) included.${gone} In this page for ${s.rows.length.toLocaleString("en")} voxels, ${/\D/.test(s.slices) ? "slices" : "slice"} ${s.slices}.`;
}

/* ---- the dial */
function setAlpha(alpha) {
  state.alpha = alpha;
  const all = Object.values(alpha);
  const same = all.every((a) => a === all[0]);
  $("same").textContent = same ? `labelwise map --alpha ${all[0]}` : `labelwise map ${Object.entries(alpha).map(([name, a]) => `--alpha ${name}=${a}`).join(" ")}`;
  for (const input of $("dials").querySelectorAll("input")) {
    input.value = alpha[input.name] ?? all[0];
    input.nextElementSibling.textContent = Number(input.value).toFixed(2);
  }
  refresh();
}

function drawDials() {
  const names = $("each").checked ? Object.keys(data.alpha) : ["all"];
  $("dials").replaceChildren(...names.flatMap((name) => {
    const input = element("input", { type: "range", min: 0, max: 1, step: 0.01, name, id: `dial-${name}` });
    input.setAttribute("aria-label", name === "all" ? "alpha" : `alpha of ${name}`);
    input.addEventListener("input", () => {
      const value = Number(input.value);
      setAlpha(name === "all" ? Object.fromEntries(Object.keys(data.alpha).map((each) => [each, value])) : { ...state.alpha, [name]: value });
    });
    const label = element("label", { htmlFor: input.id }, name === "all" ? "all" : symbol(byName(name)));
    return [label, input, element("output")];
  }));
  const first = Object.values(state.alpha)[0];
  setAlpha(names[0] === "all" ? Object.fromEntries(Object.keys(data.alpha).map((each) => [each, first])) : state.alpha);
}

/* ---- all together; a slider draws once a frame, and sorts values for the table when it rests */
let waiting = false, resting = 0;
function refresh() {
  clearTimeout(resting);
  resting = setTimeout(drawStatistics, 120);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawMaps(); });
}

function drawMaps() {
  drawMap();
  drawLegend();
  drawHistogram();
  drawVoxel();
}

function draw() {
  drawMaps();
  drawStatistics();
}

function saveRating(event) {
  event.preventDefault();
  const form = new FormData($("rating"));
  const record = {
    schema: "labelwise rating 1", image: data.path, labelwise: data.labelwise,
    rating: form.get("rating"), rater: form.get("rater"), comment: form.get("comment"),
    alpha: state.alpha, map: state.map, voxel: state.voxel ?? null, rated: new Date().toISOString(),
  };
  const blob = new Blob([JSON.stringify(record, null, 2) + "\n"], { type: "application/json" });
  const link = element("a", { href: URL.createObjectURL(blob), download: "rating.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  return record;
}

async function start() {
  await unpackAll();
  state.alpha = data.alpha && { ...data.alpha };
  options();
  state.map = (estimates().find((map) => map.unit !== "a.u.") ?? data.maps[0]).name;
  $("map").value = state.map;
  const regions = ["all voxels", ...(data.regions?.labels ?? []).map((label) => `label ${label} of the mask`)];
  $("region").append(...regions.map((textContent, value) => element("option", { textContent, value })));
  $("made").textContent = `Made by labelwise ${data.labelwise} from ${data.path}; run.json has the command and all settings.`;
  $("map").addEventListener("change", () => { state.map = $("map").value; refresh(); });
  $("opacity").addEventListener("input", refresh);
  $("region").addEventListener("change", () => { state.region = Number($("region").value); refresh(); });
  $("rating").addEventListener("submit", saveRating);
  try {
    await startViewer();
  } catch (error) {
    viewer = null;
    $("stage").replaceChildren(element("p", { textContent: `The slices cannot be shown: ${error.message} (WebGL 2 is needed) The rest of the page works.` }));
  }
  if (data.alpha) {
    $("dialbox").hidden = false;
    $("each").checked = new Set(Object.values(data.alpha)).size > 1;
    $("each").addEventListener("change", drawDials);
    $("back").addEventListener("click", () => { $("each").checked = new Set(Object.values(data.alpha)).size > 1; state.alpha = { ...data.alpha }; drawDials(); });
    $("precision").textContent = `Uncertainties, and what is calculated from the parameters, stay at the alpha of the run. Estimates are stored in steps of ${estimates().filter((m) => m.values.length > 1).map((m) => `${m.step} ${m.unit}`.trim() + ` (${m.name})`).join(", ")}.`;
    drawDials();
  }
  if (data.start !== null) {
    const flat = data.rowOf.indexOf(data.start), [X, Y] = data.shape;
    const voxel = [flat % X, Math.floor(flat / X) % Y, Math.floor(flat / (X * Y))];
    if (viewer) moveTo(voxel);
    selectVoxel(voxel);
  }
  draw();
}

const ready = start();
