// A feature, at the address `#NUMBER`: its labels, contexts, tokens and neighbours.
let listAt = null;

// As the dashboard shades: the faintest activation has a shade, too.
function shade(value, peak) {
  return Math.max(1, Math.min(10, Math.floor((10 * value) / peak + 0.5)));
}

// By turns there are tokens that are off and one that is on, whose activation is among the values.
function contextItem([marks, before, ...stretches], values, peak) {
  const text = element("p", { class: "text" });
  if (marks & 1) text.append(element("span", { class: "before" }, "…"));
  if (before) text.append(element("span", { class: "before" }, before), element("span", { class: "begins", "aria-hidden": "true" }, "│"));
  stretches.forEach((stretch, at) => {
    const value = values[(at - 1) / 2];
    if (value === undefined) text.append(stretch);
    else text.append(element("span", { class: `k a${shade(value, peak)}`, title: `“${stretch}” ${short(value)}` }, stretch));
  });
  if (marks & 2) text.append(element("span", { class: "before" }, "…"));
  const highest = Math.max(...values);
  const strongest = stretches[2 * values.indexOf(highest) + 1];
  const margin = element("span", { class: "peak", title: "peak activation" }, short(highest), element("span", { class: "hidden" }, ` at “${strongest}”`));
  return element("li", {}, element("div", { class: "margin" }, margin), text);
}

function contextsOf(details, kind, words) {
  const n = details[kind].length;
  if (!n) return [];
  const heading = element("h3", {}, words, " ", element("span", { class: "dim" }, `${n} of ${details.kept[kind]} contexts`));
  const items = details[kind].map((each, at) => contextItem(each, details[`${kind}Values`][at], details.peak));
  return [heading, element("ol", { class: "windows" }, ...items)];
}

function numbers(...pairs) {
  const rows = pairs.map(([name, value, title]) => element("div", {}, element("dt", title ? { title } : {}, name), element("dd", {}, ...[value].flat())));
  return element("dl", { class: "numbers" }, ...rows);
}

function headline(row, label, details) {
  if (list.text[row] === null) return null;
  const judge = label.judge === undefined ? null : details.judges[label.judge];
  if (judge === null) return element("p", { class: "undefined" }, "not scored on text that no label has seen");
  const line = element("div", { class: "headline" }, element("span", { class: "judge" }, judge));
  const [score, low, high] = [list.score[row], list.low[row], list.high[row]];
  if (score === null) {
    line.append(element("span", { class: "undefined" }, `undefined: ${list.reason[row] ?? "no reason given"}`));
    return line;
  }
  const lift = interval(...(label.lift ?? [null, null]));
  const aside = lift || (list.lift[row] === null ? details.reasons[label.noLift] : "");
  line.append(
    element("span", { class: "value" }, figure(score)),
    scoreBar(score, low, high, list.null[row], ` by ${judge}`),
    numbers(
      ["interval", interval(low, high) || "–"],
      ["null", figure(list.null[row]), "the token lookup on the same windows"],
      ["lift", [figure(list.lift[row]), " ", element("span", { class: "dim" }, aside ?? "")], "score beyond that of the token lookup, on the same windows"],
      ["windows", label.windows === undefined ? "–" : count(label.windows)],
    ),
  );
  if (list.isStale[row]) line.append(element("span", { class: "stale" }, "overtaken by newer text"));
  return line;
}

function byLine(row, label) {
  const line = element("p", { class: "by" }, element("span", {}, element("span", { class: "dim" }, "by "), list.by[row]));
  if (label.up || label.down) line.append(element("span", {}, `${count(label.up ?? 0)} for it, ${count(label.down ?? 0)} against it`));
  if (label.saw) line.append(element("span", { class: "mark-saw" }, "written after seeing ", element("code", {}, "score"), " contexts"));
  return line;
}

function moreScores(label, details) {
  if (!label.more) return null;
  const rows = label.more.map(([name, value, reason]) => {
    const [what, judge] = details.scores[name];
    const cell = value === null ? element("td", { class: "dim" }, `undefined: ${details.reasons[reason] ?? "no reason given"}`) : element("td", { class: "n" }, figure(value));
    return element("tr", {}, element("th", { scope: "row" }, what), element("td", { class: "dim" }, judge), cell);
  });
  const head = ["score", "by"].map((word) => element("th", { scope: "col" }, word));
  const table = element("table", { class: "scores" }, element("thead", {}, element("tr", {}, ...head, element("th", { scope: "col", class: "n" }, "value"))), element("tbody", {}, ...rows));
  return element("details", { class: "more" }, element("summary", {}, `${label.more.length} more score${label.more.length > 1 ? "s" : ""}`), table);
}

