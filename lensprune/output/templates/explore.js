"use strict";
// Maps of effects, differences of texts, attention patterns, and filters that stay in the address.

// Only one of the buttons in `box` is a tab stop; arrow keys move between them, `columns` per row.
function roving(box, columns) {
  const buttons = Array.from(box.querySelectorAll("button"));
  buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const to = buttons[buttons.indexOf(document.activeElement) + step];
    if (!to) return;
    event.preventDefault();
    for (const button of buttons) button.tabIndex = button === to ? 0 : -1;
    to.focus();
  });
}

function element(kind, text, name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

const signed = (number, digits) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(digits);

// One map per run: layers down, parts across. A part shows its items, a layer those of all its parts.
function drawMaps(data, show) {
  const box = document.getElementById("maps"), chooser = document.getElementById("map-filters")?.elements.condition;
  if (!box || !data.maps.some((run) => run.conditions.length)) return;
  const names = [...new Set(data.maps.flatMap((run) => run.conditions.map((condition) => `${condition.task}, ${condition.protocol}`)))];
  for (const name of names) chooser.append(new Option(name));
  const most = Math.max(...data.maps.flatMap((run) => run.conditions.flatMap((condition) => condition.parts.map((p) => Math.abs(p[3])))), 1e-9);
  const draw = () => box.replaceChildren(...data.maps.flatMap((run) => run.conditions
    .filter((condition) => `${condition.task}, ${condition.protocol}` === chooser.value).map((condition) => effectsMap(run.name, condition, most, show))));
  chooser.form.addEventListener("submit", (event) => event.preventDefault());
  keepInAddress(chooser.form);
  chooser.form.addEventListener("input", draw);
  draw();
}

function effectsMap(name, condition, most, show) {
  const table = document.createElement("table"), box = document.createElement("div");
  box.className = "scroll";
  table.className = "map";
  table.createCaption().textContent = `${name ? `${name}: ` : ""}Δμ, critical in bold`;
  table.ariaLabel = `${name} Δμ on ${condition.task}, ${condition.protocol}`;
  const columns = [...new Set(condition.parts.map((part) => part[1]))];
  const layers = [...new Set(condition.parts.map((part) => part[0]))].sort((a, b) => a - b);
  const head = table.createTHead().insertRow();
  for (const column of ["layer", ...columns]) head.append(Object.assign(element("th", column), { scope: "col" }));
  const body = table.createTBody();
  for (const layer of layers) {
    const line = body.insertRow(), title = Object.assign(document.createElement("th"), { scope: "row" });
    const all = element("button", String(layer));
    all.setAttribute("aria-label", `layer ${layer}: show its items`);
    all.addEventListener("click", () => show({ task: condition.task, protocol: condition.protocol }, { layer: `layer ${layer}` }));
    title.append(all);
    line.append(title);
    for (const column of columns) {
      const part = condition.parts.find((one) => one[0] === layer && one[1] === column), place = line.insertCell();
      if (!part) continue;
      const [, , variant, delta, q, critical] = part, button = element("button", signed(delta, 2), critical ? "critical" : "");
      button.setAttribute("aria-label", `${variant}: Δμ ${signed(delta, 3)}${q === null ? "" : `, q ${q}`}; show its items`);
      button.title = variant;
      place.className = delta < 0 ? "loses" : "gains";
      place.style.setProperty("--share", String(Math.abs(delta) / most));
      button.addEventListener("click", () => show({ task: condition.task, protocol: condition.protocol }, { variant }));
      place.append(button);
    }
  }
  roving(table, columns.length + 1);
  box.append(table);
  return box;
}

// Words and white space of two texts, as [-1 only before, 0 in both, 1 only after; text], by their longest common sequence.
function difference(before, after) {
  const a = before.match(/\s+|[^\s]+/g) ?? [], b = after.match(/\s+|[^\s]+/g) ?? [];
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const parts = [];
  const add = (kind, text) => {
    if (parts.at(-1)?.[0] === kind) parts.at(-1)[1] += text; else parts.push([kind, text]);
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { add(0, a[i]); i++; j++; }
    else if (j === b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) add(-1, a[i++]);
    else add(1, b[j++]);
  }
  return parts;
}

function showDifference(box, title, before, after) {
  if (before === null || after === null || before === after) return;
  const block = element("div", "", "answer difference");
  for (const [kind, text] of difference(before, after)) block.append(element(["del", "span", "ins"][kind + 1], text));
  box.append(element("div", title, "soft"), block);
}

// The prompt's tokens as buttons; the chosen one shades those that it attends to.
function showAttention(box, stored, note, item, variant) {
  const own = stored.find((one) => one.task === item.task && one.protocol === item.protocol && one.item === item.name && one.heads[variant]);
  if (!own) {
    const others = stored.filter((one) => one.task === item.task && one.protocol === item.protocol && one.heads[variant]);
    box.append(element("div", others.length ? `The attention pattern of ${variant} is stored for item ${others[0].item}.` : note, "soft"));
    return;
  }
  const bytes = atob(own.heads[variant]), said = element("output", "", "soft");
  const block = element("div", "", "answer"), tokens = own.tokens.map((token) => element("button", token.replaceAll("\n", "↵"), "token"));
  const choose = (query) => {
    const weights = own.tokens.map((_, key) => key <= query ? bytes.charCodeAt(query * (query + 1) / 2 + key) / 255 : 0);
    tokens.forEach((token, key) => {
      token.style.setProperty("--share", String(weights[key]));
      token.setAttribute("aria-pressed", String(key === query));
    });
    const top = weights.map((weight, key) => [weight, key]).sort((a, b) => b[0] - a[0]).slice(0, 4).filter(([weight]) => weight >= .01);
    said.textContent = `“${own.tokens[query]}” attends to ` + top.map(([weight, key]) => `“${own.tokens[key]}” ${Math.round(100 * weight)}%`).join(", ");
  };
  tokens.forEach((token, query) => { token.type = "button"; token.addEventListener("focus", () => choose(query)); token.addEventListener("click", () => choose(query)); });
  own.tokens.forEach((token, i) => block.append(tokens[i], ...(token.includes("\n") ? [document.createElement("br")] : [])));
  box.append(element("div", `Attention pattern of the head that ${variant} removes, in the clean model: choose a token`, "soft"), block, said);
  roving(block, 1);
  if (tokens.length) choose(tokens.length - 1);
}

// What is chosen in a form is kept in the address, in the words that the form shows, so that a link opens the same view.
let address = new URLSearchParams();

function readAddress() {
  const given = location.hash.slice(1);
  if (given.includes("=")) address = new URLSearchParams(given);
}

function keepInAddress(form) {
  const boxes = Array.from(form.querySelectorAll("select, input")), key = (box) => `${form.id}.${box.name}`;
  const restore = () => {
    for (const box of boxes) {
      const wanted = address.get(key(box)) ?? "";
      if (box.options) box.selectedIndex = Math.max(0, Array.from(box.options).findIndex((one) => one.text === wanted));
      else box.value = wanted;
    }
  };
  const write = () => {
    for (const box of boxes) {
      const text = !box.options ? box.value : box.selectedIndex > 0 ? box.selectedOptions[0].text : "";
      if (text) address.set(key(box), text); else address.delete(key(box));
    }
    const text = address.toString();
    try {
      history.replaceState(null, "", text || location.hash ? `${location.href.split("#")[0]}#${text}` : location.href);
    } catch { /* A frame without an address of its own keeps none. */ }
  };
  readAddress();
  restore();
  form.addEventListener("input", write);
  form.addEventListener("reset", () => setTimeout(write));
  window.addEventListener("hashchange", () => {
    if (!location.hash.includes("=")) return;
    readAddress();
    restore();
    form.dispatchEvent(new Event("input", { bubbles: true }));
  });
}

// Links to sections move the view and leave the filters in the address.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]'), to = link && document.getElementById(link.hash.slice(1));
  if (!to) return;
  event.preventDefault();
  to.scrollIntoView();
  to.tabIndex = -1;
  to.focus({ preventScroll: true });
});
