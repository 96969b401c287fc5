"use strict";
window.onerror = (message) => { document.documentElement.dataset.error = String(message); };

const form = document.getElementById("form");
const question = document.getElementById("question");
const status = document.getElementById("status");
const systems = document.getElementById("systems");
let latest = 0;

// Texts come from outside: they enter the page as text nodes only.
function make(tag, text, className) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function column(name, answer, before) {
  const section = document.createElement("section");
  const title = make("h2", name);
  title.append(make("span", answer.milliseconds.toFixed(1) + " ms"));
  const list = document.createElement("ol");
  answer.passages.forEach((passage, place) => {
    const item = make("li", "", before && before[place] !== passage.id ? "moved" : "");
    item.append(make("b", passage.title || passage.id), make("p", passage.text));
    list.append(item);
  });
  section.append(title, list);
  return section;
}

async function search() {
  const mine = ++latest;
  status.textContent = "Searching …";
  let found;
  try {
    const response = await fetch("/api/search?k=5&q=" + encodeURIComponent(question.value));
    found = await response.json();
  } catch (error) {
    found = { error: "no answer from the server" };
  }
  // A later question has been asked meanwhile: its answer counts.
  if (mine !== latest) return;
  if (found.error) { status.textContent = found.error; systems.replaceChildren(); return; }
  status.textContent = "A coloured edge: the initial retriever has another passage at that place.";
  const before = found.systems.initial ? found.systems.initial.passages.map((one) => one.id) : null;
  systems.replaceChildren(...Object.entries(found.systems).map(
    ([name, answer]) => column(name, answer, name === "initial" ? null : before)));
  history.replaceState(null, "", "?q=" + encodeURIComponent(question.value));
  document.documentElement.dataset.ready = String(systems.children.length);
}

form.addEventListener("submit", (event) => { event.preventDefault(); search(); });
const asked = new URLSearchParams(location.search).get("q");
if (asked) { question.value = asked; search(); }