function labelParts(row, label, details, heading) {
  const because = label.because ? element("p", { class: "because" }, label.because) : null;
  const by = list.by[row] === null ? null : byLine(row, label);
  return [heading, because, by, headline(row, label, details), moreScores(label, details)].filter(Boolean);
}

function tokenChip(text) {
  const spaces = text.trim() === "" ? `␣${text.length > 1 ? `×${text.length}` : ""}` : null;
  return element("span", { class: "token" }, spaces ?? text);
}

function tokenList(tokens, values, heading) {
  if (!tokens.length) return null;
  const items = tokens.map((token, at) => element("li", {}, tokenChip(token), " ", element("span", { class: "n dim" }, values[at] === null ? "" : figure(values[at]))));
  return element("div", {}, heading && element("h3", {}, heading), element("ol", { class: "tokens" }, ...items));
}

function nearTable(near, values, heading, measure) {
  if (!near.length) return [];
  const rows = near.map((feature, at) => {
    const [name, row] = [nameOf(feature), list.firstRow.get(feature)];
    const link = row === undefined ? name : element("a", { href: `#${name}` }, name);
    const label = row === undefined ? element("span", { class: "dim" }, "not on this page") : labelOf(row);
    return element("tr", {}, element("th", { scope: "row" }, link), element("td", { class: "n" }, figure(values[at])), element("td", { class: "label" }, label));
  });
  const head = element("tr", {}, element("th", { scope: "col" }, "feature"), element("th", { scope: "col", class: "n" }, measure), element("th", { scope: "col" }, "label"));
  return [element("h3", {}, heading), element("table", { class: "near" }, element("thead", {}, head), element("tbody", {}, ...rows))];
}

function section(heading, aside, ...content) {
  const kept = content.filter(Boolean);
  if (!kept.length) return null;
  const words = element("h2", {}, heading);
  if (aside) words.append(" ", element("span", { class: "dim" }, aside));
  return element("section", {}, words, ...kept);
}

