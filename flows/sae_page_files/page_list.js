// The list of features: searched, filtered, sorted and paged where it is read.
const ROWS = 100;
// What a column is sorted by, and whether its largest values come first.
const FALLING = { feature: false, text: false, score: true, null: true, lift: true, density: true };
const byId = (name) => document.getElementById(name);
const shown = { rows: [], page: 0, sort: "feature", isReversed: false };
let lowered = null;

function matching() {
  const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const limit = (name) => (byId(name).value === "" ? null : Number(byId(name).value));
  const [least, most, by] = [limit("least"), limit("most"), byId("by").value];
  if (words.length) lowered ??= list.text.map((text) => text?.toLowerCase() ?? "");
  const found = [];
  for (let row = 0; row < list.feature.length; row++) {
    const score = list.score[row];
    if (least !== null && !(score !== null && score >= least)) continue;
    if (most !== null && !(score !== null && score <= most)) continue;
    if (by === "nobody" ? list.text[row] !== null : by && list.by[row] !== by.slice(1)) continue;
    if (words.every((word) => lowered[row].includes(word))) found.push(row);
  }
  return found;
}

function sorted(rows) {
  const values = shown.sort === "text" ? (lowered ??= list.text.map((text) => text?.toLowerCase() ?? "")) : list[shown.sort];
  const isMissing = (row) => values[row] === null || (shown.sort === "text" && list.text[row] === null);
  const turn = FALLING[shown.sort] !== shown.isReversed ? -1 : 1;
  // What has no value comes last either way, and equals stay in the order of features.
  return rows.sort((a, b) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b) || a - b;
    if (values[a] === values[b]) return a - b;
    return values[a] < values[b] ? -turn : turn;
  });
}

function labelOf(row) {
  if (list.text[row] !== null) return list.text[row];
  const reason = list.reason[row];
  const words = reason !== null ? `no label: ${reason}` : list.density[row] > 0 ? "no label yet" : "no label: never active in this text";
  return element("span", { class: "dim" }, words);
}

function standing(row) {
  return list.standing[row] === null ? [] : [" ", element("span", { class: "dim" }, `(${list.standing[row]})`)];
}

function scoreCell(row) {
  const cell = element("td", { class: "n" }, figure(list.score[row]));
  if (list.score[row] === null && list.text[row] !== null)
    cell.title = list.reason[row] === null ? "not scored" : `undefined: ${list.reason[row]}`;
  if (list.isStale[row])
    cell.append(element("span", { title: "newer text has overtaken this score", role: "img", "aria-label": "overtaken" }, "*"));
  return cell;
}

function tableRow(row) {
  const name = nameOf(list.feature[row]);
  const label = element("td", { class: "label" }, labelOf(row));
  label.append(...standing(row));
  const bar = element("td", { class: "wide" });
  const [score, low, high] = [list.score[row], list.low[row], list.high[row]];
  if (score !== null) bar.append(scoreBar(score, low, high, list.null[row], ""));
  return element(
    "tr", {},
    element("th", { scope: "row" }, element("a", { href: `#${name}` }, name)),
    label,
    scoreCell(row),
    bar,
    element("td", { class: "wide limits dim" }, interval(low, high)),
    element("td", { class: "n wide" }, figure(list.null[row])),
    element("td", { class: "n wide" }, figure(list.lift[row])),
    element("td", { class: "n wide" }, percentage(list.density[row])),
    element("td", { class: "wide dim by-whom" }, list.by[row]),
  );
}

function showPage(page) {
  const pages = Math.max(1, Math.ceil(shown.rows.length / ROWS));
  shown.page = Math.min(pages - 1, Math.max(0, page));
  const first = shown.page * ROWS;
  byId("rows").replaceChildren(...shown.rows.slice(first, first + ROWS).map(tableRow));
  byId("none").hidden = shown.rows.length > 0;
  byId("table").hidden = shown.rows.length === 0;
  byId("pager").hidden = pages === 1;
  byId("page").textContent = `page ${count(shown.page + 1)} of ${count(pages)}`;
  byId("previous").disabled = shown.page === 0;
  byId("next").disabled = shown.page === pages - 1;
}

function findRows() {
  shown.rows = sorted(matching());
  const all = list.feature.length;
  byId("found").textContent = shown.rows.length === all ? count(all) : `${count(shown.rows.length)} of ${count(all)}`;
  for (const head of document.querySelectorAll("th[data-sort]")) {
    const isNow = head.dataset.sort === shown.sort;
    const isFalling = FALLING[head.dataset.sort] !== shown.isReversed;
    if (isNow) head.setAttribute("aria-sort", isFalling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  }
  showPage(0);
}

function beginList() {
  const names = [...new Set(list.by.filter((by) => by !== null))].sort();
  // A name may be any text: what stands before it tells it from the choices that are none.
  byId("by").append(...names.map((name) => element("option", { value: `=${name}` }, name)));
  let waiting = 0;
  byId("filters").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(findRows, 80);
  });
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    findRows();
  });
  for (const head of document.querySelectorAll("th[data-sort]"))
    head.querySelector("button").addEventListener("click", () => {
      shown.isReversed = shown.sort === head.dataset.sort && !shown.isReversed;
      shown.sort = head.dataset.sort;
      findRows();
    });
  const turn = (step) => () => {
    showPage(shown.page + step);
    byId("features").scrollIntoView();
  };
  byId("previous").addEventListener("click", turn(-1));
  byId("next").addEventListener("click", turn(1));
  findRows();
}
