// One question in full, from what `fetchQuestion` gives.

const percent = (share) => `${Math.round(100 * share)} %`;
const signs = { true: ["✓", "is-right", "right"], false: ["✗", "is-wrong", "wrong"] };

function sign(right) {
  if (right === null || right === undefined) return null;
  const [mark, look, told] = signs[right];
  return el("span", { class: `mark ${look}`, role: "img", "aria-label": told, title: told }, mark);
}

function titled(title, ...content) {
  return el("div", {}, el("h4", {}, title), ...content);
}

/** The parts of an open question, from what was asked to what other methods said. */
function openQuestion(question, listed) {
  return [
    tellAsked(question, listed),
    tellVerdict(question),
    question.skills.length ? titled("Skills", tellSkills(question.skills)) : null,
    question.experts.length ? titled("Recruited, and what they said", tellVoices(question)) : null,
    tellTrouble(question),
    question.aggregation ? titled("The merging model", ...tellSaid(question.aggregation, question.aggregationLength)) : null,
    question.others.some(Boolean) ? titled("Other methods", tellOthers(question.others)) : null,
  ].filter(Boolean);
}

function tellAsked(question, listed) {
  const text = question.text
    ? question.text === listed ? "" : el("p", { class: "full", dir: "auto" }, question.text)
    : el("p", { class: "veiled" }, "The text of this question is not shown.");
  const part = el("div", {}, text || null);
  if (question.options.length) {
    part.append(el("ul", { class: "options" }, ...question.options.map((option, at) => tellOption(question, option, at))));
  } else if (question.gold !== null) {
    part.append(el("p", {}, "Gold answer: ", el("b", { dir: "auto" }, question.gold)));
  }
  return part;
}

function tellOption(question, option, at) {
  const letter = String.fromCharCode(65 + at);
  const isGold = letter === question.gold, isAnswer = letter === question.answer;
  const roles = [isGold ? "gold" : "", isAnswer ? "answer" : ""].filter(Boolean).join(", ");
  const look = isGold ? "is-gold" : isAnswer && question.gold !== null ? "is-missed" : null;
  return el("li", { class: look }, el("b", {}, letter), el("span", { dir: "auto" }, option), el("small", {}, roles));
}

const METHODS = {
  posterior: "weighed by what is known of the experts",
  vote: "by vote",
  model: "merged by a model",
  none: "no readable answer",
};

function tellVerdict(question) {
  const how = METHODS[question.method] ?? question.method;
  const answer = question.answer ?? (question.abstained ? "abstained" : "no answer");
  const verdict = el("p", {}, el("b", { dir: "auto" }, answer),
    how ? `, ${how}` : "", question.confidence === null ? "" : `, confidence ${percent(question.confidence)}`,
    question.note ? `. ${question.note}` : "");
  const hasChances = question.votes.some((vote) => vote[2] !== null);
  const heads = ["Answer", "Given by", hasChances ? "Chance to be right" : null, ""].filter((head) => head !== null);
  const rows = question.votes.map(([given, who, chance, right, isVerdict]) =>
    el("tr", {},
      el("th", { scope: "row", class: "words", dir: "auto" }, isVerdict ? el("b", {}, given) : given),
      el("td", { class: "words" }, who.join(", ") || "the merging model"),
      hasChances ? el("td", {}, chance === null ? "—" : percent(chance)) : null,
      el("td", { class: "words" }, sign(right), isVerdict ? " verdict" : " dissent")));
  const table = el("table", {},
    el("thead", {}, el("tr", {}, ...heads.map((head, at) => el("th", { scope: "col", class: at === 2 && hasChances ? "figure" : "words" }, head)))),
    el("tbody", {}, ...rows));
  return titled("Verdict", verdict, rows.length ? el("div", { class: "scroll" }, table) : null);
}

function tellSkills(skills) {
  const chips = skills.map(([name, share]) => el("li", {}, name, share === null ? "" : ` ${percent(share)}`));
  return el("ul", { class: "chips" }, ...chips);
}

