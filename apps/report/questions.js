// The list of questions: search, filters, pages. The index is read at once, chunks only when needed.

const PER_PAGE = 25;
const MARKS = {
  r: ["✓", "is-right", "right"],
  w: ["✗", "is-wrong", "wrong"],
  a: ["–", "is-wrong", "abstained"],
  n: ["–", "is-wrong", "no answer"],
  u: ["·", "is-open", "not graded"],
};

const read = (id) => JSON.parse($(id).textContent);
const index = $("questions-index") ? read("questions-index") : null;
const arrived = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", resolve, { once: true });
});
const chunks = new Map();

/** One question in full. Waits for its chunk where the page is still arriving. */
async function fetchQuestion(at) {
  const number = Math.floor(at / index.chunk);
  if (!chunks.has(number)) {
    if (!$(`questions-${number}`)?.nextSibling) await arrived;
    chunks.set(number, read(`questions-${number}`));
  }
  return chunks.get(number)[at % index.chunk];
}

const breathe = () => new Promise((resolve) => setTimeout(resolve));

/** Every word of every question in small letters; read once, in pieces so that typing stays smooth. */
const words = [];
async function readWords(isLatest) {
  await arrived;
  while (words.length < index.ids.length) {
    const number = words.length / index.chunk;
    const chunk = chunks.get(number) ?? read(`questions-${number}`);
    chunk.forEach((question, place) => {
      const said = question.experts.flatMap((row) => [row.answer, row.text, row.error]);
      const whole = [
        index.ids[number * index.chunk + place], question.text, ...question.options, question.answer,
        question.gold, question.aggregation, ...said,
      ];
      words.push(whole.filter(Boolean).join("\n").toLowerCase());
    });
    await breathe();
    if (!isLatest()) return false;
  }
  return true;
}

const chosen = (name) => $(name)?.value ?? "";
/** What must all occur: words, or several "in quotes". */
const terms = () =>
  [...$("find").value.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((match) => match[1] ?? match[0]);

/** Whether a question passes the filters, search aside. */
function passes(at) {
  const result = chosen("by-result"), dispute = chosen("by-dispute"), other = chosen("by-other");
  const skill = chosen("by-skill"), expert = chosen("by-expert");
  if (result && index.marks[at] !== result) return false;
  if (dispute && index.disputed[at] !== dispute) return false;
  if (skill && !index.skills[at].includes(Number(skill))) return false;
  if (expert && !index.experts[at].includes(Number(expert))) return false;
  if (!other) return true;
  const theirs = index.beside[Number(other.slice(1))][at], isRight = index.marks[at] === "r";
  return other[0] === "+" ? theirs === "1" && "wan".includes(index.marks[at]) : theirs === "0" && isRight;
}

function arrange(found) {
  const order = chosen("by-order");
  if (!order) return found;
  const sure = (at) => index.sure[at] ?? -1;
  return found.sort((one, other) => (order === "sure" ? sure(other) - sure(one) : sure(one) - sure(other)));
}

let found = [], page = 0, turn = 0;

async function refresh(start = 0) {
  const mine = ++turn, wanted = terms();
  if (wanted.length && words.length < index.ids.length) {
    $("found").textContent = "Searching…";
    if (!(await readWords(() => mine === turn))) return;
    if (mine !== turn) return;
  }
  const all = [...index.ids.keys()].filter(passes);
  found = arrange(all.filter((at) => wanted.every((term) => words[at].includes(term))));
  page = start;
  show();
}

function show() {
  const total = index.ids.length, last = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
  page = Math.min(page, last);
  const count = found.length.toLocaleString("en"), of = total.toLocaleString("en");
  $("found").textContent = found.length === total ? `${of} ${total === 1 ? "question" : "questions"}` : `${count} of ${of} questions`;
  const shown = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const none = el("p", { class: "aside" }, "No question fits. Take a filter away, or clear them all.");
  $("list").replaceChildren(...(shown.length ? shown.map(listQuestion) : [none]));
  $("pages").hidden = last === 0;
  $("page").textContent = `Page ${page + 1} of ${last + 1}`;
  $("before").disabled = page === 0;
  $("after").disabled = page === last;
  const filters = [...$("filters").elements].filter((field) => field.matches("input, select"));
  $("clear").disabled = filters.every((field) => field.value === "");
  highlight($("list"));
}

function listQuestion(at) {
  const [sign, look, told] = MARKS[index.marks[at]];
  const text = index.texts[at] || el("em", {}, "text not shown");
  const gold = index.golds[at], answer = index.answers[at];
  const sure = index.sure[at];
  const item = el("details", { class: "item" },
    el("summary", {},
      el("span", { class: `mark ${look}`, role: "img", "aria-label": told, title: told }, sign),
      el("span", { dir: "auto" }, el("span", { class: "asked" }, text), el("span", { class: "key" }, index.ids[at])),
      el("span", { class: "given", dir: "auto" }, answer ?? told,
        gold !== null && index.marks[at] !== "r" ? el("small", {}, `gold: ${gold}`) : null),
      el("span", { class: "sure", title: "confidence" }, sure === null ? "" : `${sure} %`, el("small", {}, index.disputed[at] === "1" ? "disputed" : "")),
    ),
  );
  item.addEventListener("toggle", async () => {
    if (!item.open) return;
    history.replaceState(null, "", `#q=${encodeURIComponent(index.ids[at])}`);
    if (item.childElementCount > 1) return;
    const place = el("div", { class: "opened" });
    item.append(place);
    place.append(...openQuestion(await fetchQuestion(at), index.texts[at]));
    highlight($("list"));
  });
  return item;
}

/** Marks what was searched for, without touching the texts. */
function highlight(root) {
  if (!window.Highlight || !CSS.highlights) return;
  const ranges = [], wanted = terms();
  const texts = wanted.length ? document.createTreeWalker(root, NodeFilter.SHOW_TEXT) : null;
  while (texts?.nextNode()) {
    const text = texts.currentNode.data.toLowerCase();
    if (text.length !== texts.currentNode.data.length) continue; // places would not fit
    for (const term of wanted) {
      for (let at = text.indexOf(term); at >= 0; at = text.indexOf(term, at + term.length)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, at);
        range.setEnd(texts.currentNode, at + term.length);
        ranges.push(range);
      }
    }
  }
  CSS.highlights.set("found", new Highlight(...ranges));
}

function turnPage(by) {
  page += by;
  show();
  $("questions").scrollIntoView();
}

/** Opens the question that the address names. */
function followAddress() {
  const named = /^#q=(.+)$/.exec(location.hash);
  if (!named) return;
  let id;
  try { id = decodeURIComponent(named[1]); } catch { return; }
  const place = found.indexOf(index.ids.indexOf(id));
  if (place < 0) return;
  page = Math.floor(place / PER_PAGE);
  show();
  const item = $("list").children[place % PER_PAGE];
  item.open = true;
  item.scrollIntoView();
}

function offerQuestions() {
  let waiting;
  $("filters").hidden = false;
  document.querySelector(".list-head").hidden = false;
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("change", () => refresh());
  $("filters").addEventListener("reset", () => setTimeout(refresh));
  $("find").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(refresh, 150);
  });
  $("before").addEventListener("click", () => turnPage(-1));
  $("after").addEventListener("click", () => turnPage(1));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    event.preventDefault();
    $("find").focus();
  });
  refresh();
  followAddress();
  addEventListener("hashchange", followAddress);
}

if (index) offerQuestions();
