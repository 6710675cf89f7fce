// Text of models and data reaches the page through textContent alone, so it can never become markup.

function sortTable(table, column, button) {
  const head = button.closest("th");
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = Array.from(table.tBodies[0].rows).map((row) => [value(row), row]);
  const numeric = head.classList.contains("number");
  rows.sort(([a], [b]) => {
    if (!numeric) return up ? a.localeCompare(b, "en", { numeric: true }) : b.localeCompare(a, "en", { numeric: true });
    if (a === "" || b === "") return (a === "") - (b === "");  // missing values stay at the end
    return up ? Number(a) - Number(b) : Number(b) - Number(a);
  });
  for (const [, row] of rows) table.tBodies[0].append(row);
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    button.addEventListener("click", () => sortTable(table, column, button));
    cell.replaceChildren(button);
  });
}

for (const form of document.querySelectorAll("form[data-table]")) {
  const table = document.getElementById(form.dataset.table);
  const said = form.querySelector("output");
  const apply = () => {
    const wanted = {};
    for (const box of form.querySelectorAll("select")) if (box.value) wanted[box.name] = box.value;
    const typed = form.querySelector("input").value.toLowerCase();
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const fits = Object.entries(wanted).every(([name, value]) => row.dataset[name] === value)
        && row.textContent.toLowerCase().includes(typed);
      row.hidden = !fits;
      shown += fits;
    }
    said.textContent = `${shown} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  keepInAddress(form);
  apply();
}

const store = document.getElementById("records");
if (store) browse(JSON.parse(store.textContent));

function browse(data) {
  const PAGE = 50;
  const form = document.getElementById("browser-filters");
  const body = document.querySelector("#browser tbody");
  const said = document.getElementById("browser-count");
  const previous = document.getElementById("browser-previous");
  const next = document.getElementById("browser-next");
  const PREDICTION = 4, TEXT = 5, CORRECT = 6, FAILURE = 7, LOGPROB = 8, OPTIONS = 9, OTHER = 10;
  const CLEAN_TEXT = 2, CLEAN_OPTIONS = 6, QUESTION = 7;
  let page = 0, chosen = [], sortBy = null;

  const field = (name) => form.elements[name], digits = (number) => number.toFixed(2).replace("-", "−");
  const fill = (name, values) => values.forEach((value, i) => field(name).append(new Option(value, String(i))));
  const distinct = (values) => [...new Set(values)];
  const tasks = distinct(data.conditions.map((condition) => condition[0])), protocols = distinct(data.conditions.map((condition) => condition[1]));
  const layers = distinct(data.rows.map((row) => row[3]).filter((layer) => layer !== null)).sort((a, b) => a - b);
  fill("task", tasks);
  fill("protocol", protocols);
  fill("variant", data.variants);
  fill("failure", data.failures);
  for (const layer of layers) field("layer").append(new Option(`layer ${layer}`, String(layer)));
  const cleanOf = (row) => data.clean[row[0]][row[1]];
  const questionOf = (row) => data.questions[cleanOf(row)[QUESTION]];

  // The answer of the second run to the same item; its parts stand as in `row` from the prediction on.
  const otherOf = (row, part) => row[OTHER] ? row[OTHER][part - PREDICTION] : null;
  const agreement = (row) => !row[OTHER] ? "not measured"
    : Boolean(row[CORRECT]) === Boolean(otherOf(row, CORRECT)) ? "as in A" : row[CORRECT] ? "wrong in B alone" : "right in B alone";

  function outcome(row) {
    const before = cleanOf(row)[3], after = row[CORRECT];
    return before && !after ? "lost" : !before && after ? "won" : before ? "both right" : "both wrong";
  }

  function fits(row) {
    const [task, protocol] = data.conditions[row[0]];
    const is = (name, value) => field(name).value === "" || field(name).value === String(value);
    const typed = field("text").value.toLowerCase();
    const clean = cleanOf(row);
    return is("task", tasks.indexOf(task)) && is("protocol", protocols.indexOf(protocol)) && is("variant", row[2])
      && is("failure", row[FAILURE]) && is("layer", row[3]) && is("outcome", outcome(row))
      && (!data.two || is("other", agreement(row)))
      && (!typed || [row[1], row[PREDICTION], row[TEXT], ...clean.slice(0, 3), questionOf(row)[0]].some(
        (text) => text !== null && text.toLowerCase().includes(typed)));
  }

  const keys = [
    (row) => row[1], (row) => data.conditions[row[0]].join(" "), (row) => data.variants[row[2]], outcome,
    (row) => cleanOf(row)[0] ?? "", (row) => cleanOf(row)[2] ?? "", (row) => row[TEXT] ?? "",
    ...(data.two ? [(row) => `${agreement(row)} ${otherOf(row, TEXT) ?? ""}`] : []),
    (row) => data.failures[row[FAILURE]],
  ];

  function cell(line, text, kind) {
    const box = line.insertCell();
    if (kind === "answer") {
      const block = document.createElement("div");
      block.className = "answer";
      block.textContent = text;
      box.append(block);
    } else {
      box.textContent = text;
      if (kind) box.className = kind;
    }
    return box;
  }

  function answered(line, prediction, text, logprob) {
    const box = cell(line, text ?? "(no text)", "answer");
    const note = document.createElement("div");
    note.className = "soft";
    note.textContent = (prediction === null ? "no answer found" : prediction === text ? "" : `answer: ${prediction}`)
      + (logprob === null ? "" : ` log p of the right answer ${digits(logprob)}`);
    if (note.textContent) box.append(note);
  }

  // The question is built when it is opened, in a row of its own below the item's.
  function opener(line, row) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "opener";
    button.textContent = row[1];
    button.setAttribute("aria-expanded", "false");
    let opened = null;
    button.addEventListener("click", () => {
      if (opened === null) {
        opened = document.createElement("tr");
        opened.className = "question";
        question(opened.insertCell(), row);
        line.after(opened);
      } else {
        opened.remove();
        opened = null;
      }
      button.setAttribute("aria-expanded", String(opened !== null));
    });
    line.insertCell().append(button);
  }

  function question(box, row) {
    const [prompt, options, total, gold, reference] = questionOf(row);
    box.colSpan = document.querySelectorAll("#browser thead th").length;
    const add = (kind, name, text) => {
      const block = document.createElement(kind);
      block.className = name;
      block.textContent = text;
      box.append(block);
    };
    add("div", "answer", prompt);
    add("div", "soft", `right answer: ${reference.join(" or ")}`);
    const before = cleanOf(row)[CLEAN_TEXT];
    if (!options.length) {
      showDifference(box, `From the clean model's text to the changed model's${data.two ? ", in A" : ""}:`, before, row[TEXT]);
      showDifference(box, "From the changed model's text in A to that in B:", row[TEXT], otherOf(row, TEXT));
    }
    const [task, protocol] = data.conditions[row[0]], name = row[1].replace(/, sample \d+$/, "");
    showAttention(box, data.patterns.items, data.patterns.note, { task, protocol, name }, data.variants[row[2]]);
    if (!options.length) return;
    const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
    for (const name of ["option", "", "clean model", "changed model"]) {
      const title = document.createElement("th");
      title.scope = "col";
      title.textContent = name;
      head.append(title);
    }
    const sides = [cleanOf(row)[CLEAN_OPTIONS], row[OPTIONS]];
    options.forEach((option, i) => {
      const line = body.insertRow();
      cell(line, option, "answer");
      cell(line, i === gold ? "right" : "", i === gold ? "right" : "");
      for (const side of sides) cell(line, side?.[i] == null ? "not finite" : digits(side[i]), "number");
    });
    const caption = table.createCaption();
    caption.textContent = "Log-probability of each option"
      + (total > options.length ? `; ${total - options.length} more options are not shown` : "");
    box.append(table);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    body.replaceChildren();
    for (const row of chosen.slice(page * PAGE, (page + 1) * PAGE)) {
      const line = body.insertRow(), clean = cleanOf(row), what = outcome(row);
      opener(line, row);
      cell(line, data.conditions[row[0]].join(", "));
      cell(line, data.variants[row[2]]);
      cell(line, what, what === "lost" ? "wrong" : what === "won" ? "right" : "");
      cell(line, clean[0] ?? "", "answer");
      answered(line, clean[1], clean[2], clean[5]);
      answered(line, row[PREDICTION], row[TEXT], row[LOGPROB]);
      if (data.two && !row[OTHER]) cell(line, "not measured", "soft");
      else if (data.two) {
        answered(line, otherOf(row, PREDICTION), otherOf(row, TEXT), otherOf(row, LOGPROB));
        line.lastChild.prepend(element("div", otherOf(row, CORRECT) ? "right" : "wrong", "soft"));
      }
      cell(line, data.failures[row[FAILURE]]);
    }
    previous.disabled = page === 0;
    next.disabled = page >= pages - 1;
    said.textContent = `${chosen.length} records, page ${page + 1} of ${pages}`;
  }

  function choose() {
    chosen = data.rows.filter(fits);
    if (sortBy) {
      const key = keys[sortBy.column], sign = sortBy.up ? 1 : -1;
      chosen.sort((a, b) => sign * key(a).localeCompare(key(b), "en", { numeric: true }));
    }
    page = 0;
    draw();
  }

  Array.from(document.querySelectorAll("#browser thead th")).forEach((head, column, all) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      sortBy = { column, up: !(sortBy && sortBy.column === column && sortBy.up) };
      for (const other of all) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sortBy.up ? "ascending" : "descending");
      choose();
    });
    head.replaceChildren(button);
  });
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(choose));
  previous.addEventListener("click", () => { page -= 1; draw(); });
  next.addEventListener("click", () => { page += 1; draw(); });
  keepInAddress(form);
  drawMaps(data, (place, wanted) => {
    for (const [name, text] of Object.entries({ task: "", protocol: "", layer: "", variant: "", failure: "", outcome: "", ...place, ...wanted })) {
      const box = field(name);
      if (box) box.selectedIndex = Math.max(0, Array.from(box.options).findIndex((one) => one.text === text));
    }
    field("text").value = "";
    form.dispatchEvent(new Event("input", { bubbles: true }));
    document.getElementById("items").scrollIntoView();
    (document.querySelector("#browser .opener") ?? next).focus({ preventScroll: true });
  });
  choose();
}