function tellVoices(question) {
  return el("div", { class: "voices" }, ...question.experts.map(tellVoice));
}

function tellVoice(row) {
  const turn = [
    row.round !== undefined ? `round ${row.round}` : "",
    row.agent !== undefined ? `agent ${row.agent}` : "",
    row.sample ? `sample ${row.sample + 1}` : "",
  ].filter(Boolean).join(", ");
  const tokens = !row.tokens[1] ? "" : `${row.tokens[1].toLocaleString("en")} tokens`;
  const answer = row.answer ?? (row.error === null ? "unreadable" : "failed");
  const weight = row.weight === null ? "" : `weight ${row.weight.toFixed(2)}`;
  return el("article", { class: "voice" },
    el("header", {}, el("b", {}, row.expert), el("span", { dir: "auto" }, sign(row.right), ` ${answer}`)),
    el("p", {}, [turn, weight, tokens].filter(Boolean).join(" · ")),
    row.reason ? el("p", {}, `Why: ${row.reason}`) : null,
    row.error === null ? null : el("p", { class: "is-wrong" }, row.error),
    ...tellSaid(row.text, row.length),
    row.remix ? tellRemix(row.remix) : null);
}

function tellSaid(text, length) {
  if (!text) return [];
  const cut = length ? el("p", {}, `The last ${text.length.toLocaleString("en")} of ${length.toLocaleString("en")} characters:`) : null;
  return [cut, el("pre", { class: "said", dir: "auto", tabindex: "0" }, text)].filter(Boolean);
}

function tellRemix(remix) {
  const [before, after] = remix.letters, [was, is] = remix.shares;
  const best = (shares) => (shares.length ? ` (${percent(Math.max(...shares))})` : "");
  const letters = before || after ? `${before}${best(was)} → ${after}${best(is)}` : "";
  const near = remix.neighbours.map(([name, similarity]) => `${name} ${similarity.toFixed(2)}`).join(", ");
  const fall = remix.curve.length > 1 ? `loss of the neighbours ${remix.curve[0]} → ${remix.curve.at(-1)} in ${remix.curve.length - 1} steps` : "";
  return el("div", {},
    el("p", {}, ["Re-mixing", remix.verdict].filter(Boolean).join(": "), letters ? ` · ${letters}` : ""),
    near ? el("p", {}, `Neighbours: ${near}`) : null,
    fall ? el("p", {}, fall) : null,
    remix.pathway ? el("div", { class: "strips" }, ...["before", "after"].map((name, at) =>
      el("div", {}, name, drawStrip(remix.pathway[at], `Pathway ${name}: a row per layer, a cell per expert`)))) : null);
}

function drawStrip(rows, label) {
  const wide = Math.max(3, Math.min(10, Math.floor(260 / rows[0].length))), high = 8;
  const [width, height] = [wide * rows[0].length, high * rows.length];
  const cells = rows.flatMap((row, layer) => [...row].map((digit, at) => digit === "0" ? null
    : draw("rect", { class: `heat${digit}`, x: at * wide, y: layer * high, width: wide - 0.5, height: high - 0.5 })));
  const ground = draw("rect", { class: "strip-ground", width, height });
  return draw("svg", { class: "strip", role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}` },
    ground, ...cells.filter(Boolean));
}

function tellTrouble(question) {
  const lines = question.missing.map(([name, why]) => `${name} failed${why ? `: ${why}` : ""}`);
  if (question.unread.length) lines.push(`No answer could be read from ${question.unread.join(", ")}.`);
  return lines.length ? titled("Trouble", ...lines.map((line) => el("p", {}, line))) : null;
}

function tellOthers(others) {
  const chips = others.map((pair, at) => pair && el("li", {}, el("b", {}, index.labels[at]), " ", pair[0] ?? "no answer", " ", sign(pair[1])));
  return el("ul", { class: "chips" }, ...chips.filter(Boolean));
}
