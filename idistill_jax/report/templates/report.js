"use strict";
// A broken page says so where a test, or a reader of its source, finds it.
window.onerror = (message) => { document.documentElement.dataset.error = String(message); };

const data = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("list");
const filter = document.getElementById("filter");
const change = document.getElementById("change");
const shown = document.getElementById("shown");
const more = document.getElementById("more");
const PAGE = 20;
let limit = PAGE;

// Texts come from outside: they enter the page as text nodes only.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null));
  return element;
}

function rankText(rank) {
  return rank === null ? data.evidence.missing : "#" + rank;
}

function deltaText(delta) {
  if (delta === null) return "";
  return (delta > 0 ? "+" : delta < 0 ? "−" : "±") + Math.abs(delta).toFixed(2);
}

function direction(delta) {
  return delta > 0 ? "better" : delta < 0 ? "worse" : "undecided";
}

function passage(found, relevant) {
  const about = data.passages[found] || ["", ""];
  const item = make("li", relevant.includes(found) ? "relevant" : "",
    relevant.includes(found) ? make("span", "tag", data.evidence.tag) : null,
    make("b", "", found));
  if (about[0] && about[0] !== found) item.append(make("div", "", about[0]));
  item.append(make("p", "", about[1]));
  return item;
}

function body(query) {
  const columns = make("div", "columns");
  for (const system of data.systems) {
    const items = make("ol", "", ...query.results[system].map((found) => passage(found, query.relevant)));
    columns.append(make("section", "", make("h4", "", make("i", "dot " + system), system + " ",
      make("span", "", data.evidence.rank + ": " + rankText(query.ranks[system]))), items));
  }
  const judged = make("p", "judged", data.evidence.listed + ": " + (query.relevant.length ? "" : "none"));
  query.relevant.forEach((id, place) => judged.append(place ? ", " : "", make("code", "", id)));
  const answers = make("p", "judged", "Accepted answers: " + query.answers.join(", "));
  for (const [system, words] of Object.entries(query.said)) {
    answers.append(" · read from " + system + ": " + (words || "nothing"));
  }
  return query.answers.length ? [columns, answers, judged] : [columns, judged];
}

function entry(query) {
  // Lines break between systems alone, as in the cards above.
  const ranks = data.systems.slice(0, 3).map(
    (system) => (system + " " + rankText(query.ranks[system])).replaceAll(" ", "\u00a0")).join(" · ");
  const details = make("details", "query", make("summary", "",
    make("span", "text", query.text), make("span", "ranks", ranks),
    make("span", "delta " + direction(query.delta), deltaText(query.delta))));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...body(query));
  });
  return details;
}

const entries = data.queries.map((query) => ({
  query, words: (query.text + " " + query.id + " " + query.relevant.join(" ")).toLowerCase(), element: entry(query),
}));
const kept = {
  all: () => true,
  helped: (query) => query.delta > 0,
  hurt: (query) => query.delta < 0,
  same: (query) => query.delta === 0,
};

function update() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const one of entries) {
    const keep = kept[change.value](one.query) && words.every((word) => one.words.includes(word));
    count += keep ? 1 : 0;
    one.element.hidden = !keep || count > limit;
  }
  more.hidden = count <= limit;
  more.textContent = "Show " + (count - limit) + " more";
  shown.textContent = count + " of " + entries.length + " queries";
}

list.append(...entries.map((one) => one.element));
for (const [element, event] of [[filter, "input"], [change, "change"]]) {
  element.addEventListener(event, () => {
    limit = PAGE;
    update();
  });
}
more.addEventListener("click", () => {
  limit = Infinity;
  update();
});
update();
document.documentElement.dataset.ready = String(entries.length);
