// Small pieces that several sections use.

import { h, type Child, type Props, type VNode } from "./dom";
import type { Status } from "./types";

const MARKS: Record<Status, string> = { UP: "●", DOWN: "✖", DRAIN: "◐", MAINT: "■", INI: "○" };

/** HAProxy's word with a mark: never the colour alone. */
export function status(of: Status): VNode {
  return h("span", { class: `status ${of.toLowerCase()}` }, h("span", { "aria-hidden": "true" }, `${MARKS[of]} `), of);
}

export function section(id: string, title: string, props: Props | null, ...children: Child[]): VNode {
  return h("section", { key: id, id, "aria-labelledby": `${id}-title`, ...props }, h("h2", { id: `${id}-title` }, title), ...children);
}

/** `isLong`: it gets the whole width of a card. */
export interface Column<T> { title: string; isNumber?: boolean; isLong?: boolean; cell: (row: T) => Child }

/** How wide a panel must be for a table: page.css has a width for each. */
function size(columns: number): string {
  return columns <= 4 ? "few" : columns <= 6 ? "some" : columns <= 9 ? "more" : "many";
}

/** Long names may be broken after such signs, and nowhere else. */
export function breakable(text: string): Child[] {
  return text.split(/(?<=[.,/:_@=-])/).map((part, index) => index ? [h("wbr"), part] : part);
}

/**
 * A table, and cards where its panel is too narrow for it: page.css. The roles are said because cards are no tables to
 * a browser.
 */
export function table<T>(caption: string, columns: Column<T>[], rows: T[], key: (row: T) => string, empty: string): VNode {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const cell = (column: Column<T>, row: T, index: number) => h(index === 0 ? "th" : "td", {
    scope: index === 0 ? "row" : null, role: index === 0 ? "rowheader" : "cell", class: column.isNumber ? "number" : column.isLong ? "long" : null,
    "data-label": column.title,
  }, column.cell(row));
  return h("div", { class: "panel" }, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, as a table` },
    h("table", { role: "table", class: size(columns.length), "aria-label": caption },
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((column) => h("th", { scope: "col", role: "columnheader", class: column.isNumber ? "number" : null }, column.title)))),
      h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { key: key(row), role: "row" }, columns.map((column, index) => cell(column, row, index))))))));
}

export function filter(id: string, label: string, value: string, set: (value: string) => void): VNode {
  return h("label", { class: "filter" }, `${label} `, h("input", {
    id, type: "search", value, spellcheck: "false", autocomplete: "off", maxlength: "200",
    oninput: (event: Event) => set((event.target as HTMLInputElement).value),
  }));
}

/** Each word occurs somewhere in the text. */
export function matches(words: string, ...text: (string | number | null)[]): boolean {
  const all = text.join(" ").toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => all.includes(word));
}
