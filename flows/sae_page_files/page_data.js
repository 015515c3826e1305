// The page's data: JSON, packed by gzip and written in base64, in blocks. Those of the list are
// unpacked at once, those of the features' details when somebody opens one.
"use strict";

const list = {
  feature: [], text: [], score: [], low: [], high: [], null: [], lift: [], density: [],
  by: [], reason: [], isStale: [], standing: [],
  firstRow: new Map(),
};
const detailBlocks = [...document.querySelectorAll("script[data-details]")];
const unpackedDetails = new Map();

async function unpack(block) {
  const packed = atob(block.textContent);
  const bytes = new Uint8Array(packed.length);
  for (let at = 0; at < packed.length; at++) bytes[at] = packed.charCodeAt(at);
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(unpacked).text());
}

async function readList() {
  const blocks = [...document.querySelectorAll("script[data-list]")];
  for (const rows of await Promise.all(blocks.map(unpack))) {
    for (const [row, feature] of rows.feature.entries()) {
      if (!list.firstRow.has(feature)) list.firstRow.set(feature, list.feature.length);
      for (const name of ["feature", "text", "score", "low", "high", "null", "lift", "density"])
        list[name].push(rows[name][row]);
      list.by.push(rows.hands[rows.hand[row]] ?? null);
      list.reason.push(rows.reasons[rows.reason[row]] ?? null);
      list.isStale.push((rows.marks[row] & 1) > 0);
      list.standing.push(rows.marks[row] & 4 ? "withdrawn" : rows.marks[row] & 2 ? "not in force" : null);
    }
  }
}

async function readDetails(feature) {
  const block = detailBlocks.find((each) => feature <= Number(each.dataset.last));
  if (!unpackedDetails.has(block)) unpackedDetails.set(block, unpack(block));
  const details = await unpackedDetails.get(block);
  const at = details.numbers.indexOf(feature);
  const own = Object.entries(details.columns).map(([name, values]) => [name, values[at]]);
  return { ...details, ...Object.fromEntries(own) };
}

// A neuron is two units, one for each sign.
const isNeuronBasis = document.body.dataset.basis === "neurons";

function nameOf(feature) {
  return isNeuronBasis ? `${Math.floor(feature / 2)}${feature % 2 ? "-" : "+"}` : String(feature);
}

function numberOf(name) {
  const found = (isNeuronBasis ? /^(\d+)([+-])$/ : /^(\d+)$/).exec(name);
  if (!found) return null;
  return isNeuronBasis ? 2 * Number(found[1]) + (found[2] === "-") : Number(found[1]);
}

// Numbers as the dashboard writes them.
function figure(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const shown = value.toFixed(digits);
  return Number(shown) === 0 ? (0).toFixed(digits) : shown.replace("-", "−");
}

function percentage(share) {
  if (!(share > 0)) return "0%";
  const percent = 100 * share;
  for (let digits = 0; digits < 5; digits++)
    if (percent >= 10 ** (1 - digits) || digits === 4) {
      const shown = percent.toFixed(digits);
      return Number(shown) > 0 ? `${shown}%` : `${percent.toExponential(0)}%`;
    }
}

// Of any size, with three digits that count.
function short(value) {
  if (value === null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 10000)) return value.toExponential(1).replace("-", "−");
  const digits = size >= 1000 ? 0 : Math.max(0, 2 - Math.floor(Math.log10(size || 1)));
  return value.toLocaleString("en-US", { minimumFractionDigits: Math.min(digits, 4), maximumFractionDigits: Math.min(digits, 4) }).replace("-", "−");
}

function interval(low, high) {
  return low === null || high === null || low === undefined ? "" : `${figure(low)} to ${figure(high)}`;
}

function count(n) {
  return n.toLocaleString("en-US");
}

// All text becomes text: nothing of the data is ever taken for markup, an address or a script.
function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...content.filter((each) => each !== null && each !== undefined && each !== ""));
  return made;
}

function drawn(name, attributes, ...content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...content);
  return made;
}

// From 0 to 1: the interval as a band, the score as a mark, the null as a tick.
function scoreBar(score, low, high, nullValue, judge) {
  const limits = interval(low, high) || "none";
  const words = `score${judge} ${figure(score)}, interval ${limits}, null ${figure(nullValue)}`;
  const bar = drawn("svg", { class: "bar", viewBox: "0 0 100 12", preserveAspectRatio: "none", role: "img", "aria-label": words });
  const title = drawn("title", {});
  title.textContent = words;
  const put = (kind, x, y, width, height) => bar.append(drawn("rect", { class: kind, x, y, width, height }));
  const place = (value) => Math.max(0, 100 * value);
  bar.append(title);
  put("track", 0, 5, 100, 2);
  if (interval(low, high)) put("band", place(low), 3, Math.max(0, place(high) - place(low)), 6);
  if (nullValue !== null) put("null", place(nullValue), 0, 1.5, 12);
  put("mark", Math.max(0, 100 * score - 1), 1, 2.5, 10);
  return bar;
}
