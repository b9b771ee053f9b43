"use strict";
// The page around the questions: small helpers, light and dark, tables that sort.
// Everything that comes from data is put in as text; nothing is ever parsed as HTML.

const $ = (id) => document.getElementById(id);

/** An element with attributes and children; texts among them become text nodes. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** The same for drawings. */
function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

const remember = {
  get(name) {
    try { return localStorage.getItem(`expertmix-${name}`); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(`expertmix-${name}`, value); } catch { /* a page on disk may keep nothing */ }
  },
};

function offerTheme() {
  const button = $("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = remember.get("theme");
  const show = () => {
    const theme = chosen === "dark" || chosen === "light" ? chosen : system.matches ? "dark" : "light";
    document.documentElement.dataset.theme = theme;
    const next = theme === "dark" ? "Light" : "Dark";
    button.textContent = next;
    button.setAttribute("aria-label", `Switch to ${next.toLowerCase()} colours`);
  };
  button.addEventListener("click", () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remember.set("theme", chosen);
    show();
  });
  system.addEventListener("change", show);
  button.hidden = false;
  show();
}

/** Compares two cells' values: numbers as numbers, and what is missing last in either direction. */
function compare(one, other, down) {
  if (one === "" || other === "") return (one === "") - (other === "");
  const [first, second] = [Number(one), Number(other)];
  const order = Number.isNaN(first) || Number.isNaN(second) ? one.localeCompare(other) : first - second;
  return down ? -order : order;
}

function offerSorting(table) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = head.querySelector(".sort");
    if (!button) return;
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const isFigure = head.classList.contains("figure");
      const down = before ? before === "ascending" : isFigure;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? "";
      const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
      rows.sort((one, other) => compare(value(one), value(other), down));
      const totals = [...body.rows].filter((row) => row.classList.contains("total"));
      body.append(...rows, ...totals);
    });
  });
}

function offerColumns() {
  const button = $("more");
  if (!button) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    const shown = document.querySelector("table.methods").classList.toggle("show-extra");
    button.setAttribute("aria-pressed", String(shown));
    button.textContent = shown ? "Fewer columns" : "More columns";
  });
}

offerTheme();
offerColumns();
document.querySelectorAll("table.sortable").forEach(offerSorting);