function facts(details, row) {
  const pairs = [
    ["density", `${percentage(list.density[row])} of tokens, ${count(details.n)} active`],
    ["peak", short(details.peak)],
    ["mean where active", short(details.mean)],
  ];
  return element("dl", { class: "facts" }, ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
}

function contextsSection(details) {
  if (!details.n) return section("Contexts", "", element("p", { class: "dim" }, "None: it was never active in this text."));
  const found = [...contextsOf(details, "top", "Highest peaks"), ...contextsOf(details, "sample", "At random")];
  const where = byId("about-contexts").content.cloneNode(true);
  if (!found.length) return section("Contexts", "", element("p", { class: "dim" }, "None are kept of this feature."));
  const made = section("Contexts", "", where, ...found);
  made.className = "contexts";
  return made;
}

// In the order of the list as it stands; of a feature that is not in it, by number.
function stepLinks(row) {
  const rows = shown.rows.includes(row) ? shown.rows : [...list.feature.keys()];
  const other = (step) => {
    let at = rows.indexOf(row) + step;
    while (list.feature[rows[at]] === list.feature[row]) at += step;
    return list.feature[rows[at]];
  };
  const link = (feature, rel, key, before, after) =>
    feature === undefined ? null : element("a", { rel, "data-key": key, href: `#${nameOf(feature)}` }, before, element("kbd", {}, key), after);
  return [link(other(-1), "prev", "k", "← previous ", ""), link(other(1), "next", "j", "next ", " →")].filter(Boolean);
}

function featureParts(feature, details) {
  const row = list.firstRow.get(feature);
  const where = element("div", { class: "where" }, element("nav", { "aria-label": "Feature", class: "id" }, element("a", { href: "#features" }, document.body.dataset.sae), element("span", { class: "dim" }, "/"), nameOf(feature)), element("nav", { "aria-label": "Neighbours in the list", class: "steps" }, ...stepLinks(row)));
  const [first, ...others] = details.labels;
  const force = element("section", { class: "in-force", "aria-labelledby": "label-text" }, ...labelParts(row, first ?? {}, details, element("h1", { id: "label-text" }, labelOf(row))));
  force.querySelector("h1").append(...standing(row));
  const rivals = others.map((label, at) => element("article", { class: "rival" }, ...labelParts(row + 1 + at, label, details, element("h3", {}, labelOf(row + 1 + at), ...standing(row + 1 + at)))));
  const main = element("div", { class: "main" }, ...[contextsSection(details), section("Other labels", String(rivals.length), ...rivals)].filter(Boolean));
  const effects = [tokenList(details.up, details.upValues, "promoted"), tokenList(details.down, details.downValues, "suppressed")].filter(Boolean);
  const side = element("div", { class: "side" }, ...[
    section("Activations", "", facts(details, row)),
    section("Strongest tokens", "mean activation", tokenList(details.strong, details.strongValues, "")),
    section("Output tokens", "logit per unit of activation", effects.length ? element("div", { class: "pair" }, ...effects) : null),
    section("Neighbours", "", ...nearTable(details.near, details.nearValues, "by direction", "cosine"), ...nearTable(details.together, details.togetherValues, "by co-firing", "phi")),
  ].filter(Boolean));
  return [where, force, element("div", { class: "columns" }, main, side)];
}

async function showFeature(name) {
  const feature = numberOf(name);
  const article = byId("feature");
  let parts;
  if (feature === null || !list.firstRow.has(feature)) {
    const words = `There is no feature ${name} on this page.`;
    parts = [element("h1", {}, words), element("p", {}, element("a", { href: "#features" }, "All features"))];
  } else {
    try {
      parts = featureParts(feature, await readDetails(feature));
    } catch (error) {
      parts = [element("h1", {}, `${name} cannot be unpacked: this file is damaged.`), element("p", { class: "dim" }, String(error))];
    }
    // Somebody may have gone on meanwhile.
    if (nameInAddress() !== name) return;
  }
  if (!byId("whole").hidden) listAt = { top: window.scrollY, name };
  article.replaceChildren(...parts);
  makeTokensWalkable(article);
  byId("whole").hidden = true;
  article.hidden = false;
  document.title = `${name} · ${article.querySelector("h1").textContent}`;
  window.scrollTo(0, 0);
  byId("content").focus({ preventScroll: true });
}

function showWhole(name) {
  const cameFrom = byId("whole").hidden ? listAt : null;
  byId("whole").hidden = false;
  byId("feature").hidden = true;
  document.title = byId("content").dataset.title;
  showToken(null);
  if (cameFrom && name !== "about") {
    window.scrollTo(0, cameFrom.top);
    byId("rows").querySelector(`a[href="#${CSS.escape(cameFrom.name)}"]`)?.focus({ preventScroll: true });
  } else if (name) byId(name)?.scrollIntoView();
}

function nameInAddress() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return location.hash.slice(1);
  }
}

function follow() {
  const name = nameInAddress();
  if (/^\d/.test(name)) return showFeature(name);
  return showWhole(["about", "features"].includes(name) ? name : "");
}

async function begin() {
  const state = byId("state");
  if (typeof DecompressionStream === "undefined") {
    state.textContent = "This browser is too old to unpack the list. Chrome 80, Edge 80, Firefox 113, Safari 16.4 and later ones can.";
    state.hidden = false;
    return;
  }
  history.scrollRestoration = "manual";
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("content").focus();
  });
  document.addEventListener("keydown", (event) => {
    // The list's search is out of sight where a feature is open.
    const isTyping = event.target instanceof Element && event.target.closest("input, select");
    if (event.key === "/" && !isTyping && byId("whole").hidden) {
      history.pushState(null, "", "#features");
      showWhole("features");
    }
  }, true);
  try {
    await readList();
  } catch (error) {
    state.textContent = `The list cannot be unpacked: this file is damaged. (${error})`;
    state.hidden = false;
    return;
  }
  byId("list").hidden = false;
  beginList();
  window.addEventListener("hashchange", follow);
  await follow();
  document.body.dataset.ready = "yes";
}

begin();
